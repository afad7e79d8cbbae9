"""Where temporary files are made, and what is said if they cannot be."""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from virnuc_async.fileio import Directory, writing_to

ANOTHER_TMPDIR = "Make room there, or set TMPDIR to a directory with more"
_TEMPORARY = "temporary files"


def open_scratch(temporary_dir: Path | None, own: Directory, undo: ExitStack) -> Directory:
    """
    Return the directory for temporary files: *temporary_dir*, which *undo* closes, else *own*.

    Raises:
        CannotWrite: it is missing
    """
    if temporary_dir is None:
        return own
    with writing_to(temporary_dir, _TEMPORARY):
        return undo.enter_context(Directory(temporary_dir))


def temporary_files(directory: Directory, what: str = _TEMPORARY) -> AbstractContextManager[None]:
    """Turn an OSError raised inside into CannotWrite, about *what*, which is in *directory* for a while."""
    return writing_to(directory.path, what, ANOTHER_TMPDIR)
