"""The contigs with viral stretches that regions are judged on, and how they are judged."""

import gzip
import random
from pathlib import Path

import made_contigs
import measure_regions
import numpy as np
import pytest
from made_contigs import MadeContig

from virnuc_async.settings import RegionRules

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def write_genomes(directory: Path) -> dict[str, dict[str, str]]:
    """Write pieces of ten viruses and forty bacteria; return the bases of each, by class and by genus."""
    rng = random.Random(1)
    bases: dict[str, dict[str, str]] = {}
    for kind, name, count in (("viral", "Genus{0} phage x", 10), ("nonviral", "Genus{0} bacterium", 40)):
        made = {f"Genus{number}": "".join(rng.choices("ACGT", k=5000)) for number in range(count)}
        bases[kind] = made
        records = (
            f">{kind}{number} {name.format(number)} [package=x]\n{letters}\n"
            for number, letters in enumerate(made.values())
        )
        with gzip.open(directory / f"val.{kind}.fna.gz", "wt") as file:
            file.writelines(records)
    return bases


def test_made_contigs(tmp_path: Path) -> None:
    """Half of the genera are in each half; what is viral is where it is said to be, and nothing is lost."""
    genomes = write_genomes(tmp_path)
    contigs = made_contigs.make_contigs(tmp_path, 3)
    assert {contig.half for contig in contigs} == {"tuning", "test"}
    assert sum(len(contig.viral) for contig in contigs) >= 2
    seen: dict[str, set[str]] = {"tuning": set(), "test": set()}
    for contig in contigs:
        text = contig.bases.decode()
        viral = "|".join(text[start:end] for start, end in contig.viral)
        rest, before = [], 0
        for start, end in (*contig.viral, (len(text), 0)):
            rest.append(text[before:start])
            before = end
        assert 40_000 <= len("".join(rest)) <= 90_000
        for kind, letters in (("viral", viral), ("nonviral", "|".join(rest))):
            for genus, bases in genomes[kind].items():
                probes = [bases[at : at + 40] for at in range(100, 4900, 800)]
                probes += [probe.translate(COMPLEMENT)[::-1] for probe in probes]
                is_here = any(probe in letters for probe in probes)
                seen[contig.half] |= {f"{kind} {genus}"} if is_here else set()
    assert not seen["tuning"] & seen["test"]
    assert made_contigs.make_contigs(tmp_path, 3) == contigs != made_contigs.make_contigs(tmp_path, 4)


def scored(viral: tuple[tuple[int, int], ...], scores: list[float]) -> measure_regions.Scored:
    places = np.array([(at * 500, at * 500 + 500) for at in range(len(scores))])
    contig = MadeContig("x", "test", "bacteria", b"A" * 500 * len(scores), viral)
    return measure_regions.Scored(contig, places, np.array(scores))


def test_how_regions_are_judged() -> None:
    plain = RegionRules(open_score=0.5, close_score=0.5, smoothing=0, gap=0, min_length=0, min_contig=0)
    data = [
        scored(((1000, 3000), (4000, 5000)), [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]),
        scored((), [0, 1, 0, 0]),
    ]
    assert measure_regions.measure(data, measure_regions.by_rules(plain)) == {
        "precision": 0.6,  # of 2,500 bases in regions, 1,500 are viral
        "recall": 0.5,
        "f1": 0.545,
        "insertions": 2,
        "insertions_found": 1,
        "regions": 2,
        "false_regions": 1,
        "false_bases_per_mb": 200_000,
        "edge_error_median": 500,
        "edge_error_90_percent": 500,
    }


@pytest.mark.parametrize(
    ("cost", "expected"), [(0.1, [(0, 500), (1500, 3000)]), (3.0, [(1500, 3000)]), (99.0, [])]
)
def test_the_path_that_regions_are_compared_with(cost: float, expected: list[tuple[int, int]]) -> None:
    data = scored((), [0.8, 0.1, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1])
    assert measure_regions.by_path(0.5, cost, 0)(data) == expected
