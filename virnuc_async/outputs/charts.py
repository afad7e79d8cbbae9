"""Charts as the templates draw them: what is in them, in pixels, with a description for those who listen."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

Points = Sequence[tuple[float, float]]

_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 26, 40  # around the area that is drawn in; in pixels
_LEGEND = 18  # height of a line of the legend, in pixels
_LEAST = 0.5  # on a logarithmic axis of counts: a single one must be seen
_STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis: its name, its ends, and the values that are marked on it, with their texts."""

    name: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return where on the axis *value* is: 0 at its low end, 1 at its high one."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Line:
    """
    A line of a chart, which may be interrupted; *kind* decides how it looks.

    If it *is_area*, all below it is filled.
    """

    name: str
    parts: tuple[Points, ...]
    kind: str
    is_area: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """
    A chart of *lines*; *bands* are stretches of the x axis, with a text each, that are highlighted.

    *description* is for those who do not see it; *id* is unique on a page.
    """

    id: str
    title: str
    description: str
    x: Scale
    y: Scale
    lines: tuple[Line, ...]
    bands: tuple[tuple[float, float, str], ...] = ()
    has_diagonal: bool = False
    size: tuple[int, int] = (300, 220)  # of the area that is drawn in

    @property
    def width(self) -> int:
        """The width of the whole, in pixels."""
        return self.size[0] + _LEFT + _RIGHT

    @property
    def height(self) -> int:
        """The height of the whole, in pixels."""
        return self.size[1] + _TOP + _BOTTOM + _LEGEND * len(self.lines) * self.has_legend

    @property
    def has_legend(self) -> bool:
        """Whether the lines must be told apart."""
        return len(self.lines) > 1

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the area that is drawn in."""
        return _LEFT, _TOP, _LEFT + self.size[0], _TOP + self.size[1]

    def at_x(self, value: float) -> str:
        """Return the pixel of a value of the x axis."""
        return f"{_LEFT + self.x.place(value) * self.size[0]:.1f}"

    def at_y(self, value: float) -> str:
        """Return the pixel of a value of the y axis."""
        return f"{_TOP + (1 - self.y.place(value)) * self.size[1]:.1f}"

    def pixels(self, line: Line) -> Iterator[str]:
        """Yield the points of each part of *line*, down to the axis at both ends if it is an area."""
        for points in line.parts:
            if line.is_area and points:
                points = [(points[0][0], self.y.low), *points, (points[-1][0], self.y.low)]
            yield " ".join(f"{self.at_x(x)},{self.at_y(y)}" for x, y in points)

    def legend_y(self, row: int) -> int:
        """Return where a line of the legend is."""
        return self.size[1] + _TOP + _BOTTOM + _LEGEND * row + 8


def share_scale(name: str) -> Scale:
    """Return the axis of a probability or a proportion."""
    return Scale(name, 0, 1, tuple((tick, f"{tick:g}") for tick in (0.0, 0.25, 0.5, 0.75, 1.0)))


def linear_scale(name: str, low: float, high: float) -> Scale:
    """Return an axis from *low*, or below, to *high*, or above, with ticks at round numbers."""
    step = _round_step((high - low) / 4 or 1)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    ticks = [number * step for number in range(first, last + 1)]
    return Scale(name, ticks[0], ticks[-1], tuple((tick, short_number(tick)) for tick in ticks))


def count_scale(name: str, counts: Iterable[float]) -> Scale:
    """Return an axis of *counts*, logarithmic if they are of very different sizes."""
    above_zero = [number for number in counts if number > 0] or [1]
    most = max(above_zero)
    if most < 100 * min(above_zero):
        return linear_scale(name, 0, most)
    tens = math.ceil(math.log10(most))
    ticks = tuple((10.0**power, short_number(10.0**power)) for power in range(tens + 1))
    return Scale(f"{name}, logarithmic", _LEAST, 10.0**tens, ticks, is_log=True)


def length_scale(name: str, low: float, high: float) -> Scale:
    """Return a logarithmic axis of lengths in bases, from *low* to *high*."""
    factors = (1,) if high > 1000 * low else (1, 2, 5)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    shown = [tick for tick in ticks if low <= tick <= high]
    return Scale(name, low, high, tuple((tick, short_number(tick)) for tick in shown), is_log=True)


def short_number(value: float) -> str:
    """Format a number of an axis: 1.5k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def unit_chart(
    id: str, title: str, axes: tuple[str, str], lines: Mapping[str, Points], has_diagonal: bool = False
) -> Chart:
    """Return a chart of *lines*, by their names; both axes go from 0 to 1."""
    drawn = tuple(
        Line(name, (points,), f"line-{number % 5}")
        for number, (name, points) in zip(count(), lines.items(), strict=False)
    )
    description = f"{axes[1]} against {axes[0]}, both from 0 to 1; lines: {', '.join(lines)}"
    x, y = map(share_scale, axes)
    return Chart(id, title, description, x, y, drawn, has_diagonal=has_diagonal, size=(260, 260))


def _round_step(size: float) -> float:
    power = 10.0 ** math.floor(math.log10(size))
    return next(step * power for step in _STEPS if step * power >= size)
