"""What a run logs."""

import asyncio
import threading
from dataclasses import replace

import pytest
from fakes import Rules
from harness import PipelineHarness

from virnuc_async.engine.device_state import DeviceState
from virnuc_async.engine.devices import Device
from virnuc_async.engine.gpu_memory import MemoryUse
from virnuc_async.pipeline import execute
from virnuc_async.runs.hardware import Hardware
from virnuc_async.runs.messages import format_device
from virnuc_async.runs.plan import Intervals, Plan
from virnuc_async.settings import Precision

CPU = Device("cpu:0", "CPU (AVX512)", 24 << 30, threads=2)
CARD = Device("cuda:0", "P4", 8 << 30, (6, 1))


@pytest.mark.parametrize(
    ("device", "precision", "line"),
    [
        (CPU, Precision.FP32, "cpu:0: CPU (AVX512), 24 GiB, 2 threads, FP32, 2,048 tokens per batch"),
        (
            replace(CPU, has_native_bf16=True),
            Precision.FP32,
            "cpu:0: CPU (AVX512), 24 GiB, 2 threads, FP32 (BF16 is native here: faster with large models, "
            "by --precision bf16), 2,048 tokens per batch",
        ),
        (
            replace(CPU, has_native_bf16=True),
            Precision.BF16,
            "cpu:0: CPU (AVX512), 24 GiB, 2 threads, BF16 enabled, 2,048 tokens per batch "
            "(3,072 before scaling by memory or settings)",
        ),
        (
            CARD,
            Precision.FP32,
            "cuda:0: P4, 8 GiB, capability 6.1, FP32 (FP16 needs a GPU of capability 7.0 or higher, BF16 one "
            "of 8.0), 2,048 tokens per batch",
        ),
        (
            replace(CARD, model="A100", capability=(8, 0)),
            Precision.FP32,
            "cuda:0: A100, 8 GiB, capability 8.0, FP32, 2,048 tokens per batch",
        ),
    ],
)
def test_the_line_of_a_device(device: Device, precision: Precision, line: str) -> None:
    assert format_device(device, Hardware((device,), device.kind, precision, 2048)) == line


async def test_a_gpu_that_is_nearly_full_is_logged_once(bench: PipelineHarness) -> None:
    asked: list[str] = []
    enough = threading.Event()

    def device_state(device: Device) -> DeviceState:
        asked.append(device.name)
        if len(asked) == 9:
            enough.set()
        used = {"cuda:0": 70, "cuda:1": 76}.get(device.name)
        return DeviceState(MemoryUse(used << 30, 80 << 30) if used else None)

    gpus = [Device(f"cuda:{n}", "GPU", 80 << 30, (9, 0), index=n, uuid=f"GPU-{n}") for n in range(3)]
    second = replace(gpus[0], name="cuda:0/1")  # on the same card: asked about once
    plan = Plan(
        (str(bench.source),),
        bench.settings,
        bench.bundle,
        (*gpus, second),
        bench.window,
        device_state,
        intervals=Intervals(devices=0.01),
    )
    rules = Rules(pause_after=1)
    task = asyncio.create_task(execute(plan, bench.out / "out", rules.scorer))
    await asyncio.to_thread(enough.wait)
    rules.go_on.set()
    await task
    log = (bench.out / "out" / "run.log").read_text()
    assert "DEBUG    cuda:0: 70.0 of 80.0 GiB in use (88%)" in log
    assert log.count("cuda:1 is nearly full: 76.0 of 80.0 GiB in use (95%)") == 1
    assert "cuda:0 is nearly full" not in log
    assert set(asked) == {"cuda:0", "cuda:1", "cuda:2"}
