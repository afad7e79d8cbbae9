"""Draw where the time of a simulated cluster goes, by its number of GPUs: docs/pictures/cluster.svg."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from cluster_model import Spent

# What is shown as one, from the left: a name, a color that is told apart in gray too, and what it is of.
_PARTS: Mapping[str, tuple[str, Sequence[Spent]]] = {
    "scoring": ("#2a6f97", (Spent.SCORING,)),
    "starting, and loading the model": ("#e09f3e", (Spent.STARTING, Spent.LOADING)),
    "opening, rows, publishing": ("#9a8c98", (Spent.OPENING, Spent.ROWS, Spent.PUBLISHING)),
    "lost and repeated": ("#9e2a2b", (Spent.ABSENT, Spent.REPEATED, Spent.STALLED, Spent.SKIMMING)),
    "without a shard": ("#d9d9d9", (Spent.IDLE,)),
}
_WIDTH, _LEFT, _BAR, _ROW, _TOP = 760, 90, 520, 30, 58


def main(arguments: list[str]) -> None:
    """Draw the picture of a study in the JSON file of simulate_cluster.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, default=Path("docs/benchmarks/cluster-simulated.json"))
    parser.add_argument("--study", default="GPUs")
    parser.add_argument("--output", type=Path, default=Path("docs/pictures/cluster.svg"))
    options = parser.parse_args(arguments)
    points = json.loads(options.input.read_text("utf-8"))["points"]
    options.output.write_text(picture([one for one in points if one["study"] == options.study]), "utf-8")


def picture(points: Sequence[Mapping[str, Any]]) -> str:
    """Return an SVG with a bar for each of *points*."""
    height = _TOP + _ROW * len(points) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" role="img" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">',
        "<title>Where the time of the GPUs goes (simulated)</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        *_legend(),
    ]
    for number, point in enumerate(points):
        lines += _bar(point, _TOP + _ROW * number)
    return "\n".join([*lines, "</svg>\n"])


def _legend() -> Iterator[str]:
    left, top = 12, 10
    for name, (color, _) in _PARTS.items():
        width = 34 + round(6.6 * len(name))
        if left + width > _WIDTH:
            left, top = 12, top + 20
        yield f'<rect x="{left}" y="{top}" width="12" height="12" fill="{color}"/>'
        yield _text(left + 18, top + 11, name)
        left += width


def _bar(point: Mapping[str, Any], top: float) -> Iterator[str]:
    yield _text(_LEFT - 10, top + 16, f"{point['gpus']:,} GPU{'s' * (point['gpus'] != 1)}", "end")
    left = float(_LEFT)
    for name, (color, parts) in _PARTS.items():
        share = sum(point["shares"][part.value] for part in parts)
        width = _BAR * share
        title = f"<title>{escape(name)}: {share:.1%}</title>"
        yield (
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="22" fill="{color}">{title}</rect>'
        )
        left += width
    hours = point["shards_minutes"] / 60
    yield _text(_LEFT + _BAR + 8, top + 16, f"{point['efficiency']:.1%} in {_hours(hours)}")


def _hours(hours: float) -> str:
    return f"{hours / 24:,.0f} days" if hours >= 48 else f"{hours:.1f} hours"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#222222">{escape(text)}</text>'


if __name__ == "__main__":
    main(sys.argv[1:])
