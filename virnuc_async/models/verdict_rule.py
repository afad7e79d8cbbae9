"""Which score of a contig its verdict is by, and from which threshold on it is viral."""

import math
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from virnuc_async.errors import NoThreshold
from virnuc_async.settings import VerdictBy

from .calibration import Calibration, Cut, Thresholds, logits
from .contig_score import NO_PENALTY


@dataclass(frozen=True, slots=True)
class VerdictRule:
    """What the verdicts on contigs depend on, beside the scores of their fragments."""

    by: VerdictBy = VerdictBy.FRACTION
    threshold: float = 0.5  # of the score that it is by
    penalty: float = NO_PENALTY  # of log_odds, for each fragment
    calibration: Calibration | None = None  # that contigs get columns of
    basis: str = ""  # what the threshold was chosen by

    @classmethod
    def at_probability(cls, by: VerdictBy, probability: float, penalty: float = NO_PENALTY) -> Self:
        """Return the rule that contigs are viral from *probability* on: of log odds, from its log odds on."""
        is_log_odds = by is VerdictBy.LOG_ODDS
        return cls(by, float(logits(np.array([probability]))[0]) if is_log_odds else probability, penalty)

    def __str__(self) -> str:
        return f"{COLUMNS[self.by]} >= {self.threshold:.10g}" + (f" ({self.basis})" if self.basis else "")

    def criterion(self, what: str = "are viral") -> str:
        """Return when a sequence is called viral, as the end of a sentence; its viral fragments *what*."""
        if self.by is VerdictBy.FRACTION:
            return f"at least {100 * self.threshold:.4g} % of its scored fragments {what}"
        return f"its {COLUMNS[self.by]} {_VERBS[self.by]} at least {self.threshold:.6g}"


_VERBS = {VerdictBy.MEAN: "was", VerdictBy.LOG_ODDS: "were"}
# The columns of contigs.tsv with the scores.
COLUMNS = {
    VerdictBy.FRACTION: "viral_fraction",
    VerdictBy.MEAN: "mean_p_virus",
    VerdictBy.LOG_ODDS: "log_odds",
}


class CalibratedModel(Protocol):
    """What a rule depends on of a model."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def penalty(self) -> float:
        """What log_odds loses for each fragment."""

    @property
    def calibration(self) -> Calibration | None:
        """Its calibration, if it has one."""


def rule_for(
    model: CalibratedModel, by: VerdictBy, threshold: float, fpr: float | None, calibrated: bool
) -> VerdictRule:
    """
    Return the rule of verdicts *by* a score, at the probability *threshold* or at the rate *fpr*.

    Raises:
        NoThreshold: the *model* has none for this false positive rate
    """
    calibration = model.calibration if calibrated else None
    if fpr is None:
        return replace(VerdictRule.at_probability(by, threshold, model.penalty), calibration=calibration)
    of_fpr, basis = _threshold_at(fpr, by, model)
    return VerdictRule(by, of_fpr, model.penalty, calibration, basis)


def _threshold_at(fpr: float, by: VerdictBy, model: CalibratedModel) -> tuple[float, str]:
    """Return the threshold of the score *by* for the false positive rate *fpr*, and what it was chosen by."""
    found = model.calibration
    if found is None:
        raise NoThreshold(model.name, "it has no calibration")
    if found.log_odds is None:
        # An earlier version stored one threshold.
        if by is VerdictBy.MEAN and fpr == found.fpr:
            return found.threshold, f"for a false positive rate of {fpr:g}, by the model's calibration"
        stored = f"mean_p_virus at a rate of {found.fpr:g} alone"
        raise NoThreshold(model.name, f"its calibration, of an earlier version, has a threshold of {stored}")
    of_both = found.log_odds
    thresholds = of_both.mean_thresholds if by is VerdictBy.MEAN else of_both.thresholds
    if not thresholds.can_tell(fpr):
        reason = f"the {thresholds.nonviral:,} nonviral contigs of its calibration show no rate below"
        raise NoThreshold(model.name, f"{reason} {lowest_rate(thresholds.nonviral):g}")
    cut = thresholds.at(fpr)
    return cut.threshold, _describe(cut, thresholds)


def lowest_rate(nonviral: int) -> float:
    """Return the lowest rate that *nonviral* contigs can tell, one of them, rounded up."""
    digits = len(str(nonviral)) + 1
    return float(math.ceil(10**digits / nonviral) / 10**digits)


def _describe(cut: Cut, of: Thresholds) -> str:
    nonviral, viral = (
        f"{part / whole:.3g} of {whole:,}" for part, whole in zip(cut[1:], of.sizes, strict=True)
    )
    return f"which {nonviral} nonviral and {viral} viral contigs of the model's calibration reach"
