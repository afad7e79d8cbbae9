"""
Records become windows, and windows become length-sorted batches under a token budget.

Both are functions of the input alone: which device runs a batch, and when, changes nothing that
is in it. A window runs across files, so that many small files fill batches as one large one does.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .failures import InputError
from .fragments import cut
from .orfs import Orf, Strands
from .sequences import Contig
from .tokens import OrfTokenizer, Ragged

# Large enough that sorting makes long runs of equal length and the last, smaller batch of a
# window is one of many; small enough that the first batch is ready in a second.
WINDOW_ORFS = 4096

Reader = Callable[[str], Iterator[Contig]]


@dataclass(frozen=True, slots=True)
class ContigRow:
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
    for path in paths:
        contigs, failure = 0, None
        try:
            for contig in read(path):
                contigs += 1
                fragments = list(cut(len(contig.bases), length))
                forming.begin(contig, len(fragments))
                for number, orfs in enumerate(_open_frames(contig, fragments), start=1):
                    forming.add(number, orfs)
                    if forming.size >= size:
                        yield forming.window(tokenizer)
        except InputError as error:
            failure = error
        forming.end_file(path, contigs, failure)
    if forming.holds_anything:
        yield forming.window(tokenizer)


def _open_frames(contig: Contig, fragments: list[tuple[int, int]]) -> Iterator[list[Orf]]:
    """Give each fragment's ORFs; an empty contig's are none, once, so that it too takes a turn."""
    strands = Strands(contig.bases)
    return (list(strands.open_frames(start, end)) for start, end in fragments or [(0, 0)])


@dataclass(slots=True)
class _Forming:
    """The window that is being filled; counts contigs, files and ORFs through the run."""

    number: int = 0
    file: int = 0
    contig: int = -1
    first: int = 0
    orfs: list[Orf] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    contigs: list[ContigRow] = field(default_factory=list)
    files: list[FileRow] = field(default_factory=list)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def holds_anything(self) -> bool:
        return bool(self.orfs or self.contigs or self.files)

    @property
    def size(self) -> int:
        # Records count too: a million of them without an ORF must not gather in memory.
        return max(len(self.orfs), len(self.contigs))

    def begin(self, contig: Contig, fragments: int) -> None:
        self.contig += 1
        self.contigs.append(ContigRow(self.contig, self.file, contig.id, len(contig.bases), fragments))
        # Lengths first, so that no other division into file, id and bases reads the same.
        self.digest.update(b"%d %d %d\n" % (self.file, len(contig.id), len(contig.bases)))
        self.digest.update(contig.id)
        self.digest.update(contig.bases)

    def add(self, fragment: int, orfs: list[Orf]) -> None:
        self.orfs += orfs
        self.places += [(self.contig, fragment, orf.frame) for orf in orfs]

    def end_file(self, path: str, contigs: int, failure: InputError | None) -> None:
        self.files.append(FileRow(self.file, path, contigs, failure))
        self.file += 1

    def window(self, tokenizer: OrfTokenizer) -> Window:
        """Give the window as it is and begin the next one."""
        window = Window(
            number=self.number,
            first=self.first,
            contigs=tuple(self.contigs),
            files=tuple(self.files),
            places=np.array(self.places, dtype=np.int64).reshape(-1, 3),
            digest=self.digest.digest(),
            nucleotides=tokenizer.nucleotides([orf.bases for orf in self.orfs]),
            residues=tokenizer.residues([orf.protein for orf in self.orfs]),
        )
        self.number += 1
        self.first += len(self.orfs)
        self.orfs, self.places, self.contigs, self.files = [], [], [], []
        self.digest = hashlib.sha256()
        return window
