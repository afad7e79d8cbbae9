"""
Calibration: maps the mean P(virus) of a contig to a probability that is fitted on labelled sequences.

A calibration is stored with the networks of a bundle and changes no score: it adds a column.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION = "calibration.json"
_FORMAT = 1
_EPSILON = 1e-7  # distance to 0 and 1, where the logit is infinite
_MAX_LOG_FACTOR, _STEPS = 4.0, 100  # range of the fitted logarithm, and bisection steps

Numbers = NDArray[np.float64]


class Method(StrEnum):
    """The kind of map."""

    TEMPERATURE = "temperature"
    ISOTONIC = "isotonic"


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

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"the temperature is {self.temperature}")
        knots = self.knots if self.method is Method.ISOTONIC else ((0.0, 0.0), (1.0, 1.0))
        if not knots or any(len(knot) != 2 or not all(0 <= number <= 1 for number in knot) for knot in knots):
            raise ValueError("the knots are not points between 0 and 1")
        if any(left[0] > right[0] or left[1] > right[1] for left, right in pairwise(knots)):
            raise ValueError("the knots do not increase")

    @property
    def fingerprint(self) -> str:
        """A hash of what determines the calibrated probabilities."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    def apply(self, scores: NDArray[np.floating]) -> Numbers:
        """Return the calibrated probability of each score."""
        if self.method is Method.ISOTONIC:
            knots, values = np.array(self.knots).T
            mapped: Numbers = np.interp(scores, knots, values)
            return mapped
        return _sigmoid(_logits(scores) / self.temperature)

    def as_dict(self, **facts: Any) -> dict[str, Any]:
        """Return values for JSON; *facts* are added for the reader and ignored by :func:`read`."""
        return {"format": _FORMAT, **asdict(self), **facts}


def read(described: Mapping[str, Any]) -> Calibration:
    """
    Return the calibration that :meth:`Calibration.as_dict` described.

    Raises:
        ValueError, KeyError, TypeError: it is invalid
    """
    if described["format"] != _FORMAT:
        raise ValueError(f"its format is {described['format']}, this program reads {_FORMAT}")
    return Calibration(
        of=str(described["of"]),
        method=Method(described["method"]),
        temperature=float(described["temperature"]),
        knots=tuple((float(score), float(value)) for score, value in described["knots"]),
        fpr=float(described["fpr"]),
        threshold=float(described["threshold"]),
    )


def fit_temperature(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Return the temperature with the maximum likelihood of the truth."""
    signed = np.where(truth, 1.0, -1.0) * _logits(scores)
    low, high = -_MAX_LOG_FACTOR, _MAX_LOG_FACTOR
    for _ in range(_STEPS):
        # The loss is convex in the factor: its slope shows on which side the minimum is.
        middle = (low + high) / 2
        slope = -(signed * _sigmoid(-signed * np.exp(middle))).mean()
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


def _logits(scores: NDArray[np.floating]) -> Numbers:
    inside = np.clip(scores.astype(np.float64), _EPSILON, 1 - _EPSILON)
    logits: Numbers = np.log(inside) - np.log1p(-inside)
    return logits


def _sigmoid(logits: Numbers) -> Numbers:
    probabilities: Numbers = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
    return probabilities
