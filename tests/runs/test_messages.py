"""What a run logs."""

import asyncio
import threading
from dataclasses import replace

from fakes import Rules
from harness import PipelineHarness

from virnuc_async.engine.devices import Device
from virnuc_async.engine.gpu_memory import MemoryUse
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Intervals, Plan


async def test_a_gpu_that_is_nearly_full_is_logged_once(bench: PipelineHarness) -> None:
    asked: list[str] = []
    enough = threading.Event()

    def memory_use(device: Device) -> MemoryUse | None:
        asked.append(device.name)
        if len(asked) == 9:
            enough.set()
        used = {"cuda:0": 70, "cuda:1": 76}.get(device.name)
        return MemoryUse(used << 30, 80 << 30) if used else None

    gpus = [Device(f"cuda:{n}", "GPU", 80 << 30, (9, 0), index=n, uuid=f"GPU-{n}") for n in range(3)]
    second = replace(gpus[0], name="cuda:0/1")  # on the same card: asked about once
    plan = Plan(
        (str(bench.source),),
        bench.settings,
        bench.bundle,
        (*gpus, second),
        bench.window,
        memory_use,
        intervals=Intervals(memory=0.01),
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
