"""What ends a run is the last line of its run.log."""

import asyncio
from collections.abc import Callable

import anyio
import pytest
from fakes import FakeScorer, Rules
from harness import PipelineHarness

from virnuc_async.engine.devices import Device
from virnuc_async.errors import CannotWrite, DirectoryLockedError, NoDevicesLeft, VirnucError
from virnuc_async.log import why_cancelled
from virnuc_async.models.bundle import Bundle
from virnuc_async.runs.lock import LOCK
from virnuc_async.runs.plan import Intervals
from virnuc_async.settings import Precision


def last_line(bench: PipelineHarness) -> str:
    """Return the last line of run.log, without its time."""
    return (bench.out / "out" / "run.log").read_text().splitlines()[-1][20:]


class Failing(Rules):
    """Devices that raise *error*, which is not one of a device."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def scorer(self, device: Device, bundle: Bundle, precision: Precision, embeddings: bool) -> FakeScorer:
        scorer = super().scorer(device, bundle, precision, embeddings)
        scorer._scored = self._fail  # type: ignore[method-assign]
        return scorer

    async def _fail(self, _: object) -> None:  # type: ignore[return]
        raise self.error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TypeError("no such\nthing"), "ERROR    TypeError: no such; thing"),
        (KeyError("x"), "ERROR    KeyError: 'x'"),
        (VirnucError("a sentence.\nAnother"), "ERROR    a sentence.; Another"),
    ],
)
async def test_an_error_in_a_task(bench: PipelineHarness, error: Exception, line: str) -> None:
    with pytest.raises(type(error)) as caught:
        await bench.run(Failing(error), devices=2)
    assert caught.value is error
    assert last_line(bench) == line


async def test_an_error_of_the_run(bench: PipelineHarness) -> None:
    with pytest.raises(NoDevicesLeft) as caught:
        await bench.run(Rules(lost={"fake:0": 1}))
    assert last_line(bench) == f"ERROR    {caught.value}"


async def test_a_full_disk(bench: PipelineHarness) -> None:
    def fill(bench: PipelineHarness) -> None:
        (bench.out / "out" / "contigs.tsv").mkdir()

    with pytest.raises(CannotWrite) as caught:
        await run_until_paused(bench, fill)
    assert last_line(bench) == f"ERROR    {caught.value}"


async def test_a_lock_that_is_lost(bench: PipelineHarness) -> None:
    """It is found out by a task in the background, which cancels all others."""
    bench.intervals = Intervals(heartbeat=0.01)

    def lose(bench: PipelineHarness) -> None:
        (bench.out / "out" / LOCK).unlink()

    rules = Rules(pause_after=1)
    run = asyncio.create_task(bench.run(rules))
    await rules.paused.wait()
    lose(bench)
    await asyncio.sleep(0.1)
    rules.go_on.set()
    with pytest.raises(DirectoryLockedError) as caught:
        await run
    assert last_line(bench) == f"ERROR    {caught.value}"


async def run_until_paused(bench: PipelineHarness, then: Callable[[PipelineHarness], None]) -> None:
    rules = Rules(pause_after=1)
    run = asyncio.create_task(bench.run(rules))
    await rules.paused.wait()
    then(bench)
    rules.go_on.set()
    await run


@pytest.mark.parametrize("why", [None, "interrupted by SIGINT"])
async def test_a_run_that_is_cancelled(bench: PipelineHarness, why: str | None) -> None:
    rules = Rules(pause_after=1)
    if why:
        why_cancelled.set(lambda: why)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.run, rules)
            await rules.paused.wait()
            rules.go_on.set()
            scope.cancel()
    assert scope.cancelled_caught
    orfs = sum(len(batch) for _, batch in rules.seen)
    start, end = last_line(bench).split(" ORFs are kept (")
    assert start == f"WARNING  {why or 'cancelled'}; {orfs}"
    assert end.endswith("% of the work), and the same command resumes")


async def test_a_run_that_is_done(bench: PipelineHarness) -> None:
    await bench.run()
    assert last_line(bench).startswith("INFO     Viral: ")
