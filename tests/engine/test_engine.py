"""The engine alone: batches in, scored batches out, and nothing left running; it has no store here."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from fakes import FakeScorer, Rules, fake_devices, p_virus
from support import ragged

from virnuc_async.engine.devices import Device
from virnuc_async.engine.engine import Engine, EngineEvents
from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import DeviceLost, NoDevicesLeft, Stage
from virnuc_async.log import logger
from virnuc_async.sequences.batches import Batch

LENGTHS = [[9, 8, 7, 6], [6, 6, 5], [5, 4, 4, 4, 3], [3, 2], [2, 2, 2], [1]]  # tokens of each ORF, by batch
TOKENS = max(map(sum, LENGTHS))


def make_batch(number: int, first: int, lengths: list[int]) -> Batch:
    rows = ragged([[orf + 1] * length for orf, length in enumerate(lengths, first)])
    orfs = np.arange(first, first + len(lengths))
    return Batch(0, number, "", orfs, np.zeros((len(lengths), 3), np.int64), rows, rows)


def all_batches(copies: int = 3) -> list[Batch]:
    batches: list[Batch] = []
    for lengths in LENGTHS * copies:
        first = int(batches[-1].orfs[-1]) + 1 if batches else 0
        batches.append(make_batch(len(batches), first, lengths))
    return batches


async def stream(batches: Iterable[Batch], closed: list[bool] | None = None) -> AsyncGenerator[Batch, None]:
    try:
        for batch in batches:
            await anyio.lowlevel.checkpoint()
            yield batch
    finally:
        if closed is not None:
            closed.append(True)


class Seen(EngineEvents):
    """Remembers what an engine reports."""

    def __init__(self) -> None:
        self.ready: list[str] = []
        self.closed: list[tuple[str, int]] = []

    def device_ready(self, device: str) -> None:
        self.ready.append(device)

    def device_closed(self, device: str, peak_memory: int) -> None:
        self.closed.append((device, peak_memory))


def engine(rules: Rules, devices: int, events: EngineEvents | None = None) -> Engine:
    make: Callable[[Device], FakeScorer] = lambda device: FakeScorer(device.name, rules, None)  # noqa: E731
    return Engine(fake_devices(devices), make, TOKENS, events)


async def score_all(rules: Rules, devices: int, events: EngineEvents | None = None) -> list[ScoredBatch]:
    async with engine(rules, devices, events).score(stream(all_batches())) as scored:
        return [batch async for batch in scored]


def by_orf(scored: Iterable[ScoredBatch]) -> dict[int, float]:
    """Return the score of each ORF; each must be there once."""
    found: dict[int, float] = {}
    for done in scored:
        for row, orf in enumerate(done.batch.orfs.tolist()):
            assert orf not in found
            found[orf] = float(done.probabilities[row, 1])
    return found


EXPECTED = {
    orf: float(p_virus(tokens))
    for batch in all_batches()
    for orf, tokens in zip(
        batch.orfs.tolist(), np.split(batch.residues.ids, np.cumsum(batch.residues.lengths)[:-1]), strict=True
    )
}


async def stream_in_turns(rules: Rules, devices: int) -> AsyncGenerator[Batch, None]:
    """Yield batches so that every device has one before any goes on; *rules* pause after no batch."""
    for number, batch in enumerate(all_batches()):
        if number == devices:
            await anyio.wait_all_tasks_blocked()
            rules.go_on.set()
        yield batch


async def test_every_orf_has_its_own_score_once(count: int) -> None:
    rules, events = Rules(pause_after=0, depth=1), Seen()
    async with engine(rules, count, events).score(stream_in_turns(rules, count)) as stream:
        scored = [batch async for batch in stream]
    assert by_orf(scored) == EXPECTED
    names = {f"fake:{number}" for number in range(count)}
    assert {done.device for done in scored} == names == set(events.ready)
    assert dict(events.closed) == dict.fromkeys(names, 0)
    assert not rules.open
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_batches_that_do_not_fit_are_split(count: int) -> None:
    rules = Rules(room=9)
    scored = await score_all(rules, count)
    assert by_orf(scored) == EXPECTED
    assert all(batch.tokens <= 9 for _, batch in rules.seen)
    paths = {done.batch.split_path for done in scored if done.batch.number == 0}
    assert paths == {"00", "01", "10", "11"}  # 30 tokens: 17 and 13, then each ORF alone


async def test_an_orf_that_fits_nowhere_fails_and_the_others_do_not(count: int) -> None:
    scored = await score_all(Rules(room=8), count)
    failed = {
        int(done.batch.orfs[row]): stage for done in scored for row, (stage, _) in done.failures.items()
    }
    assert failed == dict.fromkeys((0, 18, 36), Stage.PROTEIN)  # those of nine tokens
    assert {orf: p for orf, p in by_orf(scored).items() if orf not in failed} == {
        orf: p for orf, p in EXPECTED.items() if orf not in failed
    }


async def test_the_batches_of_a_lost_device_go_to_the_others() -> None:
    rules, events = Rules(lost={"fake:1": 0}, pause_after=0, depth=1), Seen()
    async with engine(rules, 3, events).score(stream_in_turns(rules, 3)) as stream:
        scored = [batch async for batch in stream]
    assert by_orf(scored) == EXPECTED  # the batch that it had, too
    assert {done.device for done in scored} == {"fake:0", "fake:2"}
    assert {name for name, _ in events.closed} == {"fake:0", "fake:1", "fake:2"}


@pytest.mark.parametrize("devices", [1, 3, 5])
async def test_too_many_lost_devices_end_it(devices: int) -> None:
    rules = Rules(lost={f"fake:{number}": number for number in range(devices)})
    got: list[ScoredBatch] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        async with engine(rules, devices).score(stream(all_batches())) as scored:
            got.extend([batch async for batch in scored])
    assert caught.group_contains(NoDevicesLeft)
    assert len(by_orf(got)) == sum(len(batch) for _, batch in rules.seen)  # what was scored has arrived
    assert not rules.open
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_device_that_does_not_load_is_not_waited_for() -> None:
    rules = Rules(lost={"fake:0": -1})
    scored = await score_all(rules, 2)
    assert by_orf(scored) == EXPECTED
    assert {done.device for done in scored} == {"fake:1"}


async def test_warm_up_finds_what_fits_before_the_first_batch() -> None:
    rules = Rules(room=10, proves=True)
    scored = await score_all(rules, 1)
    assert by_orf(scored) == EXPECTED
    assert [tokens for _, tokens in rules.proofs] == [30, 15, 7]
    assert all(len(batch) == 1 or batch.tokens <= 7 for _, batch in rules.seen)


async def test_a_warning_of_every_device_is_logged_once() -> None:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    try:
        await score_all(Rules(warning="no such kernel"), 3)
    finally:
        logger.remove(sink)
    assert lines == ["no such kernel"]


async def test_cancelled_it_hands_over_what_has_begun_and_begins_no_more(count: int) -> None:
    rules, got, closed = Rules(pause_after=2, depth=1), [], []

    async def work() -> None:
        async with engine(rules, count).score(stream(all_batches(), closed)) as scored:
            async for done in scored:
                got.append(done)  # noqa: PERF401 (what came before the end is kept)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await rules.paused.wait()
        tasks.cancel_scope.cancel()
        rules.go_on.set()
    assert [done.batch.number for done in got] == [batch.number for _, batch in rules.seen]
    assert 2 <= len(got) <= 2 + count
    assert closed == [True]
    assert not rules.open
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_receiver_that_fails_ends_the_devices(count: int) -> None:
    rules, closed = Rules(), []
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012
        async with engine(rules, count).score(stream(all_batches(20), closed)) as scored:
            async for _ in scored:
                raise OSError("the disk is full")
    assert caught.group_contains(OSError)
    assert len(rules.seen) < 20 * len(LENGTHS)
    assert closed == [True]
    assert not rules.open
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_receiver_that_has_enough_may_leave(count: int) -> None:
    rules, closed = Rules(), []
    async with engine(rules, count).score(stream(all_batches(20), closed)) as scored:
        first = await anext(aiter(scored))
    assert len(first.batch)
    assert len(rules.seen) < 20 * len(LENGTHS)
    assert (closed, rules.open) == ([True], set())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_batches_that_cannot_be_read_end_it(count: int) -> None:
    async def failing() -> AsyncGenerator[Batch, None]:
        for batch in all_batches()[:4]:
            yield batch
        raise DeviceLost("a disk", "it is gone")

    rules = Rules()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with engine(rules, count).score(failing()) as scored:
            [done async for done in scored]
    assert caught.group_contains(DeviceLost)
    assert not rules.open


async def test_without_a_batch_the_stream_ends() -> None:
    rules = Rules()
    async with engine(rules, 3).score(stream([])) as scored:
        assert [done async for done in scored] == []
    assert not rules.open


def test_repr_counts_devices() -> None:
    assert repr(engine(Rules(), 3)) == "<Engine [3 devices, 0 lost]>"
