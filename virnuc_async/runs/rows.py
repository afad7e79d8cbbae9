"""
The rows of a store, and what they mean: each has a checksum, and each value is validated when it is read.

What belongs together is one row, so that it is kept or lost as a whole: a window with the files that end
in it and why they failed, a batch with the ORFs of it that failed.
"""

import json
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import Stage
from virnuc_async.sequences.segments import InputSpan, first_orf, first_window, follows, segment_of

from .blocks import CONTIG, FRAMES, SCORE

Row = tuple[Any, ...]
BatchKey = tuple[int, int, str]  # window, number, part

DIGEST_BYTES = 32  # of a window
FINGERPRINT = np.dtype("<u8")  # of an embedding
_MOST = (1 << 63) - 1  # the largest number that SQLite has
_MAX_PROBABILITY = 1.001  # devices round
_ENDLESS = float("inf")
_NO_ITEMS = "[]"
_STAGES = frozenset(map(str, Stage))


class InvalidRow(ValueError):
    """A row whose checksum is wrong, or whose values make no sense; the text says which."""


class FileEnd(NamedTuple):
    """A file that ends in a window: how many records were read of it, and why no more if it failed."""

    number: int
    contigs: int
    reason: str | None


class FailedOrf(NamedTuple):
    """An ORF without a score: its number in the run, that of its file, and where and why it failed."""

    orf: int
    file: int
    stage: str
    message: str


class WindowRow(NamedTuple):
    """A window: its ORFs are numbered from *first*; *contigs*, with their *ids*, begin in it."""

    number: int
    first: int
    orfs: int
    digest: bytes
    contigs: NDArray[np.void]  # CONTIG
    ids: bytes  # a line each
    files: tuple[FileEnd, ...]

    @property
    def end(self) -> int:
        """The number of the ORF behind the window."""
        return self.first + self.orfs

    @property
    def last_file(self) -> int:
        """The number of the last file of which it has a record or the end; -1 if there is none."""
        numbers = [-1, *self.contigs["file"][-1:].tolist(), *(end.number for end in self.files)]
        return int(max(numbers))

    def encode(self) -> Row:
        """Return the row, checksum included."""
        records, files = self.contigs.tobytes(), _to_json(self.files)
        counts = (len(self.contigs), int(self.contigs["fragments"].sum()))
        row = (self.number, self.first, self.orfs, *counts, files, self.digest, records, self.ids)
        return (*row, checksum("windows", row[:-3], row[-3:]))

    @classmethod
    def decode(cls, row: Row) -> Self:
        """Return what *row* means; raises InvalidRow."""
        _check_types("windows", row, _WINDOW_TYPES)
        number, first, orfs, count, fragments, files, digest, records, ids, _ = row
        _require(min(number, first, orfs, count, fragments) >= 0, "a count of a window is negative")
        _require(len(digest) == DIGEST_BYTES, "the digest of a window is of another length")
        _require(len(records) == count * CONTIG.itemsize, "records of a window are missing")
        _require(ids.count(b"\n") == count and ids.endswith(b"\n" * bool(count)), "ids are missing")
        contigs = np.frombuffer(records, CONTIG)
        _check_contigs(contigs, fragments)
        ends = tuple(_decode_items(FileEnd, files, (int, int, (str, type(None)))))
        _require(all(min(end.number, end.contigs) >= 0 for end in ends), "a file's number is negative")
        differences = (after.number - before.number for before, after in pairwise(ends))
        _require(all(number == 1 for number in differences), "a file is missing")
        return cls(number, first, orfs, digest, contigs, ids, ends)


class WindowOrder:
    """
    The numbers that the next window must continue, after one with the number *before*.

    *contig* is the number of its first record; None in the middle of a run, where it is not known.
    """

    def __init__(self, before: int, contig: int | None = None) -> None:
        self._before = before
        self._orf: int | None = None  # of the next one, in the same segment
        self._contig = contig

    @classmethod
    def of(cls, span: InputSpan) -> Self:
        """Return the order of the windows of *span*, from its first one on."""
        # As if it came after a window of the segment before.
        return cls(first_window(span.first_segment) - 1, span.first_contig)

    def expects(self, number: int) -> bool:
        """Whether the next window can have this *number*."""
        return follows(number, self._before)

    def is_next(self, window: WindowRow) -> bool:
        """Return whether *window* is the next one, and count it."""
        contigs = window.contigs["number"]
        segment = segment_of(window.number)
        orf = first_orf(segment) if window.number == first_window(segment) else self._orf
        fits = (
            self.expects(window.number)
            and orf in (None, window.first)
            and (not len(contigs) or self._contig in (None, int(contigs[0])))
        )
        self._before, self._orf = window.number, window.end
        self._contig = int(contigs[-1]) + 1 if len(contigs) else self._contig
        return fits


class BatchRow(NamedTuple):
    """A batch: *scores*, SCORE, of its ORFs that did not fail; *fingerprints*: of their embeddings."""

    window: int
    number: int
    part: str
    device: str
    orfs: int
    tokens: int
    seconds: float
    scored: int
    recomputed: int  # in FP32
    failures: tuple[FailedOrf, ...]
    scores: bytes
    fingerprints: bytes  # FINGERPRINT, of each score, or nothing

    @property
    def key(self) -> BatchKey:
        """What no two batches have in common."""
        return self[:3]

    def encode(self) -> Row:
        """Return the row, checksum included."""
        row = (*self[:-3], _to_json(self.failures), *self[-2:])
        return (*row, checksum("batches", row[:-2], row[-2:]))

    @classmethod
    def decode(cls, row: Row) -> Self:
        """Return what *row* means; raises InvalidRow. Its scores are checked with those of its window."""
        _check_types("batches", row, _BATCH_TYPES)
        *values, failures, scores, fingerprints, _ = row
        failed: tuple[FailedOrf, ...] = ()
        if failures != _NO_ITEMS:
            failed = tuple(_decode_items(FailedOrf, failures, (int, int, str, str)))
            _require(all(one.stage in _STAGES for one in failed), "a batch failed at an unknown stage")
        batch = cls._make((*values, failed, scores, fingerprints))
        size, fingerprints_size = len(batch.scores), len(batch.fingerprints)
        # At once: there are a hundred million ORFs in batches of some forty.
        makes_sense = (
            min(*row[:2], *row[4:9]) >= 0
            and batch.seconds < _ENDLESS
            and not batch.part.strip("01")
            and size == batch.scored * SCORE.itemsize
            and fingerprints_size in (0, batch.scored * FINGERPRINT.itemsize)
            and batch.orfs == batch.scored + len(failed) > 0
            and batch.recomputed <= batch.orfs
        )
        _require(makes_sense, "the values of a batch make no sense")
        return batch


class MetaRow(NamedTuple):
    """What is known of the run as a whole: a value that JSON can hold, by its key."""

    key: str
    value: str

    def encode(self) -> Row:
        """Return the row, checksum included."""
        return (*self, checksum("run", tuple(self), ()))

    @classmethod
    def decode(cls, row: Row) -> Self:
        """Return what *row* means; raises InvalidRow."""
        _check_types("run", row, _META_TYPES)
        return cls(*row[:-1])

    def load(self) -> Any:
        """Return the value; raises InvalidRow."""
        return load_json(self.value)


_WINDOW_TYPES = (int, int, int, int, int, str, bytes, bytes, bytes, int)
_META_TYPES = (str, str, int)
_BATCH_TYPES = (int, int, str, str, int, int, float, int, int, str, bytes, bytes, int)


def checksum(table: str, values: Row, blobs: Row) -> int:
    """Return the CRC-32 of a row of *table*: its *values*, with their types, and its *blobs*."""
    total = zlib.crc32(ascii((table, values)).encode())
    for blob in blobs:
        total = zlib.crc32(blob, total)
    return total


def decode_scores(window: WindowRow, batches: Sequence[BatchRow]) -> NDArray[np.void]:
    """Return the scores of *batches* of *window* in the order of their ORFs; raises InvalidRow."""
    content = b"".join([batch.scores for batch in batches])
    order = np.argsort(np.frombuffer(content, SCORE)["orf"])
    # As items without fields: sorting these copies each of them at once.
    scores = np.frombuffer(content, f"V{SCORE.itemsize}").take(order).view(SCORE)
    failed = sorted(one.orf for batch in batches for one in batch.failures)
    orfs = scores["orf"]
    all_orfs = np.sort(np.append(orfs, np.array(failed, np.int64))) if failed else orfs
    if len(all_orfs):
        _require(window.first <= all_orfs[0] and all_orfs[-1] < window.end, "an ORF is of another window")
        _require(bool((np.diff(all_orfs) > 0).all()), "an ORF is there twice")
    _check_scores(scores)
    return scores


def load_json(text: str) -> Any:
    """Return the value of JSON text; raises InvalidRow."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRow("a value is no JSON") from error


def _check_scores(scores: NDArray[np.void]) -> None:
    """Check that ORFs, which are sorted, are sorted by their origins too, and that these can exist."""
    fragment, frame = scores["fragment"], scores["frame"]
    lowest, highest = frame.min(initial=0), frame.max(initial=0)
    are_known = fragment.min(initial=1) > 0 and lowest >= 0 and highest < len(FRAMES)
    _require(bool(are_known), "an ORF is of an unknown fragment or frame")
    steps, places = np.diff(scores["contig"]), fragment * np.int64(len(FRAMES)) + frame
    _require(bool(((steps > 0) | ((steps == 0) & (np.diff(places) > 0))).all()), "ORFs are not in order")
    for name in ("others", "virus"):
        lowest, highest = scores[name].min(initial=0), scores[name].max(initial=0)
        _require(bool(lowest >= 0 and highest <= _MAX_PROBABILITY), "a score is no probability")


def _check_contigs(contigs: NDArray[np.void], fragments: int) -> None:
    for name in CONTIG.names or ():
        _require(bool((contigs[name] >= 0).all()), "a record has a negative number")
    _require(bool((np.diff(contigs["number"]) == 1).all()), "records are missing")
    _require(bool((np.diff(contigs["file"]) >= 0).all()), "records are not in the order of their files")
    _require(int(contigs["fragments"].sum()) == fragments, "fragments of a window are missing")


def _check_types(table: str, row: Row, types: tuple[type, ...]) -> None:
    """Check the checksum and the types of *row*, in which blobs come behind all other values."""
    blobs = types.count(bytes)
    _require(tuple(map(type, row)) == types, "a value is of another type")
    end = len(types) - 1 - blobs
    _require(row[-1] == checksum(table, row[:end], row[end:-1]), "a checksum is wrong")


def _decode_items(item: Any, text: str, types: Sequence[Any]) -> Any:
    """Yield each of a list of lists in JSON as *item*; its values must have *types*."""
    found = load_json(text)
    _require(type(found) is list, "a value is no list")
    for values in found:
        _require(type(values) is list and len(values) == len(types), "a value is no list")
        for value, kind in zip(values, types, strict=True):
            _require(isinstance(value, kind) and type(value) is not bool, "a value is of another type")
            _require(type(value) is not int or abs(value) <= _MOST, "a number is too large")
        yield item(*values)


def _to_json(items: Sequence[Any]) -> str:
    return json.dumps(items) if items else _NO_ITEMS


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InvalidRow(what)
