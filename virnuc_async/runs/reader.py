"""What a run has computed so far, in the order of its input."""

import heapq
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import Stage
from virnuc_async.fileio import Directory
from virnuc_async.sequences.segments import first_window

from .blocks import SCORE, Block
from .device_history import HISTORY, DeviceHistory
from .failure import Failure
from .rows import FINGERPRINT, BatchRow, FileEnd, InvalidRow, WindowOrder, WindowRow, decode_scores
from .store_rows import LAST, ReadsEmbeddings, RunRows
from .totals import Totals, add_up


@dataclass(frozen=True, slots=True)
class FileLine:
    """An input; *contigs* is None until it was read, to its end or to where it broke."""

    path: str
    contigs: int | None
    failed: bool


class _Location(NamedTuple):
    """Where the records of a file are: its windows, both included, and the first of its records."""

    first_window: int
    last_window: int
    first: int
    end: FileEnd


class BlockReader(Protocol):
    """What tables of ORFs and fragments are made from."""

    @property
    def scratch(self) -> Directory:
        """Where temporary files are made."""

    def blocks(self) -> Iterator[Block]:
        """Yield records with their scored ORFs, in input order."""


class RunReader:
    """
    Reads the *rows* of a run in input order; use from one thread at a time.

    Raises, from every method:
        DamagedStore: a part of the store cannot be read, makes no sense, or is missing
    """

    def __init__(self, rows: RunRows, min_length: int = 0) -> None:
        self._rows = rows
        self.min_length = min_length  # bases of the records that :meth:`blocks` yields
        self._found: tuple[int, list[_Location]] = (-1, [])  # the changes of the store so far, and its files

    @property
    def directory(self) -> Directory:
        """The output directory of the run."""
        return self._rows.directory

    @property
    def scratch(self) -> Directory:
        """Where temporary files are made."""
        return self._rows.scratch

    def at_least(self, min_length: int) -> "RunReader":
        """Return a reader of the same store that leaves out records of fewer than *min_length* bases."""
        return RunReader(self._rows, min_length)

    def blocks(self, file: int | None = None) -> Iterator[Block]:
        """
        Yield every record of at least ``min_length`` bases, with its scored ORFs, about a window at a time.

        If *file*, the number of an input, is given, yield its records only.
        """
        for block in self.all_blocks(file):
            if (long := block.at_least(self.min_length)).ids:
                yield long

    def all_blocks(self, file: int | None = None) -> Iterator[Block]:
        """Yield every record that was read as :meth:`blocks` does, of any length."""
        # A record may run through many windows: they are gathered until another one begins.
        parts: list[Block] = []
        with closing(self._windows() if file is None else self._windows_of(file)) as windows:
            for window in windows:
                parts.append(window)
                if window.ids:
                    complete, last = self._joined(parts).split_last()
                    parts = [last]
                    if complete.ids:
                        yield complete
        if parts and parts[0].ids:
            yield self._joined(parts)

    def ids(self, file: int) -> Iterator[list[bytes]]:
        """Yield the ids of all records of *file* that were read, a window at a time, without their scores."""
        place = self._locate_file(file)
        with closing(self.windows(place.first_window, place.last_window)) as windows:
            for window in windows:
                block = Block(window.contigs, window.ids, np.empty(0, SCORE))
                yield block.within(place.first, place.first + place.end.contigs).ids.split(b"\n")[:-1]

    def kinds(self) -> list[str | None]:
        """Return of which kind the records of each input are; None where it was not noted."""
        count = len(self.paths())
        kinds: list[str | None] = self._rows.meta("kinds") or [None] * count
        self._require(len(kinds) == count, "the kinds of inputs are missing")
        return kinds

    def failures_by_file(self) -> Counter[int]:
        """Return how many failures each input has, by its number."""
        if not self._may_have_failures():
            return Counter()
        counts = Counter(place.end.number for place in self._locate_files() if place.end.reason is not None)
        counts.update(file for file, *_ in self._failed_orfs())
        return counts

    def windows(
        self, first: int | None = None, last: int | None = None, are_all: bool = True
    ) -> Generator[WindowRow, None, None]:
        """
        Yield each window from number *first* to *last*; by default from the first one, to the last one.

        Unless *are_all*, some may be missing, as after a repair.
        """
        files, count, number = len(self.paths()), 0, None
        order = WindowOrder.of(self._rows.span) if first is None else WindowOrder(first - 1)
        with closing(self._rows.windows(first or 0, LAST if last is None else last)) as windows:
            for window in windows:
                if not are_all and not order.expects(window.number):
                    order = WindowOrder(window.number - 1)
                self._require(order.is_next(window), "windows or records are missing")
                self._require(window.last_file < files, "a record or a failure is of an unknown file")
                count, number = count + 1, window.number
                yield window
        sealed = self._sealed()
        is_end = number == last if last is not None else sealed is None or first or count == sealed.windows
        self._require(bool(is_end), "windows are missing")

    def paths(self) -> list[str]:
        """Return the path of every input, in order."""
        paths = self._rows.meta("paths")
        self._require(paths is not None, "the names of its inputs are missing")
        return list(paths)

    def device_history(self) -> DeviceHistory:
        """Return what each device has done over time; nothing of versions that did not keep it."""
        return DeviceHistory.from_json(self._rows.meta(HISTORY))

    def files(self) -> Iterator[FileLine]:
        """Yield every input, in order."""
        ends = {place.end.number: place.end for place in self._locate_files()}
        for number, path in enumerate(self.paths()):
            end = ends.get(number)
            yield FileLine(path, end and end.contigs, bool(end and end.reason is not None))

    def failures(self) -> Iterator[Failure]:
        """Yield every failure of the run, in the order of the input."""
        if not self._may_have_failures():
            return
        paths = self.paths()
        ends = (place.end for place in self._locate_files())
        files = ((end.number, -1, Stage.INPUT, end.reason) for end in ends if end.reason is not None)
        for file, _, stage, message in heapq.merge(files, self._failed_orfs()):
            self._require(file < len(paths), "a failure is of an unknown file")
            yield Failure(paths[file], Stage(stage), message)

    def totals(self) -> Totals:
        """Return how much there is: of a finished run, how much it was finished with."""
        return self._sealed() or self.add_up()[0]

    def all_batches(self) -> Generator[BatchRow, None, None]:
        """Yield each batch, in any order."""
        return self._rows.all_batches()

    def fingerprints(self) -> Iterator[NDArray[np.uint64]]:
        """Yield what the embeddings of a window are known by, in the order of its ORFs, for each window."""
        with closing(self.windows()) as windows:
            for window in windows:
                batches, scores = self._scores(window)
                known = np.frombuffer(b"".join([batch.fingerprints for batch in batches]), FINGERPRINT)
                self._require(len(known) in (0, len(scores)), "fingerprints of embeddings are missing")
                orfs = np.frombuffer(b"".join([batch.scores for batch in batches]), SCORE)["orf"]
                yield known[np.argsort(orfs)]

    def embeddings(self, width: int) -> AbstractContextManager[ReadsEmbeddings]:
        """Open the embeddings of the run, each of *width* numbers."""
        return self._rows.embeddings(width)

    def add_up(self) -> tuple[Totals, bool]:
        """Read and add up everything; return also whether each window has all of its batches."""
        are_all = self._sealed() is not None
        with closing(self.windows(are_all=are_all)) as windows, closing(self.all_batches()) as batches:
            try:
                return add_up(windows, batches, self._rows.span.first_segment)
            except InvalidRow as error:
                raise self._rows.damage(str(error)) from error

    def window_count(self, first: int = 0) -> int:
        """Return the number of windows from number *first* on."""
        return self._rows.window_count(first)

    def window(self, number: int) -> WindowRow | None:
        """Return a window, or None."""
        with closing(self._rows.windows(number, number)) as windows:
            return next(windows, None)

    def batches(self, window: int) -> list[BatchRow]:
        """Return what there is of *window*, in any order."""
        return self._rows.batches(window)

    def _may_have_failures(self) -> bool:
        """Return False if it is known, without reading every batch, that there is none."""
        sealed = self._sealed()
        return sealed is None or bool(sealed.failures)

    def _failed_orfs(self) -> Iterator[tuple[int, int, str, str]]:
        """Yield the file, the number, the stage and the message of each ORF that failed, in order."""
        with closing(self.windows()) as windows:
            for window in windows:
                batches, _ = self._scores(window)
                failed = sorted(one for batch in batches for one in batch.failures)
                yield from ((one.file, one.orf, one.stage, one.message) for one in failed)

    def _sealed(self) -> Totals | None:
        """Return what a finished run was finished with."""
        value = self._rows.meta("finished")
        return value and Totals.from_json(value)

    def _locate_file(self, file: int) -> _Location:
        places = self._locate_files()
        first = self._rows.span.first_file
        row, last = file - first, first + len(places) - 1
        is_known = 0 <= row < len(places) and places[-1].end.number == last
        self._require(is_known, "a file was not read to its end")
        return places[row]

    def _locate_files(self) -> list[_Location]:
        """Return where the records of each file are, of those that were read to their end."""
        changes, places = self._found
        if changes != self._rows.changes:
            places = self._find_files()
            self._found = (self._rows.changes, places)
        return places

    def _find_files(self) -> list[_Location]:
        # A file ends in the window with the end of its last record, or with the next record.
        places: list[_Location] = []
        span, is_sealed = self._rows.span, self._sealed() is not None
        window, first = first_window(span.first_segment), span.first_contig - span.first_record
        with closing(self.windows(are_all=is_sealed)) as windows:
            for row in windows:
                for end in row.files:
                    is_next = end.number == span.first_file + len(places)
                    self._require(is_next or not is_sealed, "a file is missing")
                    places.append(_Location(window, row.number, first, end))
                    window, first = row.number, first + end.contigs
        return places

    def _windows_of(self, file: int) -> Generator[Block, None, None]:
        """Yield the part of each window that belongs to *file*."""
        place, count = self._locate_file(file), 0
        with closing(self._windows(place.first_window, place.last_window)) as blocks:
            for block in blocks:
                part = block.within(place.first, place.first + place.end.contigs)
                count += len(part.contigs)
                yield part
        self._require(count == place.end.contigs, "records are missing")

    def _windows(self, first: int | None = None, last: int | None = None) -> Generator[Block, None, None]:
        """Yield the scores of each window, with the records that begin in it."""
        with closing(self.windows(first, last)) as windows:
            for window in windows:
                _, scores = self._scores(window)
                yield Block(window.contigs, window.ids, scores)

    def _scores(self, window: WindowRow) -> tuple[list[BatchRow], NDArray[np.void]]:
        """Return the batches of *window*, all of them if the run is finished, and their scores in order."""
        batches = self.batches(window.number)
        try:
            scores = decode_scores(window, batches)
        except InvalidRow as error:
            raise self._rows.damage(str(error)) from error
        if sum(batch.orfs for batch in batches) < window.orfs:
            self._require(self._sealed() is None, "batches are missing")
        return batches, scores

    def _joined(self, parts: Sequence[Block]) -> Block:
        block = Block.joined(parts)
        self._require(block.is_complete(), "records or ORFs are missing")
        return block

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise self._rows.damage(what)
