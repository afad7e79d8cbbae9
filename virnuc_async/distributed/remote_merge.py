"""Merging runs in object stores: what is published is copied to this machine, checked, and merged there."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from virnuc_async.errors import ShardsMissing, UsageError
from virnuc_async.text import is_url

from .merge import merge_shards
from .plan import write_plan
from .storage import Published, RemoteRun, missing_shards

if TYPE_CHECKING:
    from virnuc_async.outputs.summary import Summary

_AT_ONCE = 32  # requests
_MOST_NAMED = 20  # shards in a message


def merge_run(
    run: str | PathLike[str],
    out: Path | None = None,
    *,
    before_each: Callable[[str], None] = lambda _: None,
    command: Sequence[str] = (),
    temporary_dir: Path | None = None,
) -> "Summary":
    """
    Write the tables of the run whose directory or URL is *run* into *out*, as merge_shards does.

    Of a URL, the shards are copied below *temporary_dir*; what was copied already is not copied again.

    Raises:
        what merge_shards raises
        UsageError: *run* is a URL, and there is no *out*
    """
    if not is_url(str(run)):
        return merge_shards(
            Path(run), out, before_each=before_each, command=command, temporary_dir=temporary_dir
        )
    if out is None:
        raise UsageError(f"name a directory of this machine for the tables: merge {run} OUT/")
    remote = RemoteRun(str(run), temporary_dir)
    fetched = remote.require_plan()
    before_each("looking for the shards")
    published = _published(remote)
    if problems := missing_shards(fetched.plan, published):
        more = len(problems) - _MOST_NAMED
        raise ShardsMissing(remote.url, problems[:_MOST_NAMED] + ([f"and {more:,} more"] if more > 0 else []))
    directory = remote.workplace(f"merge-{fetched.plan.digest[:16]}")
    write_plan(fetched.plan, directory)
    for name, found in published.items():
        before_each(f"copying shard {name}")
        remote.fetch(found, directory)
    with remote.named(directory):
        summary = merge_shards(
            directory, out, before_each=before_each, command=command, temporary_dir=temporary_dir
        )
    shutil.rmtree(directory, ignore_errors=True)
    return summary


def _published(remote: RemoteRun) -> dict[str, Published]:
    """Return what is published of each shard, by its name."""
    names = remote.shards()
    with ThreadPoolExecutor(_AT_ONCE, "shards") as threads:
        found = zip(names, threads.map(remote.published, names), strict=True)
        return {name: one for name, one in found if one is not None}
