"""Faults of the environment: a device without an answer, a dying thread, a jumping clock, a full disk."""

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
from running import fill, predict, summary, tables

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Replica
from virnuc_async.errors import DeviceLost, NoDevicesLeft
from virnuc_async.models.bundle import Bundle
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.settings import Precision, Settings

CPU = Device("cpu:0", "CPU", 1 << 30, threads=1)


@pytest.fixture(scope="module")
def bundle(golden_bundle: Bundle) -> Bundle:
    return golden_bundle


def make_batch() -> Batch:
    rows = Ragged(np.full(20, 5, np.int32), np.array([12, 8]))
    return Batch(0, 0, "", np.arange(2), np.zeros((2, 3), np.int64), rows, rows)


# Devices


class Unresponsive(Replica):
    """A device that does not respond any more after an error."""

    def _is_responsive(self) -> bool:
        return False


@pytest.mark.parametrize("kind", [Replica, Unresponsive])
async def test_an_error_without_a_type_is_a_bug_unless_the_device_is_dead(
    kind: type[Replica], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = kind(CPU, bundle, Precision.FP32)
    try:
        await replica.load()
        assert (await replica.score(make_batch())).probabilities.shape == (2, 2)

        def fails(*_: object) -> torch.Tensor:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`\nmore")

        monkeypatch.setattr(torch, "cat", fails)
        with pytest.raises((RuntimeError, DeviceLost)) as caught:
            await replica.score(make_batch())
    finally:
        monkeypatch.undo()
        await replica.close()
    if kind is Unresponsive:
        assert str(caught.value) == (
            "cpu:0 failed: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"
        )
        assert isinstance(caught.value, DeviceLost)
    else:
        assert type(caught.value) is RuntimeError


async def test_a_device_that_cannot_be_selected_is_lost_while_loading(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(_: int) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nmore")

    monkeypatch.setattr(torch, "set_num_threads", fails)
    replica = Replica(CPU, bundle, Precision.FP32)
    try:
        with pytest.raises(DeviceLost, match="cpu:0 failed: CUDA error: unspecified launch failure$"):
            await replica.load()
    finally:
        await replica.close()
    assert capfd.readouterr() == ("", "")  # the ended thread prints nothing


async def test_loading_is_abandoned_when_it_is_cancelled(bundle: Bundle) -> None:
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
    """Like a panic in Rust code: not an Exception."""


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
    with pytest.raises(Panic):
        await execute(plan, tmp_path / "out", rules.scorer, read=read)
    assert not rules.open
    again = Rules()
    finished = await execute(plan, tmp_path / "out", again.scorer)
    assert len(rules.seen) + len(again.seen) == finished.counts["batches"]
    await execute(plan, tmp_path / "calm", Rules().scorer)
    assert tables(tmp_path / "out") == tables(tmp_path / "calm")
    await execute(plan, tmp_path / "undisturbed", Rules().scorer)
    assert tables(tmp_path / "out") == tables(tmp_path / "undisturbed")


# The clock


async def test_a_clock_that_jumps_changes_nothing(
    source: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan((str(source),), Settings(tokens_per_batch=400), bundle, fake_devices(2), 15)
    await execute(plan, tmp_path / "calm", Rules().scorer)
    await execute(plan, tmp_path / "undisturbed", Rules().scorer)
    real, jumps = time.time, iter(range(10**6))
    # Back by an hour and forward by a day in turn, like the clock of a machine that finds its time server.
    monkeypatch.setattr(time, "time", lambda: real() + (-3600, 86400)[next(jumps) % 2])
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    with pytest.raises(NoDevicesLeft):
        await execute(plan, tmp_path / "out", Rules(lost={"fake:0": 1, "fake:1": 2}).scorer)
    finished = await execute(plan, tmp_path / "out", Rules().scorer)
    assert tables(tmp_path / "out") == tables(tmp_path / "undisturbed")
    assert 0 <= finished.seconds["total"] < 60
    assert finished.reproducible


# The disk: a real one that is full, or read-only


@pytest.mark.parametrize(
    "more",
    [pytest.param((), id="tables", marks=pytest.mark.slow), pytest.param(("--embeddings",), id="embeddings")],
)
def test_a_full_disk_is_reported_and_the_run_resumes_once_there_is_space(
    more: tuple[str, ...], source: Path, small_disk: Path, tmp_path: Path
) -> None:
    """What does not fit may be the lock, a batch, a table, the embeddings, or the log, which is optional."""
    options = ("--esm-batch-size", "400", *more)
    assert predict(source, tmp_path / "undisturbed", *options).code == 0
    codes = []
    for free_kib in (0, 4, 12, 28, 44, 56, 64, 72, 84, 100, 160, 400):
        out = small_disk / f"out{free_kib}"
        ballast = fill(small_disk, free_kib)
        ended = predict(source, out, *options)
        codes.append(ended.code)
        if ended.code:
            assert ended.code == 1
            assert "No space left on device" in ended.err or "disk is full" in ended.err
            assert "Traceback" not in ended.err
            # Whole or not at all, and nothing half made.
            assert not (out / "summary.json").exists() or not summary(out)["finished"]
            assert not [*out.glob(".*")]
        ballast.unlink()
        assert predict(source, out, *options).code == 0
        assert tables(out) == tables(tmp_path / "undisturbed")
        assert summary(out)["finished"]
        shutil.rmtree(out)
    assert codes[0] == 1
    assert codes[-1] == 0
    assert 3 < codes.count(1) < 12


def test_a_disk_that_becomes_read_only(source: Path, small_disk: Path, tmp_path: Path) -> None:
    out = small_disk / "out"
    assert predict(source, tmp_path / "undisturbed").code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = predict(source, out)
    assert (ended.code, ended.err.splitlines()[-1]) == (1, f"virnuc-async: {out}: Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert predict(source, out).code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = predict(source, out)
    assert (ended.code, ended.err.splitlines()[-1]) == (1, f"virnuc-async: {out}: Read-only file system")
    assert tables(out) == tables(tmp_path / "undisturbed")
