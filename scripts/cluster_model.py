"""
A model of a run on a cluster: shards of one plan, dealt to GPUs that start, fail, and share a storage.

Nothing is computed and no second passes: events are worked off in the order of their virtual times, so that
a hundred thousand shards take two seconds. What a shard needs is a sum of measured and of assumed costs, each
a parameter with its source; what many GPUs do to each other (a storage that they share, a queue, losses,
the last shards) is what the model adds.

A GPU begins (container, model), is dealt a shard, opens it, reads its file up to it if that cannot be sought
in, scores it, writes its rows, publishes them, and gets the next. If it is lost, its shard loses what its
store does not have, and is dealt again, to wait for the lock of the lost owner. Which shard is dealt next,
and when one is set aside, is decided by the program's own :class:`Dealing`.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from itertools import count
from typing import Any

from virnuc_async.distributed.dealing import Dealing, Ending, Limits
from virnuc_async.distributed.plan import PlannedSegment, RunPlan, Shard
from virnuc_async.runs.lock import LEASE_DURATION
from virnuc_async.sequences.segments import SEGMENT_BASES

GIGA, MEGA = 1e9, 1e6
_NEVER = math.inf
_LIMITS = Limits()
_PAUSES = [min(_LIMITS.first_pause * 2**n, _LIMITS.longest_pause) for n in range(5)]
_LEFT_FOR_COPIES = 0.05  # of the storage's bandwidth, however much is read and written while scoring


def _parameter(default: Any, unit: str, source: str) -> Any:
    return field(default=default, metadata={"unit": unit, "source": source})


def _choice(choices: Mapping[str, str]) -> Any:
    """Return a parameter that is one of *choices*, by default the first; each with what it means."""
    unit = "; ".join(f"{name}: {meaning}" for name, meaning in choices.items())
    metadata = {"unit": unit, "source": "chosen", "choices": list(choices)}
    return field(default=next(iter(choices)), metadata=metadata)


@dataclass(frozen=True, slots=True)
class Parameters:
    """Everything that a simulated run depends on."""

    gpus: int = _parameter(1000, "GPUs", "chosen")
    seed: int = _parameter(0, "", "chosen")

    orfs: float = _parameter(6.7e9, "ORFs", "chosen: the sample of 500 GB")
    gigabytes: float = _parameter(500.0, "GB of input files", "chosen")
    files: int = _parameter(16, "input files of equal size", "assumed: eight lanes of pairs")
    format: str = _choice({"bgzf": "read from any segment", "gzip": "read over up to it"})
    orfs_per_megabase: float = _parameter(8234.0, "ORFs", "measured: storage.json, reads of 150 bases")
    segment_megabases: float = _parameter(SEGMENT_BASES / MEGA, "Mb", "the program's own")
    segments_per_shard: int = _parameter(1, "segments", "chosen")

    orfs_per_second: float = _parameter(
        809.0, "ORFs/s of a GPU", "assumed: 2,300 GPU hours for 6.7e9 ORFs, an A100 at 85 % of its roofline"
    )
    spread: float = _parameter(0.05, "standard deviation of the speeds, relative", "assumed")
    slow_share: float = _parameter(0.01, "of the GPUs", "assumed")
    slow_speed: float = _parameter(0.5, "of the speed", "assumed")
    orfs_per_batch: float = _parameter(319.0, "ORFs", "measured: 51.3 tokens an ORF of reads, 16,384 a batch")

    losses_per_hour: float = _parameter(0.01, "of the GPUs", "chosen: 1 % an hour")
    replacement_minutes: float = _parameter(10.0, "minutes until a lost GPU is replaced", "assumed")
    notice_seconds: float = _parameter(30.0, "s until a loss is noticed", "assumed")
    takeover_seconds: float = _parameter(LEASE_DURATION, "s until a lock runs out", "the program's own")
    attempts: int = _parameter(_LIMITS.lost_nodes, "lost GPUs that a shard may have had", "the program's own")

    workers: str = _choice({"kept": "have the model for all their shards", "job": "a process a shard"})
    start_seconds: float = _parameter(30.0, "s to begin a container", "assumed")
    import_seconds: float = _parameter(2.0, "s to import", "measured: performance.md, first batch")
    image_gigabytes: float = _parameter(5.0, "GB of a container image, once a node", "assumed")
    model_gigabytes: float = _parameter(
        6.0, "GB of the model, once a node", "measured: ESM-2 3B in BF16, 5.9"
    )
    gpus_per_node: int = _parameter(8, "GPUs that read image and model once", "assumed")

    bandwidth: float = _parameter(20.0, "GB/s of the shared storage", "assumed")
    stream: float = _parameter(0.5, "GB/s of it that one GPU's process can have", "assumed")
    operations: float = _parameter(20_000.0, "flushed writes a second of the shared storage", "assumed")
    store: str = _choice({"scratch": "local, published at the end", "shared": "on the shared storage"})
    operations_per_batch: float = _parameter(4.4, "flushed writes", "measured: storage.json")

    deal_seconds: float = _parameter(0.005, "s of the driver a shard", "assumed")
    open_seconds: float = _parameter(1.2, "s to open a shard", "measured: shards.json, without a model")
    skim_megabases: float = _parameter(368.0, "Mb/s of plain gzip read over", "measured: scan.json, FASTQ")
    rebuild_orfs: float = _parameter(25_000.0, "ORFs/s of windows built again", "measured: simulated.json")
    tables: str = _choice({"text": "as text, in one file each", "parquet": "as Parquet, a part a shard"})
    store_bytes: float = _parameter(93.7, "bytes of store an ORF", "measured: storage.json, long names")
    text_bytes: float = _parameter(330.0, "bytes of text an ORF", "measured: storage.json, four tables")
    text_microseconds: float = _parameter(3.9, "us to write an ORF's text", "measured: storage.json")
    parquet_bytes: float = _parameter(33.6, "bytes of Parquet an ORF", "measured: storage.json, three tables")
    parquet_microseconds: float = _parameter(5.8, "us to write an ORF's Parquet", "measured: storage.json")

    plan_megabases: float = _parameter(135.0, "Mb/s that a core plans", "measured: scan.json, FASTQ")
    plan_cores: int = _parameter(16, "cores that plan, one for each file", "assumed")
    merge_microseconds: float = _parameter(0.75, "us an ORF to merge", "measured: merge.json")

    @property
    def bases(self) -> float:
        """Of all files."""
        return self.orfs / self.orfs_per_megabase * MEGA

    @property
    def segments(self) -> int:
        """How many there are, of equal size but for the last."""
        return math.ceil(round(self.bases) / round(self.segment_megabases * MEGA))

    @property
    def shards(self) -> int:
        """How many there are."""
        return math.ceil(self.segments / self.segments_per_shard)

    @property
    def start_bytes(self) -> float:
        """That a GPU reads when it begins: its share of what its node reads."""
        return (self.image_gigabytes + self.model_gigabytes) * GIGA / self.gpus_per_node

    @property
    def model_bytes(self) -> float:
        """That a process reads when the image is on its node."""
        return self.model_gigabytes * GIGA / self.gpus_per_node

    @property
    def bandwidth_of_orf(self) -> float:
        """The share of the storage's bandwidth that an ORF a second takes while it is scored."""
        written = self.store_bytes if self.store == "shared" else 0.0
        return (self.gigabytes * GIGA / self.orfs + written) / (self.bandwidth * GIGA)

    @property
    def operations_of_orf(self) -> float:
        """The share of the storage's operations that an ORF a second takes while it is scored."""
        each = self.operations_per_batch if self.store == "shared" else 0.0
        return each / self.orfs_per_batch / self.operations

    @property
    def row_bytes(self) -> float:
        """Of all tables, an ORF."""
        return self.text_bytes if self.tables == "text" else self.parquet_bytes

    @property
    def rows_microseconds(self) -> float:
        """That writing the rows of an ORF takes."""
        return self.text_microseconds if self.tables == "text" else self.parquet_microseconds

    @property
    def plan_seconds(self) -> float:
        """To make the plan: a core reads a file, and the storage may be slower than all of them."""
        rounds = math.ceil(self.files / self.plan_cores)
        processor = rounds * self.bases / self.files / (self.plan_megabases * MEGA)
        streams = min(self.files, self.plan_cores)
        return max(processor, self.gigabytes / min(self.bandwidth, streams * self.stream))

    @property
    def merge_seconds(self) -> float:
        """To write the tables on one machine: each ORF's row is read and written."""
        moved = 2 * self.orfs * self.row_bytes / GIGA
        return self.orfs * self.merge_microseconds / MEGA + moved / min(self.bandwidth, self.stream)


class Spent(StrEnum):
    """What the time of a GPU goes to."""

    SCORING = "scoring"
    STARTING = "starting"
    LOADING = "loading"
    OPENING = "opening"
    SKIMMING = "skimming"
    STALLED = "stalled by the storage"
    REPEATED = "repeated"
    ROWS = "writing rows"
    PUBLISHING = "publishing"
    ABSENT = "absent"
    IDLE = "without a shard"


@dataclass(slots=True)
class Part:
    """What a shard has to be done, and how far it is."""

    shard: Shard
    orfs: float
    skipped: float  # bases of its file before it
    kept: float = 0.0  # ORFs that its store has
    locked_until: float = 0.0


@dataclass(slots=True, eq=False)
class Gpu:
    """A GPU, what it is doing, and since when."""

    number: int
    speed: float  # ORFs/s
    life: int = 0  # changes when it is lost or replaced: what was planned for it before is void
    task: Spent = Spent.STARTING
    since: float = 0.0
    part: Part | None = None
    spent: dict[Spent, float] = field(default_factory=lambda: dict.fromkeys(Spent, 0.0))

    @property
    def worker(self) -> str:
        """What it is known by to those who deal; another after each loss."""
        return f"{self.number}.{self.life}"

    def turn_to(self, task: Spent, now: float) -> None:
        """Note that from *now* on, its time goes to *task*."""
        self.spent[self.task] += now - self.since
        self.task, self.since = task, now


class Shared:
    """
    A capacity that all who use it at a time have equal shares of, each at most *most* for a weight of 1.

    All shares change at once, so it is enough to know how much one user would have had since the beginning
    (``_level``): who began at a level and needs an amount is done at the sum of both. The first that will be
    done is ``first``, at the time ``due``, if nothing changes until then.
    """

    def __init__(self, capacity: float, most: float) -> None:
        self.load = 0.0  # the sum of all weights
        self.share = most  # per second, of each user of weight 1
        self.first: Gpu | None = None
        self.due = _NEVER
        self._capacity, self._most = capacity, most
        self._level, self._at = 0.0, 0.0
        self._ends: list[tuple[float, int, Gpu]] = []
        self._users: dict[Gpu, tuple[float, float, int]] = {}  # end, weight, and which use it is
        self._uses = count()

    def set_capacity(self, capacity: float, now: float) -> None:
        """Set *capacity* from *now* on."""
        self._advance(now)
        self._capacity = capacity
        self._look_ahead()

    def begin(self, gpu: Gpu, amount: float, now: float, weight: float = 1.0) -> None:
        """Let *gpu* use it until it has had *amount*."""
        self._advance(now)
        use, end = next(self._uses), self._level + amount
        self._users[gpu] = (end, weight, use)
        self.load += weight
        heapq.heappush(self._ends, (end, use, gpu))
        self._look_ahead()

    def end(self, gpu: Gpu, now: float) -> float:
        """Stop the use of *gpu*, if it has one; return what it has not had yet."""
        if gpu not in self._users:
            return 0.0
        self._advance(now)
        end, weight, _ = self._users.pop(gpu)
        self.load = self.load - weight if self._users else 0.0  # without what rounding leaves
        self._look_ahead()
        return max(0.0, end - self._level)

    def _advance(self, now: float) -> None:
        self._level += (now - self._at) * self.share
        self._at = now

    def _look_ahead(self) -> None:
        self.share = min(self._most, self._capacity / self.load) if self._users else self._most
        while self._ends:
            end, use, gpu = self._ends[0]
            known = self._users.get(gpu)
            if known is not None and known[2] == use:
                self.first, self.due = gpu, self._at + max(0.0, end - self._level) / self.share
                return
            heapq.heappop(self._ends)
        self.first, self.due = None, _NEVER


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulated run took."""

    seconds: float  # from the first start to the last shard
    done: int  # shards
    set_aside: list[int]
    losses: int
    repeated_orfs: float
    spent: dict[Spent, float]  # GPU seconds
    held: float  # GPU seconds of the GPUs that are there, given back when no shard is left for them
    storage_bytes: float  # moved in one piece: images, models, files that are skimmed, what is published
    events: int

    @property
    def efficiency(self) -> float:
        """The share of the time of all GPUs, until the last shard is done, in which results were scored."""
        return self.spent[Spent.SCORING] / sum(self.spent.values())

    @property
    def efficiency_of_held(self) -> float:
        """The same, if a GPU is given back as soon as no shard is left for it."""
        return self.spent[Spent.SCORING] / self.held


class Simulation:
    """A run, by its parameters; the same parameters give the same run."""

    def __init__(self, parameters: Parameters) -> None:
        self._of = parameters
        self._random = random.Random(parameters.seed)
        # The last timer is never reached.
        self._timers: list[tuple[float, int, Callable[[float], None]]] = [(_NEVER, -1, lambda _: None)]
        self._numbers = count()
        self._parts = {part.shard: part for part in parts_of(parameters)}
        self._dealing = Dealing(self._parts, replace(_LIMITS, lost_nodes=parameters.attempts))
        self._gpus = [Gpu(number, self._draw_speed()) for number in range(parameters.gpus)]
        self._waiting = len(self._parts)
        self._idle: deque[tuple[Gpu, int]] = deque()
        self._storage = Shared(parameters.bandwidth * GIGA, parameters.stream * GIGA)
        self._scoring = Shared(1.0, 1.0)
        self._bandwidth_of_orf = parameters.bandwidth_of_orf
        self._load_of_orf = max(parameters.bandwidth_of_orf, parameters.operations_of_orf)
        self._driver_is_free = 0.0
        self._losses, self._events = 0, 0
        self._repeated, self._bytes = 0.0, 0.0

    def run(self) -> Outcome:
        """Return what the run takes."""
        now = 0.0
        for gpu in self._gpus:
            self._start(gpu, now)
        while not self._dealing.is_over:
            now = self._step()
        unused = sum(now - gpu.since for gpu in self._gpus if gpu.task is Spent.IDLE)
        for gpu in self._gpus:
            gpu.turn_to(gpu.task, now)
        spent = {task: math.fsum(gpu.spent[task] for gpu in self._gpus) for task in Spent}
        held = math.fsum(spent.values()) - unused - spent[Spent.ABSENT]
        aside = sorted(shard.number for shard in self._dealing.set_aside)
        counts = (self._dealing.done, aside, self._losses, self._repeated)
        return Outcome(now, *counts, spent, held, self._bytes, self._events)

    def _step(self) -> float:
        """Let the next event happen; return its time."""
        self._events += 1
        timer, storage, scoring = self._timers[0][0], self._storage, self._scoring
        now = min(timer, storage.due, scoring.due)
        if timer == now:
            heapq.heappop(self._timers)[2](now)
        elif storage.due == now and (gpu := storage.first) is not None:
            storage.end(gpu, now)
            self._has_moved(gpu, now)
        elif (gpu := scoring.first) is not None:
            self._has_scored(gpu, now)
        return now

    def _after(self, seconds: float, gpu: Gpu, action: Callable[[Gpu, float], None], now: float) -> None:
        """Let *action* happen to *gpu* after *seconds*, unless it is lost before."""
        life = gpu.life

        def act(at: float) -> None:
            if gpu.life == life:
                action(gpu, at)

        self._at(now + seconds, act)

    def _at(self, time: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._timers, (time, next(self._numbers), action))

    def _start(self, gpu: Gpu, now: float) -> None:
        """Begin a container on *gpu*, which is then lost some day."""
        if self._of.losses_per_hour:
            self._after(self._random.expovariate(self._of.losses_per_hour / 3600), gpu, self._lose, now)
        self._begin_process(gpu, now, self._of.start_bytes)

    def _begin_process(self, gpu: Gpu, now: float, size: float) -> None:
        gpu.turn_to(Spent.STARTING, now)
        seconds = self._of.start_seconds + self._of.import_seconds
        self._after(seconds, gpu, lambda gpu, at: self._move(gpu, Spent.LOADING, size, at), now)

    def _move(self, gpu: Gpu, task: Spent, size: float, now: float) -> None:
        """Let *gpu* read or write *size* bytes."""
        gpu.turn_to(task, now)
        self._bytes += size
        self._storage.begin(gpu, size, now)

    def _has_moved(self, gpu: Gpu, now: float) -> None:
        match gpu.task:
            case Spent.LOADING:
                self._wait(gpu, now)
            case Spent.SKIMMING:
                assert gpu.part is not None
                seconds = gpu.part.skipped / (self._of.skim_megabases * MEGA)
                self._after(max(0.0, gpu.since + seconds - now), gpu, self._score, now)
            case _:
                self._finish(gpu, now)

    def _wait(self, gpu: Gpu, now: float) -> None:
        """Let *gpu* have a shard, or wait for one."""
        gpu.turn_to(Spent.IDLE, now)
        self._dealing.add(gpu.worker, gpu.worker)
        if not self._deal_to(gpu, now):
            self._idle.append((gpu, gpu.life))

    def _deal(self, now: float) -> None:
        """Deal what there is to those that wait."""
        while self._idle:
            gpu, life = self._idle.popleft()
            if gpu.life == life and not self._deal_to(gpu, now):
                self._idle.appendleft((gpu, life))
                return

    def _deal_to(self, gpu: Gpu, now: float) -> bool:
        """Deal *gpu* a shard, and return whether there is one for it."""
        # Asking takes as long as there are workers.
        task = self._dealing.take(gpu.worker, now) if self._waiting else None
        if task is None:
            return False
        self._waiting -= 1
        gpu.part = self._parts[task.shard]
        gpu.turn_to(Spent.OPENING, now)
        self._driver_is_free = max(now, self._driver_is_free) + self._of.deal_seconds
        asked, locked = self._driver_is_free, gpu.part.locked_until
        opened = (max(asked, locked) if task.is_patient else asked) + self._of.open_seconds
        self._after(opened - now, gpu, self._find_locked if locked > opened else self._open, now)
        return True

    def _find_locked(self, gpu: Gpu, now: float) -> None:
        self._end(gpu.worker, Ending.LOCKED, now)
        gpu.part = None
        self._wait(gpu, now)

    def _end(self, worker: str, ending: Ending, now: float) -> None:
        """Note how *worker* has ended with its shard; one that is not done is dealt again, after a pause."""
        shard = self._dealing.ended(worker, ending, "", now).shard
        if ending is not Ending.DONE and shard not in self._dealing.set_aside:
            self._waiting += 1
            for pause in (0.0, *_PAUSES):
                self._at(now + pause, self._deal)

    def _open(self, gpu: Gpu, now: float) -> None:
        assert gpu.part is not None
        if self._of.format == "gzip" and gpu.part.skipped:
            size = gpu.part.skipped / self._of.bases * self._of.gigabytes * GIGA
            self._move(gpu, Spent.SKIMMING, size, now)
        else:
            self._score(gpu, now)

    def _score(self, gpu: Gpu, now: float) -> None:
        """Build the windows again of what the shard's store has, then score the rest."""
        assert gpu.part is not None
        if not gpu.part.kept:
            self._score_rest(gpu, now)
            return
        gpu.turn_to(Spent.REPEATED, now)
        self._after(gpu.part.kept / self._of.rebuild_orfs, gpu, self._score_rest, now)

    def _score_rest(self, gpu: Gpu, now: float) -> None:
        assert gpu.part is not None
        gpu.turn_to(Spent.SCORING, now)
        seconds = (gpu.part.orfs - gpu.part.kept) / gpu.speed
        self._scoring.begin(gpu, seconds, now, gpu.speed * self._load_of_orf)
        self._leave_bandwidth(now)

    def _has_scored(self, gpu: Gpu, now: float) -> None:
        assert gpu.part is not None
        self._stop_scoring(gpu, now)
        gpu.turn_to(Spent.ROWS, now)
        seconds = gpu.part.orfs * self._of.rows_microseconds / MEGA
        publish = self._publish if self._of.store == "scratch" else self._finish
        self._after(seconds, gpu, publish, now)

    def _stop_scoring(self, gpu: Gpu, now: float) -> float:
        """Return the ORFs of its shard that *gpu* has scored."""
        assert gpu.part is not None
        orfs = gpu.part.orfs - gpu.part.kept - self._scoring.end(gpu, now) * gpu.speed
        self._leave_bandwidth(now)
        stalled = max(0.0, now - gpu.since - orfs / gpu.speed)
        gpu.turn_to(Spent.SCORING, now)
        gpu.spent[Spent.SCORING] -= stalled
        gpu.spent[Spent.STALLED] += stalled
        return orfs

    def _leave_bandwidth(self, now: float) -> None:
        """Let the storage have for copies what scoring leaves."""
        speed = self._scoring.load / self._load_of_orf * self._scoring.share  # ORFs/s of all GPUs
        share = max(_LEFT_FOR_COPIES, 1 - speed * self._bandwidth_of_orf)
        self._storage.set_capacity(share * self._of.bandwidth * GIGA, now)

    def _publish(self, gpu: Gpu, now: float) -> None:
        assert gpu.part is not None
        size = gpu.part.orfs * (self._of.store_bytes + self._of.row_bytes)
        self._move(gpu, Spent.PUBLISHING, size, now)

    def _finish(self, gpu: Gpu, now: float) -> None:
        self._end(gpu.worker, Ending.DONE, now)
        gpu.part = None
        if self._of.workers == "job":
            self._begin_process(gpu, now, self._of.model_bytes)
        else:
            self._wait(gpu, now)

    def _lose(self, gpu: Gpu, now: float) -> None:
        """Lose *gpu*, with what only it had of its shard, which is dealt again when the loss is noticed."""
        self._losses += 1
        self._storage.end(gpu, now)
        if gpu.part is not None:
            self._keep(gpu, gpu.part, now)
            if self._of.store == "shared":
                gpu.part.locked_until = now + self._of.takeover_seconds
        self._at(now + self._of.notice_seconds, partial(self._notice, gpu.worker, gpu.part is not None))
        gpu.turn_to(Spent.ABSENT, now)
        gpu.life, gpu.part = gpu.life + 1, None
        minutes = self._of.replacement_minutes
        self._after(self._random.expovariate(1 / 60 / minutes) if minutes else 0.0, gpu, self._start, now)

    def _notice(self, worker: str, had_shard: bool, now: float) -> None:
        self._dealing.leave(worker)
        if had_shard:
            self._end(worker, Ending.NODE_LOST, now)

    def _keep(self, gpu: Gpu, part: Part, now: float) -> None:
        """Note what the store of *part* has when *gpu* is lost: on a shared disk, whole batches."""
        scored = part.orfs - part.kept if gpu.task in (Spent.ROWS, Spent.PUBLISHING) else 0.0
        if gpu.task is Spent.SCORING:
            scored = self._stop_scoring(gpu, now)
        batch = self._of.orfs_per_batch
        kept = scored // batch * batch if self._of.store == "shared" else 0.0
        part.kept += kept
        self._repeated += scored - kept
        gpu.spent[Spent.SCORING] -= (scored - kept) / gpu.speed
        gpu.spent[Spent.REPEATED] += (scored - kept) / gpu.speed

    def _draw_speed(self) -> float:
        """Return the speed of a GPU: about the usual one, or that of a slow one."""
        of = self._of
        usual = of.slow_speed if self._random.random() < of.slow_share else 1.0
        return of.orfs_per_second * usual * max(0.1, self._random.gauss(1.0, of.spread))


def plan_of(parameters: Parameters) -> RunPlan:
    """Return a plan of such segments, with no files."""
    size, total = round(parameters.segment_megabases * MEGA), round(parameters.bases)
    starts = range(0, total, size)
    segments = tuple(PlannedSegment(0, 0, 0, 0, min(size, total - start)) for start in starts)
    return RunPlan(
        version="",
        model="",
        fingerprint="",
        devices="",
        precision="",
        tokens_per_batch=0,
        window=0,
        segment_bases=size,
        settings={},
        flagged=[],
        is_utf8=True,
        files=(),
        segments=segments,
    )


def parts_of(parameters: Parameters) -> Iterator[Part]:
    """Yield the shards that have a segment, in the order in which they are dealt."""
    plan, file = plan_of(parameters), parameters.bases / parameters.files
    size, density = plan.segment_bases, parameters.orfs / parameters.bases
    count = parameters.shards
    for number, part in enumerate(plan.divide(count)):
        if part:
            bases = (len(part) - 1) * size + plan.segments[part[-1]].bases
            yield Part(Shard(number, count), bases * density, part[0] * size % file)
