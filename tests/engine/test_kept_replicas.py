"""Replicas that outlive the run that loaded them."""

from collections.abc import AsyncGenerator

import numpy as np
import pytest
from fakes import FakeScorer, Rules, fake_devices

from virnuc_async import engine
from virnuc_async.engine.kept_replicas import KeptReplicas
from virnuc_async.engine.replica import largest_batch
from virnuc_async.engine.worker import BatchScorer
from virnuc_async.errors import DeviceLost, NoDevicesLeft, first_error
from virnuc_async.models.bundle import Bundle
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision, Settings

FP32 = Precision.FP32
(DEVICE,) = fake_devices(1)


class Counted:
    """Makes fake scorers, and keeps them."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.made: list[FakeScorer] = []

    def __call__(self, *given: object) -> FakeScorer:
        self.made.append(self.rules.scorer(*given))  # type: ignore[arg-type]
        return self.made[-1]


@pytest.fixture
def made() -> Counted:
    return Counted(Rules(warning="no kernels"))


def batch(tokens: int = 100) -> Batch:
    return largest_batch(tokens, 500)


async def score(keeper: KeptReplicas, bundle: Bundle, embeddings: bool = False, tokens: int = 100) -> int:
    """Score one batch as a run does; return how many were scored."""

    def make(device: engine.devices.Device) -> BatchScorer:
        return keeper(device, bundle, FP32, embeddings)

    async def batches() -> AsyncGenerator[Batch, None]:
        yield batch(tokens)

    running = engine.Engine([DEVICE], make, tokens)
    async with running.score(batches()) as scored:
        return len([one async for one in scored])


async def test_a_device_is_loaded_once_for_all_runs(made: Counted, bundle: Bundle) -> None:
    keeper = KeptReplicas(made)
    assert [await score(keeper, bundle) for _ in range(3)] == [1, 1, 1]
    assert len(made.made) == 1
    assert made.rules.open == {"fake:0"}
    assert made.rules.proofs == [("fake:0", 100)]  # its memory is known to be enough
    await keeper.close()
    assert made.rules.open == set()


async def test_each_run_is_told_the_warning_of_the_loading(made: Counted, bundle: Bundle) -> None:
    keeper = KeptReplicas(made)
    for _ in range(2):
        scorer = keeper(DEVICE, bundle, FP32, False)
        assert (await scorer.load(), scorer.name, scorer.depth) == ("no kernels", "fake:0", 2)
        assert scorer.peak_memory() == 0
        await scorer.close()
    await keeper.close()


async def test_larger_batches_are_tried_out(made: Counted, bundle: Bundle) -> None:
    keeper = KeptReplicas(made)
    for tokens in (100, 400, 200):
        await score(keeper, bundle, tokens=tokens)
    assert made.rules.proofs == [("fake:0", 100), ("fake:0", 400)]
    await keeper.close()


async def test_another_model_takes_the_place_of_the_first(made: Counted, bundle: Bundle) -> None:
    keeper = KeptReplicas(made)
    await score(keeper, bundle)
    opened: list[set[str]] = []
    scorer = keeper(DEVICE, bundle, FP32, True)
    made.made[1].load = _noting(made, opened, made.made[1].load)  # type: ignore[method-assign]
    await scorer.load()
    assert opened == [set()]  # the first was freed before
    await keeper.close()
    assert (len(made.made), made.rules.open) == (2, set())


def _noting(made: Counted, opened: list[set[str]], load):  # type: ignore[no-untyped-def]
    async def noted() -> str | None:
        opened.append(set(made.rules.open))
        return await load()

    return noted


async def test_a_lost_device_is_freed_and_tried_anew(made: Counted, bundle: Bundle) -> None:
    keeper = KeptReplicas(made)
    made.rules.lost = {"fake:0": 1}
    assert await score(keeper, bundle) == 1
    with pytest.raises(ExceptionGroup) as raised:
        await score(keeper, bundle)
    assert isinstance(first_error(raised.value), NoDevicesLeft)
    assert made.rules.open == set()
    made.rules.lost = {}
    assert await score(keeper, bundle) == 1
    assert len(made.made) == 2
    await keeper.close()


async def test_a_device_that_cannot_be_loaded_is_freed(made: Counted, bundle: Bundle) -> None:
    keeper = KeptReplicas(made)
    made.rules.lost = {"fake:0": -1}
    scorer = keeper(DEVICE, bundle, FP32, False)
    with pytest.raises(DeviceLost):
        await scorer.load()
    await scorer.close()
    assert made.rules.open == set()
    assert keeper(DEVICE, bundle, FP32, False) is not scorer
    await keeper.close()


async def test_the_model_itself_gives_the_same_scores_again(bundle: Bundle) -> None:
    keeper, (cpu,) = engine.KeptReplicas(), engine.choose(Settings(devices=("cpu",)))
    found = []
    for _ in range(2):
        scorer = keeper(cpu, bundle, FP32, False)
        await scorer.load()
        found.append((await scorer.score(batch())).probabilities)
        await scorer.close()
    assert np.array_equal(*found)
    assert np.isfinite(found[0]).all()
    await keeper.close()
