"""A device loads and chooses its kernels while another one scores, in one process."""

import anyio
import numpy as np
import pytest
import torch
from fakes import Rules
from harness import PipelineHarness

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Replica
from virnuc_async.models.bundle import Bundle
from virnuc_async.networks.attention import select_kernel
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision

_LOADS = 6


class Choosing(Replica):
    """Chooses kernels as a GPU's replica does: each is run, and compared with the reference."""

    def _load(self) -> str | None:
        warning = super()._load()
        for is_biased in (False, True):
            select_kernel(torch.device("cpu"), torch.float32, 1, 16, is_biased)
        return warning


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
async def test_scores_are_the_same_while_another_device_loads(
    bundle: Bundle, bench: PipelineHarness, precision: Precision
) -> None:
    rules = Rules()
    await bench.run(rules)
    batches = [batch for _, batch in rules.seen[:4]]
    scoring = Replica(Device("cpu:0", "CPU", 1 << 30), bundle, precision)
    await scoring.load()
    expected = [(await scoring.score(batch)).probabilities for batch in batches]
    rounds, is_done = 0, anyio.Event()

    async def assert_same(replica: Replica, batch: Batch, probabilities: object) -> None:
        np.testing.assert_array_equal((await replica.score(batch)).probabilities, probabilities)

    async def load() -> None:
        for _ in range(_LOADS):
            loading = Choosing(Device("cpu:1", "CPU", 1 << 30), bundle, precision)
            await loading.load()
            await assert_same(loading, batches[0], expected[0])
            await loading.close()
        is_done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load)
        while not is_done.is_set():
            for batch, probabilities in zip(batches, expected, strict=True):
                await assert_same(scoring, batch, probabilities)
            rounds += 1
    await scoring.close()
    assert rounds >= _LOADS
