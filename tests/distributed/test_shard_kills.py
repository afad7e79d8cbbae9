"""
Shards whose processes are killed at any moment until each is finished: the tables are those of one machine.

KILLS=20 kills 20 times, not 100; KILLS_SEED chooses other moments.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import ROOT
from shard_runs import Sample, write_records
from sharded import tables

from virnuc_async.distributed.merge import merge_shards
from virnuc_async.distributed.plan import Shard
from virnuc_async.settings import Settings

_KILLS = int(os.environ.get("KILLS", "100"))
_SEED = int(os.environ.get("KILLS_SEED", "0"))
_SHARDS = 6
_LONGEST = 1.0  # seconds from the beginning of a shard to its kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def start(run: Path, number: int) -> "subprocess.Popen[bytes]":
    script = Path(__file__).with_name("score_shard.py")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(script.parent)])
    command = [sys.executable, str(script), str(run), str(Shard(number, _SHARDS))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths})


def kill_once(run: Path, number: int, seconds: float) -> bool:
    """Score a shard for so many seconds, and kill it; return whether it was done before."""
    with start(run, number) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
    time.sleep(0.01)
    return False


async def test_killed_shards_have_the_tables_of_one_machine(tmp_path: Path) -> None:
    rng = random.Random(_SEED)
    mates = [
        write_records(tmp_path / f"s_R{mate}.fa", [rng.randint(150, 600) for _ in range(150)], mate)
        for mate in (1, 2)
    ]
    sample = Sample(tmp_path, [*mates, write_records(tmp_path / "long.fa", [9_000, 300, 12_000])], 5_000)
    sample.settings = Settings(devices=("cpu",), tokens_per_batch=400, embeddings=True)
    await sample.score_at_once()
    kills = rounds = 0
    while kills < _KILLS:
        shutil.rmtree(sample.run, ignore_errors=True)
        await sample.plan()
        kills += score_through_kills(sample.run, rng)
        rounds += 1
        merge_shards(sample.run)
        assert tables(sample.run) == tables(sample.one)
    print(f"{kills} kills in {rounds} runs")


def score_through_kills(run: Path, rng: random.Random) -> int:
    """Score all shards of *run*, killed at any moment until each is done; return the number of kills."""
    left, kills = list(range(_SHARDS)), 0
    while left:
        number = rng.choice(left)
        if kill_once(run, number, rng.uniform(0.05, _LONGEST)):
            left.remove(number)
        else:
            kills += 1
    assert kill_once(run, rng.randrange(_SHARDS), 600)  # again: it is left as it is
    return kills
