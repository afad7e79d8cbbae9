"""
Calibration: maps the scores of a contig to probabilities, and rates of false positives to thresholds.

Both are fitted on labelled sequences. A calibration is stored with the networks of a bundle and changes
no score: it adds columns.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import pairwise, starmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CALIBRATION = "calibration.json"
_FORMAT = 2
_MEAN_ONLY = 1  # the format of earlier versions, without log_odds and with one threshold
_EPSILON = 1e-7  # distance to 0 and 1, where the logit is infinite
_MAX_LOG_FACTOR, _STEPS = 4.0, 100  # range of the fitted logarithm, and bisection steps
_ALL_BELOW = 100  # false positives, of which each number has its threshold

Numbers = NDArray[np.float64]


class Method(StrEnum):
    """The kind of map."""

    TEMPERATURE = "temperature"
    ISOTONIC = "isotonic"


class Cut(NamedTuple):
    """A threshold of a score, and how many of the labelled contigs reach it."""

    threshold: float
    nonviral: int
    viral: int


@dataclass(frozen=True, slots=True)
class Thresholds:
    """
    The thresholds of a score for rates of false positives, among *nonviral* and *viral* contigs.

    Raises:
        ValueError: the cuts are not in order, the highest threshold first
    """

    nonviral: int
    viral: int
    cuts: tuple[Cut, ...]

    def __post_init__(self) -> None:
        is_sorted = all(
            left.threshold > right.threshold and left.nonviral <= right.nonviral
            for left, right in pairwise(self.cuts)
        )
        is_finite = bool(np.isfinite([cut.threshold for cut in self.cuts]).all())
        if not self.cuts or self.cuts[0].nonviral or not is_sorted or not is_finite:
            raise ValueError("the thresholds are not in order")

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of all contigs, in the order of a cut."""
        return self.nonviral, self.viral

    def at(self, fpr: float) -> Cut:
        """Return the lowest threshold that at most the fraction *fpr* of the nonviral contigs reaches."""
        allowed = _allowed(fpr, self.nonviral)
        return next(cut for cut in reversed(self.cuts) if cut.nonviral <= allowed)

    def can_tell(self, fpr: float) -> bool:
        """Return whether there are enough nonviral contigs for one of them to be the fraction *fpr*."""
        return _allowed(fpr, self.nonviral) >= 1


@dataclass(frozen=True, slots=True)
class LogOddsCalibration:
    """
    A map from ``log_odds`` with this *penalty* to a probability, with the thresholds of both scores.

    Raises:
        ValueError: it is not an increasing map to 0..1
    """

    penalty: float
    method: Method
    temperature: float  # the divisor of log_odds
    knots: tuple[tuple[float, float], ...]  # of the isotonic map, linear between them
    mean_thresholds: Thresholds
    thresholds: Thresholds

    def __post_init__(self) -> None:
        if not np.isfinite(self.penalty):
            raise ValueError(f"the penalty is {self.penalty}")
        _check_map(self.method, self.temperature, self.knots)

    def apply(self, log_odds: NDArray[np.floating]) -> Numbers:
        """Return the calibrated probability of each of *log_odds*."""
        if self.method is Method.ISOTONIC:
            return _interpolate(log_odds, self.knots)
        return sigmoid(log_odds.astype(np.float64) / self.temperature)


@dataclass(frozen=True, slots=True)
class Calibration:
    """
    A map from mean P(virus) to a probability, and a threshold; *of* is the fingerprint of the bundle.

    Raises:
        ValueError: it is not an increasing map from 0..1 to 0..1
    """

    of: str
    method: Method
    temperature: float  # the divisor of the logits
    knots: tuple[tuple[float, float], ...]  # of the isotonic map, linear between them
    fpr: float  # false positive rate at the threshold
    threshold: float  # of the mean P(virus)
    log_odds: LogOddsCalibration | None = None  # None: of an earlier version

    def __post_init__(self) -> None:
        _check_map(self.method, self.temperature, self.knots)
        if not all(0 <= score <= 1 for score, _ in self.knots):
            raise ValueError(_NO_KNOTS)

    @property
    def fingerprint(self) -> str:
        """A hash of what determines the calibrated probabilities and the thresholds."""
        # Without what an earlier version did not have: its calibrations keep their fingerprints.
        facts = {name: value for name, value in asdict(self).items() if value is not None}
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def apply(self, scores: NDArray[np.floating]) -> Numbers:
        """Return the calibrated probability of each score."""
        if self.method is Method.ISOTONIC:
            return _interpolate(scores, self.knots)
        return sigmoid(logits(scores) / self.temperature)

    def as_dict(self, **facts: Any) -> dict[str, Any]:
        """Return values for JSON; *facts* are added for the reader and ignored by :func:`read`."""
        return {"format": _FORMAT if self.log_odds else _MEAN_ONLY, **asdict(self), **facts}


_NO_KNOTS = "the knots are not points between 0 and 1"


def _check_map(method: Method, temperature: float, knots: tuple[tuple[float, float], ...]) -> None:
    """Check that *temperature* or *knots* are an increasing map to 0..1; raise ValueError if not."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"the temperature is {temperature}")
    knots = knots if method is Method.ISOTONIC else ((0.0, 0.0), (1.0, 1.0))
    if not knots or not all(np.isfinite(score) and 0 <= value <= 1 for score, value in knots):
        raise ValueError(_NO_KNOTS)
    if any(left[0] > right[0] or left[1] > right[1] for left, right in pairwise(knots)):
        raise ValueError("the knots do not increase")


def read(described: Mapping[str, Any]) -> Calibration:
    """
    Return the calibration that :meth:`Calibration.as_dict` described, of this version or an earlier one.

    Raises:
        ValueError, KeyError, TypeError: it is invalid
    """
    if described["format"] not in (_MEAN_ONLY, _FORMAT):
        raise ValueError(f"its format is {described['format']}, this program reads {_FORMAT}")
    return Calibration(
        of=str(described["of"]),
        method=Method(described["method"]),
        temperature=float(described["temperature"]),
        knots=_read_knots(described),
        fpr=float(described["fpr"]),
        threshold=float(described["threshold"]),
        log_odds=_read_log_odds(described["log_odds"]) if described["format"] == _FORMAT else None,
    )


def _read_log_odds(described: Mapping[str, Any]) -> LogOddsCalibration:
    return LogOddsCalibration(
        penalty=float(described["penalty"]),
        method=Method(described["method"]),
        temperature=float(described["temperature"]),
        knots=_read_knots(described),
        mean_thresholds=_read_thresholds(described["mean_thresholds"]),
        thresholds=_read_thresholds(described["thresholds"]),
    )


def _read_knots(described: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    return tuple((float(score), float(value)) for score, value in described["knots"])


def _read_thresholds(described: Mapping[str, Any]) -> Thresholds:
    cuts = ((float(at), int(nonviral), int(viral)) for at, nonviral, viral in described["cuts"])
    return Thresholds(int(described["nonviral"]), int(described["viral"]), tuple(starmap(Cut, cuts)))


def fit_thresholds(
    scores: NDArray[np.floating], truth: NDArray[np.bool_], fpr: float, above: Callable[[Numbers], Numbers]
) -> Thresholds:
    """
    Return the thresholds of *scores* for all rates of false positives, and exactly for the rate *fpr*.

    Each is just above the score of a nonviral contig: *above* returns the next number of a score.
    """
    negatives, positives = np.sort(scores[~truth]).astype(np.float64), np.sort(scores[truth])
    count = len(negatives)
    # All numbers of false positives that are small, and then each a hundredth above the one before.
    rising = _ALL_BELOW * 1.01 ** np.arange(np.log(max(1, count / _ALL_BELOW)) / np.log(1.01))
    allowed = np.concatenate((np.arange(_ALL_BELOW), rising.astype(np.int64), [_allowed(fpr, count)]))
    thresholds = np.unique(above(negatives[count - 1 - allowed[allowed < count]]))[::-1]
    reached = (len(sample) - np.searchsorted(sample, thresholds) for sample in (negatives, positives))
    columns = (column.tolist() for column in (thresholds, *reached))
    cuts = tuple(Cut(*row) for row in zip(*columns, strict=True))
    return Thresholds(count, len(positives), cuts)


def _allowed(fpr: float, nonviral: int) -> int:
    """Return how many of *nonviral* contigs are at most the fraction *fpr* of them."""
    # 0.29 of 100 are 29, although the product is less in binary.
    return int(fpr * nonviral * (1 + 1e-12))


def fit_scale(log_odds: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Return the divisor of *log_odds* with the maximum likelihood of the truth."""
    signed = np.where(truth, 1.0, -1.0) * log_odds
    low, high = -_MAX_LOG_FACTOR, _MAX_LOG_FACTOR
    for _ in range(_STEPS):
        # The loss is convex in the factor: its slope shows on which side the minimum is.
        middle = (low + high) / 2
        slope = -(signed * sigmoid(-signed * np.exp(middle))).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def fit_isotonic(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Return the knots of the isotonic regression of the truth, by pooling adjacent violators."""
    unique, index, counts = np.unique(scores.astype(np.float64), return_inverse=True, return_counts=True)
    positives = np.bincount(index, truth, len(unique))
    pools: list[tuple[float, float, float, float]] = []  # first and last score, rows, positives
    for score, count, positive in zip(unique.tolist(), counts.tolist(), positives.tolist(), strict=True):
        pool = (score, score, float(count), positive)
        while pools and pools[-1][3] / pools[-1][2] >= pool[3] / pool[2]:
            left = pools.pop()
            pool = (left[0], pool[1], left[2] + pool[2], left[3] + pool[3])
        pools.append(pool)
    return tuple(
        (end, positive / count)
        for first, last, count, positive in pools
        for end in dict.fromkeys((first, last))
    )


def logits(scores: NDArray[np.floating]) -> Numbers:
    """Return the log odds of each probability of *scores*, as if none was less than 1e-7 from 0 or 1."""
    inside = np.clip(scores.astype(np.float64), _EPSILON, 1 - _EPSILON)
    log_odds: Numbers = np.log(inside) - np.log1p(-inside)
    return log_odds


def _interpolate(scores: NDArray[np.floating], knots: tuple[tuple[float, float], ...]) -> Numbers:
    inputs, values = np.array(knots).T
    mapped: Numbers = np.interp(scores, inputs, values)
    return mapped


def sigmoid(log_odds: Numbers) -> Numbers:
    """Return the probability of each of *log_odds*."""
    probabilities: Numbers = 1 / (1 + np.exp(-np.clip(log_odds, -700, 700)))
    return probabilities
