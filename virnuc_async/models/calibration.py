"""
A contig's mean P(virus) becomes a probability that holds on labelled sequences.

A calibration lies beside the networks of a bundle and changes no score: what was published stays, and
a column is added.
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
_NEAR = 1e-7  # to 0 and 1, where the logit has no value
_SHARPEST, _STEPS = 4.0, 100  # of the logarithm of the factor that is sought, and halvings of the range

Numbers = NDArray[np.float64]


class Method(StrEnum):
    """How scores are mapped."""

    TEMPERATURE = "temperature"
    ISOTONIC = "isotonic"


@dataclass(frozen=True, slots=True)
class Calibration:
    """
    A map from mean P(virus) to a probability, and a threshold; *of* is the fingerprint of the bundle.

    Raises:
        ValueError: it is no map of what lies between 0 and 1
    """

    of: str
    method: Method
    temperature: float  # that logits are divided by
    knots: tuple[tuple[float, float], ...]  # of the isotonic map, straight between two
    fpr: float  # share of other contigs that may score from the threshold on
    threshold: float  # of the mean P(virus)

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"the temperature is {self.temperature}")
        knots = self.knots if self.method is Method.ISOTONIC else ((0.0, 0.0), (1.0, 1.0))
        if not knots or any(len(knot) != 2 or not all(0 <= number <= 1 for number in knot) for knot in knots):
            raise ValueError("the knots are no points from 0 to 1")
        if any(left[0] > right[0] or left[1] > right[1] for left, right in pairwise(knots)):
            raise ValueError("the knots do not rise")

    @property
    def fingerprint(self) -> str:
        """What decides the calibrated numbers."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    def apply(self, scores: NDArray[np.floating]) -> Numbers:
        """Give the probability of each score."""
        if self.method is Method.ISOTONIC:
            places, values = np.array(self.knots).T
            mapped: Numbers = np.interp(scores, places, values)
            return mapped
        return _sigmoid(_logits(scores) / self.temperature)

    def as_dict(self, **facts: Any) -> dict[str, Any]:
        """Give plain values that JSON can hold; *facts* are for people."""
        return {"format": _FORMAT, **asdict(self), **facts}


def read(described: Mapping[str, Any]) -> Calibration:
    """Read what :meth:`Calibration.as_dict` gave; raises ValueError, KeyError or TypeError."""
    if described["format"] != _FORMAT:
        raise ValueError(f"its format is {described['format']}, this program reads {_FORMAT}")
    return Calibration(
        of=str(described["of"]),
        method=Method(described["method"]),
        temperature=float(described["temperature"]),
        knots=tuple((float(place), float(value)) for place, value in described["knots"]),
        fpr=float(described["fpr"]),
        threshold=float(described["threshold"]),
    )


def fit_temperature(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Give the temperature under which the truth is likeliest."""
    signed = np.where(truth, 1.0, -1.0) * _logits(scores)
    low, high = -_SHARPEST, _SHARPEST
    for _ in range(_STEPS):
        # Convex in the factor: the slope says on which side the least loss is.
        middle = (low + high) / 2
        slope = -(signed * _sigmoid(-signed * np.exp(middle))).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def fit_isotonic(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Give the knots of the rising map that is nearest to the truth: adjacent violators are pooled."""
    places, owners, counts = np.unique(scores.astype(np.float64), return_inverse=True, return_counts=True)
    hits = np.bincount(owners, truth, len(places))
    pools: list[tuple[float, float, float, float]] = []  # first and last score, rows, those of the class
    for place, count, hit in zip(places.tolist(), counts.tolist(), hits.tolist(), strict=True):
        pool = (place, place, float(count), hit)
        while pools and pools[-1][3] / pools[-1][2] >= pool[3] / pool[2]:
            before = pools.pop()
            pool = (before[0], pool[1], before[2] + pool[2], before[3] + pool[3])
        pools.append(pool)
    return tuple(
        (end, hit / count) for first, last, count, hit in pools for end in dict.fromkeys((first, last))
    )


def _logits(scores: NDArray[np.floating]) -> Numbers:
    inside = np.clip(scores.astype(np.float64), _NEAR, 1 - _NEAR)
    logits: Numbers = np.log(inside) - np.log1p(-inside)
    return logits


def _sigmoid(logits: Numbers) -> Numbers:
    chances: Numbers = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
    return chances
