"""What the files of a run are made by, beside its store: nothing of it changes a score."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.runs.identity import describe_differences
from virnuc_async.settings import (
    CallRules,
    Check,
    Format,
    Layout,
    Pairing,
    RegionRules,
    Settings,
    VerdictBy,
    ViralFasta,
    call_rules,
    check_fields,
    flag,
    formats,
    fraction,
    inner_fraction,
    number,
    one_of,
    optional,
    region_rules,
    viral_fasta,
    whole,
    word,
)


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """
    How the files of a run are made of its store.

    A field that :class:`Settings` has too is taken from there.

    Raises:
        UsageError: a value is of another type or out of its range
    """

    threshold: float = 0.5  # of the score that verdicts are by, from which on a contig is viral
    pairs: Pairing = Pairing.AUTO  # which records get one verdict
    calibration: str | None = None  # fingerprint of the one that contigs get a column of
    embeddings: bool = False
    calls: CallRules | None = None  # of the table of calls, if there is to be one
    regions: RegionRules | None = None  # of the tables of regions, if there are to be some
    viral_fasta: ViralFasta | None = None  # where viral sequences are written, if they are
    min_length: int = 0  # bases; shorter records are in no table
    formats: tuple[Format, ...] = (Format.TSV,)  # of the tables
    layout: Layout | None = None  # in which tables are written as well
    report: bool = True  # whether there is to be one
    verdict_by: VerdictBy = VerdictBy.FRACTION
    fpr: float | None = None  # false positive rate that verdicts are at
    fpr_threshold: float | None = None  # that it has by the calibration of the model
    penalty: float | None = None  # of log_odds; None: of an earlier version, without this column

    def __post_init__(self) -> None:
        check_fields(self, OPTION_CHECKS)

    @classmethod
    def of(cls, settings: Settings, rule: VerdictRule) -> Self:
        """Return the options that *settings* have, whose verdicts are by *rule*."""
        shared = (field.name for field in fields(cls) if hasattr(settings, field.name))
        values = {name: getattr(settings, name) for name in shared}
        return cls(**values | {"verdict_by": settings.verdict_score}).by_rule(rule)

    def by_rule(self, rule: VerdictRule) -> Self:
        """Return these options, with what *rule* has of the model."""
        return replace(
            self,
            fpr_threshold=None if self.fpr is None else rule.threshold,
            penalty=rule.penalty,
            calibration=rule.calibration.fingerprint if rule.calibration else None,
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """
        Return what :meth:`to_json` gave, of this or another version: what it does not have is the default.

        Raises:
            UsageError, TypeError: it makes no sense
        """
        known = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        rules = {name: kind(**known[name]) for name, kind in RULES.items() if known.get(name) is not None}
        return cls(**known | rules)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    def including(self, earlier: Self | None) -> Self:
        """Return these options, with the files that *earlier* ones have asked for: once written they stay."""
        if earlier is None:
            return self
        files = {name: getattr(self, name) or getattr(earlier, name) for name in _STAYING}
        return replace(self, **files, formats=(*self.formats, *earlier.formats))

    def differences(self, new: Self) -> Iterable[str]:
        """Yield a text for each option that *new* has otherwise."""
        return describe_differences(self._texts(), new._texts())

    def _texts(self) -> dict[str, Any]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        # Rules are compared as they are described.
        texts = {name: str(value) if name in RULES and value else value for name, value in values}
        return texts | {"formats": ",".join(self.formats)}


# Options that ask for a file.
_STAYING = ("embeddings", "report", "calls", "regions", "viral_fasta", "layout")
RULES: dict[str, type[CallRules | RegionRules | ViralFasta]] = {
    "calls": CallRules,
    "regions": RegionRules,
    "viral_fasta": ViralFasta,
}

_ANY_NUMBER = number("a number", lambda value: True)
OPTION_CHECKS: dict[str, Check] = {
    "threshold": fraction,
    "pairs": one_of(Pairing),
    "verdict_by": one_of(VerdictBy),
    "fpr": optional(inner_fraction),
    "fpr_threshold": optional(_ANY_NUMBER),
    "penalty": optional(_ANY_NUMBER),
    "calibration": optional(word),
    "embeddings": flag,
    "report": flag,
    "calls": optional(call_rules),
    "regions": optional(region_rules),
    "viral_fasta": optional(viral_fasta),
    "min_length": whole(0),
    "formats": formats,
    "layout": optional(one_of(Layout)),
}
