"""Metrics compared with slow, simple versions: pairs counted one by one, rows repeated, not weighted."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnuc_async.learning.metrics import (
    BINS,
    METRICS,
    ClusterBootstrap,
    Interval,
    Ranking,
    auroc,
    to_json,
)

# Scores on a coarse grid, so that many are equal and some lie on the edges of bins.
ROWS = st.lists(
    st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans(), st.booleans()), min_size=1, max_size=40
)
Rows = Sequence[tuple[float, bool, bool]]  # score, verdict, truth


def ranking(rows: Rows) -> Ranking:
    scores, verdicts, truth = zip(*rows, strict=True)
    return Ranking(np.array(scores, np.float32), np.array(verdicts), np.array(truth))


def metrics(rows: Rows) -> dict[str, float]:
    return dict(zip(METRICS, ranking(rows).metrics().tolist(), strict=True))


def divide(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def slow_metrics(rows: Rows) -> dict[str, float]:
    truth = [is_viral for _, _, is_viral in rows]
    tp, fp, fn, tn = (
        sum((verdict, is_viral) == kind for _, verdict, is_viral in rows)
        for kind in ((True, True), (True, False), (False, True), (False, False))
    )
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return {
        "auroc": slow_auroc(rows),
        "auprc": slow_average_precision(rows),
        "accuracy": (tp + tn) / len(rows),
        "f1": divide(2 * tp, 2 * tp + fp + fn),
        "mcc": divide(tp * tn - fp * fn, math.sqrt(margins)),
        "sensitivity": divide(tp, tp + fn),
        "specificity": divide(tn, tn + fp),
        "tpr_at_1_percent_fpr": slow_tpr_at_fpr(rows, 0.01),
        "tpr_at_5_percent_fpr": slow_tpr_at_fpr(rows, 0.05),
        "ece": slow_calibration_error(rows),
        "brier": sum((np.float32(score) - is_viral) ** 2 for score, _, is_viral in rows) / len(truth),
    }


def slow_auroc(rows: Rows) -> float:
    pairs = [(p, n) for p, _, viral in rows if viral for n, _, other in rows if not other]
    return divide(sum((p > n) + (p == n) / 2 for p, n in pairs), len(pairs))


def slow_rates(rows: Rows, threshold: float) -> tuple[float, float]:
    """Return the true and the false positive rate at *threshold*."""
    predicted = [viral for score, _, viral in rows if score >= threshold]
    viral = sum(viral for _, _, viral in rows)
    return divide(sum(predicted), viral), divide(len(predicted) - sum(predicted), len(rows) - viral)


def slow_tpr_at_fpr(rows: Rows, limit: float) -> float:
    rates = [slow_rates(rows, score) for score, _, _ in rows]
    if any(math.isnan(rate) for pair in rates for rate in pair):
        return math.nan
    return max((tpr for tpr, fpr in rates if fpr <= limit), default=0.0)


def slow_average_precision(rows: Rows) -> float:
    viral = sum(viral for _, _, viral in rows)
    area, previous = 0.0, 0
    for threshold in sorted({score for score, _, _ in rows}, reverse=True):
        predicted = [is_viral for score, _, is_viral in rows if score >= threshold]
        area += (sum(predicted) - previous) * sum(predicted) / len(predicted)
        previous = sum(predicted)
    return divide(area, viral)


def slow_calibration_error(rows: Rows) -> float:
    gaps = 0.0
    for number in range(BINS):
        inside = [
            (float(np.float32(score)), viral)
            for score, _, viral in rows
            if min(int(float(np.float32(score)) * BINS), BINS - 1) == number
        ]
        gaps += abs(sum(score - viral for score, viral in inside))
    return gaps / len(rows)


@given(ROWS)
def test_metrics_match_the_simple_versions(rows: Rows) -> None:
    found, expected = metrics(rows), slow_metrics(rows)
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name


@given(ROWS, st.data())
def test_weight_is_how_often_a_row_counts(rows: Rows, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    repeated = [row for row, weight in zip(rows, weights, strict=True) for _ in range(weight)]
    found = ranking(rows).metrics(np.array(weights))
    if not repeated:
        assert np.isnan(found).all()
        return
    np.testing.assert_allclose(found, ranking(repeated).metrics(), atol=1e-9)


@given(ROWS, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(rows: list[tuple[float, bool, bool]], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    np.testing.assert_allclose(ranking(rows).metrics(), ranking(shuffled).metrics(), atol=1e-9)


@given(ROWS)
def test_curves_run_from_corner_to_corner(rows: Rows) -> None:
    curves = ranking(rows).curves()
    if any(viral for _, _, viral in rows) and not all(viral for _, _, viral in rows):
        assert curves["roc"][0] == (0, 0)
        assert curves["roc"][-1] == (1, 1)
        assert curves["roc"] == sorted(curves["roc"])
        assert curves["precision_recall"][-1][0] == 1
    else:
        assert not curves["roc"]


@given(ROWS)
def test_reliability_counts_every_row_once(rows: Rows) -> None:
    bins = ranking(rows).reliability()
    assert sum(each.rows for each in bins) == len(rows)
    assert sum(each.rows * each.share for each in bins) == pytest.approx(sum(row[2] for row in rows))
    for each in bins:
        assert each.low - 1e-6 <= each.mean_score <= each.high + 1e-6


def test_metrics_of_no_rows_are_nan() -> None:
    empty = Ranking(np.empty(0, np.float32), np.empty(0, bool), np.empty(0, bool))
    assert np.isnan(empty.metrics()).all()
    assert empty.reliability() == []
    bootstrap = ClusterBootstrap(np.empty(0, np.int64), np.empty(0, bool), 3, 0)
    assert all(math.isnan(each.low) for each in bootstrap.intervals(empty).values())
    assert math.isnan(bootstrap.fraction(np.empty(0, bool)).value)


def some_rows(clusters: int, each: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, truth and clusters; the rows of a cluster are equal, so more rows add no information."""
    random = np.random.default_rng(seed)
    truth = np.arange(clusters) % 2 == 0
    scores = np.clip(0.5 + np.where(truth, 0.1, -0.1) + random.normal(0, 0.2, clusters), 0, 1)
    return np.repeat(scores, each), np.repeat(truth, each), np.repeat(np.arange(clusters), each)


def interval_of(clusters: int, each: int, seed: int = 0, by_row: bool = False) -> Interval:
    scores, truth, numbers = some_rows(clusters, each)
    numbers = np.arange(len(numbers)) if by_row else numbers
    bootstrap = ClusterBootstrap(numbers, truth, 200, seed)
    return bootstrap.intervals(Ranking(scores, scores > 0.5, truth))["auroc"]


def test_clusters_are_resampled_not_rows() -> None:
    single, repeated = interval_of(40, 1), interval_of(40, 50)
    assert single == pytest.approx(repeated)
    by_row = interval_of(40, 50, by_row=True)
    assert by_row.high - by_row.low < (repeated.high - repeated.low) / 3
    assert repeated.low < repeated.value < repeated.high


def test_more_clusters_give_narrower_intervals() -> None:
    few, many = interval_of(20, 1), interval_of(500, 1)
    assert many.high - many.low < (few.high - few.low) / 2


def test_seeds_decide_the_intervals() -> None:
    assert interval_of(40, 3, seed=1) == interval_of(40, 3, seed=1)
    assert interval_of(40, 3, seed=1) != interval_of(40, 3, seed=2)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_fractions_are_those_of_the_drawn_rows(rows: list[tuple[int, bool]]) -> None:
    clusters, marked = (np.array(column) for column in zip(*rows, strict=True))
    truth = clusters % 2 == 0  # a cluster is of one class
    found = ClusterBootstrap(clusters.astype(np.int64), truth, 20, 0).fraction(marked)
    assert found.value == pytest.approx(marked.mean())
    resampled = []
    numbers = np.unique(clusters, return_inverse=True)[1]
    for draw in ClusterBootstrap(clusters.astype(np.int64), truth, 20, 0).draws():
        assert draw.sum() == len(set(clusters.tolist()))
        resampled.append(np.repeat(marked, draw[numbers]).mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(resampled, (2.5, 97.5))))


def test_auroc_and_json_values() -> None:
    assert auroc(np.array([0.1, 0.9, 0.9]), np.array([False, True, False])) == 0.75
    assert to_json({"a": Interval(0.5, math.nan, 0.7500001)}) == {
        "a": {"value": 0.5, "low": None, "high": 0.75}
    }
