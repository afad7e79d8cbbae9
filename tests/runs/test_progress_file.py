"""``progress.json``: its form, its truth, and that it never ends a run."""

import asyncio
import json
import os
import time
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import jsonschema
import pytest
from fakes import Rules, fake_devices
from harness import PipelineHarness

from virnuc_async.engine.device_state import DeviceState
from virnuc_async.engine.gpu_memory import MemoryUse
from virnuc_async.errors import NoDevicesLeft
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Intervals, Plan

SCHEMA = json.loads((files("virnuc_async") / "outputs/schemas/progress.schema.json").read_text("utf-8"))


def progress(out: Path) -> dict[str, Any]:
    """Return what is written of a run, if it is of the form that is documented."""
    found: dict[str, Any] = json.loads((out / "progress.json").read_text("utf-8"))
    jsonschema.validate(found, SCHEMA, jsonschema.Draft202012Validator)
    return found


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.fixture
def out(bench: PipelineHarness) -> Path:
    return bench.out / "out"


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


async def test_a_run_that_goes_on(bench: PipelineHarness, out: Path) -> None:
    rules = Rules(pause_after=3)
    began = time.time()
    state = DeviceState(MemoryUse(3 << 30, 80 << 30), 88.0, 55.0)
    plan = Plan(
        (str(bench.source),) * 2,
        bench.settings,
        bench.bundle,
        fake_devices(2),
        bench.window,
        lambda _: state,
        intervals=Intervals(progress_file=0.01),
    )
    task = asyncio.create_task(execute(plan, out, rules.scorer))
    await rules.paused.wait()
    found = progress(out)
    for _ in range(1000):
        if found["orfs"]["done"] == sum(len(batch) for _, batch in rules.seen):
            break
        await anyio.sleep(0.01)
        found = progress(out)
    assert found["orfs"]["done"] == sum(len(batch) for _, batch in rules.seen)
    assert [found[key] for key in ("version", "state", "stage", "message")] == [1, "scoring", "scoring", None]
    assert found["process"] == {"host": os.uname().nodename, "pid": os.getpid()}
    assert began - 2 < seconds(found["started"]) <= seconds(found["updated"]) < time.time() + 1
    assert found["interval_seconds"] == 0.01
    assert found["orfs"]["done_before"] == 0
    assert found["orfs"]["total_is_estimate"] is (found["orfs"]["read"] != found["orfs"]["total"])
    assert found["files"] == {"done": 0, "total": 2}
    assert [device["name"] for device in found["devices"]] == ["fake:0", "fake:1"]
    for device in found["devices"]:
        assert device["state"] == "scoring"
        assert (device["memory_bytes"], device["memory_total_bytes"]) == (3 << 30, 80 << 30)
        assert (device["utilization_percent"], device["temperature_celsius"]) == (88.0, 55.0)
    assert sum(device["orfs"] for device in found["devices"]) == found["orfs"]["done"]
    assert sum(device["share"] for device in found["devices"]) == pytest.approx(1.0, abs=1e-3)
    rules.go_on.set()
    summary = await task
    found = progress(out)
    assert (found["state"], found["stage"], found["share"]) == ("finished", "finished", 1.0)
    assert found["seconds_left"] == 0
    assert found["orfs"]["done"] == found["orfs"]["total"] == found["orfs"]["read"] == summary.counts["orfs"]
    assert found["files"] == {"done": 2, "total": 2}
    assert found["ends"] == found["updated"]


async def test_the_states_that_a_run_goes_through(bench: PipelineHarness, out: Path) -> None:
    bench.intervals = Intervals(progress_file=0.0001)
    seen: list[str] = []

    async def watch() -> None:
        for _ in range(10**9):
            if (out / "progress.json").exists():
                state = json.loads((out / "progress.json").read_bytes())["state"]
                seen.extend([state] * (not seen or seen[-1] != state))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await bench.run(devices=2)
        tasks.cancel_scope.cancel()
    seen.append(progress(out)["state"])
    order = ["reading", "loading", "scoring", "writing", "finished"]
    assert [state for state in order if state in seen] == [*dict.fromkeys(seen)]
    assert {"scoring", "finished"} <= set(seen)


async def test_a_run_that_was_stopped_and_one_that_has_failed(bench: PipelineHarness, out: Path) -> None:
    rules = Rules(pause_after=2)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.run, rules)
            await rules.paused.wait()
            rules.go_on.set()
            scope.cancel()
    stopped = progress(out)
    assert (stopped["state"], stopped["message"], stopped["seconds_left"], stopped["ends"]) == (
        "interrupted",
        None,
        None,
        None,
    )
    assert stopped["orfs"]["done"] == sum(len(batch) for _, batch in rules.seen)
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 1}))
    failed = progress(out)
    assert failed["state"] == "failed"
    assert "it fell off the bus" in failed["message"]
    assert failed["orfs"]["done_before"] == stopped["orfs"]["done"] < failed["orfs"]["done"]
    summary = await bench.run()
    assert progress(out)["orfs"]["done"] == summary.counts["orfs"]


async def test_a_file_that_cannot_be_written_is_said_once_and_ends_nothing(
    bench: PipelineHarness, out: Path
) -> None:
    await bench.run(Rules(), out="calm")
    bench.intervals = Intervals(progress_file=0.001)
    rules = Rules(pause_after=1)
    task = asyncio.create_task(bench.run(rules))
    await rules.paused.wait()
    (out / "progress.json").unlink()
    (out / "progress.json").mkdir()
    for _ in range(1000):
        if "progress.json cannot be written" in (out / "run.log").read_text():
            break
        await anyio.sleep(0.01)
    await anyio.sleep(0.05)  # it is tried again
    rules.go_on.set()
    assert (await task).finished
    log = (out / "run.log").read_text()
    assert log.count("WARNING  progress.json cannot be written (Is a directory); the run goes on") == 1
    assert bench.tables() == bench.tables("calm")
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


async def test_it_is_not_touched_by_a_finished_run(bench: PipelineHarness, out: Path) -> None:
    await bench.run()
    before = (out / "progress.json").stat()
    await bench.run()
    after = (out / "progress.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
