"""
The tables as VirNucPro lays them out: for each input a directory ``{stem}_merged`` with two of them.

These are the tables of a run on this input alone, and the fragments have their highest scores. The
directories are inside the output directory of the run, whose own files stay where they are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from virnuc_async.fileio import Directory
from virnuc_async.runs.blocks import Block
from virnuc_async.runs.output_directory import HIGHEST_SCORES, PREDICTIONS, refuse_names, remove_merged
from virnuc_async.runs.reader import BlockReader, RunReader
from virnuc_async.sequences.inputs import stem

from .columns import Chunks
from .fragments import scored_fragment_chunks
from .output_files import FinishedRun
from .predictions import prediction_chunks
from .table_files import TableFiles
from .written import Written

_TABLES: tuple[tuple[str, Callable[[BlockReader], Chunks]], ...] = (
    (PREDICTIONS, prediction_chunks),
    (HIGHEST_SCORES, scored_fragment_chunks),
)


class OneInput:
    """The records of the input *number* of a run."""

    def __init__(self, reader: RunReader, number: int) -> None:
        self._reader = reader
        self._number = number

    @property
    def scratch(self) -> Directory:
        """Where temporary files are made."""
        return self._reader.scratch

    def blocks(self) -> Iterator[Block]:
        """Yield every record with its scored ORFs."""
        return self._reader.blocks(self._number)


def directory_names(paths: Iterable[str]) -> list[str]:
    """Return the name of the directory of each input; of those with one stem the second has a 2 in it."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        plain, number = stem(path), 1
        name = f"{plain}_merged"
        while name in taken:
            number += 1
            name = f"{plain}_{number}_merged"
        taken.add(name)
        names.append(name)
    return names


def require_free_layout(directory: Path, paths: Sequence[str]) -> None:
    """
    Check that *directory*, in which there is no run, has none of the directories for the inputs *paths*.

    Raises:
        ForeignDirectoryError: it has; they may be VirNucPro's
    """
    refuse_names(directory, [name for name in directory_names(paths) if (directory / name).exists()])


def write_layout(run: FinishedRun, files: TableFiles, before_each: Callable[[], None] = lambda: None) -> None:
    """Write the directories of *run*, if they are wanted, with *files*; *before_each* as for these."""
    if run.options.layout is None:
        return
    for number, name in enumerate(directory_names(run.reader.paths())):
        for table, chunks in _TABLES:
            files.write(f"{name}/{table}", chunks(OneInput(run.reader, number)), before_each)


def remove_earlier_layout(run: FinishedRun, written: Written | None, files: TableFiles) -> None:
    """Remove what was *written* for inputs that *run* had earlier and has no more, if it has a layout."""
    if run.options.layout is not None and written is not None:
        remove_merged(files.directory, set(written.files) - files.made)
