"""
``plan.json``: all that the shards of a run must agree on, decided once, before any of them begins.

A plan knows where each segment of the inputs begins, so that a shard reads its own segments and no others,
and what each file holds, so that a file that cannot be read for a moment is not taken for a broken one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from virnuc_async.errors import NoPlan, UsageError
from virnuc_async.fileio import Directory, read_json, sync_directory, writing_to
from virnuc_async.runs.output_directory import PLAN as PLAN
from virnuc_async.sequences.segments import START, InputSpan, SeekPoint
from virnuc_async.settings import Check, Precision, Settings, check_fields, flag, optional, whole
from virnuc_async.text import plural

from . import plan_values
from .planned_settings import with_planned

SHARDS = "shards"  # the directory with those of the shards
FORMAT = 1

_LARGEST = 1 << 28  # bytes of a plan: a million files, or a million segments
_DIGEST = "digest"
_DIGITS = 5  # of the numbers in the name of a shard
# Of a task of an array: Slurm's, that of AWS Batch, and that of an indexed Job of Kubernetes.
_TASK_NUMBERS = ("SLURM_ARRAY_TASK_ID", "AWS_BATCH_JOB_ARRAY_INDEX", "JOB_COMPLETION_INDEX")
_HIGHEST_TASK = "SLURM_ARRAY_TASK_MAX"

_Kind = TypeVar("_Kind", bound="PlannedFile | PlannedSegment")


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """An input, as it was when the plan was made."""

    path: str  # absolute, or a URL
    name: str  # as it was named, which is what tables have
    fingerprint: list[int | str] | None  # of InputVersion; None: it cannot be read
    size: int  # bytes, as it lies on the disk
    records: int  # that were read
    bases: int  # of these
    kind: str | None  # of its records: reads or contigs; None if there are none
    failure: str | None  # why there are no more records, if it could not be read to its end


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """A segment of the inputs: its first record, and how much is in it."""

    file: int  # number of the file of its first record
    record: int  # records of that file before it
    contig: int  # number in the run of its first record
    records: int
    bases: int
    seek: SeekPoint = START  # at its first record, or at an earlier one of the file


class Shard(NamedTuple):
    """A part of a run: number *number*, from 0, *of* so many."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"{self.number:0{_DIGITS}}-of-{self.of:0{_DIGITS}}"

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] | None = None) -> Self:
        """
        Return the shard that *text* names: 3/100, or auto/100 for the number that a scheduler gave this task.

        That number is in *environment*, as Slurm, AWS Batch and Kubernetes write it for a task of an array.

        Raises:
            UsageError: there is no such shard, or no such number
        """
        word, slash, count = text.partition("/")
        number = _task_number(count, environment or {}) if word == "auto" else word
        if not (slash and _is_number(number) and _is_number(count)):
            expected = "NUMBER/COUNT, such as 3/100, or as auto/COUNT in a task of an array"
            raise UsageError(f"a shard is written as {expected}, not {text!r}")
        if len(count) > _DIGITS:
            raise UsageError(f"a run has at most {10**_DIGITS - 1:,} shards, not {count}")
        shard = cls(int(number), int(count))
        if shard.number >= shard.of:
            raise UsageError(f"there is no shard {shard}: shards are counted from 0 to {shard.of - 1}")
        return shard


def _task_number(count: str, environment: Mapping[str, str]) -> str:
    """Return the number of this task of an array of *count*."""
    name = next((name for name in _TASK_NUMBERS if environment.get(name)), None)
    if name is None:
        raise UsageError(f"--shard auto/{count or 'COUNT'}: none of {', '.join(_TASK_NUMBERS)} is set")
    # All tasks of a job are refused, not only the one whose number is too high.
    last = environment.get(_HIGHEST_TASK, "") if name == _TASK_NUMBERS[0] else ""
    if _is_number(last) and _is_number(count) and int(last) >= int(count):
        array = f"--array=0-{int(count) - 1}"
        raise UsageError(f"shards are counted from 0, and the tasks of this job to {last}: use {array}")
    number = environment[name]
    if not _is_number(number):
        raise UsageError(f"{name} must be a number, not {number!r}")
    return number


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What every shard of a run must agree on."""

    version: str  # of this program
    model: str  # name of the bundle
    fingerprint: str  # of the bundle
    devices: str  # their kind
    precision: str
    tokens_per_batch: int
    window: int  # ORFs
    segment_bases: int
    settings: dict[str, Any]  # of Settings, that change a table: as JSON has them
    flagged: list[int]  # files of alignments whose neighbouring records are mates, by their flags
    is_utf8: bool  # whether all ids and paths are
    files: tuple[PlannedFile, ...]
    segments: tuple[PlannedSegment, ...]  # at least one
    notices: list[list[str]] = field(default_factory=list)  # level and text, of what is not read

    @property
    def digest(self) -> str:
        """What a plan is known by: equal plans have equal digests."""
        return _digest(_as_json(self))

    @property
    def records(self) -> int:
        """The records of all inputs."""
        return sum(segment.records for segment in self.segments)

    @property
    def bases(self) -> int:
        """The bases of all inputs."""
        return sum(segment.bases for segment in self.segments)

    def settings_on(self, machine: Settings) -> Settings:
        """Return the settings of a shard: what is planned, else what *machine* has."""
        planned = with_planned(self.settings, machine)
        return replace(planned, precision=Precision(self.precision), tokens_per_batch=self.tokens_per_batch)

    def divide(self, count: int) -> list[range]:
        """
        Return the numbers of the segments of each of *count* shards, which have about as many bases.

        If there are enough shards, each of the first has one segment: two in one would be done last.
        """
        if count >= len(self.segments):
            ones = [range(number, number + 1) for number in range(len(self.segments))]
            return ones + [range(0)] * (count - len(ones))
        total, before, end = self.bases, 0, 0
        ends = [0] * count
        for number, segment in enumerate(self.segments):
            middle = 2 * before + segment.bases
            # The last segment may be one of records without bases, whose middle is the end of all.
            ends[min(middle * count // (2 * total), count - 1) if total else 0] = number + 1
            before += segment.bases
        parts = []
        for last in ends:
            parts.append(range(end, last) if last else range(0))
            end = last or end
        return parts

    def segments_of(self, shard: Shard) -> range:
        """Return the numbers of the segments of *shard*; all shards have about as many bases."""
        return self.divide(shard.of)[shard.number]

    def span(self, shard: Shard) -> InputSpan | None:
        """Return what *shard* reads; None if it has no segment."""
        numbers = self.segments_of(shard)
        if not numbers:
            return None
        first, behind = self.segments[numbers[0]], self.segments[numbers[-1] + 1 :]
        end = (behind[0].file, behind[0].record) if behind else None
        if not numbers[0]:
            return InputSpan(end=end)  # with the files before the first record
        return InputSpan(numbers[0], first.contig, first.file, first.record, first.seek, end)


def write_plan(plan: RunPlan, run: Path) -> None:
    """
    Write *plan* into the directory *run*, which is made if it is missing; at any moment there is a whole one.

    Raises:
        UsageError: it would be too large to be read
        CannotWrite: the operating system refused
    """
    value = _as_json(plan)
    text = _format({"format": FORMAT, _DIGEST: _digest(value), **value})
    if len(text) > _LARGEST:
        counts = f"{plural(len(plan.files), 'file')} and {plural(len(plan.segments), 'segment')}"
        raise UsageError(f"a plan of {counts} is too large: plan several runs, of a part of the inputs each")
    with writing_to(run, PLAN):
        missing = [above for above in (run, *run.parents) if not above.exists()]
        run.mkdir(parents=True, exist_ok=True)
        for above in missing:
            sync_directory(above.parent)
        with Directory(run) as directory, directory.atomic_write(PLAN) as file:
            file.write(text)


def _as_json(plan: RunPlan) -> dict[str, Any]:
    """Return what JSON can hold; not by asdict, which takes seconds for a million segments."""
    files, segments = list(map(_fields, plan.files)), list(map(_fields, plan.segments))
    return _fields(plan) | {"files": files, "segments": segments}


def _fields(item: RunPlan | PlannedFile | PlannedSegment) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


def _format(value: Mapping[str, Any]) -> bytes:
    """Return *value* as JSON, each file and each segment in a line of its own."""
    lines = []
    for key, item in value.items():
        rows = [json.dumps(row) for row in item] if key in ("files", "segments") else []
        text = "[\n    {}\n  ]".format(",\n    ".join(rows)) if rows else json.dumps(item)
        lines.append(f"{json.dumps(key)}: {text}")
    return "{{\n  {}\n}}\n".format(",\n  ".join(lines)).encode()


def _digest(value: Mapping[str, Any]) -> str:
    content = {key: item for key, item in value.items() if key not in ("format", _DIGEST)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_plan(run: Path) -> RunPlan:
    """
    Return the plan in the directory *run*.

    Raises:
        NoPlan: there is none, or none that can be read
    """
    place, how = str(run), f"virnuc-async plan INPUT ... {run}"
    try:
        value = read_json(run / PLAN, _LARGEST)
        form = value["format"]
        if form != FORMAT:
            reason = f"its {PLAN} has the format {form!r:.20}, and this version of the program reads {FORMAT}"
            raise NoPlan(place, f"{reason}. Use the one that made it ({value.get('version')!r:.40})")
        if value[_DIGEST] != _digest(value):
            raise ValueError("its digest is that of other content")
        return _plan_from_json(value)
    except (FileNotFoundError, NotADirectoryError):
        what = f"contains no {PLAN}" if run.is_dir() else "there is no such directory"
        raise NoPlan(place, f"{what}. Plan the run first: {how}") from None
    except OSError as error:
        raise NoPlan(place, f"its {PLAN} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, UsageError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        again = f"Plan the run again with the same inputs and options: {how} --overwrite"
        raise NoPlan(place, f"its {PLAN} is damaged ({reason:.200}). {again}") from error


def _plan_from_json(value: Mapping[str, Any]) -> RunPlan:
    """Return the plan that *value*, which is untrusted, holds; raises ValueError and the like, UsageError."""
    plan = RunPlan(
        **{name: value[name] for name in (*_PLAN_CHECKS, "settings")},
        flagged=_each(whole(0), "flagged", value["flagged"]),
        files=tuple(_each(_file, "files", value["files"])),
        segments=tuple(_each(_segment, "segments", value["segments"])),
        notices=_each(plan_values.notice, "notices", value["notices"]),
    )
    check_fields(plan, _PLAN_CHECKS)
    if type(plan.settings) is not dict:
        raise ValueError("the settings are none")
    plan.settings_on(Settings())  # they make sense
    if plan.flagged and not (sorted({*plan.flagged}) == plan.flagged and plan.flagged[-1] < len(plan.files)):
        raise ValueError("flagged names files that there are not")
    for reason in _contradictions(plan):
        raise ValueError(reason)
    return plan


def _contradictions(plan: RunPlan) -> Iterator[str]:
    """Yield in what files and segments do not fit together."""
    files, segments = plan.files, plan.segments
    if not files or not segments:
        yield "there are no files, or no segments"
        return
    records, bases = (sum(getattr(file, name) for file in files) for name in ("records", "bases"))
    if (records, bases) != (plan.records, plan.bases):
        yield "the segments have other records than the files"
    before = [0]
    for file in files:
        before.append(before[-1] + file.records)
    for number, segment in enumerate(segments):
        if not _is_within(segment, files, before) and (records or segment != _NO_RECORDS):
            yield f"segment {number} is not where it should be"
    if segments[0].contig or any(
        one.contig + one.records != other.contig for one, other in pairwise(segments)
    ):
        yield "the segments do not follow each other"
    if any(segment.bases < plan.segment_bases for segment in segments[:-1]):
        yield f"a segment has fewer than {plan.segment_bases} bases"


def _is_within(segment: PlannedSegment, files: Sequence[PlannedFile], before: Sequence[int]) -> bool:
    """Whether *segment* begins with a record that there is; *before* has the records before each file."""
    return (
        segment.file < len(files)
        and segment.record < files[segment.file].records
        and segment.contig == before[segment.file] + segment.record
        and segment.records > 0
        and segment.seek.record <= segment.record
    )


_NO_RECORDS = PlannedSegment(0, 0, 0, 0, 0)  # the only one of inputs without records


def _each(check: Callable[[str, Any], Any], label: str, values: Any) -> list[Any]:
    if type(values) is not list:
        raise ValueError(f"{label} is no list")
    return [check(f"{label}[{number}]", value) for number, value in enumerate(values)]


def _file(label: str, value: Any) -> PlannedFile:
    return _load(PlannedFile, _FILE_CHECKS, label, value)


def _segment(label: str, value: Any) -> PlannedSegment:
    return _load(PlannedSegment, _SEGMENT_CHECKS, label, value)


def _load(kind: type[_Kind], checks: Mapping[str, Check], label: str, value: Any) -> _Kind:
    return kind(**{name: check(f"{label}.{name}", value[name]) for name, check in checks.items()})


_PLAN_CHECKS: dict[str, Check] = {
    "version": plan_values.line,
    "model": plan_values.line,
    "fingerprint": plan_values.line,
    "devices": plan_values.line,
    "precision": plan_values.precision,
    "tokens_per_batch": whole(1),
    "window": whole(1),
    "segment_bases": whole(1),
    "is_utf8": flag,
}
_FILE_CHECKS: dict[str, Check] = {
    "path": plan_values.path,
    "name": plan_values.name,
    "fingerprint": optional(plan_values.fingerprint),
    "size": plan_values.number,
    "records": plan_values.number,
    "bases": plan_values.number,
    "kind": optional(plan_values.kind),
    "failure": optional(plan_values.text),
}
_SEGMENT_CHECKS: dict[str, Check] = {
    "file": plan_values.number,
    "record": plan_values.number,
    "contig": plan_values.number,
    "records": plan_values.number,
    "bases": plan_values.number,
    "seek": plan_values.seek,
}
