"""A self-contained HTML page with tables and charts: no script, no other file, no network."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")  # of Okabe and Ito, for the colour-blind
_SIZE, _MARGIN = 260, 44  # of a chart's plot area, and around it; in pixels
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.15rem .7rem;text-align:right}"
    "td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f3f5f7}"
    "th{border-bottom:1px solid #888}figure{display:inline-block;margin:0 1rem 1rem 0}"
    "svg text{font:11px system-ui,sans-serif;fill:#444}.warning{background:#fff3cd;padding:.6rem 1rem}"
)


def page(title: str, sections: Iterable[str]) -> str:
    """Return a complete page; *sections* are HTML."""
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *sections,
        "</body></html>",
        "",
    ]
    return "\n".join(lines)


def heading(text: str) -> str:
    """Return the heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; *kind* "warning" highlights it."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first row is its header."""
    lines = [
        "<tr>" + "".join(f"<{cell}>{escape(text)}</{cell}>" for text in row) + "</tr>"
        for cell, row in zip(("th", *("td" for _ in rows[1:])), rows, strict=True)
    ]
    return f"<table>\n{chr(10).join(lines)}\n</table>"


def chart(title: str, axes: tuple[str, str], lines: Mapping[str, Points], diagonal: bool = False) -> str:
    """Return a chart of *lines*, by their names; both axes go from 0 to 1."""
    side = _SIZE + 2 * _MARGIN
    colours = [_COLOURS[number % len(_COLOURS)] for number in range(len(lines))]
    plotted = [_line(points, colour) for points, colour in zip(lines.values(), colours, strict=True)]
    legend = [
        _legend(row, name, colour) for row, (name, colour) in enumerate(zip(lines, colours, strict=True))
    ]
    reference = _line([(0, 0), (1, 1)], "#bbb") if diagonal else ""
    content = "".join([_axes(axes), reference, *plotted, *legend])
    size = f'width="{side}" height="{side + 18 * len(lines)}"'
    svg = f'<svg {size} role="img" aria-label="{escape(title)}">{content}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _pixels(x: float, y: float) -> tuple[float, float]:
    return _MARGIN + x * _SIZE, _MARGIN + (1 - y) * _SIZE


def _line(points: Points, colour: str) -> str:
    pixels = " ".join("{:.1f},{:.1f}".format(*_pixels(x, y)) for x, y in points)
    return f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{pixels}"/>'


def _axes(names: tuple[str, str]) -> str:
    """Return the border, the ticks and the names of both axes."""
    end = _MARGIN + _SIZE
    box = f'<rect x="{_MARGIN}" y="{_MARGIN}" width="{_SIZE}" height="{_SIZE}" fill="none" stroke="#888"/>'
    x_ticks = [_text(_pixels(tick, 0)[0], end + 15, "middle", f"{tick:g}") for tick in _TICKS]
    y_ticks = [_text(_MARGIN - 5, _pixels(0, tick)[1] + 4, "end", f"{tick:g}") for tick in _TICKS]
    x_name = _text(_MARGIN + _SIZE / 2, end + 32, "middle", names[0])
    y_name = _text(_MARGIN, _MARGIN - 8, "start", names[1])
    return "".join((box, *x_ticks, *y_ticks, x_name, y_name))


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(row: int, name: str, colour: str) -> str:
    y = 2 * _MARGIN + _SIZE + 18 * row + 4
    mark = f'<rect x="{_MARGIN}" y="{y - 8}" width="14" height="4" fill="{colour}"/>'
    return mark + _text(_MARGIN + 20, y - 2, "start", name)
