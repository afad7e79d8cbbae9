"""
A run on a Ray cluster: planned, dealt to its devices in shards, and merged, by one command.

All that must survive is in the directory of the run: the plan, and the store of each shard. The same command
goes on where an earlier one was ended, whatever ended it.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TypeVar

import anyio
from anyio import from_thread, to_thread

from virnuc_async.engine.kinds import is_cpu_kind
from virnuc_async.errors import ClusterError, ShardsMissing, UsageError, first_error
from virnuc_async.fileio import writing_to
from virnuc_async.log import PROGRESS, logger
from virnuc_async.outputs.summary import Summary
from virnuc_async.runs.output_directory import PLAN
from virnuc_async.sequences.listing import is_stdin
from virnuc_async.sequences.segments import SEGMENT_BASES
from virnuc_async.settings import Settings
from virnuc_async.text import is_url, plural

from .cluster_progress import ClusterCounts
from .merge import merge_shards
from .plan import SHARDS, RunPlan, Shard, read_plan
from .planning import make_plan
from .ray_cluster import LOCAL, Node, RayCluster, Slot, connect, require_ray, slots
from .ray_dealer import Patience, RayDealer
from .ray_work import Planning, Scoring, as_of_run
from .scanning import PlanProgress

CPU, _EVERY_GPU = "cpu", "cuda"  # names of devices
_SHARD_NAME = re.compile(r"[0-9]{5}-of-[0-9]{5}")
_MOST_SHARDS = 99_999
_LEAST_SKIMMED = 16  # shards of files that are read from their beginning to where a shard begins
_SKIMMED_EACH = 2  # of them for each worker
_MOST_NAMED = 20  # shards in one message
_SILENCE = 20.0  # seconds without an answer of the cluster, after which that is said
_ENDS_AFTER = 60  # seconds without its head, after which Ray ends every process

FindSlots = Callable[[Node], list[Slot]]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class OnRay:
    """Which cluster a run is on, and how it is divided."""

    address: str  # local, auto, HOST:PORT or ray://HOST:PORT
    shards: int | None = None  # by default by the plan
    segment_bases: int = SEGMENT_BASES  # as for make_plan
    environment: Mapping[str, str] = field(default_factory=dict)  # of the processes that score


async def run_on_ray(
    inputs: Sequence[str], out_dir: Path, settings: Settings, on: OnRay, command: Sequence[str] = ()
) -> Summary:
    """
    Predict every sequence of *inputs* on a Ray cluster, write the tables into *out_dir*, return the summary.

    The paths must be the same on all nodes, as on a shared disk. When it is cancelled, it ends within one
    batch of each device, and leaves a run that the same call resumes.

    Raises:
        UsageError: of the arguments, or Ray is not installed
        ClusterError: the cluster cannot be reached, or no worker of it can do a shard
        ShardsMissing: shards could not be done; all others are
        what make_plan and merge_shards raise
    """
    run = _RayRun(inputs, out_dir, settings, on, command)
    require_ray()
    if run.is_here:
        await run.plan_here()
    set_aside = await _in_thread(run.deal, run)
    if set_aside:
        raise ShardsMissing(str(run.place), _named(set_aside))
    return await _in_thread(run.merge, run)


async def _in_thread(work: Callable[[Event], _Result], run: "_RayRun") -> _Result:
    """Return what *work* returns, which a cancellation asks to stop."""
    stop, results = Event(), []

    async def wait_for_cancellation() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stop.set()

    async def do() -> None:
        results.append(await to_thread.run_sync(work, stop))
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for_cancellation)
            tasks.start_soon(run.warn_of_silence)
            # Not in this task: cancelling that from outside breaks the shield of a thread it waits for.
            tasks.start_soon(do)
    except BaseExceptionGroup as group:
        error = first_error(group)
    else:
        return results[0]
    try:
        raise error
    finally:
        del error


class _RayRun:
    """One run: each of its steps blocks a thread, until it is asked to stop."""

    def __init__(
        self, inputs: Sequence[str], out_dir: Path, settings: Settings, on: OnRay, command: Sequence[str]
    ) -> None:
        _require_shared(inputs, str(out_dir))
        self.place = Path(os.path.abspath(out_dir))
        self._inputs = inputs
        self._settings = _of_any_machine(settings, on.address)
        self._on = on
        self._command = command
        self._dealer: RayDealer | None = None
        # On this machine no node comes later.
        self._patience = Patience(no_worker=5.0) if self.is_here else Patience()

    @property
    def is_here(self) -> bool:
        """Whether the cluster is this machine alone."""
        return self._on.address == LOCAL

    async def plan_here(self) -> None:
        """Plan the run on this machine, whose devices do it: what is wrong shows before Ray is started."""
        counts = ClusterCounts({})

        def tell(progress: PlanProgress) -> None:
            counts.status = as_of_run(progress).stage
            logger.bind(counts=counts).log(PROGRESS, "{}", counts.status)

        segment = self._on.segment_bases
        await make_plan(self._inputs, self.place, self._settings, segment_bases=segment, on_progress=tell)

    def deal(self, stop: Event) -> dict[Shard, str]:
        """Plan the run and do all of its shards; return those that cannot be done, with the reasons."""
        with connect(self._on.address, self._on.environment, self._settings.temporary_dir) as cluster:
            wants_gpus, named = self._wants_gpus(cluster), self._settings.devices
            find = partial(
                slots,
                wants_gpus=wants_gpus,
                cpu_workers=0 if wants_gpus else len(named),
                threads=self._settings.threads,
            )
            settings = replace(self._settings, devices=() if wants_gpus else ("cpu",), gpus=())
            if not self.is_here:
                self._plan(cluster, find, settings, stop)
            if stop.is_set():
                return {}
            plan = read_plan(self.place)
            shards = self._shards(plan, sum(len(find(node)) for node in cluster.nodes()))
            logger.info("{} of {:,.1f} Mb", plural(len(shards), "shard"), plan.bases / 1e6)
            work = Scoring(self.place, plan.digest, replace(settings, overwrite=False), self._command)
            return self._dealt(RayDealer(cluster, find, work, ClusterCounts(shards), self._patience), stop)

    def merge(self, stop: Event) -> Summary:
        """Write the tables of all shards."""
        counts, told = ClusterCounts({}), 0.0

        def tell(status: str) -> None:
            nonlocal told
            from_thread.check_cancelled()
            if (now := time.monotonic()) - told >= self._patience.shown:
                counts.status, told = status, now
                logger.bind(counts=counts).log(PROGRESS, "{}", counts.line(now))

        return merge_shards(
            self.place, before_each=tell, command=self._command, temporary_dir=self._settings.temporary_dir
        )

    async def warn_of_silence(self) -> None:
        """Log once, until cancelled, that the cluster does not answer: Ray will end this process."""
        while True:
            await anyio.sleep(_SILENCE / 4)
            if self._dealer is not None and time.monotonic() - self._dealer.last_seen >= _SILENCE:
                logger.warning(
                    "the head of the Ray cluster does not answer. Without it, Ray ends this command after "
                    "{} s; when there is a cluster again, the same command goes on",
                    _ENDS_AFTER,
                )
                return

    def _wants_gpus(self, cluster: RayCluster) -> bool:
        """Whether the workers are GPUs: if that is asked for or planned, else if there are any."""
        if self._settings.devices:
            return self._settings.devices[0] != CPU
        if self.is_here or ((self.place / PLAN).exists() and not self._settings.overwrite):
            return not is_cpu_kind(read_plan(self.place).devices)
        return any(node.gpus for node in cluster.nodes())

    def _plan(self, cluster: RayCluster, find: FindSlots, settings: Settings, stop: Event) -> None:
        """Let one worker plan the run; raise the error that it found."""
        counts = ClusterCounts({Shard(0, 1): 1})
        dealer = RayDealer(
            cluster,
            find,
            Planning(self._inputs, os.getcwd(), self.place, settings, self._on.segment_bases),
            counts,
            self._patience,
        )
        set_aside = self._dealt(dealer, stop)
        if set_aside:
            reason = "; ".join(set_aside.values())
            raise ClusterError(self._on.address, f"the run cannot be planned: {reason}")
        if dealer.last_answer is not None and dealer.last_answer.error is not None:
            raise dealer.last_answer.error

    def _dealt(self, dealer: RayDealer, stop: Event) -> dict[Shard, str]:
        self._dealer = dealer
        try:
            return dealer.run(stop)
        finally:
            self._dealer = None

    def _shards(self, plan: RunPlan, workers: int) -> dict[Shard, int]:
        """Return the shards of the run and their bases; their number is kept by the name of the first."""
        place = self.place / SHARDS
        known = {int(name.partition("-of-")[2]) for name in _shard_names(place)}
        if len(known) > 1 or (known and self._on.shards not in (None, *known)):
            numbers = " and ".join(f"{number:,}" for number in sorted(known))
            reason = f"{place} has shards of a run in {numbers}"
            raise UsageError(f"{reason}: choose --shards {max(known)}, or remove those of the other")
        count = self._on.shards or max(known, default=0) or number_of_shards(plan, workers)
        with writing_to(place):
            (place / Shard(0, count).name).mkdir(parents=True, exist_ok=True)
        return {
            Shard(number, count): sum(plan.segments[one].bases for one in numbers)
            for number, numbers in enumerate(plan.divide(count))
        }


def _of_any_machine(settings: Settings, address: str) -> Settings:
    """Return *settings* with whole paths; raise UsageError if they are of one machine and others are used."""
    if settings.gpus and address != LOCAL:
        raise UsageError(f"--gpus are numbers on one machine: with --ray {address}, all GPUs of Ray are used")
    if {*settings.devices} - {CPU} and settings.devices != (_EVERY_GPU,):
        raise UsageError("with --ray, --devices is cpu, as often as a node has workers, or cuda: Ray's GPUs")
    if settings.reuse_features is not None:
        raise UsageError("embeddings are reused in a run on one machine: leave out --ray")
    model, cache = settings.model, settings.cache_dir
    return replace(
        settings,
        model=os.path.abspath(model) if os.path.isdir(model) else model,
        cache_dir=None if cache is None else Path(os.path.abspath(cache)),
        # That of this machine may not be there on another.
        temporary_dir=settings.temporary_dir if address == LOCAL else None,
    )


def _require_shared(inputs: Sequence[str], out_dir: str) -> None:
    """Check that all nodes can have the inputs and the output; raise UsageError if not."""
    if any(map(is_stdin, inputs)):
        raise UsageError("standard input can be read only once, and every shard reads it: name a file")
    if is_url(out_dir):
        raise UsageError(f"with --ray, the output is a directory that all nodes see, not a URL: {out_dir}")


def _shard_names(place: Path) -> list[str]:
    """Return the names of the directories of shards in *place*, which may be missing."""
    return [name for name in (os.listdir(place) if place.is_dir() else ()) if _SHARD_NAME.fullmatch(name)]


def _named(set_aside: Mapping[Shard, str]) -> list[str]:
    """Format the shards that are *set_aside*, the first of many."""
    named = [f"shard {shard}: {reason}" for shard, reason in sorted(set_aside.items())]
    more = len(named) - _MOST_NAMED
    return named if more <= 0 else [*named[:_MOST_NAMED], f"and {more:,} more"]


def number_of_shards(plan: RunPlan, workers: int) -> int:
    """
    Return in how many shards a run of *plan* is divided for so many *workers*: a segment in each.

    A segment is what a large GPU does in some minutes. Of files in which no reader can begin where a segment
    does, each shard reads all that is before it: then there are few shards, of several segments.
    """
    count = min(len(plan.segments), _MOST_SHARDS)
    if any(segment.record and not segment.seek.offset for segment in plan.segments):
        return min(count, max(_LEAST_SKIMMED, _SKIMMED_EACH * workers))
    return count
