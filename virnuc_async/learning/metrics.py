"""
Metrics of binary classification, their confidence intervals, and the curves behind them.

Every metric accepts integer weights: how often each row counts. Rows are therefore sorted only once,
however often whole genomes are resampled. Resampling rows instead of genomes would give intervals that
are too narrow, because the rows of a genome are alike.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

METRICS = (
    "auroc",
    "auprc",
    "accuracy",
    "f1",
    "mcc",
    "sensitivity",
    "specificity",
    "tpr_at_1_percent_fpr",
    "tpr_at_5_percent_fpr",
    "ece",
    "brier",
)
BINS = 10  # of the reliability curve, all of the same width
_PERCENTILES = (2.5, 97.5)  # the bounds of a 95 % interval
_CURVE_POINTS = 200  # at most

Numbers = NDArray[np.float64]
Truth = NDArray[np.bool_]


class Interval(NamedTuple):
    """A metric with its 95 % confidence interval; NaN where the data do not define it."""

    value: float
    low: float
    high: float


class Bin(NamedTuple):
    """The rows whose scores lie between *low* and *high*."""

    low: float
    high: float
    rows: int
    mean_score: float
    share: float  # of the rows that are positive


class Ranking:
    """
    Rows with a score, a verdict, and the truth, sorted by score.

    *probabilities* are what the scores are worth, from 0 to 1; None: the scores themselves. A metric that
    needs both classes is NaN where only one is present.
    """

    def __init__(
        self,
        scores: NDArray[np.floating],
        verdicts: Truth,
        truth: Truth,
        probabilities: NDArray[np.floating] | None = None,
    ) -> None:
        order = np.argsort(-scores, kind="stable")
        self._order = order
        self._probabilities = (scores if probabilities is None else probabilities).astype(np.float64)
        self._verdicts, self._truth = verdicts, truth
        self._sorted_truth = truth[order]
        # A threshold never divides equal scores, so that their order does not matter.
        is_last = np.append(np.diff(scores[order]) != 0, True)
        self._thresholds = np.flatnonzero(is_last[: len(order)])
        self._bins = np.minimum((self._probabilities * BINS).astype(np.int64), BINS - 1)

    def __len__(self) -> int:
        return len(self._order)

    def metrics(self, weights: NDArray[np.integer] | None = None) -> Numbers:
        """Return all METRICS, in their order; *weights* are how often each row counts."""
        counts = np.ones(len(self)) if weights is None else weights.astype(np.float64)
        tpr, fpr = self._rates(counts)
        of_ranking_and_verdicts = (
            _area(tpr, fpr),
            self._average_precision(counts),
            *_verdict_metrics(self._confusion(counts)),
            *(_tpr_at_fpr(tpr, fpr, limit) for limit in (0.01, 0.05)),
        )
        return np.array((*of_ranking_and_verdicts, self._calibration_error(counts), self._brier(counts)))

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Return points of the ROC curve (FPR, TPR) and of the precision-recall curve (recall, precision)."""
        counts = np.ones(len(self))
        tpr, fpr = self._rates(counts)
        tp, predicted_positive = self._positives(counts)
        recall = _divide(tp, tp[-1] if len(tp) else 0.0)
        return {
            "roc": _thin_out(np.append(0.0, fpr), np.append(0.0, tpr)),
            "precision_recall": _thin_out(recall, _divide(tp, predicted_positive)),
        }

    def reliability(self) -> list[Bin]:
        """Return the bins of the reliability curve that are not empty."""
        rows, scores, positives = self._bin_sums(np.ones(len(self)))
        edges = np.linspace(0, 1, BINS + 1).tolist()
        return [
            Bin(
                edges[at],
                edges[at + 1],
                int(rows[at]),
                float(scores[at] / rows[at]),
                float(positives[at] / rows[at]),
            )
            for at in np.flatnonzero(rows).tolist()
        ]

    def _positives(self, counts: Numbers) -> tuple[Numbers, Numbers]:
        """Return the true and the predicted positives at each threshold, the highest threshold first."""
        ordered = counts[self._order]
        tp = np.cumsum(ordered * self._sorted_truth)[self._thresholds]
        return tp, np.cumsum(ordered)[self._thresholds]

    def _rates(self, counts: Numbers) -> tuple[Numbers, Numbers]:
        """Return the true and the false positive rate at each threshold, the highest threshold first."""
        tp, predicted_positive = self._positives(counts)
        fp = predicted_positive - tp
        last = slice(-1, None)
        return _divide(tp, tp[last].sum()), _divide(fp, fp[last].sum())

    def _average_precision(self, counts: Numbers) -> float:
        tp, predicted_positive = self._positives(counts)
        steps = np.diff(tp, prepend=0.0)
        # Without predicted positives there are no true ones, and the precision is 0 instead of 0/0.
        precision = tp / np.maximum(predicted_positive, 1)
        return float(_divide((steps * precision).sum(), steps.sum()))

    def _confusion(self, counts: Numbers) -> Numbers:
        """Return the counts of true positives, false positives, false negatives and true negatives."""
        cells = 2 * ~self._verdicts + (self._verdicts != self._truth)
        sums = _sum_by(cells, counts, 4)
        return sums[[0, 1, 3, 2]]

    def _bin_sums(self, counts: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        each = (counts, counts * self._probabilities, counts * self._truth)
        rows, scores, positives = (_sum_by(self._bins, values, BINS) for values in each)
        return rows, scores, positives

    def _calibration_error(self, counts: Numbers) -> float:
        rows, scores, positives = self._bin_sums(counts)
        return float(_divide(np.abs(scores - positives).sum(), rows.sum()))

    def _brier(self, counts: Numbers) -> float:
        errors = (self._probabilities - self._truth) ** 2
        return float(_divide((counts * errors).sum(), counts.sum()))


class ClusterBootstrap:
    """
    Resamples clusters with replacement, as many as there are in each class, *resamples* times.

    *clusters* and *truth* are of each row. A cluster with a positive row counts as positive.
    """

    def __init__(self, clusters: NDArray[np.int64], truth: Truth, resamples: int, seed: int) -> None:
        self._clusters: NDArray[np.int64] = np.unique(clusters, return_inverse=True)[1]
        is_positive = np.bincount(self._clusters, truth).astype(bool)
        self._strata = [np.flatnonzero(is_positive == kind) for kind in (False, True)]
        self._count, self._none = len(is_positive), np.empty(0, np.int64)
        self._resamples, self._seed = resamples, seed

    def draws(self) -> Iterator[NDArray[np.int64]]:
        """Yield, for each resample, how often each cluster was drawn; the same draws in every call."""
        random = np.random.default_rng(self._seed)
        for _ in range(self._resamples):
            drawn = [random.choice(stratum, len(stratum)) for stratum in self._strata if len(stratum)]
            yield np.bincount(np.concatenate([*drawn, self._none]), minlength=self._count)

    def intervals(self, ranking: Ranking) -> dict[str, Interval]:
        """Return every metric of *ranking*, whose rows are those of the clusters, with its interval."""
        values = ranking.metrics()
        resampled = [ranking.metrics(draw[self._clusters]) for draw in self.draws()]
        lows, highs = _percentile_interval(np.array(resampled).reshape(-1, len(METRICS)))
        rows = zip(values.tolist(), lows.tolist(), highs.tolist(), strict=True)
        return dict(zip(METRICS, (Interval(*row) for row in rows), strict=True))

    def fraction(self, marked: Truth) -> Interval:
        """Return the fraction of rows that are *marked*, with its interval."""
        sums = (
            np.bincount(self._clusters, marked, self._count),
            np.bincount(self._clusters, minlength=self._count),
        )
        resampled = [[_divide(*(float(draw @ each) for each in sums))] for draw in self.draws()]
        low, high = _percentile_interval(np.array(resampled, np.float64).reshape(-1, 1))
        return Interval(float(_divide(*(float(each.sum()) for each in sums))), float(low[0]), float(high[0]))


def auroc(scores: NDArray[np.floating], truth: Truth) -> float:
    """Return the chance that a positive row scores above a negative one; ties count half."""
    # Scores may be any numbers here: what they are worth does not matter.
    no_values = np.zeros(len(scores))
    return float(Ranking(scores, truth, truth, no_values).metrics()[METRICS.index("auroc")])


def calibration_error(scores: NDArray[np.floating], truth: Truth) -> float:
    """Return the expected calibration error, over the bins of the reliability curve."""
    return float(Ranking(scores, truth, truth).metrics()[METRICS.index("ece")])


def to_json(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Return *intervals* as values of JSON, which has no NaN."""
    return {name: interval_to_json(interval) for name, interval in intervals.items()}


def interval_to_json(interval: Interval) -> dict[str, float | None]:
    """Return one interval as values of JSON."""
    return {name: None if np.isnan(value) else round(value, 6) for name, value in interval._asdict().items()}


def _percentile_interval(values: Numbers) -> Numbers:
    """Return the lower and the upper bound of each column, without the NaNs in it."""
    bounds = np.full((2, values.shape[1]), np.nan)
    for column, numbers in enumerate(values.T):
        known = numbers[~np.isnan(numbers)]
        if len(known):
            bounds[:, column] = np.percentile(known, _PERCENTILES)
    return bounds


def _sum_by(keys: NDArray[np.int64], values: Numbers, size: int) -> Numbers:
    return np.bincount(keys, values, size).astype(np.float64)


def _divide(part: Numbers | float, whole: Numbers | float) -> Numbers:
    """Divide; NaN where *whole* is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(part, whole)  # type: ignore[no-any-return, unused-ignore]


def _area(tpr: Numbers, fpr: Numbers) -> float:
    widths = np.diff(fpr, prepend=0.0)
    heights = (tpr + np.append(0.0, tpr[:-1])) / 2 if len(tpr) else tpr
    return float((widths * heights).sum()) if len(tpr) else float("nan")


def _tpr_at_fpr(tpr: Numbers, fpr: Numbers, limit: float) -> float:
    """Return the highest true positive rate at a false positive rate of at most *limit*."""
    if not len(tpr) or np.isnan(tpr[-1]) or np.isnan(fpr[-1]):
        return float("nan")
    return float(tpr[fpr <= limit].max(initial=0.0))


def _verdict_metrics(confusion: Numbers) -> tuple[float, ...]:
    """Return accuracy, F1, Matthews correlation coefficient, sensitivity and specificity."""
    tp, fp, fn, tn = confusion.tolist()
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    metrics = (
        _divide(tp + tn, tp + fp + fn + tn),
        _divide(2 * tp, 2 * tp + fp + fn),
        _divide(tp * tn - fp * fn, np.sqrt(margins)),
        _divide(tp, tp + fn),
        _divide(tn, tn + fp),
    )
    return tuple(map(float, metrics))


def _thin_out(x: Numbers, y: Numbers) -> list[tuple[float, float]]:
    """Return at most _CURVE_POINTS points of a curve, with both ends; none if it is undefined."""
    rows = np.unique(np.linspace(0, len(x) - 1, min(_CURVE_POINTS, len(x))).astype(np.int64))
    points = np.round(np.column_stack((x[rows], y[rows])), 5)
    return [] if np.isnan(points).any() else [(float(a), float(b)) for a, b in points]
