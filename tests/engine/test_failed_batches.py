"""What stays in memory of a batch that failed: nothing, as soon as its halves are scored."""

import gc
import traceback
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import Rules
from harness import PipelineHarness

from virnuc_async.engine.devices import Device
from virnuc_async.engine.engine import Engine
from virnuc_async.engine.replica import Replica
from virnuc_async.errors import DeviceLost, DeviceOutOfMemory, NoDevicesLeft, Stage
from virnuc_async.models.bundle import Bundle
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
    return torch.AcceleratorError("an illegal memory access was encountered")


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


async def test_weights_of_a_model_that_does_not_fit_are_freed(bundle: Bundle, tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    class Full(Replica):
        def _load(self) -> str | None:
            weights = torch.ones(1000)
            alive.append(weakref.ref(weights))
            with self._translated_errors(0, Stage.PROTEIN):
                raise out_of_memory()

    replica = Full(cpus(1)[0], bundle, Precision.FP32)
    with pytest.raises(DeviceLost, match="not enough memory for the model") as kept:
        await replica.load()
    assert alive[0]() is None
    assert isinstance(kept.value.__cause__, DeviceOutOfMemory)
    await replica.close()
