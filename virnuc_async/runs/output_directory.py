"""The files of an output directory, and whether a directory is new, ours or somebody else's."""

from collections.abc import Callable
from pathlib import Path

from virnuc_async.errors import ForeignDirectoryError
from virnuc_async.fileio import USE_ANOTHER_DIRECTORY, list_foreign_files, sync_directory

from .lock import LOCK

STORE = "run.sqlite3"
DAMAGED = f"{STORE}.damaged"  # the copy that a repair makes before it replaces the store
FEATURES = "merged_features.partial"
OUTPUT_FILES = (
    "prediction_results.txt",
    "prediction_results_highestscore.csv",
    "contigs.tsv",
    "pairs.tsv",
    "failed_files.txt",
    "merged_features.pt",
    FEATURES,
    "summary.json",
    "report.html",
    "run.log",
    DAMAGED,
)


def require_own_directory(
    directory: Path, is_ours: Callable[[str], bool], contents: str, hint: str = USE_ANOTHER_DIRECTORY
) -> None:
    """
    Check that *directory* does not exist or contains only files whose names *is_ours* accepts.

    *contents* is what was expected there and *hint* what to do, both for the message.

    Raises:
        ForeignDirectoryError: it contains other files, or is not a directory
    """
    foreign = list_foreign_files(directory, is_ours)
    if foreign:
        raise ForeignDirectoryError(str(directory), f"contains {foreign[0]!r} and no {contents}. {hint}")


def claim_directory(directory: Path) -> None:
    """
    Create *directory*, or check that it is empty or contains a store.

    Raises:
        ForeignDirectoryError: it contains something else
        OSError: it cannot be created or read
    """
    store = directory / STORE
    if store.is_symlink():
        reason = f"its {STORE} is a link to somewhere else. {USE_ANOTHER_DIRECTORY}"
        raise ForeignDirectoryError(str(directory), reason)
    if store.is_file():
        return
    # Without a store, no file is known to be ours, whatever its name. Only a lock may be there: a
    # process that is killed right after it started leaves one and nothing else.
    require_own_directory(directory, lambda name: name.startswith(LOCK), "run of this program")
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_directory(path.parent)
