"""How far a run on many workers is, for the bars and lines that show the run of one machine."""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from virnuc_async.runs.progress import Counts, DeviceCounts, DeviceStage, State
from virnuc_async.runs.run_progress import RunProgress
from virnuc_async.runs.work_ahead import Work
from virnuc_async.text import plural

from .plan import Shard

_MOST_ROWS = 16  # of workers, or of nodes with more workers
_SPEED_SECONDS = 300.0  # that the speed of the whole is the mean of
_MARK_SECONDS = 5.0


@dataclass(slots=True)
class WorkerCounts(DeviceCounts):
    """The work of one worker, or of several, with the speed that they report."""

    speed: Work = Work()

    def rate(self, now: float) -> Work:
        """Return its ORFs and tokens per second."""
        return self.speed


@dataclass(slots=True)
class WorkerProgress:
    """How far one worker is, as it was last told."""

    node: str
    label: str  # for people, as that of its node
    node_label: str
    stage: DeviceStage = DeviceStage.LOADING
    shard: Shard | None = None
    current: RunProgress | None = None  # of that shard
    orfs_before: int = 0  # scored in shards that it has ended with

    @property
    def orfs(self) -> int:
        """The ORFs that it has scored."""
        return self.orfs_before + (sum(one.orfs for one in self.current.devices) if self.current else 0)

    @property
    def speed(self) -> Work:
        """Its ORFs and tokens per second."""
        devices = self.current.devices if self.current is not None else ()
        return Work(
            sum(one.orfs_per_second for one in devices), sum(one.tokens_per_second for one in devices)
        )

    def end_shard(self) -> None:
        """Count what it has scored of its shard, which it does no more."""
        self.orfs_before, self.shard, self.current = self.orfs, None, None


class _Mark(NamedTuple):
    time: float
    share: float


class ClusterCounts(Counts):
    """
    How far a run of shards is; a shard counts by its *bases*.

    The workers are shown one by one, many of them by their nodes, and those of many nodes together.
    """

    def __init__(self, bases: Mapping[Shard, int], started: float | None = None) -> None:
        super().__init__(started)
        self.status = "waiting for workers"
        self.workers: dict[str, WorkerProgress] = {}
        self.shards_done = 0
        self._bases = {shard: max(1, count) for shard, count in bases.items()}
        self._all_bases = max(1, sum(self._bases.values()))
        self._bases_done = 0
        self._orfs_done = 0  # of shards that are done
        self._marks: deque[_Mark] = deque()

    @property
    def shards(self) -> list[Shard]:
        """All of them."""
        return [*self._bases]

    def end_shard(self, shard: Shard, orfs: int) -> None:
        """Count a *shard* that is done, with so many *orfs*."""
        self.shards_done += 1
        self._bases_done += self._bases[shard]
        self._orfs_done += orfs
        self.is_all_read = self.is_all_done

    def refresh(self, now: float | None = None) -> None:
        """Take what the workers have told."""
        now = time.monotonic() if now is None else now
        bases, orfs = float(self._bases_done), self._orfs_done
        for shard, current in self._running():
            bases += self._bases[shard] * (current.share or 0.0)
            orfs += current.orfs
        self._share = max(self._share or 0.0, bases / self._all_bases)
        self.done = Work(orfs, 0)
        self.devices = {row.name: row for row in _rows([*self.workers.values()])}
        if not self._marks or now - self._marks[-1].time >= _MARK_SECONDS:
            self._marks.append(_Mark(now, self._share))
            while now - self._marks[0].time > _SPEED_SECONDS:
                self._marks.popleft()

    @property
    def stage_of_first(self) -> str:
        """What the first worker does that has told it, in words."""
        return next((current.stage for _, current in self._running()), "")

    @property
    def is_all_done(self) -> bool:
        """Whether every shard is done."""
        return self.shards_done == len(self._bases)

    @property
    def is_scoring(self) -> bool:
        """Whether shards are being scored."""
        return not self.is_all_done and any(current.orfs for _, current in self._running())

    @property
    def state(self) -> State:
        """What the run does, until it ends."""
        if self.is_all_done:
            return State.WRITING
        return State.SCORING if self.is_scoring else State.LOADING

    @property
    def read(self) -> int:
        """The ORFs that are scored: what is read is known to the workers alone."""
        return round(self.done.orfs)

    def total(self) -> Work | None:
        """Return the estimate of the whole work, by the bases; None as long as nothing is done."""
        return self.done.times(1 / self._share) if self._share and self.done.orfs else None

    def seconds_left(self, now: float) -> float | None:
        """Estimate the time to the end, by the speed of the last minutes."""
        if not self._marks or self._share is None:
            return None
        first = self._marks[0]
        speed = (self._share - first.share) / max(now - first.time, 1e-9)
        return (1 - self._share) / speed if speed > 0 else None

    def work_of(self, device: DeviceCounts) -> float:
        """Return the part of this session's work that *device* has done, 0 to 1."""
        orfs = sum(one.orfs for one in self.devices.values())
        return device.orfs / orfs if orfs else 0.0

    def files_text(self) -> str:
        """Format how many shards are done."""
        return f"{self.shards_done:,} of {plural(len(self._bases), 'shard')}"

    def _running(self) -> Iterator[tuple[Shard, RunProgress]]:
        for worker in self.workers.values():
            if worker.shard is not None and worker.current is not None:
                yield worker.shard, worker.current


def _rows(workers: list[WorkerProgress]) -> Iterator[WorkerCounts]:
    """Yield what is shown of *workers*: each of them, each of their nodes, or all together."""
    nodes = defaultdict(list)
    for worker in workers:
        nodes[worker.node].append(worker)
    if len(workers) <= _MOST_ROWS:
        yield from (_counts(worker.label, [worker]) for worker in workers)
    elif len(nodes) <= _MOST_ROWS:
        for of_node in nodes.values():
            yield _counts(f"{of_node[0].node_label}, {plural(len(of_node), 'worker')}", of_node)
    else:
        yield _counts(f"{plural(len(workers), 'worker')} on {plural(len(nodes), 'node')}", workers)


def _counts(label: str, workers: Iterable[WorkerProgress]) -> WorkerCounts:
    """Return the work of *workers* as that of one."""
    counts = WorkerCounts(label, DeviceStage.STOPPED)
    for worker in workers:
        counts.orfs += worker.orfs
        counts.speed = counts.speed.plus(worker.speed)
        if DeviceStage.SCORING in (worker.stage, counts.stage):
            counts.stage = DeviceStage.SCORING
        elif worker.stage is DeviceStage.LOADING:
            counts.stage = DeviceStage.LOADING
    return counts
