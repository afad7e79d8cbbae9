"""The files of an output directory, and whether a directory is new, ours or somebody else's."""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from stat import S_ISLNK, S_ISREG

from virnuc_async.errors import ForeignDirectoryError
from virnuc_async.fileio import USE_ANOTHER_DIRECTORY, Directory, list_names, sync_directory

STORE = "run.sqlite3"
PLAN = "plan.json"  # of a run of many machines, whose stores are in directories of their own
DAMAGED = f"{STORE}.damaged"  # the copy that a repair makes before it replaces the store
OPENING = ".open-"  # begins the names under which SQLite opens a file, for a moment
FEATURES = "merged_features.partial"  # while a run proceeds
MERGED_FEATURES = "merged_features.pt"
SHARD_FILE = "shard.json"  # of the part of a run that a shard is
OVERVIEW_FILE = "overview.npz"  # and what a report shows of it
MERGED = "merge.json"  # where the tables of all shards are
PREDICTIONS, HIGHEST_SCORES = "prediction_results.txt", "prediction_results_highestscore.csv"
# Of every run.
TABLES = (
    PREDICTIONS,
    HIGHEST_SCORES,
    "contigs.tsv",
    "fragments.tsv",
)
# With viral records, and the two mates of viral pairs.
VIRAL_FILES = tuple(f"viral{role}.{kind}" for kind in ("fasta", "fastq") for role in ("", "_R1", "_R2"))
# The same tables, and others, in other formats.
_STEMS = ("predictions", "fragments", "contigs", "contig_calls", "pairs")
OUTPUT_FILES = (
    *TABLES,
    *(f"{stem}.{ending}" for stem in _STEMS for ending in ("parquet", "jsonl")),
    "contig_calls.tsv",
    "regions.bed",
    "regions.gff3",
    *VIRAL_FILES,
    "pairs.tsv",
    "samples.tsv",
    "failed_files.txt",
    MERGED_FEATURES,
    FEATURES,
    "summary.json",
    SHARD_FILE,
    OVERVIEW_FILE,
    MERGED,
    "report.html",
    "virnuc_mqc.json",
    "virnuc_statistics_mqc.json",
    "run.log",
    "progress.json",
    DAMAGED,
)

# In the directories of VirNucPro's layout.
_IN_MERGED = re.compile(rf"(?P<directory>[^/\0]+_merged)/(?P<name>{PREDICTIONS}|{HIGHEST_SCORES})")
_MOST_NAMED = 5  # files in one message
_RUN = "run of this program"


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
    _refuse(str(directory), list_names(directory, is_written), contents, hint)


def _refuse(directory: str, taken: Sequence[str], contents: str, hint: str = USE_ANOTHER_DIRECTORY) -> None:
    if taken:
        named = ", ".join(map(repr, taken[:_MOST_NAMED]))
        more = f" and {len(taken) - _MOST_NAMED:,} more" if len(taken) > _MOST_NAMED else ""
        reason = f"contains {named}{more} and no {contents}, which would write files of these names. {hint}"
        raise ForeignDirectoryError(directory, reason)


def refuse_names(directory: Path, taken: Sequence[str]) -> None:
    """
    Check that there are no names *taken* in *directory*, in which there is no run.

    Raises:
        ForeignDirectoryError: there are
    """
    _refuse(str(directory), taken, _RUN)


def is_in_merged(name: str) -> bool:
    """Return whether *name* is that of a table in a directory of VirNucPro's layout."""
    return _IN_MERGED.fullmatch(name) is not None


def remove_merged(directory: Directory, names: Iterable[str]) -> None:
    """Remove those of *names* that are in directories of VirNucPro's layout, and these if nothing else is."""
    for found in filter(None, map(_IN_MERGED.fullmatch, sorted(names))):
        with suppress(OSError):  # what is no directory, or gone, or has other files in it, stays
            with directory.subdirectory(found["directory"]) as inner:
                inner.unlink(found["name"])
            directory.remove_empty(found["directory"])


def claim_directory(path: Path) -> Directory:
    """
    Open the directory *path*, which is created, or contains a store or nothing that a run would overwrite.

    Raises:
        ForeignDirectoryError: it contains files with names of ours, but no store
        OSError: it cannot be created or read
    """
    require_claimable(path)
    missing = [above for above in (path, *path.parents) if not above.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for above in missing:
        sync_directory(above.parent)
    with ExitStack() as undo:
        directory = undo.enter_context(Directory(path))
        _require_claimable(directory)
        undo.pop_all()
    return directory


def require_claimable(path: Path) -> None:
    """
    Check that a run can have the directory *path*, as far as that is known without writing.

    Raises:
        ForeignDirectoryError: it contains files with names of ours, but no store; or it cannot be a directory
        OSError: it cannot be read
    """
    if path.is_dir():
        with Directory(path) as directory:
            _require_claimable(directory)
    else:
        list_names(path, is_written_name)


def _require_claimable(directory: Directory) -> None:
    store = directory.stat(STORE)
    if store is not None and S_ISLNK(store.st_mode):
        reason = f"its {STORE} is a link to somewhere else. {USE_ANOTHER_DIRECTORY}"
        raise ForeignDirectoryError(str(directory), reason)
    if store is None and directory.is_file(PLAN):
        how = f"virnuc-async predict --plan {directory} --shard NUMBER/COUNT"
        reason = f"has the plan of a run of many machines ({PLAN}), which goes on with: {how}"
        raise ForeignDirectoryError(str(directory), f"{reason}. {USE_ANOTHER_DIRECTORY}")
    # Without a store, no file is known to be ours, whatever its name. Only a lock may be there: a
    # process that is killed right after it started leaves one and nothing else.
    if store is None or not S_ISREG(store.st_mode):
        _refuse(str(directory), [name for name in directory.names() if is_written_name(name)], _RUN)
