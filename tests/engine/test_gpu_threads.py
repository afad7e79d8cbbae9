"""A replica on a GPU with rules: which threads use CUDA, what they wait for, and what they leave there."""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Rules
from harness import PipelineHarness

from virnuc_async.engine import transfers
from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Replica, Scores
from virnuc_async.engine.transfers import GpuTransfers, Transfers
from virnuc_async.errors import DeviceLost, DeviceOutOfMemory, Stage
from virnuc_async.models.bundle import Bundle
from virnuc_async.networks.model import Model
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision

GPU = Device("cuda:1", "H100", 80 << 30, (9, 0), index=1)


@dataclass
class Cuda:
    """
    CUDA with its rule: a thread that has not selected a device uses the first one.

    *context* collects who would make a context there.
    """

    selected: dict[str, int] = field(default_factory=dict)  # thread -> device
    contexts: list[str] = field(default_factory=list)
    spinning: list[str] = field(default_factory=list)  # who waits on an event that keeps a core busy
    emptied: list[str] = field(default_factory=list)
    recorded: int = 0

    def use(self, what: str) -> None:
        """Note the use of CUDA by this thread."""
        name = threading.current_thread().name
        if self.selected.get(name) != GPU.index:
            self.contexts.append(f"{what} on {name}")

    def install(self, patch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
                self.blocking, self.is_timed = blocking, enable_timing

            def record(self) -> None:
                cuda.use("record")
                cuda.recorded += 1

            def synchronize(self) -> None:
                cuda.use("synchronize")
                if not self.blocking:
                    cuda.spinning.append(threading.current_thread().name)

            def elapsed_time(self, other: "Event") -> float:
                cuda.use("elapsed_time")
                assert self.is_timed
                assert other.is_timed
                return 5.0

        class Stream:
            def synchronize(self) -> None:
                cuda.use("synchronize a stream")

        def select(device: torch.device) -> None:
            cuda.selected[threading.current_thread().name] = device.index

        def empty() -> None:
            cuda.use("empty_cache")
            cuda.emptied.append(threading.current_thread().name)

        stream = Stream()
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "set_device", select)
        patch.setattr(torch.cuda, "set_stream", lambda _: cuda.use("set_stream"))
        patch.setattr(torch.cuda, "current_stream", lambda: stream)
        patch.setattr(torch.cuda, "empty_cache", empty)
        patch.setattr(torch.cuda, "synchronize", lambda _: cuda.use("synchronize the device"))
        patch.setattr(torch.cuda, "max_memory_allocated", lambda _: 123)
        patch.setattr(transfers, "page_locked", lambda size: torch.empty(size, dtype=torch.uint8))


class GpuReplica(Replica):
    """The replica of a GPU, whose tensors are on the CPU."""

    def __init__(self, bundle: Bundle, embeddings: bool = False) -> None:
        super().__init__(GPU, bundle, Precision.FP32, embeddings)
        self.tight = False

    def _load(self) -> str | None:
        self._init_thread()
        cpu = torch.device("cpu")
        self._model = Model.load(self._bundle.directory, self._bundle.shapes, cpu, self._dtype)
        return None

    def _take_transfers(self) -> Transfers:
        if not self._idle:
            self._transfers.append(GpuTransfers(torch.device("cpu")))
            self._idle.append(self._transfers[-1])
        return self._idle.popleft()

    def _queue(self, model: Model, batch: Batch, transfers: Transfers) -> None:
        super()._queue(model, batch, transfers)
        if self.tight:
            raise DeviceOutOfMemory(self.name, batch.tokens, Stage.PROTEIN)

    def _is_responsive(self) -> bool:
        torch.cuda.synchronize(GPU.torch_device)
        return True


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    cuda.install(monkeypatch)
    return cuda


@pytest.fixture
async def batches(bench: PipelineHarness) -> list[Batch]:
    rules = Rules()
    await bench.run(rules)
    return [batch for _, batch in rules.seen][:6]


async def score_all(replica: Replica, batches: list[Batch]) -> list[Scores]:
    """Score *batches* all at once, and one after another."""
    try:
        await replica.load()
        together = await asyncio.gather(*map(replica.score, batches))
        return [*together, *[await replica.score(batch) for batch in batches]]
    finally:
        await replica.close()


async def test_no_thread_makes_a_context_on_the_first_gpu_or_keeps_a_core_busy(
    cuda: Cuda, bundle: Bundle, batches: list[Batch]
) -> None:
    replica = GpuReplica(bundle, embeddings=True)
    found = await score_all(replica, batches)
    assert replica.peak_memory() == 123
    assert cuda.contexts == []
    assert cuda.spinning == []
    assert set(cuda.selected) == {"replica cuda:1_0", "replica cuda:1 waits_0"}
    assert cuda.recorded == 2 * len(found)
    assert {scores.seconds for scores in found} == {0.005}


async def test_what_comes_back_through_memory_that_is_used_again(
    cuda: Cuda, bundle: Bundle, batches: list[Batch]
) -> None:
    """To the bit what the CPU computes, for batches in flight at the same time and one after another."""
    cpu = Replica(Device("cpu:0", "CPU", 1 << 30, threads=1), bundle, Precision.FP32, embeddings=True)
    expected = await score_all(cpu, batches)
    for one, other in zip(
        await score_all(GpuReplica(bundle, embeddings=True), batches), expected, strict=True
    ):
        assert one.batch is other.batch
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.stage_codes, other.stage_codes)
        np.testing.assert_array_equal(one.embeddings, other.embeddings)  # type: ignore[arg-type]
        np.testing.assert_array_equal(one.similarity, other.similarity)


async def test_a_batch_that_does_not_fit_leaves_its_memory_to_other_libraries(
    cuda: Cuda, bundle: Bundle, batches: list[Batch]
) -> None:
    replica = GpuReplica(bundle)
    try:
        await replica.load()
        replica.tight = True
        with pytest.raises(DeviceOutOfMemory):
            await replica.score(batches[0])
        assert cuda.emptied == ["replica cuda:1_0"]
        replica.tight = False
        first = await replica.score(batches[0])
        # What was copied for it is used again, once the device has read it.
        assert len(replica._transfers) == 1
        assert np.isfinite(first.probabilities).all()
    finally:
        await replica.close()
    assert cuda.emptied == ["replica cuda:1_0"] * 2
    assert cuda.contexts == []
    assert replica._model is None
    assert not replica._transfers


async def test_the_largest_batch_is_tried_once_and_is_that_of_both_encoders(
    cuda: Cuda, bundle: Bundle
) -> None:
    tried: list[Batch] = []

    class Watched(GpuReplica):
        def _queue(self, model: Model, batch: Batch, transfers: Transfers) -> None:
            tried.append(batch)
            super()._queue(model, batch, transfers)

    replica = Watched(bundle)
    try:
        await replica.load()
        await replica.warm_up(2048)
    finally:
        await replica.close()
    (batch,) = tried
    longest = bundle.length // 3
    assert 2048 - longest - 3 < batch.tokens <= 2048
    assert batch.residues.lengths.max() == longest + 2
    # A token for each base, where letters are unknown, and the two at its ends.
    assert batch.nucleotides.lengths.max() == 3 * longest + 1 + 2


async def test_a_card_that_had_failed_before_is_lost_when_it_is_loaded(bundle: Bundle) -> None:
    card = Device("cuda:1", "unknown GPU", 0, (0, 0), index=1, failure="GPU is lost: see nvidia-smi")
    replica: Any = Replica(card, bundle, Precision.FP32)
    with pytest.raises(DeviceLost, match=r"cuda:1 failed: GPU is lost: see nvidia-smi"):
        await replica.load()
