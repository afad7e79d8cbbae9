"""
How far the shards of a run are, as their directories show it while they run: no store is opened.

A shard runs if the owner of its lock is alive. An owner on this machine is asked for; one on another machine
writes a heartbeat into the lock, whose age is told by the clock of the file system, which all machines share.
"""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from virnuc_async.fileio import Directory, read_json
from virnuc_async.outputs.shard_file import read_shard_file
from virnuc_async.outputs.table_files import SUMMARY
from virnuc_async.runs.lock import LEASE_DURATION, LOCK, Owner, owner_of
from virnuc_async.runs.output_directory import MERGED
from virnuc_async.runs.progress_file import NAME as PROGRESS_FILE
from virnuc_async.text import is_printable

from .plan import SHARDS, RunPlan, Shard
from .run_place import RunPlace

VERSION = 1  # of the form that as_dict has

_NAME = re.compile(r"(\d{5})-of-(\d{5})")
_MOST_BYTES = 1 << 28  # of a file: merge.json may have a million names
_AT_ONCE = 32  # directories: those of a network file system take milliseconds each


class ShardState(StrEnum):
    """What a shard does."""

    DONE = "done"
    RUNNING = "running"
    STOPPED = "stopped"  # interrupted or killed: the same command resumes it
    FAILED = "failed"
    MISSING = "missing"  # not begun


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """How far a shard is; what is not known is None."""

    number: int
    state: ShardState
    share: float = 0.0  # of its work that is done, 0 to 1
    orfs: int | None = None  # scored
    orfs_per_second: float = 0.0  # of its devices, while it runs
    host: str | None = None  # of the process that works or worked on it last
    pid: int | None = None
    updated: str | None = None  # when it wrote progress.json, in UTC
    message: str | None = None  # why it failed or stopped


@dataclass(frozen=True, slots=True)
class ShardsStatus:
    """How far a run is that is divided into so many shards."""

    of: int
    share: float  # of all bases
    shards: tuple[ShardStatus, ...]  # each of them

    @property
    def counts(self) -> dict[ShardState, int]:
        """How many shards are in each state."""
        found = Counter(shard.state for shard in self.shards)
        return {state: found[state] for state in ShardState}

    def numbers(self, *states: ShardState) -> list[int]:
        """Return the numbers of the shards in these *states*."""
        return [shard.number for shard in self.shards if shard.state in states]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is, for each number of shards that it was begun with."""

    plan: RunPlan
    divisions: tuple[ShardsStatus, ...]
    is_merged: bool = False  # whether the tables of all shards are in its directory

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, as outputs/schemas/status.schema.json describes it."""
        plan = self.plan
        facts = {name: getattr(plan, name) for name in ("version", "model", "devices", "precision")}
        counts = {"files": len(plan.files), "records": plan.records, "bases": plan.bases}
        return {
            "version": VERSION,
            "plan": {"digest": plan.digest, **facts, **counts, "segments": len(plan.segments)},
            "divisions": [{**asdict(one), "counts": one.counts} for one in self.divisions],
            "merged": self.is_merged,
        }


class _Clock(NamedTuple):
    """The clock of a file system, as far as this machine's is from it."""

    offset: float = 0.0  # seconds

    @classmethod
    def of(cls, directory: Directory) -> "_Clock":
        """Return the clock of *directory*; that of this machine where nothing can be written."""
        with suppress(OSError), directory.temporary_file() as file:
            file.write(b"\0")
            file.flush()
            return cls(os.fstat(file.fileno()).st_mtime - time.time())
        return cls()

    def age(self, modified: float) -> float:
        """Return how many seconds ago it was *modified*."""
        return time.time() + self.offset - modified


def read_status(run: str | Path, temporary_dir: Path | None = None) -> RunStatus:
    """
    Return how far the shards of *run* are, a directory or a URL in an object store.

    Of a URL, what is needed for that is copied below *temporary_dir* for a moment.

    Raises:
        UsageError: the URL names no place for a run
        NoPlan: there is none, or one that cannot be read
        ShardsMissing: what is published cannot be read
    """
    with RunPlace(str(run), temporary_dir).seen() as (plan, directory):
        found, is_merged = dict(_begun(directory, plan.digest)), _is_merged(directory, plan.digest)
    counts = sorted({shard.of for shard in found if shard.number < shard.of})
    divisions = tuple(_division(plan, of, found) for of in counts)
    return RunStatus(plan, divisions, is_merged)


def _is_merged(run: Path, digest: str) -> bool:
    """Whether a merge has written all tables of the plan with this *digest* into the directory *run*."""
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        # The summary is the last file that a merge writes.
        return (run / SUMMARY).is_file() and read_json(run / MERGED, _MOST_BYTES).get("plan") == digest
    return False


def _begun(run: Path, digest: str) -> Iterator[tuple[Shard, ShardStatus]]:
    """Yield how far each shard is that has begun in the directory *run*."""
    with suppress(FileNotFoundError), Directory(run / SHARDS) as shards:
        names = [name for name in map(_NAME.fullmatch, shards.names()) if name]
        clock = _Clock.of(shards)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for shard, status in pool.map(lambda name: _read(shards, name, clock, digest), names):
                if status:
                    yield shard, status


def _division(plan: RunPlan, of: int, found: Mapping[Shard, ShardStatus]) -> ShardsStatus:
    shards, done, parts = [], 0.0, plan.divide(of)
    for number, part in enumerate(parts):
        # A shard without a segment has nothing to do.
        empty = ShardStatus(number, ShardState.MISSING) if part else ShardStatus(number, ShardState.DONE, 1.0)
        shards.append(found.get(Shard(number, of), empty))
        done += shards[-1].share * sum(plan.segments[segment].bases for segment in part)
    total = plan.bases
    share = done / total if total else sum(shard.share for shard in shards) / of
    return ShardsStatus(of, round(share, 4), tuple(shards))


def _read(
    shards: Directory, name: "re.Match[str]", clock: _Clock, digest: str
) -> tuple[Shard, ShardStatus | None]:
    """Return which shard is in the directory of this *name*, and how far it is; None if that is no shard."""
    shard = Shard(int(name[1]), int(name[2]))
    try:
        with Directory(shards.path / name[0], within=shards) as directory:
            return shard, _status(directory, shard, clock, digest)
    except (FileNotFoundError, NotADirectoryError):
        return shard, None
    except OSError as error:
        message = f"its directory cannot be read: {error.strerror or error}"
        return shard, ShardStatus(shard.number, ShardState.FAILED, message=message)


def _status(directory: Directory, shard: Shard, clock: _Clock, digest: str) -> ShardStatus:
    progress = _Progress(_read_progress(directory))
    state, message = _state(directory, shard, clock, digest, progress)
    host, pid = progress.process
    return ShardStatus(
        number=shard.number,
        state=state,
        share=1.0 if state is ShardState.DONE else progress.share,
        orfs=progress.orfs,
        orfs_per_second=progress.orfs_per_second if state is ShardState.RUNNING else 0.0,
        host=host,
        pid=pid,
        updated=progress.text("updated"),
        message=message,
    )


def _state(
    directory: Directory, shard: Shard, clock: _Clock, digest: str, progress: "_Progress"
) -> tuple[ShardState, str | None]:
    """Return what the shard in *directory* does, and why, if that is not what it should do."""
    owner = owner_of(directory)
    if owner is not None and owner.is_alive:
        return ShardState.RUNNING, None
    try:
        known = read_shard_file(directory)
    except ValueError as error:
        return ShardState.FAILED, f"its shard.json is damaged: {error}"
    if known is not None:
        if (known.plan, known.shard) == (digest, tuple(shard)):
            return ShardState.DONE, None
        return ShardState.FAILED, "it is a shard of another plan"
    lock = directory.stat(LOCK) if owner else None
    if owner is not None and lock is not None:
        why_dead = _why_dead(owner, clock.age(lock.st_mtime))
        return (ShardState.STOPPED, why_dead) if why_dead else (ShardState.RUNNING, None)
    if progress.state == "failed":
        return ShardState.FAILED, progress.text("message")
    if progress.state == "interrupted":
        return ShardState.STOPPED, "it was interrupted"
    return ShardState.STOPPED, "it ended before it was done"


def _why_dead(owner: Owner, age: float) -> str:
    """Return why *owner*, which wrote its last heartbeat *age* seconds ago, is not alive; "" if it is."""
    alive = owner.is_alive
    if alive is None and age > LEASE_DURATION:
        return f"no sign for {age:,.0f} s of {owner}"
    return f"{owner} was killed, or died" if alive is False else ""


def _read_progress(directory: Directory) -> Mapping[str, Any]:
    """Return what progress.json has, as far as it makes sense."""
    with suppress(OSError, ValueError, RecursionError):
        value = json.loads(directory.read_bounded(PROGRESS_FILE, _MOST_BYTES))
        if type(value) is dict:
            return value
    return {}


class _Progress:
    """What a progress.json says, which may be anything."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._value = value

    @property
    def state(self) -> str | None:
        """What its run does."""
        return self.text("state")

    @property
    def share(self) -> float:
        """How much of its work is done, 0 to 1."""
        return min(1.0, _number(self._value.get("share")))

    @property
    def orfs(self) -> int | None:
        """How many ORFs are scored."""
        orfs = self._value.get("orfs")
        return round(_number(orfs.get("done"))) if type(orfs) is dict else None

    @property
    def orfs_per_second(self) -> float:
        """The speed of all devices."""
        devices = self._value.get("devices")
        rows = [row for row in devices if type(row) is dict] if type(devices) is list else []
        return round(sum(_number(row.get("orfs_per_second")) for row in rows), 2)

    @property
    def process(self) -> tuple[str | None, int | None]:
        """The host and the number of the process that wrote it."""
        process = self._value.get("process")
        if type(process) is not dict:
            return None, None
        host, pid = process.get("host"), process.get("pid")
        return host if is_printable(host) else None, pid if type(pid) is int and pid > 0 else None

    def text(self, key: str) -> str | None:
        """Return a text."""
        value = self._value.get(key)
        return value if type(value) is str else None


def _number(value: Any) -> float:
    """Return *value* if it is a number above 0, else 0."""
    return float(value) if type(value) in (int, float) and 0 < value < 1e18 else 0.0


def ranges(numbers: Sequence[int]) -> str:
    """Format rising *numbers* as schedulers take them: 3,7-9."""
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in _runs(numbers))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of consecutive *numbers*."""
    first = last = None
    for number in numbers:
        if first is None or last is None or number > last + 1:
            if first is not None and last is not None:
                yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last
