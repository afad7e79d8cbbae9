"""Faults that are not the devices' own: a thread that dies, a clock that jumps, a disk that is full."""

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np
import pytest
import torch
from fakes import Rules, fake_devices
from running import predict, summary, tables

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Replica
from virnuc_async.errors import DeviceLost, NoDevicesLeft
from virnuc_async.models.bundle import Bundle
from virnuc_async.pipeline import Plan, _Run, score_with
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.inputs import Contig, read_contigs
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.settings import Precision, Settings

CPU = Device("cpu:0", "CPU", 1 << 30, threads=1)


@pytest.fixture(scope="module")
def bundle(golden_bundle: Bundle) -> Bundle:
    return golden_bundle


def a_batch() -> Batch:
    rows = Ragged(np.full(20, 5, np.int32), np.array([12, 8]))
    return Batch(0, 0, "", np.arange(2), np.zeros((2, 3), np.int64), rows, rows)


# Devices


class Silent(Replica):
    """A device that does not answer any more once something has gone wrong."""

    def _is_responsive(self) -> bool:
        return False


@pytest.mark.parametrize("kind", [Replica, Silent])
async def test_an_error_without_a_type_is_a_bug_unless_the_device_is_dead(
    kind: type[Replica], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = kind(CPU, bundle, Precision.FP32)
    try:
        await replica.load()
        assert (await replica.score(a_batch())).probabilities.shape == (2, 2)

        def fails(*_: object) -> torch.Tensor:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`\nmore")

        monkeypatch.setattr(torch, "cat", fails)
        with pytest.raises((RuntimeError, DeviceLost)) as caught:
            await replica.score(a_batch())
    finally:
        monkeypatch.undo()
        await replica.close()
    if kind is Silent:
        assert str(caught.value) == (
            "cpu:0 failed: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"
        )
        assert isinstance(caught.value, DeviceLost)
    else:
        assert type(caught.value) is RuntimeError


async def test_a_device_that_cannot_even_be_chosen_is_lost_at_loading(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(_: int) -> None:
        raise torch.AcceleratorError("CUDA error: device not ready\nmore")

    monkeypatch.setattr(torch, "set_num_threads", fails)
    replica = Replica(CPU, bundle, Precision.FP32)
    try:
        with pytest.raises(DeviceLost, match="cpu:0 failed: CUDA error: device not ready$"):
            await replica.load()
    finally:
        await replica.close()
    assert capfd.readouterr() == ("", "")  # a thread's end is nobody else's to tell


async def test_loading_is_given_up_when_nobody_waits_for_it(bundle: Bundle) -> None:
    began, go_on = threading.Event(), threading.Event()

    class Slow(Replica):
        def _init_thread(self) -> None:
            began.set()
            go_on.wait()
            super()._init_thread()

    replica = Slow(CPU, bundle, Precision.FP32)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(replica.load)
        await asyncio.to_thread(began.wait)
        tasks.cancel_scope.cancel()
    closing = asyncio.create_task(replica.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert replica._model is None


# Threads


class Panic(BaseException):
    """As Rust code gives up: no Exception, and nothing that anybody expects."""


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("records", [0, 9, 30])
async def test_a_reading_thread_that_dies_ends_the_run_which_resumes(
    records: int, devices: int, source: Path, bundle: Bundle, tmp_path: Path
) -> None:
    settings = Settings(tokens_per_batch=400)
    plan = Plan((str(source),), settings, bundle, fake_devices(devices), 15)

    def read(path: str) -> Iterator[Contig]:
        for number, contig in enumerate(read_contigs(path)):
            if number == records:
                raise Panic
            yield contig

    rules = Rules()
    run = _Run(plan, tmp_path / "out", rules.scorer, read)
    with pytest.raises(BaseExceptionGroup) as caught:
        await play(run)
    assert caught.group_contains(Panic)
    run.stop_reading()
    assert not rules.open
    again = Rules()
    finished = await score_with(plan, tmp_path / "out", again.scorer)
    assert len(rules.seen) + len(again.seen) == finished.counts["batches"]
    await score_with(plan, tmp_path / "calm", Rules().scorer)
    assert tables(tmp_path / "out") == tables(tmp_path / "calm")


async def play(run: _Run) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.watch)
        tasks.start_soon(run.heartbeats)
        tasks.start_soon(run.go, "", tasks.cancel_scope)


# The clock


async def test_a_clock_that_jumps_changes_nothing(
    source: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan((str(source),), Settings(tokens_per_batch=400), bundle, fake_devices(2), 15)
    await score_with(plan, tmp_path / "calm", Rules().scorer)
    real, jumps = time.time, iter(range(10**6))
    # An hour back and a day forth in turn, as a machine without a battery that finds its time server.
    monkeypatch.setattr(time, "time", lambda: real() + (-3600, 86400)[next(jumps) % 2])
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    with pytest.raises(NoDevicesLeft):
        await score_with(plan, tmp_path / "out", Rules(lost={"fake:0": 1, "fake:1": 2}).scorer)
    finished = await score_with(plan, tmp_path / "out", Rules().scorer)
    assert tables(tmp_path / "out") == tables(tmp_path / "calm")
    assert 0 <= finished.seconds["total"] < 60
    assert finished.reproducible


# The disk: a real one that is full, or that cannot be written


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB of its own; who runs the tests may be allowed to mount one, or not."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("mounting a disk is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, room: int) -> Path:
    """Leave *room* KiB on *disk*."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - room * 1024))
    return ballast


@pytest.mark.parametrize("more", [(), ("--embeddings",)], ids=["tables", "embeddings"])
def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(
    more: tuple[str, ...], source: Path, small_disk: Path, tmp_path: Path
) -> None:
    """Whatever does not fit: the lock, a batch, a table, the embeddings, or the log, which is let go."""
    words = ("--esm-batch-size", "400", *more)
    assert predict(source, tmp_path / "calm", *words).code == 0
    codes = []
    for room in (0, 4, 12, 28, 44, 56, 64, 72, 84, 100, 160, 400):
        out = small_disk / f"out{room}"
        ballast = fill(small_disk, room)
        ended = predict(source, out, *words)
        codes.append(ended.code)
        if ended.code:
            assert ended.code == 1
            assert "No space left on device" in ended.err or "disk is full" in ended.err
            assert "Traceback" not in ended.err
        ballast.unlink()
        assert predict(source, out, *words).code == 0
        assert tables(out) == tables(tmp_path / "calm")
        assert summary(out)["finished"]
        shutil.rmtree(out)
    assert codes[0] == 1
    assert codes[-1] == 0
    assert 3 < codes.count(1) < 12


def test_a_disk_that_becomes_read_only(source: Path, small_disk: Path, tmp_path: Path) -> None:
    out = small_disk / "out"
    assert predict(source, tmp_path / "calm").code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = predict(source, out)
    assert (ended.code, ended.err.splitlines()[-1]) == (1, f"virnuc-async: {out}: Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert predict(source, out).code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = predict(source, out)
    assert (ended.code, ended.err.splitlines()[-1]) == (1, f"virnuc-async: {out}: Read-only file system")
    assert tables(out) == tables(tmp_path / "calm")
