"""How far shards are, by what is in their directories: no store, a lock, a progress.json, a shard.json."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_stores import Bucket
from plans import planned
from running import python, some_reads
from support import fasta

from virnuc_async.distributed.merge import merge_shards
from virnuc_async.distributed.plan import SHARDS, RunPlan, Shard, write_plan
from virnuc_async.distributed.planning import make_plan
from virnuc_async.distributed.run_place import RunPlace
from virnuc_async.distributed.shard import run_shard
from virnuc_async.distributed.status import RunStatus, ShardState, ShardStatus, ranges, read_status
from virnuc_async.distributed.storage import RemoteRun
from virnuc_async.engine.replica import Replica
from virnuc_async.errors import NoPlan
from virnuc_async.fileio import Directory
from virnuc_async.runs.lock import LOCK, Lock
from virnuc_async.runs.output_directory import MERGED
from virnuc_async.runs.progress_file import NAME as PROGRESS
from virnuc_async.settings import Settings

LENGTHS = [[1000] * 8, [1000, 2000]]  # ten segments, of 11,000 bases
NOW = "2026-11-29T12:00:00+00:00"


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    found = planned(LENGTHS, 1000)
    write_plan(found, tmp_path)
    return found


def shard_directory(run: Path, number: int, of: int = 10) -> Path:
    path = run / SHARDS / Shard(number, of).name
    path.mkdir(parents=True)
    return path


@cache
def finished_shard() -> dict[str, Any]:
    """What a real shard that is finished says in its shard.json."""
    with TemporaryDirectory() as name:
        run = Path(name) / "run"
        (run.parent / "a.fa").write_text(fasta(some_reads(1, 90).items()))
        on_cpu = Settings(devices="cpu", threads=1)
        anyio.run(make_plan, run.parent / "a.fa", run, on_cpu)
        anyio.run(run_shard, run, Shard(0, 1), on_cpu)
        (path,) = run.glob("shards/*/shard.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def finish(path: Path, plan: RunPlan, number: int, of: int = 10) -> None:
    """Write the shard.json of a shard that is finished into *path*."""
    value = finished_shard() | {"plan": plan.digest, "shard": [number, of]}
    (path / "shard.json").write_text(json.dumps(value))


def progress(path: Path, state: str, share: float | None, **more: Any) -> None:
    """Write a progress.json as a run does."""
    facts = {
        "state": state,
        "share": share,
        "updated": NOW,
        "message": None,
        "process": {"host": "node7", "pid": 99},
        "orfs": {"done": 55},
        "devices": [{"orfs_per_second": 100.5}, {"orfs_per_second": 20}],
    }
    (path / PROGRESS).write_text(json.dumps({**facts, **more}))


def lock_as(path: Path, age: float = 0.0, **owner: Any) -> None:
    """Lock *path* as a process does that wrote its last sign *age* seconds ago."""
    with Directory(path) as directory:
        lock = Lock(directory)
        content = json.loads((path / LOCK).read_text())
        lock.release()
    (path / LOCK).write_text(json.dumps(content | owner))
    then = time.time() - age
    os.utime(path / LOCK, (then, then))


def only(run: Path) -> ShardStatus:
    """Return the status of shard 3 of 10, the only one that has begun."""
    (division,) = read_status(run).divisions
    assert division.of == 10
    others = {shard for shard in division.shards if shard.number != 3}
    assert {(other.state, other.share) for other in others} == {(ShardState.MISSING, 0.0)}
    return division.shards[3]


def test_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(NoPlan):
        read_status(tmp_path)


def test_before_any_shard_has_begun(tmp_path: Path, plan: RunPlan) -> None:
    assert read_status(tmp_path) == RunStatus(plan, ())
    (tmp_path / SHARDS).mkdir()
    (tmp_path / SHARDS / "notes.txt").touch()
    (tmp_path / SHARDS / "00010-of-00010").mkdir()  # there is none
    (tmp_path / SHARDS / "00003-of-00010").touch()
    assert read_status(tmp_path) == RunStatus(plan, ())


def test_a_shard_that_is_done(tmp_path: Path, plan: RunPlan) -> None:
    path = shard_directory(tmp_path, 3)
    progress(path, "finished", 1.0)
    finish(path, plan, 3)
    assert only(tmp_path) == ShardStatus(3, ShardState.DONE, 1.0, 55, 0.0, "node7", 99, NOW, None)
    # Its directory is as good without it.
    (path / PROGRESS).unlink()
    assert only(tmp_path) == ShardStatus(3, ShardState.DONE, 1.0)


@pytest.mark.parametrize("wrong", ["plan", "shard", "content"])
def test_a_shard_of_something_else(wrong: str, tmp_path: Path, plan: RunPlan) -> None:
    path = shard_directory(tmp_path, 3)
    finish(path, planned(LENGTHS, 999) if wrong == "plan" else plan, 4 if wrong == "shard" else 3)
    if wrong == "content":
        (path / "shard.json").write_text("[]")
    found = only(tmp_path)
    assert found.state is ShardState.FAILED
    expected = "its shard.json is damaged" if wrong == "content" else "it is a shard of another plan"
    assert (found.message or "").startswith(expected)


def test_a_shard_whose_files_are_made_again(tmp_path: Path, plan: RunPlan) -> None:
    path = shard_directory(tmp_path, 3)
    finish(path, plan, 3)
    lock_as(path, 5, boot="another")
    assert only(tmp_path).state is ShardState.DONE
    (path / LOCK).unlink()
    with Directory(path) as directory:
        lock = Lock(directory)
        assert only(tmp_path).state is ShardState.RUNNING
        lock.release()
    assert only(tmp_path).state is ShardState.DONE


def test_a_shard_that_runs_here(tmp_path: Path, plan: RunPlan) -> None:
    path = shard_directory(tmp_path, 3)
    with Directory(path) as directory:
        lock = Lock(directory)
        assert only(tmp_path) == ShardStatus(3, ShardState.RUNNING)
        progress(path, "scoring", 0.25)
        os.utime(path / LOCK, (1, 1))  # the kernel knows better than the file
        expected = ShardStatus(3, ShardState.RUNNING, 0.25, 55, 120.5, "node7", 99, NOW)
        assert only(tmp_path) == expected
        lock.release()
    found = only(tmp_path)
    assert (found.state, found.share, found.orfs_per_second) == (ShardState.STOPPED, 0.25, 0.0)
    assert found.message == "it ended before it was done"


def test_a_shard_that_was_killed_here(tmp_path: Path, plan: RunPlan) -> None:
    path = shard_directory(tmp_path, 3)
    progress(path, "scoring", 0.25)
    script = f"""
import os, signal
from pathlib import Path
from virnuc_async.fileio import Directory
from virnuc_async.runs.lock import Lock
lock = Lock(Directory(Path({str(path)!r})))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    found = only(tmp_path)
    assert found.state is ShardState.STOPPED
    assert found.message is not None
    assert found.message.endswith(") was killed, or died")


@pytest.mark.parametrize(("age", "state"), [(5, ShardState.RUNNING), (90, ShardState.STOPPED)])
def test_a_shard_on_another_machine(age: float, state: ShardState, tmp_path: Path, plan: RunPlan) -> None:
    path = shard_directory(tmp_path, 3)
    progress(path, "scoring", 0.25)
    lock_as(path, age, host="node7", boot="another", pid=99, since="then")
    found = only(tmp_path)
    assert (found.state, found.share) == (state, 0.25)
    expected = None if state is ShardState.RUNNING else "no sign for 90 s of process 99 on node7 (since then)"
    assert found.message == expected


def test_a_lock_that_is_being_written(tmp_path: Path, plan: RunPlan) -> None:
    path = shard_directory(tmp_path, 3)
    (path / LOCK).touch()
    assert only(tmp_path).state is ShardState.RUNNING
    os.utime(path / LOCK, (1, 1))
    assert only(tmp_path).state is ShardState.STOPPED


@pytest.mark.parametrize(
    ("state", "message", "expected"),
    [
        ("failed", "disk full", (ShardState.FAILED, "disk full")),
        ("failed", None, (ShardState.FAILED, None)),
        ("interrupted", None, (ShardState.STOPPED, "it was interrupted")),
        ("writing", None, (ShardState.STOPPED, "it ended before it was done")),
        ("finished", None, (ShardState.STOPPED, "it ended before it was done")),
    ],
)
def test_a_shard_that_ended(
    state: str, message: str | None, expected: tuple[ShardState, str | None], tmp_path: Path, plan: RunPlan
) -> None:
    path = shard_directory(tmp_path, 3)
    progress(path, state, 0.5, message=message)
    assert only(tmp_path) == ShardStatus(3, expected[0], 0.5, 55, 0.0, "node7", 99, NOW, expected[1])


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("state", "share", "updated", "message", "process", "orfs", "devices")


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(KEYS), Json) | Json)
def test_any_progress_is_read(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    run = tmp_path_factory.mktemp("run")
    write_plan(planned(LENGTHS, 1000), run)
    path = shard_directory(run, 3)
    (path / PROGRESS).write_text(json.dumps(value))
    found = only(run)
    assert found.state in (ShardState.STOPPED, ShardState.FAILED)
    assert 0 <= found.share <= 1


def test_how_far_all_of_them_are(tmp_path: Path, plan: RunPlan) -> None:
    finish(shard_directory(tmp_path, 9), plan, 9)  # of 2,000 bases
    progress(shard_directory(tmp_path, 0), "failed", 0.5)
    progress(shard_directory(tmp_path, 1, 12), "failed", 0.2)
    ten, twelve = read_status(tmp_path).divisions
    assert (ten.of, ten.share) == (10, round(2500 / 11_000, 4))
    assert ten.counts == {
        ShardState.DONE: 1,
        ShardState.RUNNING: 0,
        ShardState.STOPPED: 0,
        ShardState.FAILED: 1,
        ShardState.MISSING: 8,
    }
    assert ten.numbers(ShardState.DONE, ShardState.FAILED) == [0, 9]
    # Two of twelve have no segment: there is nothing to do for them.
    assert (twelve.of, twelve.share) == (12, round(200 / 11_000, 4))
    assert twelve.numbers(ShardState.DONE) == [10, 11]


def test_inputs_without_bases(tmp_path: Path) -> None:
    plan = planned([[]], 1000)
    write_plan(plan, tmp_path)
    finish(shard_directory(tmp_path, 0, 1), plan, 0, 1)
    (division,) = read_status(tmp_path).divisions
    assert (division.share, division.shards[0].state) == (1.0, ShardState.DONE)


def test_a_run_that_cannot_be_written(tmp_path: Path, plan: RunPlan) -> None:
    path = shard_directory(tmp_path, 3)
    lock_as(path, 5, boot="another")
    (tmp_path / SHARDS).chmod(0o555)
    try:
        assert only(tmp_path).state is ShardState.RUNNING
    finally:
        (tmp_path / SHARDS).chmod(0o755)


def test_nothing_is_left_in_the_directory(tmp_path: Path, plan: RunPlan) -> None:
    shard_directory(tmp_path, 3)
    read_status(tmp_path)
    assert [path.name for path in (tmp_path / SHARDS).iterdir()] == ["00003-of-00010"]


def test_a_thousand_shards(tmp_path: Path) -> None:
    plan = planned([[10] * 1000], 10)
    write_plan(plan, tmp_path)
    first = shard_directory(tmp_path, 0, 1000)
    progress(first, "scoring", 0.5)
    lock_as(first, boot="another")
    for number in range(1, 1000):
        shutil.copytree(first, tmp_path / SHARDS / Shard(number, 1000).name)
    (division,) = read_status(tmp_path).divisions
    assert division.counts[ShardState.RUNNING] == 1000
    assert division.share == 0.5


def test_as_a_dictionary(tmp_path: Path, plan: RunPlan) -> None:
    progress(shard_directory(tmp_path, 1, 2), "failed", 0.5, message="why")
    status = read_status(tmp_path)
    value = json.loads(json.dumps(status.as_dict()))
    assert value["plan"] == {
        "digest": plan.digest,
        "version": "1.0",
        "model": "tiny-500",
        "devices": "CPU (AVX2)",
        "precision": "fp32",
        "files": 2,
        "records": 10,
        "bases": 11000,
        "segments": 10,
    }
    (division,) = value["divisions"]
    assert division["shards"][1] == json.loads(json.dumps(asdict(status.divisions[0].shards[1])))
    assert division["counts"] == {"done": 0, "running": 0, "stopped": 0, "failed": 1, "missing": 1}


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([3, 7, 8, 9, 11], "3,7-9,11"), ([1, 3, 5], "1,3,5")],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_it_imports_no_torch() -> None:
    assert python("import sys, virnuc_async.distributed.status; print('torch' in sys.modules)") == "False\n"


def test_a_run_in_an_object_store(bucket: Bucket, tmp_path: Path) -> None:
    plan, url = planned(LENGTHS, 1000), f"{bucket.root}/run"
    worker = RemoteRun(url, tmp_path / "worker")
    write_plan(plan, tmp_path)
    assert worker.publish_plan(tmp_path)
    run = worker.require_plan()
    for number, of_plan in ((1, plan), (3, planned(LENGTHS, 2000))):
        finish(shard_directory(run.directory, number), of_plan, number)
        assert worker.publish(run, Shard(number, 10).name)
    failing, working = (shard_directory(run.directory, number) for number in (5, 7))
    with suppress(ZeroDivisionError), worker.announced(failing.name, failing):
        progress(failing, "failed", 0.5, message="why")
        raise ZeroDivisionError
    with Directory(working) as directory, worker.announced(working.name, working, 0.01):
        lock = Lock(directory)
        progress(working, "running", 0.25)
        while f"run/{SHARDS}/{working.name}/{PROGRESS}" not in bucket.objects():
            time.sleep(0.01)
        (division,) = read_status(url, tmp_path / "elsewhere").divisions
        lock.release()
    assert (division.of, division.share) == (10, round((1000 + 500 + 250) / 11_000, 4))
    assert division.shards[1].state is ShardState.DONE
    another = ShardState.FAILED, "it is a shard of another plan"
    assert (division.shards[3].state, division.shards[3].message) == another
    assert (division.shards[5].state, division.shards[5].message) == (ShardState.FAILED, "why")
    assert (division.shards[7].state, division.shards[7].share) == (ShardState.RUNNING, 0.25)
    # The signs of a worker that has ended well are gone.
    (division,) = read_status(url, tmp_path / "elsewhere").divisions
    assert division.shards[7] == ShardStatus(7, ShardState.MISSING)


def test_a_worker_elsewhere_that_was_killed_is_seen_by_the_age_of_its_last_sign(
    bucket: Bucket, tmp_path: Path
) -> None:
    write_plan(planned(LENGTHS, 1000), tmp_path)
    worker = RemoteRun(f"{bucket.root}/run", tmp_path / "worker")
    worker.publish_plan(tmp_path)
    working = shard_directory(worker.require_plan().directory, 3)
    lock_as(working, host="elsewhere")
    bucket.put(f"run/{SHARDS}/{working.name}/{LOCK}", (working / LOCK).read_bytes())
    with RunPlace(worker.url, tmp_path / "worker").seen() as (_, directory):
        written = (directory / SHARDS / working.name / LOCK).stat().st_mtime
    assert abs(written - time.time()) < 5  # by the server's clock
    (division,) = read_status(worker.url, tmp_path / "worker").divisions
    assert division.shards[3].state is ShardState.RUNNING


async def test_of_real_shards(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(fasta(some_reads(12, 300).items()))
    run, on_cpu = tmp_path / "run", Settings(devices="cpu", threads=1)
    await make_plan(tmp_path / "a.fa", run, on_cpu, segment_bases=1800)
    seen: list[ShardStatus] = []

    def look_and_make(*arguments: Any) -> Replica:
        (division,) = read_status(run).divisions
        seen.append(division.shards[1])
        return Replica(*arguments)

    await run_shard(run, Shard(1, 2), on_cpu, make_scorer=look_and_make)
    assert [one.state for one in seen] == [ShardState.RUNNING]
    (division,) = read_status(run).divisions
    assert (division.of, division.share, division.numbers(ShardState.DONE)) == (2, 0.5, [1])
    done = division.shards[1]
    assert (done.host, done.pid) == (os.uname().nodename, os.getpid())
    assert done.orfs
    await run_shard(run, Shard(0, 2), on_cpu)
    (division,) = read_status(run).divisions
    assert (division.share, division.numbers(ShardState.DONE)) == (1.0, [0, 1])
    assert not read_status(run).is_merged
    merge_shards(run)
    assert read_status(run).is_merged
    (run / MERGED).write_text("[]")
    assert not read_status(run).is_merged
