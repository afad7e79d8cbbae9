"""Scores become verdicts: on each fragment, and on each contig by the votes of its fragments."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async.models.calibration import Calibration, LogOddsCalibration, logits
from virnuc_async.models.verdict_rule import COLUMNS, VerdictRule
from virnuc_async.runs.blocks import Block
from virnuc_async.settings import VerdictBy

LABELS = ("others", "virus", "no_orf")

# The columns that a table of verdicts ends with; VERDICT is an index into LABELS. The last two are of models
# with a calibration.
COUNTS = ("fragments", "fragments_with_orf", "viral_fragments")
FRACTIONS = ("viral_fraction", "mean_p_virus", "max_p_virus")
VERDICT, LOG_ODDS, CALIBRATED, Q = "verdict", "log_odds", "p_virus_calibrated", "q"

DECIMALS = 4  # of log_odds; what counts is the number as it is printed


@dataclass(frozen=True, slots=True)
class Votes:
    """The fragments of a block that have a scored ORF, in columns."""

    rows: NDArray[np.int64]  # row of the fragment's contig in the block
    numbers: NDArray[np.int32]  # of the fragment within its contig, from 1
    starts: NDArray[np.int64]  # row of the fragment's first ORF in the block
    frames: NDArray[np.int64]  # with an ORF
    others: NDArray[np.float32]  # highest P(others) of the fragment's ORFs
    highest: NDArray[np.float32]  # highest P(virus) of the fragment's ORFs
    are_viral: NDArray[np.bool_]

    def part(self, rows: slice) -> "Votes":
        """Return some of the fragments."""
        return Votes(*(getattr(self, column.name)[rows] for column in fields(self)))


@dataclass(frozen=True, slots=True)
class Verdicts:
    """
    The verdict on each contig, in columns; means are over the contig's fragments with an ORF.

    Without one there is nothing to take a fraction, a mean or a maximum of: these are NaN.
    """

    fragments_with_orf: NDArray[np.int64]
    viral_fragments: NDArray[np.int64]
    viral_fraction: NDArray[np.float64]
    mean_p_virus: NDArray[np.float64]
    max_p_virus: NDArray[np.float64]
    log_odds: NDArray[np.float64]  # as they are printed

    def labels(self, rule: VerdictRule) -> NDArray[np.intp]:
        """Return each contig's label, as an index into LABELS."""
        labels = self.are_viral(rule).astype(np.intp)
        labels[self.fragments_with_orf == 0] = LABELS.index("no_orf")
        return labels

    def are_viral(self, rule: VerdictRule) -> NDArray[np.bool_]:
        """Return which contigs have a score that reaches the threshold of *rule*."""
        scores = getattr(self, COLUMNS[rule.by])
        if rule.by is VerdictBy.MEAN:
            # What counts is the mean as it is printed.
            scores = scores.astype(np.float32)
        reached: NDArray[np.bool_] = scores >= scores.dtype.type(rule.threshold)
        return reached

    def calibrated(self, calibration: Calibration) -> NDArray[np.float64]:
        """Return each contig's calibrated probability, from its mean as it is printed."""
        means = self.mean_p_virus.astype(np.float32)
        return np.where(self.fragments_with_orf > 0, calibration.apply(means), np.nan)

    def q(self, calibration: LogOddsCalibration) -> NDArray[np.float64]:
        """Return each contig's calibrated probability, from its log odds."""
        return np.where(self.fragments_with_orf > 0, calibration.apply(self.log_odds), np.nan)


def vote(block: Block) -> Votes:
    """
    Return the vote of each fragment.

    A fragment is viral if its highest P(virus) is at least its highest P(others): the published
    rule, in which a tie is viral.
    """
    rows, numbers = block.rows, block.scores["fragment"]
    starts = _group_starts(rows, numbers)
    others, virus = (np.maximum.reduceat(block.scores[name], starts) for name in ("others", "virus"))
    frames = np.diff(np.append(starts, len(rows)))
    return Votes(rows[starts], numbers[starts], starts, frames, others, virus, virus >= others)


def label_contigs(block: Block, penalty: float) -> Verdicts:
    """
    Return the verdict on each contig of *block*, from the votes of its fragments.

    The log odds of a contig lose *penalty* for each of its fragments, those without an ORF included.
    """
    fragments = vote(block)
    rows, size = fragments.rows, len(block.contigs)
    counts = np.bincount(rows, minlength=size)
    viral = np.bincount(rows[fragments.are_viral], minlength=size)
    fractions, means, highest, log_odds = np.full((4, size), np.nan)
    starts = _group_starts(rows)
    with_orf = rows[starts]
    fractions[with_orf] = viral[with_orf] / counts[with_orf]
    means[with_orf] = _exact_sums(fragments.highest.astype(np.float64), starts) / counts[with_orf]
    highest[with_orf] = np.maximum.reduceat(fragments.highest, starts)
    penalties = penalty * block.contigs["fragments"][with_orf]
    log_odds[with_orf] = _as_printed(_exact_sums(logits(fragments.highest), starts) - penalties)
    return Verdicts(counts, viral, fractions, means, highest, log_odds)


def verdict_columns(block: Block, rule: VerdictRule) -> dict[str, NDArray[Any]]:
    """Return the verdicts on the contigs of *block* as the last columns of a table, by their names."""
    verdicts = label_contigs(block, rule.penalty)
    columns: dict[str, NDArray[Any]] = {"fragments": block.contigs["fragments"]}
    columns |= {name: getattr(verdicts, name) for name in (*COUNTS[1:], *FRACTIONS)}
    columns |= {VERDICT: verdicts.labels(rule), LOG_ODDS: verdicts.log_odds}
    if rule.calibration:
        columns[CALIBRATED] = verdicts.calibrated(rule.calibration)
    if rule.calibration and rule.calibration.log_odds:
        columns[Q] = verdicts.q(rule.calibration.log_odds)
    return columns


def count_labels(columns: Mapping[str, NDArray[Any]], tally: Counter[str]) -> None:
    """Add the number of contigs with each label to *tally*."""
    counts = np.bincount(columns[VERDICT], minlength=len(LABELS))
    tally.update(dict(zip(LABELS, counts.tolist(), strict=True)))


def _group_starts(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """Return the index of the first row of each group of equal *keys*, which are columns of one length."""
    is_new = np.ones(len(keys[0]), bool)
    is_new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.flatnonzero(is_new)


def _exact_sums(numbers: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of each group, rounded once, however large the group is."""
    sums = np.add.reduceat(numbers, starts)
    ends, values = np.append(starts[1:], len(numbers)), numbers.tolist()
    # The sum of one or two numbers is rounded only once in any case.
    for group in np.flatnonzero(ends - starts > 2).tolist():
        sums[group] = math.fsum(values[starts[group] : ends[group]])
    return sums


def next_printed(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lowest number above each of *log_odds*, as they are printed."""
    return _as_printed(log_odds + 0.1**DECIMALS)


def _as_printed(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return *log_odds* with the decimals that they are printed with."""
    # A logarithm's last digit depends on the processor. Adding 0 makes a negative zero positive.
    printed: NDArray[np.float64] = np.rint(log_odds * 10**DECIMALS) / 10**DECIMALS + 0.0
    return printed
