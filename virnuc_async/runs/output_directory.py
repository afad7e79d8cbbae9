"""The files of an output directory, and whether a directory is new, ours or somebody else's."""

from collections.abc import Callable
from pathlib import Path

from virnuc_async.errors import ForeignDirectoryError
from virnuc_async.fileio import USE_ANOTHER_DIRECTORY, list_names, sync_directory

STORE = "run.sqlite3"
DAMAGED = f"{STORE}.damaged"  # the copy that a repair makes before it replaces the store
FEATURES = "merged_features.partial"  # while a run proceeds
MERGED_FEATURES = "merged_features.pt"
OUTPUT_FILES = (
    "prediction_results.txt",
    "prediction_results_highestscore.csv",
    "contigs.tsv",
    "pairs.tsv",
    "failed_files.txt",
    MERGED_FEATURES,
    FEATURES,
    "summary.json",
    "report.html",
    "run.log",
    DAMAGED,
)

_MOST_NAMED = 5  # files in one message


def is_written_name(name: str) -> bool:
    """Return whether a run writes a file called *name* into its directory, at its end or on the way to it."""
    plain = name.removeprefix(".").removesuffix(".partial")
    return plain in OUTPUT_FILES or name in OUTPUT_FILES or name.removeprefix(".").startswith(STORE)


def require_free_names(
    directory: Path, is_written: Callable[[str], bool], contents: str, hint: str = USE_ANOTHER_DIRECTORY
) -> None:
    """
    Check that nothing in *directory*, which need not exist, has a name that *is_written* accepts.

    Files of other names stay where they are: the log of a job, for example. *contents* is what was
    expected there and *hint* what to do, both for the message.

    Raises:
        ForeignDirectoryError: it has such files, or it is not a directory
    """
    if taken := list_names(directory, is_written):
        named = ", ".join(map(repr, taken[:_MOST_NAMED]))
        more = f" and {len(taken) - _MOST_NAMED:,} more" if len(taken) > _MOST_NAMED else ""
        reason = f"contains {named}{more} and no {contents}, which would write files of these names. {hint}"
        raise ForeignDirectoryError(str(directory), reason)


def claim_directory(directory: Path) -> None:
    """
    Create *directory*, or check that it contains a store or nothing that a run would overwrite.

    Raises:
        ForeignDirectoryError: it contains files with names of ours, but no store
        OSError: it cannot be created or read
    """
    require_claimable(directory)
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_directory(path.parent)


def require_claimable(directory: Path) -> None:
    """
    Check that a run can have *directory*, as far as that is known without writing.

    Raises:
        ForeignDirectoryError: it contains files with names of ours, but no store; or it cannot be a directory
        OSError: it cannot be read
    """
    store = directory / STORE
    if store.is_symlink():
        reason = f"its {STORE} is a link to somewhere else. {USE_ANOTHER_DIRECTORY}"
        raise ForeignDirectoryError(str(directory), reason)
    # Without a store, no file is known to be ours, whatever its name. Only a lock may be there: a
    # process that is killed right after it started leaves one and nothing else.
    if not store.is_file():
        require_free_names(directory, is_written_name, "run of this program")
