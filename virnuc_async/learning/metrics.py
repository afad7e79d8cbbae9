"""
How well scores tell two classes apart: figures, their intervals, and the curves behind them.

Every figure takes a weight for each row, a whole number: how often the row counts. Resampling whole
genomes, which is what gives honest intervals, is then a matter of weights, and rows are sorted once.
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
_INSIDE = (2.5, 97.5)  # percent: between them lie 95 % of the resampled figures
_POINTS = 200  # of a curve that is drawn

Numbers = NDArray[np.float64]
Truth = NDArray[np.bool_]


class Interval(NamedTuple):
    """A figure and where 95 % of its resampled values are; NaN where the data do not define it."""

    value: float
    low: float
    high: float


class Bin(NamedTuple):
    """The rows whose scores lie in one stretch of the reliability curve."""

    low: float
    high: float
    rows: int
    mean_score: float
    share: float  # of them that are of the class


class Ranking:
    """
    Rows with a score from 0 to 1, a verdict, and the truth, ready to be measured.

    Where one figure needs both classes and there is only one, it is NaN.
    """

    def __init__(self, scores: NDArray[np.floating], verdicts: Truth, truth: Truth) -> None:
        order = np.argsort(-scores, kind="stable")
        self._order = order
        self._scores = scores.astype(np.float64)
        self._verdicts, self._truth = verdicts, truth
        self._truth_in_order = truth[order]
        # A threshold lies behind the last of equal scores: which of them comes first says nothing.
        ends = np.append(np.diff(self._scores[order]) != 0, True)
        self._ends = np.flatnonzero(ends[: len(order)])
        self._bins = np.minimum((self._scores * BINS).astype(np.int64), BINS - 1)

    def __len__(self) -> int:
        return len(self._order)

    def figures(self, weights: NDArray[np.integer] | None = None) -> Numbers:
        """Give all METRICS; *weights* say how often each row counts."""
        counts = np.ones(len(self)) if weights is None else weights.astype(np.float64)
        hits, alarms = self._rates(counts)
        of_ranks = (
            _area(hits, alarms),
            self._average_precision(counts),
            *_of_verdicts(self._table(counts)),
            *(_best_below(hits, alarms, limit) for limit in (0.01, 0.05)),
        )
        return np.array((*of_ranks, self._calibration_error(counts), self._brier(counts)))

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Give points of the ROC curve (FPR, TPR) and of the precision-recall curve (recall, precision)."""
        counts = np.ones(len(self))
        hits, alarms = self._rates(counts)
        caught, called = self._caught_and_called(counts)
        recall = _share(caught, caught[-1] if len(caught) else 0.0)
        return {
            "roc": _thinned(np.append(0.0, alarms), np.append(0.0, hits)),
            "precision_recall": _thinned(recall, _share(caught, called)),
        }

    def reliability(self) -> list[Bin]:
        """Give the bins of the reliability curve that hold a row."""
        rows, scores, of_class = self._binned(np.ones(len(self)))
        edges = np.linspace(0, 1, BINS + 1).tolist()
        return [
            Bin(
                edges[at],
                edges[at + 1],
                int(rows[at]),
                float(scores[at] / rows[at]),
                float(of_class[at] / rows[at]),
            )
            for at in np.flatnonzero(rows).tolist()
        ]

    def _caught_and_called(self, counts: Numbers) -> tuple[Numbers, Numbers]:
        """Give, for each threshold, how many of the class are above it, and how many of all."""
        in_order = counts[self._order]
        caught = np.cumsum(in_order * self._truth_in_order)[self._ends]
        return caught, np.cumsum(in_order)[self._ends]

    def _rates(self, counts: Numbers) -> tuple[Numbers, Numbers]:
        """Give the true and the false positive rate at each threshold, the highest first."""
        caught, called = self._caught_and_called(counts)
        wrong = called - caught
        last = slice(-1, None)
        return _share(caught, caught[last].sum()), _share(wrong, wrong[last].sum())

    def _average_precision(self, counts: Numbers) -> float:
        caught, called = self._caught_and_called(counts)
        steps = np.diff(caught, prepend=0.0)
        # Where nobody is called, nothing is caught either.
        precision = caught / np.maximum(called, 1)
        return float(_share((steps * precision).sum(), steps.sum()))

    def _table(self, counts: Numbers) -> Numbers:
        """Count right and wrong verdicts: true and false positives, false and true negatives."""
        places = 2 * ~self._verdicts + (self._verdicts != self._truth)
        sums = _summed(places, counts, 4)
        return sums[[0, 1, 3, 2]]

    def _binned(self, counts: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        each = (counts, counts * self._scores, counts * self._truth)
        rows, scores, of_class = (_summed(self._bins, part, BINS) for part in each)
        return rows, scores, of_class

    def _calibration_error(self, counts: Numbers) -> float:
        rows, scores, of_class = self._binned(counts)
        return float(_share(np.abs(scores - of_class).sum(), rows.sum()))

    def _brier(self, counts: Numbers) -> float:
        errors = (self._scores - self._truth) ** 2
        return float(_share((counts * errors).sum(), counts.sum()))


class ClusterBootstrap:
    """
    Draws clusters with replacement, as many as there are, each class on its own, *times* times.

    *clusters* and *truth* are of each row. A cluster that has rows of the class is of the class.
    """

    def __init__(self, clusters: NDArray[np.int64], truth: Truth, times: int, seed: int) -> None:
        self._places: NDArray[np.int64] = np.unique(clusters, return_inverse=True)[1]
        of_class = np.bincount(self._places, truth).astype(bool)
        self._strata = [np.flatnonzero(of_class == kind) for kind in (False, True)]
        self._count, self._none = len(of_class), np.empty(0, np.int64)
        self._times, self._seed = times, seed

    def draws(self) -> Iterator[NDArray[np.int64]]:
        """Give how often each cluster was drawn, once for each time; always the same draws."""
        random = np.random.default_rng(self._seed)
        for _ in range(self._times):
            drawn = [random.choice(stratum, len(stratum)) for stratum in self._strata if len(stratum)]
            yield np.bincount(np.concatenate([*drawn, self._none]), minlength=self._count)

    def intervals(self, ranking: Ranking) -> dict[str, Interval]:
        """Give every figure of *ranking*, whose rows are those of the clusters, with its interval."""
        values = ranking.figures()
        again = [ranking.figures(draw[self._places]) for draw in self.draws()]
        lows, highs = _inside(np.array(again).reshape(-1, len(METRICS)))
        rows = zip(values.tolist(), lows.tolist(), highs.tolist(), strict=True)
        return dict(zip(METRICS, (Interval(*row) for row in rows), strict=True))

    def share(self, marked: Truth) -> Interval:
        """Give the share of rows that are *marked*, with its interval."""
        sums = (
            np.bincount(self._places, marked, self._count),
            np.bincount(self._places, minlength=self._count),
        )
        again = [[_share(*(float(draw @ each) for each in sums))] for draw in self.draws()]
        low, high = _inside(np.array(again, np.float64).reshape(-1, 1))
        return Interval(float(_share(*(float(each.sum()) for each in sums))), float(low[0]), float(high[0]))


def auroc(scores: NDArray[np.floating], truth: Truth) -> float:
    """Give the chance that a row of the class scores above one that is not, ties counted half."""
    return float(Ranking(scores, truth, truth).figures()[METRICS.index("auroc")])


def threshold_for(scores: NDArray[np.floating], truth: Truth, limit: float) -> float:
    """Give the lowest score at which at most *limit* of the rows that are not of the class are called it."""
    others = np.sort(scores[~truth])[::-1]
    allowed = int(limit * len(others))
    # From just above the first one that may not be called, in the numbers that scores are given in.
    return float(np.nextafter(others[allowed], others.dtype.type(2))) if allowed < len(others) else 0.0


def plain(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Give what JSON can hold: there is no NaN in it."""
    return {name: plain_interval(interval) for name, interval in intervals.items()}


def plain_interval(interval: Interval) -> dict[str, float | None]:
    """Give what JSON can hold of one figure."""
    return {name: None if np.isnan(value) else round(value, 6) for name, value in interval._asdict().items()}


def _inside(values: Numbers) -> Numbers:
    """Give the lower and upper bound of each column, those without a value left out."""
    bounds = np.full((2, values.shape[1]), np.nan)
    for column, numbers in enumerate(values.T):
        known = numbers[~np.isnan(numbers)]
        if len(known):
            bounds[:, column] = np.percentile(known, _INSIDE)
    return bounds


def _summed(places: NDArray[np.int64], counts: Numbers, size: int) -> Numbers:
    return np.bincount(places, counts, size).astype(np.float64)


def _share(part: Numbers | float, whole: Numbers | float) -> Numbers:
    """Divide; NaN where there is nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(part, whole)  # type: ignore[no-any-return, unused-ignore]


def _area(hits: Numbers, alarms: Numbers) -> float:
    """Give the area under the ROC curve."""
    widths = np.diff(alarms, prepend=0.0)
    heights = (hits + np.append(0.0, hits[:-1])) / 2 if len(hits) else hits
    return float((widths * heights).sum()) if len(hits) else float("nan")


def _best_below(hits: Numbers, alarms: Numbers, limit: float) -> float:
    """Give the highest true positive rate at a false positive rate of at most *limit*."""
    if not len(hits) or np.isnan(hits[-1]) or np.isnan(alarms[-1]):
        return float("nan")
    return float(hits[alarms <= limit].max(initial=0.0))


def _of_verdicts(table: Numbers) -> tuple[float, ...]:
    """Give accuracy, F1, Matthews' correlation, sensitivity and specificity."""
    hits, alarms, misses, passes = table.tolist()
    sides = (hits + alarms) * (hits + misses) * (passes + alarms) * (passes + misses)
    shares = (
        _share(hits + passes, hits + alarms + misses + passes),
        _share(2 * hits, 2 * hits + alarms + misses),
        _share(hits * passes - alarms * misses, np.sqrt(sides)),
        _share(hits, hits + misses),
        _share(passes, passes + alarms),
    )
    return tuple(map(float, shares))


def _thinned(across: Numbers, up: Numbers) -> list[tuple[float, float]]:
    """Give at most some points of a curve, its ends among them; none where it is not defined."""
    places = np.unique(np.linspace(0, len(across) - 1, min(_POINTS, len(across))).astype(np.int64))
    points = np.round(np.column_stack((across[places], up[places])), 5)
    return [] if np.isnan(points).any() else [(float(x), float(y)) for x, y in points]
