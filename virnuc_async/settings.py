"""The settings of a run, checked once and immutable; and the checks, which other options share."""

import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard

from virnuc_async.errors import UsageError
from virnuc_async.text import did_you_mean, is_url

# Returns what a field holds for the value that it was given. It is given what messages call the field.
Check = Callable[[str, Any], Any]

_WITH_ARTICLE = frozenset({"threshold", "fpr", "rate", "seed", "leakage share"})


class Precision(StrEnum):
    """The number format of the encoders' weights and activations."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"  # ESM-2's products; all else in BF16


class Compile(StrEnum):
    """A choice of earlier versions; it has no effect."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Pairing(StrEnum):
    """Which records are mates and get one verdict."""

    AUTO = "auto"  # records of two files that are named like mates, if all ids match
    INTERLEAVED = "interleaved"  # records 1 and 2 of a file, 3 and 4, ...
    OFF = "off"


class Format(StrEnum):
    """The form of a table."""

    TSV = "tsv"
    PARQUET = "parquet"
    JSONL = "jsonl"


class Layout(StrEnum):
    """Directories in which tables are written as well."""

    VIRNUCPRO = "virnucpro"  # {stem}_merged for each input


class VerdictBy(StrEnum):
    """The score of a contig that its verdict is by."""

    FRACTION = "fraction"  # of viral fragments
    MEAN = "mean"  # of the P(virus) of its fragments
    LOG_ODDS = "log_odds"  # of its fragments, added up


def check_fields(options: object, checks: Mapping[str, Check]) -> None:
    """
    Replace each field of the frozen dataclass *options* by what its check returns.

    Raises:
        UsageError: a value is of another type or out of its range; it names the field and what is expected
    """
    for name, check in checks.items():
        label = name.replace("_", " ")
        if label in _WITH_ARTICLE:
            label = f"the {label}"
        object.__setattr__(options, name, check(label, getattr(options, name)))


def user_path(name: object, what: str) -> str:
    """
    Return the path that a user gave for *what*, with ~ expanded.

    Raises:
        UsageError: it is no path, or a name that no file can have, or the home directory is unknown
    """
    text = os.fspath(name) if isinstance(name, os.PathLike) else name
    if isinstance(name, os.PathLike) and isinstance(text, str) and is_url(text.replace(":/", "://", 1)):
        raise UsageError(f"{what} must be a text if it is a URL, not {name!r}: a path has no //")
    if not isinstance(text, str):
        raise UsageError(f"{what} must be a path, not {name!r}")
    if not text:
        raise UsageError(f"{what} has an empty name")
    if "\0" in text:
        raise UsageError(f"{what} must be a path, not {text!r}: no name has a zero byte")
    return expand_home(text, what)


def local_path(name: object, what: str) -> Path:
    """
    Return the path of *what* on this machine that a user gave, with ~ expanded.

    Raises:
        UsageError: it is a URL, or no path
    """
    text = user_path(name, what)
    if is_url(text):
        raise UsageError(f"{what} must be on this machine, not behind a URL: {text}")
    return Path(text)


def user_paths(names: object, what: str) -> tuple[str, ...]:
    """
    Return the paths that a user gave, each *what*: one path, or several.

    Raises:
        UsageError: there are none, or one is not a path
    """
    if isinstance(names, str | os.PathLike):
        names = (names,)
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise UsageError(f"{what} must be a path, or paths, not {names!r}")
    # What a list names may have a zero byte, and is then one of the files that are missing.
    paths = tuple(name if _has_zero(name) else user_path(name, what) for name in names)
    if not paths:
        raise UsageError(f"{what} is missing: there are none")
    return paths


def _has_zero(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and "\0" in name


def expand_home(text: str, what: str) -> str:
    """
    Return the path *text*, the name of *what*, with ~ expanded.

    Raises:
        UsageError: the home directory is unknown, or no file can have this name
    """
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError(f"{what} must be a path, not {text!r}: no name has half a character") from None
    if not text.startswith("~") or os.path.lexists(text):
        return text  # a file may be called so
    expanded = os.path.expanduser(text)
    if not os.path.isabs(expanded):
        user = text.partition("/")[0]
        raise UsageError(f"{what}: the home directory {user} of {text!r} is unknown. Write the whole path")
    return expanded


def flag(label: str, value: object) -> bool:
    """Return *value*, True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{label} must be True or False, not {value!r}")
    return value


def word(label: str, value: object) -> str:
    """Return *value*, a text."""
    if not isinstance(value, str):
        raise UsageError(f"{label} must be a text, not {value!r}")
    return value


def path(label: str, value: object) -> Path:
    """Return the path *value*, with ~ expanded."""
    return local_path(value, label)


def name_or_path(label: str, value: object) -> str | Path:
    """Return a name or a path, with ~ expanded; a text stays one, since it may be either."""
    found = user_path(value, label)
    return found if isinstance(value, str) else Path(found)


def whole(least: int | None = None) -> Check:
    """Return a check for whole numbers of at least *least*."""

    def check(label: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise UsageError(f"{label} must be a whole number, not {value!r}")
        if least is not None and value < least:
            raise UsageError(f"{label} must be at least {least}, not {value}")
        return operator.index(value)

    return check


def number(requirement: str, is_valid: Callable[[float], bool]) -> Check:
    """Return a check for numbers that are valid; *requirement* says which are."""

    def check(label: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise UsageError(f"{label} must be a number, not {value!r}")
        if not is_valid(float(value)):
            raise UsageError(f"{label} must be {requirement}, not {value}")
        return float(value)

    return check


def one_of(kind: type[StrEnum]) -> Check:
    """Return a check for members of *kind*, or their texts."""

    def check(label: str, value: object) -> StrEnum:
        choices = [str(member) for member in kind]
        if isinstance(value, str) and value in choices:
            return kind(value)
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        expected = f"{label} must be one of {', '.join(choices)}, not {value!r}"
        raise UsageError(f"{expected}.{hint}" if hint else expected)

    return check


def optional(check: Check) -> Check:
    """Return a check for None, and what *check* accepts."""
    return lambda label, value: None if value is None else check(label, value)


def tuple_of(check: Check, single: type, what: str) -> Check:
    """Return a check for several values, called *what*, that *check* accepts; one *single* is one value."""

    def check_all(label: str, value: Any) -> tuple[Any, ...]:
        values = (value,) if isinstance(value, single) else value
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise UsageError(f"{label} must be {what}, not {value!r}")
        return tuple(check(label, item) for item in values)

    return check_all


def formats(label: str, value: object) -> tuple[Format, ...]:
    """Return each of several formats once, in their order; a text may list them."""
    is_list = isinstance(value, str) and not isinstance(value, Format)
    words = list(filter(None, str(value).split(","))) if is_list else value
    found = {*tuple_of(one_of(Format), Format, "formats such as 'tsv' or 'parquet'")(label, words)}
    if not found:
        raise UsageError(f"{label}: name at least one of {', '.join(Format)}")
    return tuple(format for format in Format if format in found)


fraction = number("a number from 0 to 1", lambda value: 0 <= value <= 1)
inner_fraction = number("a number between 0 and 1", lambda value: 0 < value < 1)


@dataclass(frozen=True, slots=True)
class CallRules:
    """
    How contigs are called by the scores of their fragments, in ``contig_calls.tsv``.

    The defaults are those of the programs around VirNucPro.

    Raises:
        UsageError: a value is of another type or out of its range
    """

    call_threshold: float = 0.3  # a weighted delta beyond it, in either direction, is a call
    high_threshold: float = 0.6  # beyond it, a call that fragments confirm is of high confidence
    confident_score: float = 0.8  # a fragment is confident above this score of a class
    confident_other_score: float = 0.3  # and below this one of the other
    ambiguous_score: float = 0.7  # a fragment is ambiguous above this score of both classes
    min_confident: int = 1  # confident fragments that confirm a call
    min_proportion: float = 0.1  # of the fragments that are not ambiguous, which they must be
    min_fragments: int = 5  # with fewer, a call is one tier lower
    id_pattern: str | None = None  # a regular expression: contigs with the same match are one

    def __post_init__(self) -> None:
        check_fields(self, _CALL_CHECKS)

    def __str__(self) -> str:
        return _describe_rules(self)


def _describe_rules(rules: "CallRules | RegionRules") -> str:
    """Format what *rules* have otherwise than by default."""
    values = ((field.name, getattr(rules, field.name), field.default) for field in fields(rules))
    others = [f"{name}={value}" for name, value, default in values if value != default]
    return ", ".join(others) or "the default rules"


def _pattern(label: str, value: object) -> str:
    text = word(label, value)
    try:
        re.compile(text)
    except re.error as error:
        raise UsageError(f"{label} must be a regular expression, not {text!r}: {error}") from None
    return text


_CALL_CHECKS: dict[str, Check] = {
    "call_threshold": fraction,
    "high_threshold": fraction,
    "confident_score": fraction,
    "confident_other_score": fraction,
    "ambiguous_score": fraction,
    "min_confident": whole(0),
    "min_proportion": fraction,
    "min_fragments": whole(0),
    "id_pattern": optional(_pattern),
}


@dataclass(frozen=True, slots=True)
class RegionRules:
    """
    Where viral stretches of contigs begin and end, in ``regions.bed`` and ``regions.gff3``.

    The score of a fragment is its highest P(virus) by the sum of that and its highest P(others).

    Raises:
        UsageError: a value is of another type or out of its range
    """

    open_score: float = 0.75  # a region begins where the smoothed score reaches this
    close_score: float = 0.5  # and extends until it falls below this
    smoothing: int = 6000  # bases around the middle of a fragment over which scores are averaged; 0: not
    gap: int = 4000  # regions with at most so many bases between them are one
    min_length: int = 4000  # of a region, in bases
    min_contig: int = 5000  # shorter contigs are not looked at, in bases
    whole_fraction: float = 0.9  # a region of this fraction of its contig is a viral contig as a whole

    def __post_init__(self) -> None:
        check_fields(self, _REGION_CHECKS)
        if self.close_score > self.open_score:
            raise UsageError(
                f"close score must not be above open score: {self.close_score} > {self.open_score}"
            )

    def __str__(self) -> str:
        return _describe_rules(self)


_REGION_CHECKS: dict[str, Check] = {
    "open_score": fraction,
    "close_score": fraction,
    "smoothing": whole(0),
    "gap": whole(0),
    "min_length": whole(0),
    "min_contig": whole(0),
    "whole_fraction": fraction,
}


@dataclass(frozen=True, slots=True)
class LabelRules:
    """
    When a read is mapped well to its contig, in the table of read labels.

    Raises:
        UsageError: a value is of another type or out of its range
    """

    min_mapping_quality: int = 5
    min_identity: float = 90.0  # percent of the alignment
    min_coverage: float = 80.0  # percent of the read that is aligned

    def __post_init__(self) -> None:
        check_fields(self, _LABEL_CHECKS)


# A share instead of percent would let everything pass.
_percent = number("percent: 0, or 1 to 100", lambda value: value == 0 or 1 <= value <= 100)
_LABEL_CHECKS: dict[str, Check] = {
    "min_mapping_quality": whole(0),
    "min_identity": _percent,
    "min_coverage": _percent,
}


def call_rules(label: str, value: object) -> CallRules:
    """Return *value*, rules of calls."""
    if not isinstance(value, CallRules):
        raise UsageError(f"{label} must be CallRules, not {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class ViralFasta:
    """
    Where the viral sequences are written, and how.

    Raises:
        UsageError: a value is of another type
    """

    file: str | None = None  # of records without a mate; None: viral.fasta or viral.fastq beside the tables
    original_headers: bool = False  # without scores

    def __post_init__(self) -> None:
        check_fields(self, {"file": optional(_absolute), "original_headers": flag})

    def __str__(self) -> str:
        headers = ", with the original headers" if self.original_headers else ""
        return f"{self.file or 'beside the tables'}{headers}"


def _absolute(label: str, value: object) -> str:
    return os.path.abspath(local_path(value, label))


def viral_fasta(label: str, value: object) -> ViralFasta:
    """Return *value*, where viral sequences are written."""
    if not isinstance(value, ViralFasta):
        raise UsageError(f"{label} must be ViralFasta, not {value!r}")
    return value


def region_rules(label: str, value: object) -> RegionRules:
    """Return *value*, rules of regions."""
    if not isinstance(value, RegionRules):
        raise UsageError(f"{label} must be RegionRules, not {value!r}")
    return value


_THRESHOLD = 0.5  # of verdicts


@dataclass(frozen=True, slots=True)
class Settings:
    """
    The settings of one run.

    Texts become paths and members of enums, ~ in a path is expanded, and one device or GPU may stand alone.

    Raises:
        UsageError: a value is of another type or out of its range
    """

    model: str | Path = "tiny-500"  # name or directory of a bundle
    cache_dir: Path | None = None  # where bundles are installed; None: the cache directory of the user
    devices: tuple[str, ...] = ()  # "cpu", "cuda:1"; empty: every GPU, else one CPU replica
    gpus: tuple[int, ...] = ()  # numbers that nvidia-smi shows; excludes *devices*
    threads: int | None = None  # of the CPU, for all its replicas; None: as many as the process may use
    precision: Precision = Precision.AUTO
    compile: Compile | None = None  # of earlier versions, without effect
    tokens_per_batch: int | None = None  # residue tokens; None: by the memory of the devices
    threshold: float = _THRESHOLD  # of the score that verdicts are by, from which on a contig is viral
    verdict_by: VerdictBy | None = None  # None: the fraction of viral fragments, with *fpr* the log odds
    fpr: float | None = None  # apply the threshold of the model's calibration for this false positive rate
    embeddings: bool = False  # also write merged_features.pt
    report: bool = True  # write report.html, and the files for MultiQC
    calibrated: bool = True  # write p_virus_calibrated if the model has a calibration
    calls: CallRules | None = None  # also write contig_calls.tsv, by these rules
    regions: RegionRules | None = None  # also write regions.bed and regions.gff3, by these rules
    viral_fasta: ViralFasta | None = None  # also write the viral sequences, as they are in their files
    temporary_dir: Path | None = None  # for temporary files; None: the output directory
    pairs: Pairing = Pairing.AUTO  # which records get one verdict, in pairs.tsv
    formats: tuple[Format, ...] = (Format.TSV,)  # of the tables
    min_length: int = 0  # bases; shorter records are scored, but are in no table
    layout: Layout | None = None  # also write tables in the directories of this layout
    reuse_features: Path | None = None  # a directory with feature files of VirNucPro
    skip_missing: bool = False  # go on without inputs that cannot be read, which fail
    recursive: bool = False  # also read the directories in directories
    allow_duplicates: bool = False  # read a file as often as it is named
    overwrite: bool = False  # discard an existing run in the directory and start over
    repair: bool = False  # recover intact batches from a damaged store, recompute the rest

    def __post_init__(self) -> None:
        check_fields(self, _CHECKS)
        if self.devices and self.gpus:
            raise UsageError("choose devices or gpus, not both")
        if self.overwrite and self.repair:
            raise UsageError("choose overwrite or repair, not both")
        if len(set(self.gpus)) < len(self.gpus):
            raise UsageError("a GPU is listed twice")
        if self.fpr is not None and self.threshold != _THRESHOLD:
            raise UsageError("choose a threshold or a false positive rate, not both")
        if self.fpr is not None and self.verdict_by is VerdictBy.FRACTION:
            raise UsageError("a false positive rate is one of verdicts by mean or log_odds, not by fraction")

    @property
    def has_verdict_rule(self) -> bool:
        """Whether verdicts are by another rule than the published one."""
        return self.verdict_score is not VerdictBy.FRACTION

    @property
    def verdict_score(self) -> VerdictBy:
        """The score that verdicts are by."""
        return self.verdict_by or (VerdictBy.FRACTION if self.fpr is None else VerdictBy.LOG_ODDS)


_CHECKS: dict[str, Check] = {
    "model": name_or_path,
    "cache_dir": optional(path),
    "devices": tuple_of(word, str, "names such as 'cuda:0' or 'cpu'"),
    "gpus": tuple_of(whole(), Integral, "numbers such as 0 or (0, 2)"),
    "threads": optional(whole(1)),
    "precision": one_of(Precision),
    "compile": optional(one_of(Compile)),
    "tokens_per_batch": optional(whole(1)),
    "threshold": fraction,
    "verdict_by": optional(one_of(VerdictBy)),
    "fpr": optional(inner_fraction),
    "embeddings": flag,
    "report": flag,
    "calibrated": flag,
    "calls": optional(call_rules),
    "regions": optional(region_rules),
    "viral_fasta": optional(viral_fasta),
    "pairs": one_of(Pairing),
    "formats": formats,
    "min_length": whole(0),
    "layout": optional(one_of(Layout)),
    "reuse_features": optional(path),
    "temporary_dir": optional(path),
    "skip_missing": flag,
    "recursive": flag,
    "allow_duplicates": flag,
    "overwrite": flag,
    "repair": flag,
}
