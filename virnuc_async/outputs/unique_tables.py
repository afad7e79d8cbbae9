"""The tables of VirNucPro's container: of ORFs and of fragments, with a name of its own for each record."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from virnuc_async.fileio import atomic_write, writing_to
from virnuc_async.runs.blocks import Block
from virnuc_async.runs.reader import BlockReader
from virnuc_async.runs.store import open_finished

from .columns import Chunks
from .fragments import scored_fragment_chunks
from .predictions import prediction_chunks


def write_unique_tables(directory: Path, predictions: Path, temporary_dir: Path | None = None) -> None:
    """
    Write the tables of the finished run in *directory*: *predictions*, and beside it that of fragments.

    That one, with the highest scores, has the same name with ``_highestscore.csv`` for ``.tsv``. Temporary
    files are made in *directory*, or in *temporary_dir*.

    Raises:
        NoRun, DirectoryLockedError, DamagedStore: the run
        CannotWrite: the tables
    """
    fragments = predictions.with_name(f"{predictions.name.removesuffix('.tsv')}_highestscore.csv")
    with closing(open_finished(directory, temporary_dir)) as store:
        reader = UniqueNames(store.reader)
        # What everybody waits for is the last: when it is there, both are.
        _write(fragments, scored_fragment_chunks(reader))
        _write(predictions, prediction_chunks(reader))


def _write(path: Path, chunks: Chunks) -> None:
    with closing(chunks), writing_to(path), atomic_write(path) as file:
        file.writelines(chunks)


class UniqueNames:
    """
    What *reader* reads, with a name of its own for each record.

    Of records with one name the first keeps it, and the others get the first free one of name_1, name_2, ...
    It is the same each time, and takes memory for all names.
    """

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self.scratch = reader.scratch

    def blocks(self) -> Iterator[Block]:
        """Yield every record with its scored ORFs."""
        taken: set[bytes] = set()
        last: dict[bytes, int] = {}  # of a name, the number that it was given last, unless that is 1 or none
        for block in self._reader.blocks():
            names = block.ids.split(b"\n")[:-1]
            for row, name in enumerate(names):
                number = last.get(name, 0)
                while names[row] in taken:
                    number += 1
                    names[row] = b"%s_%d" % (name, number)
                if number > 1:
                    last[name] = number
                taken.add(names[row])
            yield replace(block, ids=b"\n".join([*names, b""]))
