"""Shards of runs in object stores: scored on a disk of the worker, and published when they are finished."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

from anyio import to_thread

from virnuc_async.errors import PlanMismatch, ShardsMissing
from virnuc_async.fileio import Directory
from virnuc_async.log import logger
from virnuc_async.outputs.shard_file import read_shard_file
from virnuc_async.outputs.shard_rows import ShardSummary
from virnuc_async.pipeline import MakeScorer
from virnuc_async.runs.output_directory import SHARD_FILE
from virnuc_async.runs.run_progress import RunProgress
from virnuc_async.settings import Settings
from virnuc_async.text import is_url

from .plan import SHARDS, Shard
from .shard import run_shard
from .storage import Fetched, RemoteRun


async def score_shard(
    run: str | PathLike[str],
    shard: Shard,
    settings: Settings | None = None,
    *,
    command: Sequence[str] = (),
    on_progress: Callable[[RunProgress], None] | None = None,
    make_scorer: MakeScorer | None = None,
) -> ShardSummary:
    """
    Score a shard as run_shard does, of a run whose directory or URL is *run*.

    A shard that is published is left as it is. Of several workers that finish one, the first publishes it.

    Raises:
        what run_shard raises
        PlanMismatch: what is published of the shard is of another plan
        ShardsMissing: what is published of it cannot be read
        CannotWrite: the object store refuses
    """
    work = partial(run_shard, command=command, on_progress=on_progress, make_scorer=make_scorer)
    if not is_url(str(run)):
        return await work(Path(run), shard, settings)
    remote = RemoteRun(str(run), settings.temporary_dir if settings else None)
    fetched = await to_thread.run_sync(remote.require_plan)
    known = await to_thread.run_sync(_published, remote, fetched, shard)
    if known is not None:
        logger.info("shard {} is published already", shard)
        return known
    directory = fetched.directory / SHARDS / shard.name
    with remote.announced(shard.name, directory):
        with remote.named(fetched.directory):
            summary = await work(fetched.directory, shard, settings)
        # Whoever stops this waits for no upload: the next worker makes it again.
        is_first = await to_thread.run_sync(remote.publish, fetched, shard.name, abandon_on_cancel=True)
    await to_thread.run_sync(_remove, directory)
    where = f"{remote.url}/{SHARDS}/{shard.name}"
    logger.info("{}", f"published: {where}" if is_first else f"another worker has published {where}")
    return summary


def _published(remote: RemoteRun, fetched: Fetched, shard: Shard) -> ShardSummary | None:
    """Return what is known of *shard*, if it is published."""
    found = remote.published(shard.name)
    if found is None:
        return None
    if found.plan != fetched.plan.digest:
        what = f"shard {shard} is published of another plan: delete {remote.url}/{SHARDS}/{shard.name}/"
        raise PlanMismatch(remote.url, [what])
    place = remote.fetch(found, remote.workplace("finished"), [SHARD_FILE])
    try:
        with Directory(place) as directory:
            known = read_shard_file(directory)
    except ValueError as error:
        raise ShardsMissing(remote.url, [f"shard {shard}: its {SHARD_FILE} is damaged ({error})"]) from error
    finally:
        _remove(place)
    return None if known is None else ShardSummary.of(known)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
