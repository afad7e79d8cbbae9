"""Which shards of a run are there and finished: ``merge`` takes one whole set of them, or nothing."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from virnuc_async.errors import DamagedStore, ForeignDirectoryError, ShardsMissing
from virnuc_async.fileio import Directory
from virnuc_async.outputs.shard_file import ShardFile, read_shard_file
from virnuc_async.runs.lock import owner_of
from virnuc_async.runs.progress_file import NAME as PROGRESS
from virnuc_async.runs.read_only import ReadOnlyDatabase
from virnuc_async.runs.store_rows import StoreRows
from virnuc_async.runs.totals import Totals

from .plan import SHARDS, RunPlan, Shard

_NAME = re.compile(r"(?P<number>\d{5})-of-(?P<of>\d{5})")
_MOST_BYTES = 1 << 20  # of progress.json
_MOST_NAMED = 20  # problems in one message
_AGAIN = "run it again"


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard that has ended, and what is known of it."""

    shard: Shard
    directory: Path
    segments: range  # numbers of its segments
    known: ShardFile


class _Problem(Exception):
    """Why a shard cannot be merged."""


def find_shards(run: Path, plan: RunPlan) -> list[FinishedShard]:
    """
    Return the shards of the run of *plan* in *run*, in order: each is there once, finished, and of this plan.

    Those without a segment, of which there is nothing to merge, are left out, and need not be there.

    Raises:
        ShardsMissing: they are not; it names every problem
    """
    count = _count(run, _shards_in(run / SHARDS))
    parts = plan.divide(count)
    found, problems = list[FinishedShard](), defaultdict[str, list[int]](list)
    for number, segments in enumerate(parts):
        shard = Shard(number, count)
        if not segments:
            continue
        try:
            known = _inspect(run / SHARDS / shard.name, plan, shard, segments)
        except _Problem as problem:
            problems[str(problem)].append(number)
        except OSError as error:
            problems[f"cannot be read: {error.strerror}"].append(number)
        else:
            found.append(FinishedShard(shard, run / SHARDS / shard.name, segments, known))
    if problems:
        raise ShardsMissing(str(run), list(_described(problems, count)))
    return found


def _shards_in(directory: Path) -> list[Shard]:
    try:
        names = sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ShardsMissing(str(directory), [f"it cannot be read: {error.strerror}"]) from error
    found = filter(None, map(_NAME.fullmatch, names))
    return [Shard(int(name["number"]), int(name["of"])) for name in found]


def _count(run: Path, shards: Iterable[Shard]) -> int:
    """Return how many shards there are to be."""
    counts = sorted({shard.of for shard in shards})
    if not counts:
        raise ShardsMissing(str(run), [f"no shard of it has been run: there is nothing in {run / SHARDS}"])
    if len(counts) > 1:
        sets = " and ".join(f"of {count:,}" for count in counts)
        raise ShardsMissing(str(run), [f"there are several sets of shards, {sets}. Remove all but one"])
    return counts[0]


def _described(problems: Mapping[str, list[int]], count: int) -> Iterator[str]:
    for reason, numbers in list(problems.items())[:_MOST_NAMED]:
        name = f"shard {numbers[0]}/{count}" if len(numbers) == 1 else f"shards {_listed(numbers)} of {count}"
        yield f"{name}: {reason}"
    if len(problems) > _MOST_NAMED:
        yield f"and {len(problems) - _MOST_NAMED:,} more problems"


def _listed(numbers: list[int]) -> str:
    """Return sorted *numbers* as text: 3, 5 to 9, 12."""
    gaps = [(before, after) for before, after in pairwise(numbers) if after > before + 1]
    starts, ends = [numbers[0], *(after for _, after in gaps)], [*(before for before, _ in gaps), numbers[-1]]
    marks = {0: "{0}", 1: "{0}, {1}"}  # by how many follow
    parts = [marks.get(b - a, "{0} to {1}").format(a, b) for a, b in zip(starts, ends, strict=True)]
    return ", ".join([*parts[:_MOST_NAMED], *(["..."] if len(parts) > _MOST_NAMED else [])])


def _inspect(path: Path, plan: RunPlan, shard: Shard, segments: range) -> ShardFile:
    if not path.is_dir():
        raise _Problem("missing")
    with Directory(path) as directory:
        owner = owner_of(directory)
        known = _read(directory)
        # One on another machine may have died behind the end: whatever it changes now has checksums.
        if owner is not None and (owner.is_alive or (known is None and owner.is_alive is None)):
            raise _Problem(f"running, by {owner}")
        if known is None:
            raise _Problem(_why_unfinished(directory))
        if (known.plan, known.shard) != (plan.digest, shard):
            raise _Problem(f"of another plan. Remove it, and {_AGAIN}")
        planned = sum(plan.segments[number].records for number in segments)
        if known.totals.contigs != planned:
            raise _Problem(f"has {known.totals.contigs:,} records, and {planned:,} are planned: {_AGAIN}")
        for name, file in known.files.items():
            stat = directory.stat(name)
            if stat is None or stat.st_size != file.bytes:
                what = "missing" if stat is None else f"of {stat.st_size:,} bytes instead of {file.bytes:,}"
                raise _Problem(f"its {name} is {what}: {_AGAIN}")
        _check_store(path, directory, known)
    return known


def _read(directory: Directory) -> ShardFile | None:
    try:
        return read_shard_file(directory)
    except ValueError as error:
        raise _Problem(f"its shard.json is damaged ({error}): {_AGAIN}") from error


def _why_unfinished(directory: Directory) -> str:
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        found: Any = json.loads(directory.read_bounded(PROGRESS, _MOST_BYTES))
        if found.get("state") == "failed":
            return f"failed: {found.get('message')}"
    return "not finished"


def _check_store(path: Path, directory: Directory, known: ShardFile) -> None:
    """Check that the store is finished, with what was in it when its rows were written."""
    try:
        with closing(ReadOnlyDatabase(path, directory)) as database:
            finished = StoreRows(database).meta("finished")
    except FileNotFoundError:
        raise _Problem(f"its store is missing: {_AGAIN}") from None
    except (DamagedStore, ForeignDirectoryError) as error:
        raise _Problem(str(error)) from error
    if finished is None or Totals.from_json(finished) != known.totals:
        raise _Problem(f"its store has changed since its rows were written: {_AGAIN}")
