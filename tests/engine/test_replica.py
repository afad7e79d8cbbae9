"""The thread of a model."""

import asyncio
import threading
from typing import Any

import anyio
import numpy as np
from fakes import Rules
from harness import PipelineHarness

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Replica, Scores
from virnuc_async.models.bundle import Bundle
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision, Settings


async def test_replica_works_on_one_permanent_thread(bundle: Bundle, bench: PipelineHarness) -> None:
    rules = Rules()
    await bench.run(rules)
    device = Device("cpu:7", "CPU", 1 << 30, threads=1)
    replica = Replica(device, bundle, Settings().precision.FP32)
    try:
        await replica.load()
        before = {thread.name for thread in threading.enumerate() if "cpu:7" in thread.name}
        for _, batch in rules.seen[:3]:
            scores = await replica.score(batch)
            assert scores.probabilities.dtype == np.float32
            np.testing.assert_allclose(scores.probabilities.sum(1), 1, atol=1e-6)
        assert {t.name for t in threading.enumerate() if "cpu:7" in t.name} == before
        assert len(before) == 1
        assert repr(replica) == "<Replica cpu:7 [3 batches done]>"
    finally:
        await replica.close()


async def test_a_replica_ends_what_it_has_begun_and_gives_up_what_it_has_not(
    bundle: Bundle, bench: PipelineHarness
) -> None:
    rules = Rules()
    await bench.run(rules)
    (_, first), (_, second), *_ = rules.seen
    begun, go_on, launched = threading.Event(), threading.Event(), []

    class Slow(Replica):
        def _submit(self, batch: Batch) -> Any:
            launched.append(batch)
            begun.set()
            go_on.wait()
            return super()._submit(batch)

    done: list[Scores] = []
    replica = Slow(Device("cpu:0", "CPU", 1 << 30, threads=1), bundle, Precision.FP32)

    async def score(batch: Batch) -> None:
        done.append(await replica.score(batch))

    try:
        await replica.load()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(score, first)
            tasks.start_soon(score, second)
            await asyncio.to_thread(begun.wait)
            tasks.cancel_scope.cancel()
            go_on.set()
    finally:
        await replica.close()
    assert launched == [first]
    assert [scores.batch for scores in done] == [first]
    assert np.isfinite(done[0].probabilities).all()
