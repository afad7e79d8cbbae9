"""What stays in memory of a batch that failed: nothing, as soon as its halves are scored."""

import asyncio
import gc
import traceback
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Rules
from harness import PipelineHarness

from virnuc_async.engine.devices import Device
from virnuc_async.engine.engine import Engine
from virnuc_async.engine.replica import Replica, Scores
from virnuc_async.engine.transfers import HostTransfers, Transfers
from virnuc_async.engine.worker import Worker
from virnuc_async.errors import DeviceLost, DeviceOutOfMemory, NoDevicesLeft, Stage
from virnuc_async.log import logger
from virnuc_async.models.bundle import Bundle
from virnuc_async.networks.model import Model
from virnuc_async.networks.packing import Packed
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision


@dataclass
class DeepFailure:
    """An encoder that fails deep inside for batches of more than *room* tokens; it remembers its tensors."""

    encoder: Any
    error: Callable[[], RuntimeError]
    room: int
    alive: list["weakref.ref[torch.Tensor]"] = field(default_factory=list)

    def embeddings(self, packed: Packed) -> torch.Tensor:
        if packed.ids.numel() <= self.room:
            # Of a failed batch, nothing may live while its halves are scored.
            assert not [tensor for tensor in self.alive if tensor() is not None]
            return self.encoder.embeddings(packed)
        return self._layer(self._activations(packed), 5)

    def _activations(self, packed: Packed) -> torch.Tensor:
        tensor = torch.ones(packed.ids.numel(), 8)
        self.alive.append(weakref.ref(tensor))
        return tensor

    def _layer(self, hidden: torch.Tensor, depth: int) -> torch.Tensor:
        larger = hidden * 2
        self.alive.append(weakref.ref(larger))
        if depth:
            return self._layer(larger, depth - 1)
        try:
            raise self.error()
        except RuntimeError as error:
            raise self.error() from error


@dataclass
class FailingReplicas:
    """Makes replicas whose ESM-2 fails."""

    bundle: Bundle
    error: Callable[[], RuntimeError]
    room: int
    made: list[DeepFailure] = field(default_factory=list)

    def make(self, device: Device) -> Replica:
        replica = Replica(device, self.bundle, Precision.FP32)
        load = replica._load

        def load_and_wrap() -> str | None:
            warning = load()
            model = replica._model
            assert model is not None
            self.made.append(DeepFailure(model.protein, self.error, self.room))
            model.protein = self.made[-1]  # type: ignore[assignment]
            return warning

        replica._load = load_and_wrap  # type: ignore[method-assign]
        return replica


@pytest.fixture(autouse=True)
def without_garbage_collection() -> Iterator[None]:
    """A cycle would be found some time, but too late for the halves."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
async def batches(bench: PipelineHarness) -> list[Batch]:
    rules = Rules()
    await bench.run(rules)
    return [batch for _, batch in rules.seen if len(batch) > 3][:2]


def out_of_memory() -> RuntimeError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def device_error() -> RuntimeError:
    return torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


async def one_by_one(batches: list[Batch]) -> AsyncGenerator[Batch, None]:
    for batch in batches:
        yield batch


def cpus(count: int) -> list[Device]:
    return [Device(f"cpu:{number}", "CPU", 1 << 30, threads=1) for number in range(count)]


async def test_nothing_of_a_batch_lives_when_its_halves_are_scored(
    bundle: Bundle, batches: list[Batch]
) -> None:
    room = min(batch.residues.ids.size for batch in batches) // 2 + 20
    replicas = FailingReplicas(bundle, out_of_memory, room)
    engine = Engine(cpus(1), replicas.make, max_tokens=1 << 20)
    async with engine.score(one_by_one(batches)) as scored:
        found = [done async for done in scored]
    assert sorted(orf for done in found for orf in done.batch.orfs.tolist()) == sorted(
        orf for batch in batches for orf in batch.orfs.tolist()
    )
    assert not any(done.failures for done in found)
    assert max(len(done.batch.split_path) for done in found) >= 1
    assert len(replicas.made[0].alive) >= 7
    assert not [tensor for tensor in replicas.made[0].alive if tensor() is not None]


async def test_nothing_of_a_batch_lives_after_its_device_was_lost(
    bundle: Bundle, batches: list[Batch]
) -> None:
    """Although the engine keeps the error, to be reported in the end."""
    replicas = FailingReplicas(bundle, device_error, 0)
    errors: list[NoDevicesLeft] = []
    try:
        async with Engine(cpus(1), replicas.make, max_tokens=1 << 20).score(one_by_one(batches)) as scored:
            async for _ in scored:
                pass
    except* NoDevicesLeft as group:
        errors += group.exceptions  # type: ignore[arg-type]
    assert isinstance(errors[0].lost[0].__cause__, torch.AcceleratorError)
    assert len(replicas.made[0].alive) >= 7
    assert not [tensor for tensor in replicas.made[0].alive if tensor() is not None]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (out_of_memory, DeviceOutOfMemory),
        (device_error, DeviceLost),
        (lambda: RuntimeError("a bug"), RuntimeError),
    ],
)
async def test_an_error_that_is_kept_keeps_no_tensor_but_its_lines(
    error: Callable[[], RuntimeError], expected: type[Exception], bundle: Bundle, batches: list[Batch]
) -> None:
    replicas = FailingReplicas(bundle, error, 0)
    replica = replicas.make(cpus(1)[0])
    try:
        await replica.load()
        with pytest.raises(expected) as kept:
            await replica.score(batches[0])
        assert not [tensor for tensor in replicas.made[0].alive if tensor() is not None]
        lines = "".join(traceback.format_exception(kept.value))
        assert lines.count("in _layer") > 2
    finally:
        await replica.close()


class Waiting(HostTransfers):
    """A device whose batches fail when they are waited for, on the second thread."""

    def __init__(self, error: Callable[[], RuntimeError], alive: list["weakref.ref[torch.Tensor]"]) -> None:
        super().__init__()
        self.error, self.alive = error, alive

    def wait(self) -> Any:
        results = torch.ones(1000)
        self.alive.append(weakref.ref(results))
        raise self.error()


class TwoThreads(Replica):
    """A replica that waits on a second thread, as on a GPU, and computes on the CPU."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(cpus(1)[0], bundle, Precision.FP32)
        self._collecting = ThreadPoolExecutor(1)

    def _select_device(self) -> None:
        pass

    async def idle(self) -> None:
        """Wait until both threads have let go of what they did last."""
        for thread in (self._thread, self._collecting):
            assert thread is not None
            await asyncio.wrap_future(thread.submit(lambda: None))


@pytest.mark.parametrize(
    ("error", "expected"), [(out_of_memory, DeviceOutOfMemory), (device_error, DeviceLost)]
)
async def test_what_fails_on_the_second_thread_keeps_nothing(
    error: Callable[[], RuntimeError], expected: type[Exception], bundle: Bundle, batches: list[Batch]
) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    submitted: list[weakref.ref[Any]] = []

    class Late(TwoThreads):
        def _take_transfers(self) -> Transfers:
            return Waiting(error, alive)

        def _queue(self, model: Model, batch: Batch, transfers: Transfers) -> None:
            super()._queue(model, batch, transfers)
            submitted.append(weakref.ref(transfers))

    replica = Late(bundle)
    try:
        await replica.load()
        with pytest.raises(expected) as kept:
            await replica.score(batches[0])
        await replica.idle()
        assert [tensor() for tensor in alive] == [None]
        # Nor does the future of either thread, or a frame that the error went through.
        assert [transfers() for transfers in submitted] == [None]
        assert "in wait" in "".join(traceback.format_exception(kept.value))
    finally:
        await replica.close()


async def test_nothing_of_a_batch_lives_after_it_was_scored(bundle: Bundle, batches: list[Batch]) -> None:
    """Not in the futures of the two threads either: what is in flight is page-locked memory."""
    submitted: list[weakref.ref[Any]] = []

    class Once(TwoThreads):
        def _take_transfers(self) -> Transfers:
            made = HostTransfers()
            submitted.append(weakref.ref(made))
            return made

        def _collect(self, batch: Batch, transfers: Transfers) -> Scores:
            scores = super()._collect(batch, transfers)
            self._idle.clear()
            return scores

    replica = Once(bundle)
    try:
        await replica.load()
        for batch in batches:
            await replica.score(batch)
            await replica.idle()
            assert [transfers() for transfers in submitted] == [None] * len(submitted)
        assert len(submitted) == len(batches)
    finally:
        await replica.close()


async def test_nothing_of_the_first_batch_lives_when_half_of_it_is_tried(bundle: Bundle) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    found: list[int] = []

    class Full(TwoThreads):
        def _queue(self, model: Model, batch: Batch, transfers: Transfers) -> None:
            assert not [tensor for tensor in alive if tensor() is not None]
            with self._errors.translated(batch.tokens, Stage.PROTEIN):
                activations = torch.ones(batch.tokens)
                alive.append(weakref.ref(activations))
                if batch.tokens > 600:
                    raise out_of_memory()
            found.append(batch.tokens)
            super()._queue(model, batch, transfers)

    replica = Full(bundle)
    worker = Worker(replica, 2048, logger)
    try:
        await replica.load()
        await worker.warm_up()
        assert repr(worker) == "<Worker cpu:0 [at most 512 tokens]>"
        assert len(alive) == 3
        assert 300 < found[0] <= 512
        assert not [tensor for tensor in alive if tensor() is not None]
    finally:
        await replica.close()


async def test_nothing_of_a_batch_lives_that_does_not_fit_when_it_is_computed_again(
    bundle: Bundle, batches: list[Batch]
) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    again: list[int] = []

    class Full(Replica):
        """Every ORF is computed again, in FP32, and two of them do not fit at the same time."""

        def _queue(self, model: Model, batch: Batch, transfers: Transfers) -> None:
            assert not [tensor for tensor in alive if tensor() is not None]
            super()._queue(model, batch, transfers)
            if model is not self._model:
                again.append(len(batch))
                activations = torch.ones(batch.tokens)
                alive.append(weakref.ref(activations))
                with self._errors.translated(batch.tokens, Stage.PROTEIN):
                    if len(batch) > 1:
                        raise out_of_memory()

        def _collect(self, batch: Batch, transfers: Transfers) -> Scores:
            scores = super()._collect(batch, transfers)
            scores.stage_codes[:] = 2 if len(again) < 2 else scores.stage_codes
            return scores

    replica = Full(cpus(1)[0], bundle, Precision.BF16)
    try:
        await replica.load()
        with pytest.raises(DeviceOutOfMemory) as kept:
            await replica.score(batches[0])
        assert kept.value.tokens == batches[0].tokens
        assert [tensor() for tensor in alive] == [None]
        first, _ = batches[0].halves()
        one = first.take(np.array([0]))
        assert (await replica.score(one)).recomputed == 1
        assert again == [len(batches[0]), 1]
        assert [tensor() for tensor in alive] == [None, None]
    finally:
        await replica.close()


async def test_weights_of_a_model_that_does_not_fit_are_freed(bundle: Bundle, tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    class Full(Replica):
        def _load(self) -> str | None:
            weights = torch.ones(1000)
            alive.append(weakref.ref(weights))
            with self._errors.translated(0, Stage.PROTEIN):
                raise out_of_memory()

    replica = Full(cpus(1)[0], bundle, Precision.FP32)
    with pytest.raises(DeviceLost, match="not enough memory for the model") as kept:
        await replica.load()
    assert alive[0]() is None
    assert isinstance(kept.value.__cause__, DeviceOutOfMemory)
    await replica.close()
