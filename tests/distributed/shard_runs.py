"""Runs in shards and the same runs in one piece, on devices that tell how a batch was packed."""

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batch_scorer import BatchRules
from support import fasta

from virnuc_async.distributed.plan import SHARDS, RunPlan, Shard, write_plan
from virnuc_async.distributed.planning import make_plan
from virnuc_async.distributed.shard import run_shard
from virnuc_async.models.bundle import find
from virnuc_async.outputs.shard_rows import ShardSummary
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.settings import Settings

WINDOW, TOKENS = 15, 400


@dataclass
class Sample:
    """Inputs that are scored at once into ``one``, and in shards in ``run``."""

    directory: Path
    paths: list[Path]
    segment: int
    rules: BatchRules = field(default_factory=BatchRules)
    settings: Settings = Settings(devices=("cpu",), tokens_per_batch=TOKENS)

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def one(self) -> Path:
        return self.directory / "one"

    async def plan(self) -> RunPlan:
        """Plan the run, with small windows."""
        plan = await make_plan(self.paths, self.run, self.settings, segment_bases=self.segment)
        small = replace(plan, window=WINDOW)
        write_plan(small, self.run)
        return small

    async def score(self, count: int) -> list[ShardSummary]:
        """Score all *count* shards, in any order."""
        numbers = random.Random(count).sample(range(count), count)
        return [await self.score_one(Shard(number, count)) for number in numbers]

    async def score_one(self, shard: Shard, settings: Settings | None = None) -> ShardSummary:
        return await run_shard(self.run, shard, settings or self.settings, make_scorer=self.rules.scorer)

    async def score_at_once(self) -> None:
        paths, bundle = tuple(map(str, self.paths)), find(self.settings.model)
        plan = Plan(paths, self.settings, bundle, window=WINDOW, segment=self.segment)
        await execute(plan, self.one, self.rules.scorer)

    def shards(self, count: int) -> list[Path]:
        return [self.run / SHARDS / Shard(number, count).name for number in range(count)]


def stored(directories: Sequence[Path]) -> list[Any]:
    """Return the rows of all stores, but for when and on which device they were made."""
    columns = "window, number, part, orfs, tokens, scored, recomputed, failures, scores"
    queries = ("* FROM windows ORDER BY number", f"{columns} FROM batches ORDER BY window, number, part")
    found = []
    for query in queries:
        for directory in directories:
            with closing(sqlite3.connect(directory / "run.sqlite3")) as store:
                found += store.execute(f"SELECT {query}").fetchall()
    return found


def joined(directories: Sequence[Path], name: str) -> bytes:
    """Return the rows of a table in all *directories*, behind its header."""
    parts = [(directory / name).read_bytes().partition(b"\n") for directory in directories]
    assert len({header for header, *_ in parts}) == 1
    return b"\n".join([parts[0][0], b"".join(rows for *_, rows in parts)])


def write_records(path: Path, lengths: Sequence[int], seed: int = 0) -> Path:
    """Write a file of records with these *lengths*, of random bases."""
    bases = random.Random(seed)
    records = [
        (f"{path.stem}_{number}", "".join(bases.choices("ACGT", k=n))) for number, n in enumerate(lengths)
    ]
    path.write_text(fasta(records))
    return path
