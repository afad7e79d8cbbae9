"""
Windows: consecutive ORFs of the input, with the records and files that they are from.

They are a function of the input alone, and begin anew at each segment of it. A window runs across files, so
that many small files fill batches as one large one does.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import BrokenInput, InputError
from virnuc_async.text import plural

from .batches import Batch, FeatureLookup, PrecomputedEmbeddings, pack_rows
from .fastx import Contig
from .fragments import cut_all
from .inputs import Reader
from .orfs import Orfs, open_frames
from .reading import Place, Reading
from .segments import ALL, SEGMENT_BASES, InputSpan, first_orf, first_window
from .tokens import OrfTokenizer, Ragged

# Large enough that sorting makes long runs of equal length and the last, smaller batch of a
# window is one of many; small enough that the first batch is ready in a second.
WINDOW_ORFS = 4096

_RECORD_BASES = 16  # that a record counts for in addition to its bases and its id, as it takes memory too


class ContigRow(NamedTuple):
    """What is kept of a record: its position, its id and its size."""

    number: int  # in the run, from 0
    file: int  # number of the file in the run, from 0
    id: bytes
    length: int  # in bases
    fragments: int


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file that was read to its end, or as far as possible."""

    number: int
    path: str
    contigs: int
    failure: InputError | None


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive ORFs of the input, and the records and files that were read for them."""

    number: int  # in the run
    first: int  # number in the run of its first ORF
    contigs: tuple[ContigRow, ...]  # that begin in it
    files: tuple[FileRow, ...]  # that end in it
    origins: NDArray[np.int64]  # (ORFs, 3): contig's number, fragment's from 1, frame
    digest: bytes  # of the ids and bases of its contigs, and of their positions
    nucleotides: Ragged
    residues: Ragged
    before: bytes = b""  # id of the record before its contigs, which may continue in it
    place: Place = Place(0)  # how far the inputs were read for it, about

    def batches(self, budget: int, lookup: FeatureLookup | None = None) -> Iterator[Batch]:
        """
        Yield all ORFs of the window in batches of at most *budget* residue tokens.

        ORFs of one batch have the same parts in *lookup*, so that a device computes the same of each.
        """
        for number, rows in enumerate(pack_rows(self.residues.lengths, budget, lookup)):
            yield Batch(
                window=self.number,
                number=number,
                split_path="",
                orfs=rows + self.first,
                origins=self.origins[rows],
                nucleotides=self.nucleotides.take(rows),
                residues=self.residues.take(rows),
                known=lookup.known(rows) if lookup else PrecomputedEmbeddings(),
            )


@dataclass(frozen=True, slots=True)
class Cut:
    """How an input is cut: into fragments, windows and segments."""

    length: int  # bases of a fragment
    window: int = WINDOW_ORFS  # ORFs, or up to five more to end a fragment
    segment: int = SEGMENT_BASES  # bases, or more to end a record


def form_windows(
    paths: Iterable[str],
    read: Reader,
    cut: Cut,
    tokenizer: OrfTokenizer,
    reading: Reading | None = None,
    span: InputSpan = ALL,
) -> Iterator[Window]:
    """
    Yield the windows of *paths* in order, cut as *cut* says; those of *span*, if it is given.

    The last window of a segment holds the rest, so that every record and file is in one. A file that fails is
    in ``Window.files`` with its failure; the records before that count. How far the inputs were read for a
    window is known if *reading* watches how *read* opens them.
    """
    reading = reading or Reading()
    builder = _WindowBuilder(first_window(span.first_segment), first_orf(span.first_segment))
    segment = span.first_segment
    for records in _group_records(_Source(paths, read, span), cut.segment, reading):
        if records.segment != segment:
            segment = records.segment
            if not builder.is_empty:
                yield builder.build(tokenizer)
            builder = _WindowBuilder(first_window(segment), first_orf(segment))
        for block in records.blocks(cut.length, reading.block_bases):
            begin = _Position(0, 0)
            while end := builder.next_boundary(block, begin, cut.window):
                builder.add(block, begin, end)
                yield builder.build(tokenizer)
                begin = end
            builder.add(block, begin, block.end)
    if not builder.is_empty:
        yield builder.build(tokenizer)


def digest_text(file: int, contig: Contig) -> bytes:
    """Return what goes into the digest of a window for a record of input number *file*."""
    # Lengths first, so that no other division into file, id and bases reads the same.
    return b"%d %d %d\n%b%b" % (file, len(contig.id), len(contig.bases), contig.id, contig.bases)


class _Position(NamedTuple):
    """A position in a block: how many records begin before it, and how many ORFs are before it."""

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
    places: tuple[Place, Place, Place]  # how far inputs were read: before it, for its first file, for all

    @property
    def end(self) -> _Position:
        """The position behind everything, the files behind the last record included."""
        return _Position(len(self.rows) + 1, len(self.orfs))

    def behind_fragment_of(self, orf: int) -> _Position:
        """Return the position behind the fragment of *orf*."""
        fragments = self.orfs.fragments
        records = int(self.origins[orf, 0]) - self.rows[0].number + 1 if self.rows else 0
        return _Position(records, int(np.searchsorted(fragments, fragments[orf], side="right")))

    def behind_record(self, record: int) -> _Position:
        """Return the position behind *record* and all of its ORFs."""
        number = self.rows[record].number
        return _Position(record + 1, int(np.searchsorted(self.origins[:, 0], number, side="right")))

    def place_at(self, position: _Position) -> Place:
        """Return how far the inputs were read for what is before *position*, about."""
        begin, end, last = self.places
        if position == self.end:
            return last
        ended = sum(before < position.records for before, _ in self.files)
        if ended:
            return Place(begin.file + ended)
        return begin.towards(end, position.orfs / max(1, len(self.orfs)))


@dataclass(frozen=True, slots=True)
class _Source:
    """The records of *span* in the files *paths*, which *read* reads."""

    paths: Iterable[str]
    read: Reader
    span: InputSpan

    def files(self) -> Iterator[tuple[int, str]]:
        """Yield the number and the path of each file that must be opened."""
        end = self.span.end and self.span.end[0] + bool(self.span.end[1])
        return islice(enumerate(self.paths), self.span.first_file, end)

    def first_record(self, file: int) -> int:
        """Return how many records of *file* are before those of the span."""
        return self.span.first_record if file == self.span.first_file else 0

    def has_end_of(self, file: int) -> bool:
        """Whether *file* is read to its end."""
        return self.span.end is None or file < self.span.end[0]

    def records(self, file: int, path: str) -> Iterator[Contig]:
        """Yield the records of *file* that are of the span; raises InputError."""
        first, contigs = self.first_record(file), self._read_from(file, path)
        if self.span.end is None or self.has_end_of(file):
            yield from contigs
            return
        number, end = first, self.span.end[1]
        for number, contig in enumerate(contigs, first + 1):
            yield contig
            if number == end:
                return
        # As if it had never been complete: whoever has planned the span knows better.
        raise BrokenInput(path, number, f"it ends after {plural(number, 'record')}; there were more")

    def _read_from(self, file: int, path: str) -> Iterator[Contig]:
        first, seek = self.first_record(file), self.span.seek
        if not first:
            return self.read(path)
        return islice(self.read(path, seek) if seek.record else self.read(path), first - seek.record, None)


def _group_records(source: _Source, segment_bases: int, reading: Reading) -> Iterator["_Records"]:
    """Group records so that many short ones are translated as one; a long one is a group of its own."""
    records = _Records(source.span.first_contig, reading.place, source.span.first_segment)
    room, left = reading.block_bases, segment_bases
    for file, path in source.files():
        first, failure = records.end - source.first_record(file), None
        reading.begin(file, room)
        contigs = source.records(file, path)
        if source.first_record(file):
            contigs = reading.from_first(contigs)
        try:
            for contig in contigs:
                used = len(contig.bases) + len(contig.id) + _RECORD_BASES
                is_full = left <= 0
                if is_full or (records.contigs and used > room):
                    yield records.read_to(reading.advance(room))
                    records, room = records.behind(reading.place, is_full), reading.renew()
                    left = segment_bases if is_full else left
                records.contigs.append(contig)
                records.sources.append(file)
                room -= used
                left -= len(contig.bases)
                if room <= 0:
                    yield records.read_to(reading.advance(room))
                    records, room = records.behind(reading.place), reading.renew()
        except InputError as error:
            failure = error
        if failure or source.has_end_of(file):
            records.ends.append(reading.end(file))
            row = FileRow(file, path, records.end - first, failure)
            records.files.append((len(records.contigs), row))
    yield records.read_to(reading.place)


@dataclass(slots=True)
class _Records:
    """Consecutive records that are translated at once, or a long one."""

    first: int  # number in the run of the first one
    begin: Place  # how far the inputs were read before
    segment: int  # that all are of
    place: Place = Place(0)  # how far they are read for these
    contigs: list[Contig] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)  # of each: number of its file
    files: list[tuple[int, FileRow]] = field(default_factory=list)  # as in a block
    ends: list[Place] = field(default_factory=list)  # of these files

    @property
    def end(self) -> int:
        """The number in the run of the record behind these."""
        return self.first + len(self.contigs)

    def behind(self, place: Place, in_next_segment: bool = False) -> "_Records":
        """Return those that begin behind these, none yet, where the inputs are read to *place*."""
        return _Records(self.end, place, self.segment + in_next_segment)

    def read_to(self, place: Place) -> Self:
        """Note how far the inputs are read for these, and return these."""
        self.place = place
        return self

    def blocks(self, length: int, block_bases: int) -> Iterator[_Block]:
        """Yield the translation of fragments of *length* bases; about *block_bases* of a long record."""
        bases = [contig.bases for contig in self.contigs]
        lengths = np.fromiter(map(len, bases), np.int64, len(bases))
        owners, numbers, ranges = cut_all(lengths, length)
        of_fragments = np.column_stack((owners + self.first, numbers + 1))
        text, contigs, files = b"".join(bases), self.contigs, self.files
        rows = self._rows(lengths, np.bincount(owners, minlength=len(bases)))
        step = max(1, block_bases // length if len(bases) == 1 else len(owners))
        for begin in range(0, max(1, len(owners)), step):
            orfs = _translate(text, ranges[begin : begin + step])
            origins = np.column_stack((of_fragments[begin + orfs.fragments], orfs.frames))
            places = self._places(begin / max(1, len(owners)), (begin + step) / max(1, len(owners)))
            yield _Block(contigs, rows, files, orfs, origins, places)
            contigs, rows, files = [], [], []

    def _places(self, begin: float, end: float) -> tuple[Place, Place, Place]:
        """Return the places of a block, from one share to another of what these are."""
        first_end = self.ends[0] if self.ends else self.place
        first, last = (self.begin.towards(first_end, min(share, 1.0)) for share in (begin, end))
        return first, last, self.place if end >= 1 else last

    def _rows(self, lengths: NDArray[np.int64], fragments: NDArray[np.int64]) -> list[ContigRow]:
        numbers, ids = range(self.first, self.end), [contig.id for contig in self.contigs]
        return list(map(ContigRow, numbers, self.sources, ids, lengths.tolist(), fragments.tolist()))


def _translate(bases: bytes, ranges: NDArray[np.int64]) -> Orfs:
    """Return the ORFs of consecutive fragments, copying only their part of *bases*."""
    begin, end = (int(ranges[0, 0]), int(ranges[-1, 1])) if len(ranges) else (0, 0)
    return open_frames(bases[begin:end], ranges - begin)


@dataclass(slots=True)
class _WindowBuilder:
    """The window that is being filled; counts windows and ORFs through a segment."""

    number: int
    first: int
    before: bytes = b""
    proteins: list[bytes] = field(default_factory=list)
    bases: list[bytes] = field(default_factory=list)
    origins: list[NDArray[np.int64]] = field(default_factory=list)
    contigs: list[ContigRow] = field(default_factory=list)
    files: list[FileRow] = field(default_factory=list)
    place: Place = Place(0)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def is_empty(self) -> bool:
        return not (self.proteins or self.contigs or self.files)

    def next_boundary(self, block: _Block, begin: _Position, size: int) -> _Position | None:
        """Return where in *block* the window is full, if it is filled from *begin* on; None if nowhere."""
        orf = begin.orfs + size - len(self.proteins) - 1
        # Records count too: a million of them without an ORF must not accumulate in memory.
        record = begin.records + size - len(self.contigs) - 1
        positions = []
        if orf < len(block.orfs):
            positions.append(block.behind_fragment_of(orf))
        if record < len(block.rows):
            positions.append(block.behind_record(record))
        return min(positions, default=None)

    def add(self, block: _Block, begin: _Position, end: _Position) -> None:
        """Add the part of *block* between two positions."""
        records, orfs = slice(begin.records, end.records), slice(begin.orfs, end.orfs)
        rows = block.rows[records]
        self.contigs += rows
        self.files += [file for before, file in block.files if begin.records <= before < end.records]
        own = zip(rows, block.contigs[records], strict=True)
        self.digest.update(b"".join(digest_text(row.file, contig) for row, contig in own))
        self.proteins += block.orfs.proteins[orfs]
        self.bases += block.orfs.bases[orfs]
        self.origins.append(block.origins[orfs])
        self.place = block.place_at(end)

    def build(self, tokenizer: OrfTokenizer) -> Window:
        """Return the window as it is and begin the next one."""
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
            place=self.place,
        )
        self.number += 1
        self.before = self.contigs[-1].id if self.contigs else self.before
        self.first += len(self.proteins)
        self.proteins, self.bases, self.origins = [], [], []
        self.contigs, self.files, self.digest = [], [], hashlib.sha256()
        return window
