"""A run in an object store by its commands, and workers that are processes and are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from object_stores import Bucket
from running import predict, run, some_reads, tables
from support import ROOT, fasta

from virnuc_async.distributed.storage import RemoteRun

READS = fasta(some_reads(12, 620).items()).encode()


def test_a_run_in_a_bucket_has_the_tables_of_one_machine(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    url, place = bucket.put("in/reads.fa", READS), f"{bucket.root}/run/"
    planned = run("plan", url, place, "--devices", "cpu")
    assert planned.code == 0, planned.err
    assert f"predict --plan {place} --shard 0/1" in planned.out
    assert planned.out.endswith(f"Then: virnuc-async merge {place} OUT/\n")
    assert run("merge", place, tmp_path / "out").code == 1
    scored = predict("--plan", place, "--shard", "0/1")
    assert (scored.code, f"published: {bucket.root}/run/shards/00000-of-00001" in scored.err) == (0, True)
    again = predict("--plan", place, "--shard", "0/1")
    assert (again.code, "shard 0/1 is published already" in again.err) == (0, True)
    status = run("status", place)
    assert (
        status.code,
        f"1 shard: 1 done; 100% done\nAll are done. Next: virnuc-async merge {place} OUT/\n" in status.out,
    ) == (0, True)
    no_place = run("merge", place)
    assert (no_place.code, f"merge {place} OUT/" in no_place.err) == (64, True)
    assert run("merge", place, tmp_path / "out").code == 0
    assert predict(url, tmp_path / "one").code == 0
    assert tables(tmp_path / "out") == tables(tmp_path / "one")


@pytest.mark.parametrize("command", [("status",), ("merge",), ("predict", "--shard", "0/1", "--plan")])
def test_a_run_that_is_not_there_says_how_to_make_it(
    command: tuple[str, ...], bucket: Bucket, tmp_path: Path
):
    out = [str(tmp_path / "out")] if command == ("merge",) else []
    done = run(*command, f"{bucket.root}/none", *out)
    assert done.code == 1
    assert f"{bucket.root}/none: contains no plan.json. Plan the run first: virnuc-async plan" in done.err


@pytest.mark.slow
def test_workers_that_are_killed_and_race_leave_the_tables_of_one_machine(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url, place = bucket.put("in/reads.fa", fasta(some_reads(300, 620).items()).encode()), f"{bucket.root}/run"
    assert run("plan", url, place, "--devices", "cpu", "--segment-bases", "60000").code == 0

    def start(shard: int, disk: str) -> "subprocess.Popen[bytes]":
        (tmp_path / disk).mkdir(exist_ok=True)
        words = ("predict", "--plan", place, "--shard", f"{shard}/2", "--devices", "cpu", "--quiet")
        environment = {**os.environ, "TMPDIR": str(tmp_path / disk)}
        return subprocess.Popen([sys.executable, "-m", "virnuc_async", *words], cwd=ROOT, env=environment)

    def at_work(worker: "subprocess.Popen[bytes]") -> bool:
        locks = list(tmp_path.glob("[ab]/*/*/shards/*/run.lock"))
        return any(f'"pid": {worker.pid}' in lock.read_text() for lock in locks if lock.exists())

    # Killed at several moments while they score, on two disks; then both go on, and race to publish.
    for seconds in (0.0, 0.2, 0.4):
        workers = [start(shard, disk) for shard in (0, 1) for disk in ("a", "b")]
        while not all(worker.poll() is not None or at_work(worker) for worker in workers):
            time.sleep(0.05)
        time.sleep(seconds)
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    workers = [start(shard, disk) for shard in (0, 1) for disk in ("a", "b")]
    assert [worker.wait() for worker in workers] == [0, 0, 0, 0]
    for shard in (0, 1):
        assert RemoteRun(place, tmp_path).published(f"{shard:05}-of-00002") is not None
    local = tmp_path / "local"
    assert run("plan", url, local, "--devices", "cpu", "--segment-bases", "60000").code == 0
    assert predict("--plan", local, "--shard", "0/1").code == 0
    assert (run("merge", place, tmp_path / "out").code, run("merge", local).code) == (0, 0)
    assert tables(tmp_path / "out") == tables(local)
