"""
How well regions recover viral stretches inserted into contigs: ``python scripts/measure_regions.py GENOMES``.

Contigs are made of held-out pieces of real genomes, scored with the shipped model, and divided into two
halves that share no genus: rules are chosen on one, and judged on the other.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from made_contigs import HALVES, MadeContig, make_contigs, write_fasta
from measured import facts, save, table
from numpy.typing import NDArray

from virnuc_async.cli.main import main as command
from virnuc_async.outputs.regions import find_regions
from virnuc_async.settings import RegionRules

_CLIPPED = (-4.0, 4.0)  # log odds of a fragment, in the two-state path
_FOUND = 0.5  # part of an insertion that makes it found, and of a region that makes it a false one

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scored:
    """A made contig with the places and scores of its fragments."""

    contig: MadeContig
    places: NDArray[np.int64]
    scores: NDArray[np.float64]


Method = Callable[[Scored], list[Range]]


def score(genomes: Path, seeds: Iterable[int]) -> list[Scored]:
    """Return contigs made with each of *seeds*, scored with the shipped model on the CPU."""
    found = []
    for seed in seeds:
        contigs = make_contigs(genomes, seed)
        with TemporaryDirectory() as scratch:
            source, out = Path(scratch, "contigs.fa"), Path(scratch, "out")
            write_fasta(source, contigs)
            command(["predict", str(source), str(out), "--devices", "cpu", "--quiet"])
            rows = [line.split("\t") for line in (out / "fragments.tsv").read_text().splitlines()[1:]]
        for contig in contigs:
            own = np.array([[*row[6:8], *row[2:4]] for row in rows if row[4] == contig.id], float)
            found.append(Scored(contig, own[:, :2].astype(np.int64), own[:, 3] / own[:, 2:].sum(1)))
    return found


def by_rules(rules: RegionRules) -> Method:
    """Return the method of the program."""

    def find(scored: Scored) -> list[Range]:
        length = len(scored.contig.bases)
        return [region[:2] for region in find_regions(scored.places, scored.scores, length, rules)]

    return find


def by_path(offset: float, cost: float, min_length: int) -> Method:
    """
    Return the most probable path through two states, viral and not, as a method to compare with.

    A fragment counts with the log odds of its score less those of *offset*, and a change of state *cost*.
    """

    def find(scored: Scored) -> list[Range]:
        odds = np.clip(
            np.log(np.maximum(scored.scores, 1e-9) / np.maximum(1 - scored.scores, 1e-9)), *_CLIPPED
        )
        weights = (scored.places[:, 1] - scored.places[:, 0]) / 500
        are_viral = _path((odds - np.log(offset / (1 - offset))) * weights, cost)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], are_viral, [0]))))
        ranges = ((int(scored.places[a, 0]), int(scored.places[b - 1, 1])) for a, b in edges.reshape(-1, 2))
        return [(start, end) for start, end in ranges if end - start >= min_length]

    return find


def _path(evidence: NDArray[np.float64], cost: float) -> NDArray[np.int64]:
    """Return 1 for each fragment that is viral on the best path, else 0."""
    totals, came_from = np.zeros(2), np.zeros((len(evidence), 2), np.int64)
    for at, gain in enumerate(evidence):
        ways = np.array([[totals[0], totals[1] - cost], [totals[0] - cost, totals[1]]])
        came_from[at] = ways.argmax(1)
        totals = ways.max(1) + np.array([0.0, gain])
    states, state = np.zeros(len(evidence), np.int64), int(totals.argmax())
    for at in range(len(evidence) - 1, -1, -1):
        states[at], state = state, int(came_from[at, state])
    return states


def measure(data: Sequence[Scored], method: Method) -> dict[str, Any]:
    """Return how the regions of *method* agree with what was inserted."""
    right, called, inserted, f1 = _bases(data, method)
    pairs = [(method(one), one.contig.viral) for one in data]
    errors = [abs(a - b) for regions, viral in pairs for one in viral for a, b in _edges(one, regions)]
    is_found = [
        sum(_shared(one, region) for region in regions) >= _FOUND * (one[1] - one[0])
        for regions, viral in pairs
        for one in viral
    ]
    false = [
        sum(_shared(region, one) for one in viral) < _FOUND * (region[1] - region[0])
        for regions, viral in pairs
        for region in regions
    ]
    background = sum(len(one.contig.bases) for one in data) - inserted
    return {
        "precision": round(right / called, 3) if called else None,
        "recall": round(right / inserted, 3),
        "f1": round(f1, 3),
        "insertions": len(is_found),
        "insertions_found": sum(is_found),
        "regions": len(false),
        "false_regions": sum(false),
        "false_bases_per_mb": round(1e6 * (called - right) / background),
        "edge_error_median": round(float(np.median(errors))) if errors else None,
        "edge_error_90_percent": round(float(np.quantile(errors, 0.9))) if errors else None,
    }


def _bases(data: Sequence[Scored], method: Method) -> tuple[int, int, int, float]:
    """Return how many bases are rightly in regions, in regions, and inserted; and F1."""
    right = called = inserted = 0
    for one in data:
        found, viral = method(one), one.contig.viral
        right += sum(_shared(a, b) for a in found for b in viral)
        called += sum(end - start for start, end in found)
        inserted += sum(end - start for start, end in viral)
    return right, called, inserted, 2 * right / (called + inserted)


def _shared(one: Range, other: Range) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))


def _edges(one: Range, regions: Sequence[Range]) -> list[tuple[int, int]]:
    """Return both ends of an insertion, each with that of the region that shares most with it."""
    best = max(regions, key=lambda region: _shared(one, region), default=(0, 0))
    return list(zip(one, best, strict=True)) if _shared(one, best) else []


def _grid() -> Iterable[RegionRules]:
    for values in product((0.7, 0.75, 0.8), (0.45, 0.5, 0.55, 0.6), (0, 2000, 4000, 6000), (0, 4000)):
        yield RegionRules(*values, min_length=4000)


def _choose(data: Sequence[Scored], methods: dict[Any, Method]) -> Any:
    return max(methods, key=lambda key: _bases(data, methods[key])[-1])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("genomes", type=Path, help="directory of val.*.fna.gz")
    parser.add_argument("--seeds", type=int, default=4, help="how often contigs are made of the same genomes")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    data = score(options.genomes, range(1, options.seeds + 1))
    halves = {half: [one for one in data if one.contig.half == half] for half in HALVES}
    tuning, test = halves.values()
    rules = _choose(tuning, {rules: by_rules(rules) for rules in _grid()})
    steps = product((0.5, 0.6, 0.65, 0.7), (2.0, 4.0, 6.0), (4000,))
    path = _choose(tuning, {step: by_path(*step) for step in steps})
    raw = RegionRules(open_score=0.5, close_score=0.5, smoothing=0, gap=0, min_length=0)
    methods = {
        f"rules: {rules}": by_rules(rules),
        "each viral fragment by itself": by_rules(raw),
        f"two-state path: offset {path[0]}, cost {path[1]}, at least {path[2]} bases": by_path(*path),
    }
    found = [
        {"method": name, "half": half, **measure(part, method)}
        for name, method in methods.items()
        for half, part in halves.items()
    ]
    chosen = by_rules(rules)
    groups = {
        group: measure([one for one in test if one.contig.group == group], chosen)
        for group in dict.fromkeys(one.contig.group for one in test)
    }
    without = [one for one in test if not one.contig.viral]
    background = {
        "bases": sum(len(one.contig.bases) for one in without),
        "bases_in_regions": sum(end - start for one in without for start, end in chosen(one)),
    }
    print(table(found))
    print(table([{"group": group, **row} for group, row in groups.items()]))
    print(background, f"{time.monotonic() - begun:.0f} s")
    if options.output:
        sizes = {
            half: {"contigs": len(part), "bases": sum(len(one.contig.bases) for one in part)}
            for half, part in halves.items()
        }
        results = {"methods": found, "test_groups": groups, "test_contigs_without_insertions": background}
        save(options.output, facts(arguments) | {"rules": asdict(rules), "made": sizes} | results)


if __name__ == "__main__":
    main(sys.argv[1:])
