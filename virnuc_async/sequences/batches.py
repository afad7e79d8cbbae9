"""
Records become windows, and windows become length-sorted batches under a token budget.

Both are functions of the input alone, and of what is known of its ORFs before: which device runs a
batch, and when, changes nothing that is in it. A window runs across files, so that many small files
fill batches as one large one does.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import InputError

from .fragments import cut_all
from .inputs import Contig
from .orfs import Orfs, open_frames
from .tokens import OrfTokenizer, Ragged

# Large enough that sorting makes long runs of equal length and the last, smaller batch of a
# window is one of many; small enough that the first batch is ready in a second.
WINDOW_ORFS = 4096

# Translated at once: enough that numpy's cost a call does not count, little enough for the cache.
_BLOCK_BASES = 1 << 17
_RECORD_BASES = 16  # that a record counts for beside its own and its id, as it takes memory too

# What may be known of an ORF before it is scored: bits of a number.
BASES, RESIDUES = 1, 2

Reader = Callable[[str], Iterator[Contig]]


class ContigRow(NamedTuple):
    """What is kept of a record: where it stood, its id and its size."""

    number: int  # in the run, from 0
    file: int  # number of the file in the run, from 0
    id: bytes
    length: int  # in bases
    fragments: int


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file that was read to its end, or as far as it could be."""

    number: int
    path: str
    contigs: int
    failure: InputError | None


class SpotCheck(NamedTuple):
    """An ORF whose known embeddings are computed all the same, to see that they are its own."""

    row: int  # in the batch
    id: str
    sources: tuple[str, ...]  # the files that they are from


@dataclass(frozen=True, slots=True)
class PrecomputedEmbeddings:
    """Embeddings of a batch that need not be computed; row i is the ORF i's."""

    bases: NDArray[np.float32] | None = None  # (B, C)
    residues: NDArray[np.float32] | None = None  # (B, C)
    compared: tuple[SpotCheck, ...] = ()

    def select(self, which: slice) -> "PrecomputedEmbeddings":
        """Give the rows *which*, a slice without a step."""
        bases, residues = (None if part is None else part[which] for part in (self.bases, self.residues))
        first, end = which.start or 0, which.stop
        inside = (one for one in self.compared if first <= one.row and (end is None or one.row < end))
        return PrecomputedEmbeddings(
            bases, residues, tuple(one._replace(row=one.row - first) for one in inside)
        )


class FeatureLookup(Protocol):
    """What is known of a window's ORFs before any is scored."""

    @property
    def parts(self) -> NDArray[np.int64]:
        """Which embeddings are known of each ORF: BASES, RESIDUES, both added, or 0."""

    def known(self, rows: NDArray[np.int64]) -> PrecomputedEmbeddings:
        """Give the embeddings of *rows*, which have the same parts."""


@dataclass(frozen=True, slots=True)
class Batch:
    """
    Some ORFs of a window, longest first, to be scored in one visit of a device.

    *part* is empty for a batch as it was packed; a half has its parent's part and 0 or 1.
    """

    window: int
    number: int  # within the window
    split_path: str
    orfs: NDArray[np.int64]  # (B,): their numbers in the run
    origins: NDArray[np.int64]  # (B, 3): contig's number, fragment's from 1, frame
    nucleotides: Ragged
    residues: Ragged
    known: PrecomputedEmbeddings = PrecomputedEmbeddings()

    def __len__(self) -> int:
        return len(self.orfs)

    @property
    def tokens(self) -> int:
        """The number of residue tokens, which is what a batch is measured in."""
        return len(self.residues.ids)

    @property
    def name(self) -> str:
        """Say which batch of the run this is."""
        return f"{self.window}.{self.number}" + (f".{self.split_path}" if self.split_path else "")

    def halves(self) -> tuple["Batch", "Batch"]:
        """Split in two; every ORF of the first half is at least as long as those of the second."""
        middle = len(self) // 2
        return self._some(slice(middle), "0"), self._some(slice(middle, None), "1")

    def _some(self, which: slice, part: str) -> "Batch":
        rows = np.arange(len(self))[which]
        return Batch(
            window=self.window,
            number=self.number,
            split_path=self.split_path + part,
            orfs=self.orfs[which],
            origins=self.origins[which],
            nucleotides=self.nucleotides.take(rows),
            residues=self.residues.take(rows),
            known=self.known.select(which),
        )


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive ORFs of the input, and what else was read on the way to them."""

    number: int
    first: int  # number in the run of its first ORF
    contigs: tuple[ContigRow, ...]  # that begin in it
    files: tuple[FileRow, ...]  # that end in it
    origins: NDArray[np.int64]  # (ORFs, 3): contig's number, fragment's from 1, frame
    digest: bytes  # of the ids and bases of its contigs, and of where they stood
    nucleotides: Ragged
    residues: Ragged
    before: bytes = b""  # id of the record before its contigs, which may go on in it

    def batches(self, budget: int, recalled: FeatureLookup | None = None) -> Iterator[Batch]:
        """
        Pack all ORFs of the window into batches of at most *budget* residue tokens.

        ORFs of one batch have the same parts *recalled*, so that a device computes the same of each.
        """
        for number, rows in enumerate(self._packed(budget, recalled)):
            yield Batch(
                window=self.number,
                number=number,
                split_path="",
                orfs=rows + self.first,
                origins=self.origins[rows],
                nucleotides=self.nucleotides.take(rows),
                residues=self.residues.take(rows),
                known=recalled.known(rows) if recalled else PrecomputedEmbeddings(),
            )

    def _packed(self, budget: int, recalled: FeatureLookup | None) -> Iterator[NDArray[np.int64]]:
        parts = recalled.parts if recalled else np.zeros(len(self.origins), np.int64)
        for part in np.unique(parts):
            alike = np.flatnonzero(parts == part)
            for rows in longest_first(self.residues.lengths[alike], budget):
                yield alike[rows]


def longest_first(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """
    Sort rows by length and cut them into groups whose lengths add up to at most *budget*.

    A row longer than that is a group of its own. Rows of equal length keep their order.
    """
    # Longest first, so that a batch too big for the device fails in the first second of a run
    # and not in its last.
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield order[start:end]
        start = end


def form_windows(
    paths: Iterable[str], read: Reader, length: int, tokenizer: OrfTokenizer, size: int
) -> Iterator[Window]:
    """
    Read *paths* in order and give windows of *size* ORFs, or up to five more to end a fragment.

    The last window holds what is left, so that every record and file is in one. A file that
    fails is in ``Window.files`` with its failure; the records before that count.
    """
    forming = _Forming()
    for records in _gathered(paths, read):
        for block in records.blocks(length):
            begin = _Mark(0, 0)
            while end := forming.full_at(block, begin, size):
                forming.add(block, begin, end)
                yield forming.window(tokenizer)
                begin = end
            forming.add(block, begin, block.end)
    if forming.holds_anything:
        yield forming.window(tokenizer)


class _Mark(NamedTuple):
    """A place in a block: how many records begin before it, and how many ORFs are before it."""

    records: int
    orfs: int


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive fragments and what begins and ends with them; a long record is several blocks."""

    contigs: list[Contig]  # that begin in it
    rows: list[ContigRow]  # of these
    files: list[tuple[int, FileRow]]  # that end in it, with the number of records before
    orfs: Orfs
    origins: NDArray[np.int64]  # of the ORFs: contig's number, fragment's from 1, frame

    @property
    def end(self) -> _Mark:
        """Give the place behind everything, the files behind the last record included."""
        return _Mark(len(self.rows) + 1, len(self.orfs))

    def behind_fragment_of(self, orf: int) -> _Mark:
        """Give the place behind the fragment that *orf* is of."""
        fragments = self.orfs.fragments
        records = int(self.origins[orf, 0]) - self.rows[0].number + 1 if self.rows else 0
        return _Mark(records, int(np.searchsorted(fragments, fragments[orf], side="right")))

    def behind_record(self, record: int) -> _Mark:
        """Give the place behind *record* and all of its ORFs."""
        number = self.rows[record].number
        return _Mark(record + 1, int(np.searchsorted(self.origins[:, 0], number, side="right")))


def _gathered(paths: Iterable[str], read: Reader) -> Iterator["_Records"]:
    """Gather records so that many short ones are translated as one; a long one stands alone."""
    records, room = _Records(0), _BLOCK_BASES
    for file, path in enumerate(paths):
        first, failure = records.end, None
        try:
            for contig in read(path):
                used = len(contig.bases) + len(contig.id) + _RECORD_BASES
                if records.contigs and used > room:
                    yield records
                    records, room = _Records(records.end), _BLOCK_BASES
                records.contigs.append(contig)
                records.sources.append(file)
                room -= used
                if room <= 0:
                    yield records
                    records, room = _Records(records.end), _BLOCK_BASES
        except InputError as error:
            failure = error
        records.files.append((len(records.contigs), FileRow(file, path, records.end - first, failure)))
    yield records


@dataclass(slots=True)
class _Records:
    """Consecutive records that are to be translated at once, or a long one."""

    first: int  # number in the run of the first one
    contigs: list[Contig] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)  # of each: number of its file
    files: list[tuple[int, FileRow]] = field(default_factory=list)  # as in a block

    @property
    def end(self) -> int:
        """The number in the run of the record behind these."""
        return self.first + len(self.contigs)

    def blocks(self, length: int) -> Iterator[_Block]:
        """Cut into fragments of *length* bases and translate them."""
        bases = [contig.bases for contig in self.contigs]
        lengths = np.fromiter(map(len, bases), np.int64, len(bases))
        owners, numbers, ranges = cut_all(lengths, length)
        of_fragments = np.column_stack((owners + self.first, numbers + 1))
        text, contigs, files = b"".join(bases), self.contigs, self.files
        rows = self._rows(lengths, np.bincount(owners, minlength=len(bases)))
        step = max(1, _BLOCK_BASES // length if len(bases) == 1 else len(owners))
        for begin in range(0, max(1, len(owners)), step):
            orfs = _translate(text, ranges[begin : begin + step])
            places = np.column_stack((of_fragments[begin + orfs.fragments], orfs.frames))
            yield _Block(contigs, rows, files, orfs, places)
            contigs, rows, files = [], [], []

    def _rows(self, lengths: NDArray[np.int64], fragments: NDArray[np.int64]) -> list[ContigRow]:
        numbers, ids = range(self.first, self.end), [contig.id for contig in self.contigs]
        return list(map(ContigRow, numbers, self.sources, ids, lengths.tolist(), fragments.tolist()))


def _translate(bases: bytes, ranges: NDArray[np.int64]) -> Orfs:
    """Give the ORFs of consecutive fragments, of which only the part of *bases* is looked at."""
    begin, end = (int(ranges[0, 0]), int(ranges[-1, 1])) if len(ranges) else (0, 0)
    return open_frames(bases[begin:end], ranges - begin)


@dataclass(slots=True)
class _Forming:
    """The window that is being filled; counts windows and ORFs through the run."""

    number: int = 0
    first: int = 0
    before: bytes = b""
    proteins: list[bytes] = field(default_factory=list)
    bases: list[bytes] = field(default_factory=list)
    origins: list[NDArray[np.int64]] = field(default_factory=list)
    contigs: list[ContigRow] = field(default_factory=list)
    files: list[FileRow] = field(default_factory=list)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def holds_anything(self) -> bool:
        return bool(self.proteins or self.contigs or self.files)

    def full_at(self, block: _Block, begin: _Mark, size: int) -> _Mark | None:
        """Give the place in *block* at which the window is full, if what is behind *begin* is added."""
        orf = begin.orfs + size - len(self.proteins) - 1
        # Records count too: a million of them without an ORF must not gather in memory.
        record = begin.records + size - len(self.contigs) - 1
        marks = []
        if orf < len(block.orfs):
            marks.append(block.behind_fragment_of(orf))
        if record < len(block.rows):
            marks.append(block.behind_record(record))
        return min(marks, default=None)

    def add(self, block: _Block, begin: _Mark, end: _Mark) -> None:
        """Take what is between two places in *block*."""
        records, orfs = slice(begin.records, end.records), slice(begin.orfs, end.orfs)
        rows = block.rows[records]
        self.contigs += rows
        self.files += [file for before, file in block.files if begin.records <= before < end.records]
        # Lengths first, so that no other division into file, id and bases reads the same.
        texts = (
            b"%d %d %d\n%b%b" % (row.file, len(row.id), row.length, row.id, contig.bases)
            for row, contig in zip(rows, block.contigs[records], strict=True)
        )
        self.digest.update(b"".join(texts))
        self.proteins += block.orfs.proteins[orfs]
        self.bases += block.orfs.bases[orfs]
        self.origins.append(block.origins[orfs])

    def window(self, tokenizer: OrfTokenizer) -> Window:
        """Give the window as it is and begin the next one."""
        window = Window(
            number=self.number,
            first=self.first,
            contigs=tuple(self.contigs),
            files=tuple(self.files),
            origins=np.concatenate([np.empty((0, 3), dtype=np.int64), *self.origins]),
            digest=self.digest.digest(),
            nucleotides=tokenizer.nucleotides(self.bases),
            residues=tokenizer.residues(self.proteins),
            before=self.before,
        )
        self.number += 1
        self.before = self.contigs[-1].id if self.contigs else self.before
        self.first += len(self.proteins)
        self.proteins, self.bases, self.origins = [], [], []
        self.contigs, self.files, self.digest = [], [], hashlib.sha256()
        return window
