"""The verdicts on fragments and contigs, by each score."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow_scores import log_odds

from virnuc_async.models.calibration import Calibration, Cut, LogOddsCalibration, Method, Thresholds
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs.columns import decimal_column
from virnuc_async.outputs.verdicts import LABELS, Verdicts, label_contigs, next_printed, verdict_columns
from virnuc_async.runs.blocks import CONTIG, SCORE, Block
from virnuc_async.settings import VerdictBy


def make_block(*scores: tuple[int, float, float]) -> Block:
    """Return a block of one contig; each ORF is a fragment's number, P(others) and P(virus)."""
    rows = [
        (number, 0, fragment, 0, others, virus) for number, (fragment, others, virus) in enumerate(scores)
    ]
    contigs = np.zeros(1, CONTIG)
    contigs["fragments"] = max((fragment for fragment, _, _ in scores), default=1)
    return Block(contigs, b"c\n", np.array(rows, SCORE))


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
    found = label_contigs(make_block(*scores), 0)
    np.testing.assert_equal(tuple(column.item() for column in astuple(found))[:-1], expected)
    assert math.isnan(found.log_odds.item()) == (label == "no_orf")
    assert LABELS[found.labels(VerdictRule()).item()] == label


def test_label_at_the_threshold() -> None:
    found = label_contigs(make_block(*((n, float(n > 3), float(n <= 3)) for n in range(1, 6))), 0)
    assert found.viral_fraction.item() == 0.6
    rules = [VerdictRule(threshold=at) for at in (0, 0.6, math.nextafter(0.6, 1), 1)]
    labels = [LABELS[found.labels(rule).item()] for rule in rules]
    assert labels == ["virus", "virus", "others", "others"]
    assert LABELS[make_verdicts(1, 0, 0.0, 0.0, 0.0, 0.0).labels(rules[0]).item()] == "virus"
    assert LABELS[make_verdicts(0, 0, *[math.nan] * 4).labels(rules[0]).item()] == "no_orf"


def test_mean_is_rounded_once() -> None:
    # Added one after the other, the small numbers would be lost.
    found = label_contigs(make_block((1, 0, 1), *((n, 0, 2.0**-53) for n in range(2, 10))), 0)
    assert found.mean_p_virus.item() == (1 + 2.0**-50) / 9


# Log odds

# With 0 and 1, which have none, and the numbers next to them.
PROBABILITIES = st.one_of(
    st.floats(0, 1, width=32), st.sampled_from([0.0, 1e-8, 1e-7, 0.25, 0.5, 0.75, 1 - 2.0**-24, 1.0])
)


@given(
    contigs=st.lists(st.lists(st.lists(PROBABILITIES, max_size=3), min_size=1, max_size=5), max_size=5),
    penalty=st.sampled_from([0.0, 0.7, -1.25]),
)
def test_log_odds_against_a_slow_version(contigs: list[list[list[float]]], penalty: float) -> None:
    rows = [
        (0, contig, fragment, 0, 1 - score, score)
        for contig, fragments in enumerate(contigs)
        for fragment, scores in enumerate(fragments, 1)
        for score in scores
    ]
    described = np.zeros(len(contigs), CONTIG)
    described["number"] = np.arange(len(contigs))
    described["fragments"] = [len(fragments) for fragments in contigs]
    block = Block(described, b"c\n" * len(contigs), np.array(rows, SCORE))
    found = verdict_columns(block, VerdictRule(penalty=penalty))["log_odds"]
    text = decimal_column(found, 4).tobytes().translate(None, b"\r").decode()
    expected = [
        log_odds([max(map(np.float32, scores)) for scores in fragments if scores], len(fragments), penalty)
        for fragments in contigs
    ]
    assert text == "".join(expected)
    # What is compared, calibrated and printed is the same number.
    np.testing.assert_equal(found, [float(field or "nan") for field in expected])


def test_a_fragment_without_an_orf_costs_the_penalty() -> None:
    both, one = (make_block((1, 0, 0.75), *more) for more in ([(2, 0, 0.5)], []))
    assert label_contigs(both, 0.5).log_odds.item() == round(math.log(3) - 1, 4)
    assert label_contigs(one, 0.5).log_odds.item() == round(math.log(3) - 0.5, 4)
    # Fragment 2 has no ORF.
    gap = make_block((1, 0, 0.75), (3, 0, 0.5))
    assert label_contigs(gap, 0.5).log_odds.item() == round(math.log(3) - 1.5, 4)


def test_a_long_sum_is_rounded_once() -> None:
    # Added one after the other, in FP32, the small ones would be lost.
    scores = [(n, 0, 1.0) for n in range(1, 2001)] + [(n, 0, 0.5000002) for n in range(2001, 4001)]
    found = label_contigs(make_block(*scores), 0).log_odds.item()
    assert found == float(log_odds([np.float32(score) for _, _, score in scores], 4000))


@pytest.mark.parametrize(
    ("by", "probability", "viral"),
    [
        ("mean", 0.625, True),
        ("mean", 0.6250001, False),
        ("mean", 0, True),
        ("log_odds", 0.7499, True),
        ("log_odds", 0.7501, False),
        ("log_odds", 0.5, True),
        ("log_odds", 0, True),
        ("log_odds", 1, False),
        ("fraction", 1, True),
    ],
)
def test_labels_by_each_score(by: str, probability: float, viral: bool) -> None:
    found = label_contigs(make_block((1, 0.25, 0.75), (2, 0.5, 0.5)), 0)
    assert (found.mean_p_virus.item(), found.log_odds.item()) == (0.625, 1.0986)
    rule = VerdictRule.at_probability(VerdictBy(by), probability)
    assert found.are_viral(rule).item() == viral
    assert LABELS[found.labels(rule).item()] == ("virus" if viral else "others")


def test_log_odds_at_their_threshold() -> None:
    found = label_contigs(make_block((1, 0.25, 0.75)), 0)
    for threshold, viral in ((1.0986, True), (1.0987, False)):
        assert found.are_viral(VerdictRule(VerdictBy.LOG_ODDS, threshold)).item() == viral


@pytest.mark.parametrize("by", list(VerdictBy))
def test_nothing_scored_has_no_verdict_by_any_score(by: VerdictBy) -> None:
    columns = verdict_columns(make_block(), VerdictRule.at_probability(by, 0))
    assert LABELS[columns["verdict"].item()] == "no_orf"
    assert np.isnan(columns["log_odds"]).all()


def test_q_is_of_the_log_odds() -> None:
    nothing = Thresholds(1, 1, (Cut(1.0, 0, 0),))
    knots = ((-1.0, 0.25), (3.0, 0.75))
    of_log_odds = LogOddsCalibration(0.5, Method.ISOTONIC, 1.0, knots, nothing, nothing)
    calibration = Calibration("x", Method.TEMPERATURE, 1.0, (), 0.01, 0.5, of_log_odds)
    block = make_block((1, 0.25, 0.75), (2, 0.5, 0.5))
    columns = verdict_columns(block, VerdictRule(penalty=0.5, calibration=calibration))
    assert list(columns)[-4:] == ["verdict", "log_odds", "p_virus_calibrated", "q"]
    assert columns["log_odds"].item() == 0.0986
    assert columns["q"].item() == pytest.approx(0.25 + 1.0986 / 8)
    assert np.isnan(verdict_columns(make_block(), VerdictRule(calibration=calibration))["q"]).all()


def test_the_next_printed_number() -> None:
    numbers = np.array([-123456.7891, -0.0001, 0.0, 0.1, 2.6711, 98765.4321])
    expected = np.array([-123456.789, 0.0, 0.0001, 0.1001, 2.6712, 98765.4322])
    np.testing.assert_equal(next_printed(numbers), expected)
    assert not any(np.signbit(value) and value == 0 for value in next_printed(numbers))
