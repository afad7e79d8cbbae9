"""One shard of a run: an ordinary run of its own segments, with a store of its own."""

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

from anyio import to_thread

from virnuc_async._version import __version__
from virnuc_async.errors import PlanMismatch, UsageError
from virnuc_async.models.bundle import find
from virnuc_async.outputs.formats import require_formats
from virnuc_async.outputs.shard_rows import ShardPart, ShardRows, ShardSummary
from virnuc_async.pipeline import MakeScorer, execute_and_write, files_read_ahead, require_asyncio
from virnuc_async.runs.plan import Plan, PlannedInput, PlannedPart
from virnuc_async.runs.run_progress import RunProgress
from virnuc_async.sequences.segments import NOTHING
from virnuc_async.settings import Settings, local_path

from .plan import SHARDS, RunPlan, Shard, read_plan


async def run_shard(
    run: str | PathLike[str],
    shard: Shard | str,
    settings: Settings | None = None,
    *,
    command: Sequence[str] = (),
    on_progress: Callable[[RunProgress], None] | None = None,
    make_scorer: MakeScorer | None = None,
) -> ShardSummary:
    """
    Score *shard*, such as "3/100", of the run that is planned in the directory *run*; write its rows there.

    What changes a result is planned; *settings* are of this machine: devices, directories, *overwrite* and
    *repair*. Resumes the shard, and leaves it as it is when it is finished. A shard with inputs that failed
    is finished as well: ``merge`` says so.

    Raises:
        NoPlan: there is no plan in *run*
        PlanMismatch: this version, the model, the content of an input or the kind of device is not as planned
        UsageError: *settings* cannot be those of a shard, or the event loop is not asyncio's
        what :func:`virnuc_async.run_pipeline` raises
    """
    require_asyncio()
    run, settings = local_path(run, "the run directory"), settings or Settings()
    shard = Shard.parse(shard) if isinstance(shard, str) else shard
    if settings.reuse_features is not None:
        raise UsageError("a shard cannot reuse features: run the whole input on one machine for that")
    planned = await to_thread.run_sync(read_plan, run)
    part = await to_thread.run_sync(partial(_part, planned, run, shard))
    plan = await to_thread.run_sync(partial(_plan, planned, part, settings, on_progress))
    rows = ShardPart(part.plan, (shard.number, shard.of), planned.is_utf8)
    make_writer = partial(ShardRows, rows, command=shlex.join(command))
    out_dir = run / SHARDS / shard.name
    return await execute_and_write(plan, out_dir, files_read_ahead(plan), make_writer, make_scorer)


def _part(planned: RunPlan, run: Path, shard: Shard) -> PlannedPart:
    if planned.version != __version__:
        hint = "run it with that version, or plan the run again"
        raise PlanMismatch(str(run), [f"version: {planned.version} -> {__version__} ({hint})"])
    return PlannedPart(
        str(run),
        planned.digest,
        str(shard),
        planned.span(shard) or NOTHING,
        tuple(
            PlannedInput(file.fingerprint, file.size, file.records, file.failure) for file in planned.files
        ),
        planned.devices,
    )


def _plan(
    planned: RunPlan, part: PlannedPart, machine: Settings, on_progress: Callable[[RunProgress], None] | None
) -> Plan:
    settings = planned.settings_on(machine)
    require_formats(settings.formats)
    bundle = find(settings.model, settings.cache_dir)
    if (bundle.name, bundle.fingerprint) != (planned.model, planned.fingerprint):
        names = f"{planned.model} ({planned.fingerprint}) -> {bundle.name} ({bundle.fingerprint})"
        raise PlanMismatch(part.run, [f"model: {names}"])
    plan = Plan(
        tuple(file.path for file in planned.files),
        settings,
        bundle,
        window=planned.window,
        on_progress=on_progress,
        segment=planned.segment_bases,
        names=tuple(file.name for file in planned.files),
        part=part,
    )
    _ = plan.verdict_rule  # before anything is computed: the model may not have the threshold
    return plan
