"""
Viral stretches along contigs: a viral contig as a whole, or an island in one, such as a prophage.

The scores of the fragments are smoothed along the contig. A region opens where they reach one threshold
and extends on both sides until they fall below another, lower one; regions with a small gap between them
are one. In this way a single fragment, in either direction, does not decide.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnuc_async.runs.blocks import Block
from virnuc_async.runs.reader import RunReader
from virnuc_async.sequences.fragments import ranges
from virnuc_async.settings import RegionRules

from .verdicts import Votes, vote

VIRAL_CONTIG, PROPHAGE_CANDIDATE = KINDS = ("viral_contig", "prophage_candidate")

_DECIMALS = 9  # of a smoothed score


class Region(NamedTuple):
    """A viral stretch of a contig: from base *start*, counted from 0, to the one before *end*."""

    start: int
    end: int
    score: float  # mean of its fragments' scores by their bases, 0 to 1
    fragments: int  # with a score
    kind: str  # of KINDS


class ContigRegions(NamedTuple):
    """A contig with at least one region."""

    id: bytes
    length: int
    regions: list[Region]


def viral_share(others: NDArray[np.float32], virus: NDArray[np.float32]) -> NDArray[np.float64]:
    """
    Return the score of each fragment, with the highest P(others) and P(virus) of its ORFs.

    It is P(virus) of their sum: at least 0.5 where the fragment counts as viral.
    """
    highest = virus.astype(np.float64)
    return highest / np.maximum(highest + others, np.finfo(np.float64).tiny)


def find_regions(
    places: NDArray[np.int64], scores: NDArray[np.float64], length: int, rules: RegionRules
) -> list[Region]:
    """
    Return the regions of a contig of *length* bases, in order; they do not overlap.

    *places*, (F, 2), are the half-open ranges of the fragments that have *scores*, (F,), from 0 to 1, in
    order. Neighbours may overlap, the last one may be short, and fragments without a score may be missing.
    """
    if length < rules.min_contig or not len(scores):
        return []
    starts, ends = _without_overlaps(places)
    smoothed = _smooth(starts, ends, scores, rules.smoothing)
    found = []
    for first, last in _bridged(_open_runs(starts, ends, smoothed, rules), starts, ends, rules.gap):
        start, end = int(starts[first]), int(ends[last])
        if end - start >= rules.min_length:
            part = slice(first, last + 1)
            score = float(np.average(scores[part], weights=(ends - starts)[part]))
            is_whole = end - start >= rules.whole_fraction * length
            found.append(Region(start, end, score, last + 1 - first, KINDS[not is_whole]))
    return found


def contig_regions(reader: RunReader, length: int, rules: RegionRules) -> Iterator[ContigRegions]:
    """Yield every contig with a region, in input order; *length* is what contigs were cut into, in bases."""
    for block in reader.blocks():
        yield from _block_regions(block, length, rules)


def long_contigs(
    block: Block, length: int, rules: RegionRules
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield each contig of *block* that is looked at: its row, and places and scores of its fragments."""
    lengths = block.contigs["length"]
    if lengths.max(initial=0) < rules.min_contig:
        return
    fragments = vote(block)
    for row in np.flatnonzero(lengths >= rules.min_contig).tolist():
        own = fragments.part(slice(*np.searchsorted(fragments.rows, (row, row + 1)).tolist()))
        yield row, _places(own, lengths, length), _scores(own)


def _block_regions(block: Block, length: int, rules: RegionRules) -> Iterator[ContigRegions]:
    lengths, ids = block.contigs["length"], block.ids.split(b"\n")
    for row, places, scores in long_contigs(block, length, rules):
        if regions := find_regions(places, scores, int(lengths[row]), rules):
            yield ContigRegions(ids[row], int(lengths[row]), regions)


def _places(fragments: Votes, lengths: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return ranges(lengths, fragments.rows, fragments.numbers - np.int64(1), length)


def _scores(fragments: Votes) -> NDArray[np.float64]:
    return viral_share(fragments.others, fragments.highest)


def _without_overlaps(places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return starts and ends of *places*, where those that overlap meet in the middle of what they share."""
    starts, ends = places[:, 0].copy(), places[:, 1].copy()
    middles = (starts[1:] + ends[:-1]) // 2
    overlap = starts[1:] < ends[:-1]
    starts[1:][overlap] = ends[:-1][overlap] = middles[overlap]
    return starts, ends


def _smooth(
    starts: NDArray[np.int64], ends: NDArray[np.int64], scores: NDArray[np.float64], width: int
) -> NDArray[np.float64]:
    """Return the mean, by bases, of the scores in *width* bases around the middle of each fragment."""
    bases = ends - starts
    middles = (starts + ends) / 2
    total, weighted = (np.append(0, np.cumsum(column)) for column in (bases, bases * scores))
    first = np.searchsorted(middles, middles - width / 2)
    last = np.searchsorted(middles, middles + width / 2, side="right")
    means = (weighted[last] - weighted[first]) / (total[last] - total[first])
    # A mean of equal scores is that score, as thresholds are compared with: sums are not exact.
    smoothed: NDArray[np.float64] = np.round(means, _DECIMALS)
    return smoothed


def _open_runs(
    starts: NDArray[np.int64], ends: NDArray[np.int64], smoothed: NDArray[np.float64], rules: RegionRules
) -> Iterator[tuple[int, int]]:
    """Yield first and last fragment of each run that stays above one threshold and reaches the other."""
    numbers = np.flatnonzero(smoothed >= rules.close_score)
    # Where too many bases have no score, such as a row of N, there is nothing to extend over.
    is_break = (np.diff(numbers) > 1) | (starts[numbers][1:] - ends[numbers][:-1] > rules.gap)
    for run in np.split(numbers, np.flatnonzero(is_break) + 1):
        if len(run) and smoothed[run].max() >= rules.open_score:
            yield int(run[0]), int(run[-1])


def _bridged(
    runs: Iterator[tuple[int, int]], starts: NDArray[np.int64], ends: NDArray[np.int64], gap: int
) -> list[tuple[int, int]]:
    """Return *runs* of fragments, joined where at most *gap* bases are between two."""
    joined: list[tuple[int, int]] = []
    for first, last in runs:
        if joined and starts[first] - ends[joined[-1][1]] <= gap:
            first = joined.pop()[0]
        joined.append((first, last))
    return joined
