"""Tables and charts as one HTML page that needs nothing else: no script, no file, no network."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")  # told apart also by the colour-blind
_SIZE, _MARGIN = 260, 44  # of a chart's area, and around it
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.15rem .7rem;text-align:right}"
    "td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f3f5f7}"
    "th{border-bottom:1px solid #888}figure{display:inline-block;margin:0 1rem 1rem 0}"
    "svg text{font:11px system-ui,sans-serif;fill:#444}.warning{background:#fff3cd;padding:.6rem 1rem}"
)


def page(title: str, parts: Iterable[str]) -> str:
    """Give a whole page of *parts*, which are HTML."""
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *parts,
        "</body></html>",
        "",
    ]
    return "\n".join(lines)


def heading(text: str) -> str:
    """Begin a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """Give a paragraph; *kind* "warning" makes it stand out."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Give a table, its header first."""
    lines = [
        "<tr>" + "".join(f"<{cell}>{escape(text)}</{cell}>" for text in row) + "</tr>"
        for cell, row in zip(("th", *("td" for _ in rows[1:])), rows, strict=True)
    ]
    return f"<table>\n{chr(10).join(lines)}\n</table>"


def chart(title: str, axes: tuple[str, str], lines: Mapping[str, Points], diagonal: bool = False) -> str:
    """Draw *lines*, by their names, in a square of which both sides go from 0 to 1."""
    side = _SIZE + 2 * _MARGIN
    shown = [
        _line(points, colour) for points, colour in zip(lines.values(), _colours(len(lines)), strict=True)
    ]
    legend = [
        _legend(row, name, colour)
        for row, (name, colour) in enumerate(zip(lines, _colours(len(lines)), strict=True))
    ]
    drawn = "".join([_frame(axes), _line([(0, 0), (1, 1)], "#bbb") if diagonal else "", *shown, *legend])
    size = f'width="{side}" height="{side + 18 * len(lines)}"'
    svg = f'<svg {size} role="img" aria-label="{escape(title)}">{drawn}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _colours(count: int) -> list[str]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(count)]


def _place(x: float, y: float) -> tuple[float, float]:
    return _MARGIN + x * _SIZE, _MARGIN + (1 - y) * _SIZE


def _line(points: Points, colour: str) -> str:
    places = " ".join("{:.1f},{:.1f}".format(*_place(x, y)) for x, y in points)
    return f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{places}"/>'


def _frame(axes: tuple[str, str]) -> str:
    """Draw the border, the ticks, and what the axes are."""
    end = _MARGIN + _SIZE
    box = f'<rect x="{_MARGIN}" y="{_MARGIN}" width="{_SIZE}" height="{_SIZE}" fill="none" stroke="#888"/>'
    across = [_word(_place(tick, 0)[0], end + 15, "middle", f"{tick:g}") for tick in _TICKS]
    up = [_word(_MARGIN - 5, _place(0, tick)[1] + 4, "end", f"{tick:g}") for tick in _TICKS]
    named = _word(_MARGIN + _SIZE / 2, end + 32, "middle", axes[0]) + _word(
        _MARGIN, _MARGIN - 8, "start", axes[1]
    )
    return "".join((box, *across, *up, named))


def _word(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(row: int, name: str, colour: str) -> str:
    y = 2 * _MARGIN + _SIZE + 18 * row + 4
    mark = f'<rect x="{_MARGIN}" y="{y - 8}" width="14" height="4" fill="{colour}"/>'
    return mark + _word(_MARGIN + 20, y - 2, "start", name)
