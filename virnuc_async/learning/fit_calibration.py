"""A calibration, fitted on the scores of labelled contigs, and how well it performs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from json import dumps
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async.models.calibration import (
    Calibration,
    LogOddsCalibration,
    Method,
    fit_isotonic,
    fit_scale,
    fit_thresholds,
    logits,
    sigmoid,
)
from virnuc_async.outputs.verdicts import next_printed

from .metrics import Numbers, Truth, calibration_error

_FOLDS = 5  # of the cross-validation


@dataclass(frozen=True, slots=True)
class LabelledContigs:
    """Contigs with a score, in columns: both scores, whether they are viral, and their clusters."""

    means: NDArray[np.float32]
    log_odds: Numbers  # with *penalty* for each fragment
    truth: Truth
    clusters: NDArray[np.int64]
    penalty: float

    def part(self, rows: Truth) -> "LabelledContigs":
        """Return those of *rows*."""
        return LabelledContigs(
            self.means[rows], self.log_odds[rows], self.truth[rows], self.clusters[rows], self.penalty
        )

    def fit(self, of: str, method: Method, fpr: float) -> Calibration:
        """Return the calibration of the bundle with the fingerprint *of*, with the threshold for *fpr*."""
        of_means = fit_thresholds(self.means, self.truth, fpr, _next_single)
        of_log_odds = LogOddsCalibration(
            self.penalty,
            method,
            *_fit_map(method, self.log_odds, self.log_odds, self.truth),
            of_means,
            fit_thresholds(self.log_odds, self.truth, fpr, next_printed),
        )
        mapped = _fit_map(method, self.means, logits(self.means), self.truth)
        return Calibration(of, method, *mapped, fpr, of_means.at(fpr).threshold, of_log_odds)

    def results(self, calibration: Calibration) -> dict[str, Any]:
        """Return the sensitivities, and the calibration errors before and after by cross-validation."""
        means, q = self._cross_validated(calibration)
        found: dict[str, Any] = {"viral": int(self.truth.sum()), "nonviral": int((~self.truth).sum())}
        of_scores = ("", self.means.astype(np.float64), means), ("log_odds_", sigmoid(self.log_odds), q)
        for prefix, before, after in of_scores:
            found |= {f"{prefix}ece_before": self._error(before), f"{prefix}ece_after": self._error(after)}
        if of_log_odds := calibration.log_odds:
            cuts = (
                each.at(calibration.fpr) for each in (of_log_odds.mean_thresholds, of_log_odds.thresholds)
            )
            of_mean, of_sum = (round(cut.viral / found["viral"], 6) for cut in cuts)
            found |= {"sensitivity_at_threshold": of_mean, "log_odds_sensitivity_at_threshold": of_sum}
            found["log_odds_threshold"] = of_log_odds.thresholds.at(calibration.fpr).threshold
        return found

    def _cross_validated(self, calibration: Calibration) -> tuple[Numbers, Numbers]:
        """Return both calibrated probabilities of each contig, by maps fitted without its cluster."""
        folds = np.random.default_rng(0).permutation(self.clusters.max() + 1)[self.clusters] % _FOLDS
        means, q = self.means.astype(np.float64), sigmoid(self.log_odds)
        for fold in range(_FOLDS):
            own = folds == fold
            if own.any() and 0 < self.truth[~own].sum() < (~own).sum():
                of_others = self.part(~own).fit(calibration.of, calibration.method, calibration.fpr)
                means[own] = of_others.apply(self.means[own])
                if of_others.log_odds:
                    q[own] = of_others.log_odds.apply(self.log_odds[own])
        return means, q

    def _error(self, probabilities: Numbers) -> float:
        return round(calibration_error(probabilities, self.truth), 6)


def _fit_map(
    method: Method, scores: NDArray[np.floating], log_odds: Numbers, truth: Truth
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """Return the temperature and the knots of a map of *scores*, whose log odds are *log_odds*."""
    return (
        (1.0, fit_isotonic(scores, truth)) if method is Method.ISOTONIC else (fit_scale(log_odds, truth), ())
    )


def _next_single(scores: Numbers) -> Numbers:
    """Return the lowest number above each of *scores*, in FP32."""
    return np.nextafter(scores.astype(np.float32), np.float32(2)).astype(np.float64)


def calibration_text(report: Mapping[str, Any]) -> str:
    """Return *report* as JSON, with each list of numbers in one line."""
    text = dumps(report, indent=2)
    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
