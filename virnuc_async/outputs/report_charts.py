"""The charts of a report: distributions, tracks along sequences, and devices over time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from virnuc_async.runs.device_history import DevicePoint

from .charts import Chart, Line, Scale, count_scale, length_scale, linear_scale, share_scale, short_number
from .overview import Histogram, Overview, Track
from .verdicts import LABELS

_TRACK_SIZE, _TIME_SIZE = (860, 110), (420, 180)
_FRAGMENTS = {"others": "not viral", "virus": "viral"}
_CONTIGS = {label: label for label in LABELS}
_MOST_DEVICES = 16  # lines of a chart


class HistogramView(NamedTuple):
    """A chart of a histogram, and its numbers as a table."""

    chart: Chart
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def histograms(overview: Overview) -> Iterator[HistogramView]:
    """Yield the distributions that have a number: of scores of fragments and contigs, and of lengths."""
    scores = share_scale("best P(virus) of the fragment")
    yield from histogram_views("fragment-scores", "Fragments", scores, overview.fragment_scores, _FRAGMENTS)
    scores = share_scale("mean P(virus) of the sequence")
    yield from histogram_views(
        "contig-scores", "Sequences by score", scores, overview.contig_scores, _CONTIGS
    )
    yield from histogram_views("lengths", "Sequences by length", None, overview.lengths, _CONTIGS)


def histogram_views(
    id: str, title: str, x: Scale | None, histogram: Histogram, names: Mapping[str, str]
) -> Iterator[HistogramView]:
    """Yield the chart of *histogram*, unless it is empty; without *x*, its numbers are lengths."""
    totals = histogram.counts.sum(0)
    if not totals.any():
        return
    used = totals.nonzero()[0]
    first, last = (int(used[0]), int(used[-1]) + 1) if x is None else (0, len(totals))
    edges = histogram.edges[first : last + 1].tolist()
    kinds = [kind for kind, counts in zip(names, histogram.counts, strict=False) if counts.any()]
    counts = {kind: histogram.counts[[*names].index(kind), first:last].tolist() for kind in kinds}
    lines = tuple(Line(names[kind], (_steps(edges, counts[kind]),), kind, is_area=True) for kind in kinds)
    noun = "fragments" if names is _FRAGMENTS else "sequences"
    y = count_scale(noun, (number for numbers in counts.values() for number in numbers))
    x = x or length_scale("length of the sequence, bases", edges[0], edges[-1])
    parts = (f"{sum(numbers):,} {names[kind]}" for kind, numbers in counts.items())
    description = f"Histogram of {noun} by {x.name}: {', '.join(parts)}. The numbers are in the table below."
    header = (x.name, *(names[kind] for kind in kinds))
    rows = [
        (f"{_edge(low)} to {_edge(high)}", *(f"{numbers[row]:,}" for numbers in counts.values()))
        for row, (low, high) in enumerate(zip(edges, edges[1:], strict=False))
        if any(numbers[row] for numbers in counts.values())
    ]
    yield HistogramView(Chart(id, title, description, x, y, lines), header, rows)


def _steps(edges: Sequence[float], counts: Sequence[int]) -> list[tuple[float, float]]:
    """Return the outline of a histogram: the same height from one edge to the next."""
    return [
        (edge, number)
        for low, high, number in zip(edges, edges[1:], counts, strict=False)
        for edge in (low, high)
    ]


def _edge(value: float) -> str:
    return f"{value:g}" if value < 10 else f"{value:,.0f}"


def track_chart(track: Track, number: int, name: str) -> Chart:
    """Return the chart of a *track*, the sequence *name*, whose regions are highlighted."""
    length = int(track.row["length"][0])
    regions = [f"{region.start + 1:,} to {region.end:,}" for region in track.regions]
    description = f"Score of the fragments along {name}, {length:,} bases; " + (
        f"viral regions: bases {', '.join(regions)}" if regions else "no viral region"
    )
    x = Scale("position, bases", 0, length, _positions(length))
    bands = tuple(
        (region.start, region.end, text) for region, text in zip(track.regions, regions, strict=True)
    )
    lines = (Line("score", tuple(_unbroken(track)), "virus"),)
    return Chart(
        f"track-{number}", name, description, x, share_scale("viral score"), lines, bands, size=_TRACK_SIZE
    )


def _unbroken(track: Track) -> Iterator[list[tuple[float, float]]]:
    """Yield the line of each stretch without a gap: between two there are fragments without a score."""
    points: list[tuple[float, float]] = []
    for start, end, score in zip(
        track.starts.tolist(), track.ends.tolist(), track.scores.tolist(), strict=True
    ):
        if points and start > points[-1][0]:
            yield points
            points = []
        # Neighbours may overlap: the line does not go back.
        points += [(max(start, points[-1][0]) if points else start, score), (end, score)]
    yield points


def _positions(length: int) -> tuple[tuple[float, str], ...]:
    ticks = linear_scale("", 0, length).ticks
    return tuple(tick for tick in ticks if tick[0] <= length)


def device_charts(devices: Mapping[str, Sequence[DevicePoint]]) -> Iterator[Chart]:
    """Yield the speed and the memory of *devices* over the time that they have worked, if that is known."""
    shown = {name: points for name, points in list(devices.items())[:_MOST_DEVICES] if len(points) > 1}
    if not shown:
        return
    end = max(sum(point.seconds for point in points) for points in shown.values())
    unit, size = next((unit, size) for unit, size in _UNITS if end >= 3 * size or size == 1)
    x = linear_scale(f"working time, {unit}", 0, end / size)
    for id, title, name, value in _MEASURES:
        lines = tuple(
            Line(device, tuple(_over_time(points, size, value)), f"line-{number % 5}")
            for number, (device, points) in enumerate(shown.items())
        )
        highest = max((y for line in lines for part in line.parts for _, y in part), default=0)
        if highest:
            description = (
                f"{title} of {', '.join(shown)}; the highest value is {short_number(round(highest, 1))}"
            )
            y = linear_scale(name, 0, highest)
            yield Chart(id, title, description, x, y, lines, size=_TIME_SIZE)


def _over_time(
    points: Sequence[DevicePoint], size: float, value: Callable[[DevicePoint], float | None]
) -> Iterator[list[tuple[float, float]]]:
    """Yield the steps of each stretch whose values are known; time without work is left out."""
    now, steps = 0.0, list[tuple[float, float]]()
    for point in points:
        known, begin = value(point), now
        now += point.seconds
        if known is not None:
            steps += [(begin / size, known), (now / size, known)]
        elif steps:
            yield steps
            steps = []
    if steps:
        yield steps


_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def _memory(point: DevicePoint) -> float | None:
    return None if point.memory is None else point.memory / 2**30


_MEASURES: tuple[tuple[str, str, str, Callable[[DevicePoint], float | None]], ...] = (
    ("speed", "Speed", "ORFs per second", lambda point: point.orfs_per_second),
    ("memory", "Memory in use", "GiB", _memory),
    ("utilization", "Utilization", "percent", lambda point: point.utilization),
    ("temperature", "Temperature", "degrees Celsius", lambda point: point.temperature),
)
