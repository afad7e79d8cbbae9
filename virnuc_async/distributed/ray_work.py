"""What the actors of a Ray cluster do: plan a run, and score its shards."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread

from virnuc_async import engine
from virnuc_async.errors import DirectoryLockedError, NoDevicesLeft, PlanMismatch, UsageError, VirnucError
from virnuc_async.fileio import Directory
from virnuc_async.runs.lock import Owner, owner_of
from virnuc_async.runs.run_progress import RunProgress
from virnuc_async.settings import Settings
from virnuc_async.text import plural

from .dealing import Ending, Task
from .plan import SHARDS, Shard, read_plan
from .planning import make_plan
from .ray_worker import Answer, OnProgress
from .scanning import PlanProgress
from .shard import run_shard


@dataclass(slots=True)
class Planning:
    """Plans a run, on a node that has the devices which will do it: the only shard is the whole."""

    inputs: Sequence[str]
    directory: str  # that they are named from
    run: Path
    settings: Settings
    segment_bases: int

    async def open(self) -> None:
        """Do nothing: what is wrong with the run, planning it says."""

    async def do(self, task: Task, on_progress: OnProgress) -> Answer:
        """Plan the run; an error of ours is the result, since another node would find the same."""

        def tell(progress: PlanProgress) -> None:
            on_progress(as_of_run(progress))

        try:
            # Of a process that plans and does nothing else. What is named from there must be on each node.
            os.chdir(self.directory)
        except OSError as error:
            reason = f"the inputs are named from {self.directory}, which this node does not have"
            return Answer(Ending.DONE, error=UsageError(f"{reason}: {error.strerror}"))
        try:
            await make_plan(
                self.inputs, self.run, self.settings, segment_bases=self.segment_bases, on_progress=tell
            )
        except VirnucError as error:
            return Answer(Ending.DONE, error=error)
        return Answer(Ending.DONE)

    async def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Scoring:
    """Scores shards of the plan with *digest* in *run*, with models that stay loaded between them."""

    run: Path
    digest: str
    settings: Settings  # of one worker
    command: Sequence[str] = ()
    _replicas: "engine.KeptReplicas | None" = field(default=None, init=False)

    async def open(self) -> None:
        """Check that this node has the plan, and devices of the planned kind; raises VirnucError."""
        await to_thread.run_sync(self._check)
        if self._replicas is None:
            self._replicas = engine.KeptReplicas()

    async def do(self, task: Task, on_progress: OnProgress) -> Answer:
        """Score a shard, or leave it for later if another process has it; raises VirnucError."""
        if not task.is_patient and (owner := await to_thread.run_sync(self._holder, task.shard)) is not None:
            return Answer(Ending.LOCKED, f"it is locked by {owner}")
        try:
            await run_shard(
                self.run,
                task.shard,
                self.settings,
                command=self.command,
                on_progress=on_progress,
                make_scorer=self._replicas,
            )
        except DirectoryLockedError as error:
            return Answer(Ending.LOCKED, str(error))
        except NoDevicesLeft as error:
            return Answer(Ending.FAILED, str(error), is_unusable=True)
        return Answer(Ending.DONE)

    async def close(self) -> None:
        """Free the devices."""
        if self._replicas is not None:
            await self._replicas.close()

    def _check(self) -> None:
        plan = read_plan(self.run)
        if plan.digest != self.digest:
            raise PlanMismatch(str(self.run), ["its plan.json is another one here than on other nodes"])
        kinds = sorted({device.kind for device in engine.choose(self.settings)})
        if kinds != [plan.devices]:
            raise PlanMismatch(str(self.run), [f"devices: {plan.devices} -> {', '.join(kinds)}"])

    def _holder(self, shard: Shard) -> Owner | None:
        """Return who holds the store of *shard* and may be alive."""
        try:
            with Directory(self.run / SHARDS / shard.name) as directory:
                owner = owner_of(directory)
        except OSError:
            return None  # it is not begun, or what is wrong with it, running it says
        return None if owner is None or owner.is_alive is False else owner


def as_of_run(progress: PlanProgress) -> RunProgress:
    """Return how far a plan is, as a run tells it."""
    share = progress.bytes_done / progress.bytes if progress.bytes else 1.0
    files = f"{progress.files_done:,} of {plural(progress.files, 'file')}"
    stage = f"planning: {files}, {share:.0%} of {progress.bytes / 1e9:,.2f} GB"
    return RunProgress("reading", stage, share, None, 0, None, progress.files_done, progress.files, ())
