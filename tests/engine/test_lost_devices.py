"""What belongs to a lost device is never freed; the other devices go on, and the program ends as usual."""

import gc
import subprocess
import sys
import weakref
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from fakes import Rules
from harness import PipelineHarness

from virnuc_async.engine.devices import Device
from virnuc_async.engine.engine import Engine
from virnuc_async.engine.replica import Replica
from virnuc_async.engine.transfers import HostMemory, HostTransfers, Transfers, copy_to
from virnuc_async.errors import DeviceLost
from virnuc_async.models.bundle import Bundle
from virnuc_async.networks.packing import Packed
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision

ENDING = """
import os, sys
from virnuc_async.engine.lost_devices import keep_until_exit

class Recorded:
    "Page-locked memory: freeing it makes torch record an event, which ends the process on a lost device."
    def __del__(self):
        os._exit(134)

kept = Recorded()
{keep}
del kept
print("the others have finished")
"""


@pytest.mark.parametrize(
    ("keep", "code"), [("keep_until_exit(kept)", 0), ("import builtins; builtins.kept = [kept]", 134)]
)
def test_nothing_of_it_is_freed_when_the_interpreter_ends(keep: str, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDING.format(keep=keep)], capture_output=True, text=True, check=False
    )
    # In the other case the finalizer is run: this test would notice.
    assert ended.returncode == code
    assert ended.stderr == ""
    assert code or ended.stdout == "the others have finished\n"


@dataclass
class Card:
    """A card with rules: it breaks at a batch, and from then on nothing of it may be freed."""

    breaks_at: int | None = None
    batches: int = 0
    is_broken: bool = False
    crimes: list[str] = field(default_factory=list)  # what would have ended the process

    def compute(self) -> None:
        """Raise what CUDA raises from the first illegal access on."""
        self.is_broken |= self.batches == self.breaks_at
        self.batches += 1
        if self.is_broken:
            error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")
            error.error_code = 700  # type: ignore[attr-defined]
            raise error

    def free(self, what: str) -> None:
        if self.is_broken:
            self.crimes.append(what)


class CardTransfers(HostTransfers):
    """Copies through memory of the host that is known to the card."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self._card = card
        self._memory = HostMemory(self._allocate)

    def _allocate(self, size: int) -> torch.Tensor:
        block = torch.empty(size, dtype=torch.uint8)
        weakref.finalize(block, self._card.free, f"{size} bytes of page-locked memory").atexit = False
        return block

    def begin(self) -> None:
        super().begin()
        self._memory.reuse()

    def to_device(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        return copy_to(torch.device("cpu"), tensors, self._memory)


@dataclass
class CardEncoder:
    encoder: Any
    card: Card

    def embeddings(self, packed: Packed) -> torch.Tensor:
        self.card.compute()
        return self.encoder.embeddings(packed)  # type: ignore[no-any-return]


class CardReplica(Replica):
    """A replica on a card with rules; it computes on the CPU."""

    def __init__(self, device: Device, bundle: Bundle, card: Card) -> None:
        super().__init__(device, bundle, Precision.FP32)
        self.card = card

    def _load(self) -> str | None:
        warning = super()._load()
        assert self._model is not None
        self._model.protein = CardEncoder(self._model.protein, self.card)  # type: ignore[assignment]
        weakref.finalize(self._model, self.card.free, "the model").atexit = False
        return warning

    def _take_transfers(self) -> Transfers:
        if not self._idle:
            made = CardTransfers(self.card)
            weakref.finalize(made, self.card.free, "events").atexit = False
            self._transfers.append(made)
            self._idle.append(made)
        return self._idle.popleft()


@pytest.fixture
async def batches(bench: PipelineHarness) -> list[Batch]:
    rules = Rules()
    await bench.run(rules)
    return [batch for _, batch in rules.seen] * 3


async def one_by_one(batches: list[Batch]) -> AsyncGenerator[Batch, None]:
    for batch in batches:
        yield batch


async def test_a_sticky_error_on_one_device_and_the_others_finish(
    bundle: Bundle, batches: list[Batch]
) -> None:
    cards = {"cpu:0": Card(breaks_at=2), "cpu:1": Card(), "cpu:2": Card(breaks_at=0)}
    made: dict[str, CardReplica] = {}

    def make(device: Device) -> Replica:
        made[device.name] = CardReplica(device, bundle, cards[device.name])
        return made[device.name]

    devices = [Device(name, "CPU", 1 << 30, threads=1) for name in cards]
    async with Engine(devices, make, max_tokens=1 << 20).score(one_by_one(batches)) as scored:
        found = [done async for done in scored]
    assert sorted(orf for done in found for orf in done.batch.orfs.tolist()) == sorted(
        orf for batch in batches for orf in batch.orfs.tolist()
    )
    assert not any(done.failures for done in found)
    assert cards["cpu:0"].is_broken
    assert cards["cpu:2"].is_broken
    made.clear()
    gc.collect()
    assert [card.crimes for card in cards.values()] == [[], [], []]


async def test_a_device_that_dies_after_its_last_batch_is_not_freed_either(
    bundle: Bundle, batches: list[Batch]
) -> None:
    card = Card()

    class Dying(CardReplica):
        def _is_responsive(self) -> bool:
            return not self.card.is_broken

    replica = Dying(Device("cpu:0", "CPU", 1 << 30, threads=1), bundle, card)
    await replica.load()
    await replica.score(batches[0])
    card.is_broken = True
    await replica.close()
    del replica
    gc.collect()
    assert card.crimes == []


async def test_everything_of_a_working_device_is_freed_when_it_is_closed(
    bundle: Bundle, batches: list[Batch]
) -> None:
    freed: list[str] = []
    card = Card()
    card.free = freed.append  # type: ignore[method-assign]
    replica = CardReplica(Device("cpu:0", "CPU", 1 << 30, threads=1), bundle, card)
    await replica.load()
    await replica.score(batches[0])
    assert freed == []
    await replica.close()
    gc.collect()
    assert len(freed) >= 3
    assert {"the model", "events"} < set(freed)
    await replica.close()
    with pytest.raises(RuntimeError):
        await replica.score(batches[0])


async def test_a_batch_that_has_not_begun_when_the_replica_is_closed_is_not_computed(
    bundle: Bundle, batches: list[Batch]
) -> None:
    class Closing(CardReplica):
        def _submit(self, batch: Batch) -> Transfers:
            self._is_closed = True  # as if it were closed while this batch was waiting
            return super()._submit(batch)

    replica = Closing(Device("cpu:0", "CPU", 1 << 30, threads=1), bundle, Card())
    await replica.load()
    with pytest.raises(DeviceLost, match="cpu:0 failed: it was closed"):
        await replica.score(batches[0])
    replica._is_closed = False
    await replica.close()
