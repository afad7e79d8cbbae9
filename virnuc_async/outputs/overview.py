"""What a report shows of the sequences of a run: gathered block by block, in memory that is bounded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heappush, heapreplace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnuc_async.runs.blocks import Block
from virnuc_async.settings import RegionRules

from .regions import KINDS, Region, find_regions, long_contigs
from .verdicts import LABELS, VERDICT, vote

MOST_ROWS, MOST_TRACKS = 2_000, 20
_MOST_POINTS = 400  # of a track: more than there are pixels are not seen
_ID_BYTES = 500  # of an id; a report shows less than that
_DECADES = 10  # bins of lengths for each power of ten
_SCORE_BINS = 50
_LONGEST = 10  # powers of ten
_HISTOGRAMS = ("lengths", "fragment_scores", "contig_scores")
_POINTS = ("starts", "ends", "scores")  # of a track

Columns = dict[str, NDArray[Any]]


class Histogram:
    """Counts of numbers by their bins, which *edges* are between, for each of several *series*."""

    def __init__(self, edges: NDArray[np.float64], series: int) -> None:
        self.edges = edges
        self.counts = np.zeros((series, len(edges) - 1), np.int64)

    def add(self, numbers: NDArray[Any], series: NDArray[Any]) -> None:
        """Count each of *numbers* in its *series*; what is beyond the ends counts in the last bins."""
        bins = np.clip(np.searchsorted(self.edges, numbers, side="right") - 1, 0, len(self.edges) - 2)
        flat = np.bincount(series * self.counts.shape[1] + bins, minlength=self.counts.size)
        self.counts += flat.reshape(self.counts.shape)


class Track(NamedTuple):
    """The scores along a long sequence: a value for each stretch, which begins and ends at bases."""

    row: Columns  # of the table of contigs
    id: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    scores: NDArray[np.float64]
    regions: Sequence[Region]


class Overview:
    """
    The verdicts, distributions, most telling contigs and tracks of a run.

    *length* is what contigs were cut into, in bases; *verdicts_of* returns the columns of verdicts on the
    contigs of a block.
    """

    def __init__(
        self,
        length: int,
        verdicts_of: Callable[[Block], Columns],
        rules: RegionRules | None = None,
    ) -> None:
        self._verdicts = np.zeros(len(LABELS), np.int64)
        self.bases = 0
        powers = np.arange(_LONGEST * _DECADES + 1) / _DECADES
        shares = np.linspace(0, 1, _SCORE_BINS + 1)
        self.lengths = Histogram(10.0**powers, len(LABELS))
        self.fragment_scores = Histogram(shares, 2)  # of fragments that are not viral, and of viral ones
        self.contig_scores = Histogram(shares, len(LABELS))
        self.rows = _TopRows()
        self._tracks = _TopTracks(length, rules or RegionRules())
        self._verdicts_of, self._length = verdicts_of, length

    @property
    def contigs(self) -> int:
        """The number of contigs."""
        return int(self._verdicts.sum())

    def count(self, label: str) -> int:
        """Return how many contigs have the verdict *label*."""
        return int(self._verdicts[LABELS.index(label)])

    @property
    def tracks(self) -> list[Track]:
        """The tracks, those with the most viral bases first."""
        return self._tracks.in_order()

    def add_other(self, other: "Overview") -> None:
        """Add what *other* has gathered, of contigs behind all that were added before."""
        self._verdicts += other._verdicts
        self.bases += other.bases
        for name in _HISTOGRAMS:
            getattr(self, name).counts += getattr(other, name).counts
        if other.rows.columns:
            self.rows.add(other.rows.columns, other.rows.ids)
        for track in other.tracks:
            self._tracks.keep(track)

    def to_arrays(self) -> Columns:
        """Return all that it has gathered, as arrays without objects."""
        tracks = self.tracks
        regions = [
            (at, region.start, region.end, region.fragments, KINDS.index(region.kind))
            for at, track in enumerate(tracks)
            for region in track.regions
        ]
        scores = [region.score for track in tracks for region in track.regions]
        arrays: Columns = {
            "verdicts": self._verdicts,
            "bases": np.array(self.bases),
            "ids": _to_array(self.rows.ids),
            "track ids": _to_array([track.id for track in tracks]),
            "points": np.array([len(track.starts) for track in tracks], np.int64),
            "regions": np.array(regions, np.int64).reshape(-1, 5),
            "region scores": np.array(scores, np.float64),
        }
        arrays |= {name: getattr(self, name).counts for name in _HISTOGRAMS}
        arrays |= {f"row {name}": column for name, column in self.rows.columns.items()}
        for name in tracks[0].row if tracks else ():
            arrays[f"track {name}"] = np.concatenate([track.row[name] for track in tracks])
        for name in _POINTS if tracks else ():
            arrays[name] = np.concatenate([getattr(track, name) for track in tracks])
        return arrays

    def add_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add what the arrays of another one hold, as :meth:`add_other` does."""
        other = Overview(self._length, self._verdicts_of)
        other._verdicts, other.bases = arrays["verdicts"], int(arrays["bases"])
        for name in _HISTOGRAMS:
            getattr(other, name).counts = arrays[name]
        other.rows.columns, other.rows.ids = _columns(arrays, "row "), _from_array(arrays["ids"])
        for track in _tracks(arrays):
            other._tracks.keep(track)
        self.add_other(other)

    def add(self, block: Block) -> None:
        """Add the contigs of *block*."""
        columns: Columns = {name: block.contigs[name] for name in ("number", "file", "length")}
        columns |= self._verdicts_of(block)
        labels, lengths = columns[VERDICT], columns["length"]
        self._verdicts += np.bincount(labels, minlength=len(LABELS))
        self.bases += int(lengths.sum())
        self.lengths.add(lengths, labels)
        fragments = vote(block)
        self.fragment_scores.add(fragments.highest, fragments.are_viral.astype(np.intp))
        are_scored = labels != LABELS.index("no_orf")
        self.contig_scores.add(columns["mean_p_virus"][are_scored], labels[are_scored])
        ids = block.ids.split(b"\n")[:-1]
        self._tracks.add(block, columns, ids)
        self.rows.add(columns, ids)


def _tracks(arrays: Mapping[str, NDArray[Any]]) -> Iterator[Track]:
    columns, ends = _columns(arrays, "track "), np.cumsum(arrays["points"]).tolist()
    columns.pop("ids")
    rows = list(zip(arrays["regions"].tolist(), arrays["region scores"].tolist(), strict=True))
    for at, (id, end) in enumerate(zip(_from_array(arrays["track ids"]), ends, strict=True)):
        part = slice(end - int(arrays["points"][at]), end)
        regions = [
            Region(start, stop, score, fragments, KINDS[kind])
            for (of, start, stop, fragments, kind), score in rows
            if of == at
        ]
        own = {name: column[at : at + 1] for name, column in columns.items()}
        starts, ends_of, scores = (arrays[name][part] for name in _POINTS)
        yield Track(own, id, starts, ends_of, scores, regions)


def _columns(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Columns:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _to_array(ids: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(b"%s\n" % id for id in ids), np.uint8)


def _from_array(ids: NDArray[np.uint8]) -> list[bytes]:
    return ids.tobytes().split(b"\n")[:-1]


class _TopRows:
    """
    The contigs that say most, in order: viral ones first, by the number of their viral fragments.

    Of equal numbers, those with the higher mean P(virus) are first.
    """

    def __init__(self) -> None:
        self.columns: Columns = {}
        self.ids: list[bytes] = []

    def add(self, columns: Columns, ids: list[bytes]) -> None:
        """Add contigs, and keep those that say most."""
        if self.columns:
            columns = {name: np.concatenate((self.columns[name], columns[name])) for name in columns}
        ids = self.ids + ids
        are_viral = columns[VERDICT] == LABELS.index("virus")
        # NaN, of contigs without a score, sorts last.
        keys = (columns["number"], -columns["mean_p_virus"], -columns["viral_fragments"], ~are_viral)
        order = np.lexsort(keys)[:MOST_ROWS]
        self.columns = {name: column[order] for name, column in columns.items()}
        self.ids = [ids[row][:_ID_BYTES] for row in order.tolist()]


class _TopTracks:
    """The tracks of the long contigs with the most bases in viral regions; of equal ones the longest."""

    def __init__(self, length: int, rules: RegionRules) -> None:
        self._length, self._rules = length, rules
        self._heap: list[tuple[int, int, int, Track]] = []
        self._order = count(0, -1)  # of two that are equal, the first one stays

    def add(self, block: Block, columns: Columns, ids: list[bytes]) -> None:
        """Look at the contigs of *block* that are long enough."""
        least = self._rules.min_contig
        if len(self._heap) == MOST_TRACKS:
            # A region is not longer than its contig.
            least = max(least, self._heap[0][0])
        for row, places, scores in long_contigs(block, self._length, replace(self._rules, min_contig=least)):
            if not len(scores):
                continue
            regions = find_regions(places, scores, int(columns["length"][row]), self._rules)
            own = {name: column[row : row + 1] for name, column in columns.items()}
            self.keep(Track(own, ids[row][:_ID_BYTES], *_binned(places, scores), regions))

    def keep(self, track: Track) -> None:
        """Keep *track*, if it is of those with the most."""
        bases = sum(region.end - region.start for region in track.regions)
        item = (bases, int(track.row["length"][0]), next(self._order), track)
        if len(self._heap) < MOST_TRACKS:
            heappush(self._heap, item)
        elif item[:3] > self._heap[0][:3]:
            heapreplace(self._heap, item)

    def in_order(self) -> list[Track]:
        """Return the tracks."""
        return [track for *_, track in sorted(self._heap, key=lambda item: item[:3], reverse=True)]


def _binned(
    places: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return starts, ends and scores of *places*; where there are too many, neighbours become one."""
    size = -(-len(scores) // _MOST_POINTS)
    first = np.arange(0, len(scores), size)
    last = np.append(first[1:], len(scores)) - 1
    means = np.add.reduceat(scores, first) / (last - first + 1)
    return places[first, 0], places[last, 1], means


def row_values(columns: Columns, names: Sequence[str]) -> Iterator[list[Any]]:
    """Yield the values of *names* of each row of *columns*, as JSON can hold them; None for NaN."""
    lists = [_plain(columns[name]) for name in names]
    return map(list, zip(*lists, strict=True))


def _plain(column: NDArray[Any]) -> list[Any]:
    if column.dtype.kind != "f":
        return list(column.tolist())
    # As many digits as are shown.
    return [None if value != value else round(value, 4) for value in column.astype(np.float64).tolist()]
