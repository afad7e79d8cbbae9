"""
Records become windows, and windows become length-sorted batches under a token budget.

Both are functions of the input alone: which device runs a batch, and when, changes nothing that
is in it. A window runs across files, so that many small files fill batches as one large one does.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .failures import InputError
from .fragments import cut
from .orfs import open_frames
from .sequences import Contig
from .tokens import OrfTokenizer, Ragged

# Large enough that sorting makes long runs of equal length and the last, smaller batch of a
# window is one of many; small enough that the first batch is ready in a second.
WINDOW_ORFS = 4096

# Translated at once: enough that numpy's cost a call does not count, little enough for the cache.
_BLOCK_BASES = 1 << 16
_BLOCK_ITEMS = 1 << 12

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


@dataclass(frozen=True, slots=True)
class Batch:
    """
    Some ORFs of a window, longest first, to be scored in one visit of a device.

    *part* is empty for a batch as it was packed; a half has its parent's part and 0 or 1.
    """

    window: int
    number: int  # within the window
    part: str
    orfs: NDArray[np.int64]  # (B,): their numbers in the run
    places: NDArray[np.int64]  # (B, 3): contig's number, fragment's from 1, frame
    nucleotides: Ragged
    residues: Ragged

    def __len__(self) -> int:
        return len(self.orfs)

    @property
    def tokens(self) -> int:
        """The number of residue tokens, which is what a batch is measured in."""
        return len(self.residues.ids)

    @property
    def name(self) -> str:
        """Say which batch of the run this is."""
        return f"{self.window}.{self.number}" + (f".{self.part}" if self.part else "")

    def halves(self) -> tuple["Batch", "Batch"]:
        """Split in two; every ORF of the first half is at least as long as those of the second."""
        middle = len(self) // 2
        return self._some(slice(middle), "0"), self._some(slice(middle, None), "1")

    def _some(self, which: slice, part: str) -> "Batch":
        rows = np.arange(len(self))[which]
        return Batch(
            window=self.window,
            number=self.number,
            part=self.part + part,
            orfs=self.orfs[which],
            places=self.places[which],
            nucleotides=self.nucleotides.take(rows),
            residues=self.residues.take(rows),
        )


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive ORFs of the input, and what else was read on the way to them."""

    number: int
    first: int  # number in the run of its first ORF
    contigs: tuple[ContigRow, ...]  # that begin in it
    files: tuple[FileRow, ...]  # that end in it
    places: NDArray[np.int64]  # (ORFs, 3): contig's number, fragment's from 1, frame
    digest: bytes  # of the ids and bases of its contigs, and of where they stood
    nucleotides: Ragged
    residues: Ragged

    def batches(self, budget: int) -> Iterator[Batch]:
        """Pack all ORFs of the window into batches of at most *budget* residue tokens."""
        for number, rows in enumerate(longest_first(self.residues.lengths, budget)):
            yield Batch(
                window=self.number,
                number=number,
                part="",
                orfs=rows + self.first,
                places=self.places[rows],
                nucleotides=self.nucleotides.take(rows),
                residues=self.residues.take(rows),
            )


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
    for block in _blocks(_items(paths, read, length)):
        for item, first, last in block.items():
            if isinstance(item, FileRow):
                forming.files.append(item)
                continue
            if item.is_first:
                forming.begin(item)
            while last - first >= (room := size - len(forming.proteins)):
                end = block.fragment_end(first + room - 1)
                forming.add(block, first, end)
                yield forming.window(tokenizer)
                first = end
            forming.add(block, first, last)
            # Records count too: a million of them without an ORF must not gather in memory.
            if len(forming.contigs) >= size:
                yield forming.window(tokenizer)
    if forming.holds_anything:
        yield forming.window(tokenizer)


@dataclass(frozen=True, slots=True)
class _Part:
    """Consecutive fragments of a contig, of about _BLOCK_BASES bases at most."""

    file: int
    number: int  # of the contig in the run, from 0
    contig: Contig
    count: int  # of the contig's fragments
    before: int  # fragments of the contig before these
    fragments: list[tuple[int, int]]

    @property
    def is_first(self) -> bool:
        return not self.before

    @property
    def begin(self) -> int:
        return self.fragments[0][0] if self.fragments else 0

    @property
    def end(self) -> int:
        return self.fragments[-1][1] if self.fragments else 0


_Item = _Part | FileRow


def _items(paths: Iterable[str], read: Reader, length: int) -> Iterator[_Item]:
    """Give the parts of every contig, and each file's end behind the parts of its contigs."""
    number, step = 0, max(1, _BLOCK_BASES // length)
    for file, path in enumerate(paths):
        begun, failure = number, None
        try:
            for contig in read(path):
                fragments = list(cut(len(contig.bases), length))
                for before in range(0, max(1, len(fragments)), step):
                    some = fragments[before : before + step]
                    yield _Part(file, number, contig, len(fragments), before, some)
                number += 1
        except InputError as error:
            failure = error
        yield FileRow(file, path, number - begun, failure)


def _blocks(items: Iterable[_Item]) -> Iterator["_Block"]:
    """Gather items so that many short contigs are translated as one long one."""
    some: list[_Item] = []
    bases = 0
    for item in items:
        some.append(item)
        bases += item.end - item.begin if isinstance(item, _Part) else 0
        if bases >= _BLOCK_BASES or len(some) >= _BLOCK_ITEMS:
            yield _Block(some)
            some, bases = [], 0
    yield _Block(some)


class _Block:
    """Items with the ORFs of all their fragments, in columns."""

    def __init__(self, items: list[_Item]) -> None:
        parts = [item for item in items if isinstance(item, _Part)]
        pieces = [part.contig.bases[part.begin : part.end] for part in parts]
        shifts = [0, *accumulate(map(len, pieces))]
        ranges = [
            (start + shift - part.begin, end + shift - part.begin)
            for part, shift in zip(parts, shifts, strict=False)
            for start, end in part.fragments
        ]
        self._items = items
        self._orfs = open_frames(b"".join(pieces), ranges)
        self._part_ends = np.searchsorted(
            self._orfs.fragments, np.cumsum([len(part.fragments) for part in parts])
        ).tolist()
        self.places = self._places(parts)  # of the ORFs: contig's number, fragment's from 1, frame
        self.proteins, self.bases = self._orfs.proteins, self._orfs.bases

    def items(self) -> Iterator[tuple[_Item, int, int]]:
        """Give each item with the half-open range of its ORFs."""
        ends, last = iter(self._part_ends), 0
        for item in self._items:
            first, last = last, next(ends) if isinstance(item, _Part) else last
            yield item, first, last

    def fragment_end(self, orf: int) -> int:
        """Give the number behind the last ORF of the fragment that *orf* is of."""
        fragments = self._orfs.fragments
        return int(np.searchsorted(fragments, fragments[orf], side="right"))

    def _places(self, parts: list[_Part]) -> NDArray[np.int64]:
        fragments = [
            (part.number, part.before + number)
            for part in parts
            for number in range(1, len(part.fragments) + 1)
        ]
        of_fragment = np.array(fragments, dtype=np.int64).reshape(-1, 2)
        return np.column_stack((of_fragment[self._orfs.fragments], self._orfs.frames))


@dataclass(slots=True)
class _Forming:
    """The window that is being filled; counts windows and ORFs through the run."""

    number: int = 0
    first: int = 0
    proteins: list[bytes] = field(default_factory=list)
    bases: list[bytes] = field(default_factory=list)
    places: list[NDArray[np.int64]] = field(default_factory=list)
    contigs: list[ContigRow] = field(default_factory=list)
    files: list[FileRow] = field(default_factory=list)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def holds_anything(self) -> bool:
        return bool(self.proteins or self.contigs or self.files)

    def begin(self, part: _Part) -> None:
        contig, length = part.contig, len(part.contig.bases)
        self.contigs.append(ContigRow(part.number, part.file, contig.id, length, part.count))
        # Lengths first, so that no other division into file, id and bases reads the same.
        self.digest.update(b"%d %d %d\n" % (part.file, len(contig.id), length))
        self.digest.update(contig.id)
        self.digest.update(contig.bases)

    def add(self, block: _Block, first: int, last: int) -> None:
        if first < last:
            self.proteins += block.proteins[first:last]
            self.bases += block.bases[first:last]
            self.places.append(block.places[first:last])

    def window(self, tokenizer: OrfTokenizer) -> Window:
        """Give the window as it is and begin the next one."""
        window = Window(
            number=self.number,
            first=self.first,
            contigs=tuple(self.contigs),
            files=tuple(self.files),
            places=np.concatenate([np.empty((0, 3), dtype=np.int64), *self.places]),
            digest=self.digest.digest(),
            nucleotides=tokenizer.nucleotides(self.bases),
            residues=tokenizer.residues(self.proteins),
        )
        self.number += 1
        self.first += len(self.proteins)
        self.proteins, self.bases, self.places = [], [], []
        self.contigs, self.files, self.digest = [], [], hashlib.sha256()
        return window
