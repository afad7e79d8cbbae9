"""
What MultiQC shows of a run, a sample for each input: a bar of verdicts, and columns of general statistics.

MultiQC finds these files by their names, and takes what is in them for a section of its own report.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from virnuc_async.sequences.inputs import STDIN, split_extensions

from .columns import Chunks
from .html import visible
from .verdicts import LABELS

if TYPE_CHECKING:
    from .output_files import FinishedRun

VERDICTS, STATISTICS = "virnuc_mqc.json", "virnuc_statistics_mqc.json"

_COLOURS = {"virus": "#d55e00", "others": "#0072b2", "no_orf": "#999999"}  # of Okabe and Ito
_DESCRIPTION = (
    "Predicted by virnuc-async, with VirNucPro's method: <em>virus</em> if enough of a sequence's fragments "
    "are viral, <em>no_orf</em> if nothing of it could be scored."
)


def verdict_chunks(run: "FinishedRun") -> Chunks:
    """Yield the file of the bar graph."""
    yield _encoded(
        {
            "id": "virnuc_verdicts",
            "section_name": "Viral sequences",
            "description": _DESCRIPTION,
            "plot_type": "bargraph",
            "pconfig": {
                "id": "virnuc_verdicts_plot",
                "title": "virnuc-async: verdicts on sequences",
                "ylab": "Sequences",
            },
            "categories": {label: {"name": label, "color": _COLOURS[label]} for label in _in_order()},
            "data": {name: {label: counts[label] for label in _in_order()} for name, counts in _samples(run)},
        }
    )


def statistic_chunks(run: "FinishedRun") -> Chunks:
    """Yield the file of the columns of general statistics."""
    yield _encoded(
        {
            "id": "virnuc_statistics",
            "plot_type": "generalstats",
            "pconfig": {
                "viral_percent": {
                    "title": "Viral",
                    "description": "Sequences called virus, of those that could be scored",
                    "suffix": "%",
                    "min": 0,
                    "max": 100,
                    "scale": "OrRd",
                },
                "viral": _count_header("Viral sequences", "Sequences called virus"),
                "sequences": _count_header("Sequences", "Sequences that were read"),
            },
            "data": {name: _statistics(counts) for name, counts in _samples(run)},
        }
    )


def sample_names(paths: Sequence[str]) -> list[str]:
    """Return a name for each input, as they are distinguished: by file, else by directory, else by number."""
    names = [_stem(path) for path in paths]
    used = Counter(names)
    names = [
        f"{_directory(path)}_{name}" if used[name] > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]
    unique: dict[str, None] = {}
    for name in names:
        numbered = (f"{name}_{number}" for number in count(2))
        unique[name if name not in unique else next(each for each in numbered if each not in unique)] = None
    return list(unique)


def _in_order() -> tuple[str, ...]:
    return ("virus", *(label for label in LABELS if label != "virus"))


def _samples(run: "FinishedRun") -> Iterator[tuple[str, dict[str, int]]]:
    """Yield name and verdicts of each input."""
    names = sample_names([sample.file for sample in run.samples])
    for name, sample in zip(names, run.samples, strict=True):
        yield name, {label: sample.counts[label] for label in LABELS}


def _statistics(counts: dict[str, int]) -> dict[str, float]:
    scored = counts["virus"] + counts["others"]
    share = {"viral_percent": round(100 * counts["virus"] / scored, 3)} if scored else {}
    return {**share, "viral": counts["virus"], "sequences": sum(counts.values())}


def _count_header(title: str, description: str) -> dict[str, Any]:
    return {"title": title, "description": description, "format": "{:,.0f}", "min": 0, "scale": "Blues"}


def _stem(path: str) -> str:
    return "stdin" if path == STDIN else visible(split_extensions(os.path.basename(path))[0])


def _directory(path: str) -> str:
    return visible(PurePath(os.path.abspath(path)).parent.name)


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"
