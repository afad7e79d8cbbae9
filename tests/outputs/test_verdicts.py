"""The verdicts on fragments and contigs."""

import math
from dataclasses import astuple

import numpy as np
import pytest

from virnuc_async.outputs.verdicts import LABELS, Verdicts, label_contigs
from virnuc_async.runs.blocks import CONTIG, SCORE, Block


def make_block(*scores: tuple[int, float, float]) -> Block:
    """Return a block of one contig; each ORF is a fragment's number, P(others) and P(virus)."""
    rows = [
        (number, 0, fragment, 0, others, virus) for number, (fragment, others, virus) in enumerate(scores)
    ]
    return Block(np.zeros(1, CONTIG), b"c\n", np.array(rows, SCORE))


def make_verdicts(*values: float) -> Verdicts:
    """Return the verdict on a single contig."""
    return Verdicts(*(np.array([value]) for value in values))


@pytest.mark.parametrize(
    ("scores", "expected", "label"),
    [
        ([], (0, 0, math.nan, math.nan, math.nan), "no_orf"),
        ([(1, 0.25, 0.75)], (1, 1, 1.0, 0.75, 0.75), "virus"),
        ([(1, 0.5, 0.5)], (1, 1, 1.0, 0.5, 0.5), "virus"),  # a tie is viral
        ([(1, 0.625, 0.375)], (1, 0, 0.0, 0.375, 0.375), "others"),
        # The highest score of each class decides, whichever ORFs have them and however many there are.
        ([(1, 0.75, 0.25), (1, 0.75, 0.25), (1, 0.125, 0.875)], (1, 1, 1.0, 0.875, 0.875), "virus"),
        ([(1, 0.875, 0.125), (1, 0.125, 0.875)], (1, 1, 1.0, 0.875, 0.875), "virus"),
        # Half of the fragments are enough; fragment 2 has no ORF and does not count.
        ([(1, 0.25, 0.75), (3, 1.0, 0.0)], (2, 1, 0.5, 0.375, 0.75), "virus"),
        ([(1, 0.25, 0.75), (3, 1.0, 0.0), (9, 1.0, 0.25)], (3, 1, 1 / 3, 1 / 3, 0.75), "others"),
    ],
)
def test_verdict_on_a_contig(
    scores: list[tuple[int, float, float]], expected: tuple[float, ...], label: str
) -> None:
    found = label_contigs(make_block(*scores))
    np.testing.assert_equal(tuple(column.item() for column in astuple(found)), expected)
    assert LABELS[found.labels(0.5).item()] == label


def test_label_at_the_threshold() -> None:
    found = label_contigs(make_block(*((n, float(n > 3), float(n <= 3)) for n in range(1, 6))))
    assert found.viral_fraction.item() == 0.6
    labels = [LABELS[found.labels(at).item()] for at in (0, 0.6, math.nextafter(0.6, 1), 1)]
    assert labels == ["virus", "virus", "others", "others"]
    assert LABELS[make_verdicts(1, 0, 0.0, 0.0, 0.0).labels(0).item()] == "virus"
    assert LABELS[make_verdicts(0, 0, math.nan, math.nan, math.nan).labels(0).item()] == "no_orf"


def test_mean_is_rounded_once() -> None:
    # Added one after the other, the small numbers would be lost.
    found = label_contigs(make_block((1, 0, 1), *((n, 0, 2.0**-53) for n in range(2, 10))))
    assert found.mean_p_virus.item() == (1 + 2.0**-50) / 9
