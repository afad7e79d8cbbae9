"""The scorer on fake devices: whose scores are whose, who waits for whom, and what ends what."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from fakes import Rules
from harness import PipelineHarness
from hypothesis import given, settings
from hypothesis import strategies as st
from running import OPEN, SHUT
from scored import MakesScorer, expected_scores, scores_of

from virnuc_async.errors import (
    BadRecord,
    BrokenInput,
    NoDevicesLeft,
    ScorerBusy,
    ScorerClosed,
    UnreadableInput,
    UsageError,
)
from virnuc_async.models.bundle import Bundle
from virnuc_async.scorer.predictions import Prediction
from virnuc_async.scorer.request import Request
from virnuc_async.scorer.schedule import Schedule
from virnuc_async.scorer.scorer import Scorer, ScorerProgress
from virnuc_async.scorer.shared import SharedRequests
from virnuc_async.sequences.fastx import Contig
from virnuc_async.settings import CallRules, Settings

Pair = tuple[str, str]


def reads(count: int, seed: int = 0, length: int = 150) -> list[Pair]:
    """Reads with an open frame each."""
    rng = random.Random(seed)
    return [(f"read{number}", "GCA" * rng.randrange(5, length // 3)) for number in range(count)]


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110
        await anyio.sleep(0.001)


async def test_every_record_gets_its_own_scores(makes: MakesScorer) -> None:
    records = [
        ("a b", OPEN * 40),
        ("none", SHUT * 3),
        ("empty", ""),
        ("a", OPEN.lower() * 350),
        ("u", "GCU" * 30),
    ]
    async with makes(window=3) as scorer:
        found = await scorer.score(records)
    assert [one.contig for one in found] == ["a", "none", "empty", "a", "u"]
    assert [one.length for one in found] == [120, 48, 0, 1050, 90]
    assert [one.verdict for one in found][1:3] == ["no_orf", "no_orf"]
    assert scores_of(found) == expected_scores(records, makes.bundle)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 1200), max_size=12),
    window=st.integers(1, 40),
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
async def test_windows_batches_and_callers_change_no_score(
    bundle_once: Bundle, lengths: list[int], window: int, cuts: list[int]
) -> None:
    rng = random.Random(len(lengths))
    records = [
        (f"r{number}", "".join(rng.choices("ACGT", k=length))) for number, length in enumerate(lengths)
    ]
    parts = [records[first :: len(cuts)] for first in range(len(cuts))]
    async with MakesScorer(bundle_once)(window=window, devices=2) as scorer:
        found = await asyncio.gather(*map(scorer.score, parts))
    for part, predictions in zip(parts, found, strict=True):
        assert scores_of(predictions) == expected_scores(part, bundle_once)
        assert [one.contig for one in predictions] == [name for name, _ in part]


async def test_small_requests_share_batches(makes: MakesScorer) -> None:
    records = reads(20)
    async with makes(budget=2000) as scorer:
        found = await asyncio.gather(*(scorer.score([record]) for record in records))
    assert [scores_of(one) for one in found] == [
        expected_scores([record], makes.bundle) for record in records
    ]
    sizes = [len(batch) for _, batch in makes.rules.seen]
    assert sum(sizes) == sum(map(len, (scores_of(one) for one in found)))
    assert max(batch.tokens for _, batch in makes.rules.seen) <= 2000
    assert len(sizes) <= 8, "twenty callers at once"


class Groups:
    """Remembers which small requests are scored together; the first group takes until `go_on`."""

    def __init__(self) -> None:
        self.seen: list[list[bytes]] = []
        self.go_on = anyio.Event()

    async def score(self, contigs: Sequence[Contig]) -> list[Prediction]:
        self.seen.append([contig.id for contig in contigs])
        if len(self.seen) == 1:
            await self.go_on.wait()
        return [one(contig.id.decode()) for contig in contigs]


def one(name: str) -> Prediction:
    return Prediction(name, 0, 0, 0, 0, None, None, None, "no_orf")


@pytest.mark.parametrize(
    ("max_wait", "most_groups", "expected"),
    [
        (60.0, 9, [[b"0"], [b"1", b"2", b"3"], [b"4"]]),  # a group is full; the last goes when none is scored
        (0.0, 9, [[b"0"], [b"1", b"2", b"3"], [b"4"]]),  # those that came at the same time
        (0.0, 1, [[b"0"], [b"1", b"2", b"3"], [b"4"]]),
    ],
)
async def test_small_requests_gather_while_others_are_scored(
    max_wait: float, most_groups: int, expected: list[list[bytes]]
) -> None:
    groups = Groups()
    shared = SharedRequests(groups.score, most_bases=30, most_groups=most_groups, max_wait=max_wait)
    found: dict[int, list[Prediction]] = {}

    async def ask(number: int) -> None:
        found[number] = await shared.score([Contig(b"%d" % number, b"ACGTACGTAC")])

    async with anyio.create_task_group() as running:
        running.start_soon(shared.run)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, 0)
            await until(lambda: len(groups.seen) == 1)
            for number in range(1, 5):
                tasks.start_soon(ask, number)
            await anyio.sleep(0.02)
            assert len(groups.seen) == {9: 3 if not max_wait else 2, 1: 1}[most_groups]
            groups.go_on.set()
        running.cancel_scope.cancel()
    assert groups.seen == expected
    assert found == {number: [one(str(number))] for number in range(5)}
    assert shared.gathered == 0


async def test_a_small_request_waits_no_longer_than_it_is_told() -> None:
    groups = Groups()
    shared = SharedRequests(groups.score, most_bases=100, most_groups=9, max_wait=0.05)
    clock = asyncio.get_running_loop().time
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shared.run)
        tasks.start_soon(shared.score, [Contig(b"first", b"ACGT")])
        await until(lambda: len(groups.seen) == 1)
        began = clock()
        assert await shared.score([Contig(b"second", b"ACGT")]) == [one("second")]
        assert 0.045 <= clock() - began < 5
        groups.go_on.set()
        tasks.cancel_scope.cancel()


async def test_who_gives_up_while_gathering_is_not_scored() -> None:
    groups = Groups()
    shared = SharedRequests(groups.score, most_bases=100, most_groups=1, max_wait=0.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shared.run)
        tasks.start_soon(shared.score, [Contig(b"first", b"ACGT")])
        await until(lambda: len(groups.seen) == 1)
        with anyio.move_on_after(0.01):
            await shared.score([Contig(b"gone", b"ACGT")])
        groups.go_on.set()
        await shared.score([Contig(b"last", b"ACGT")])
        tasks.cancel_scope.cancel()
    assert groups.seen == [[b"first"], [b"last"]]


async def test_what_fills_batches_of_its_own_gets_those_of_a_run(makes: MakesScorer) -> None:
    rules = Rules()
    run = PipelineHarness(makes.source, makes.bundle, makes.out)
    await run.run(rules)
    async with makes(window=run.window, budget=400) as scorer:
        await scorer.score(makes.source)
    assert [batch.residues.ids.tobytes() for _, batch in makes.rules.seen] == [
        batch.residues.ids.tobytes() for _, batch in rules.seen
    ]


async def test_a_small_request_overtakes_a_large_one(makes: MakesScorer) -> None:
    done: list[str] = []
    begun = anyio.Event()

    async def score(scorer: Scorer, name: str, records: Sequence[Pair]) -> None:
        await scorer.score(records)
        done.append(name)

    def report(progress: ScorerProgress) -> None:
        begun.set()

    async with (
        makes(budget=100, window=1000, on_progress=report) as scorer,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(score, scorer, "large", reads(900))
        await begun.wait()
        tasks.start_soon(score, scorer, "small", reads(1))
    assert done == ["small", "large"]


async def test_large_requests_take_turns(makes: MakesScorer) -> None:
    schedule, owners = Schedule(100), [Request(), Request()]
    for owner, windows in zip(owners, (3, 1), strict=True):
        for _ in range(windows):
            await schedule.add(owner, makes.window(reads(50)))
    of_second = []
    async with aclosing(schedule.batches()) as batches:
        of_second = [(await anext(batches)).window == 4 for _ in range(20)]
    assert of_second == [False, True] * 10


async def test_a_caller_who_gives_up_leaves_the_others(makes: MakesScorer) -> None:
    makes.rules.pause_after = 2
    async with makes(budget=100, window=400) as scorer:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scorer.score, reads(400))
            await makes.rules.paused.wait()
            tasks.cancel_scope.cancel()
        makes.rules.go_on.set()
        found = await scorer.score(reads(5))
        assert scorer.waiting == 0
    assert scores_of(found) == expected_scores(reads(5), makes.bundle)
    assert sum(len(batch) for _, batch in makes.rules.seen) < 100, "nobody waits for the rest"


async def test_breaking_off_a_stream_is_giving_up(makes: MakesScorer) -> None:
    async with makes(budget=100, window=20) as scorer:
        async with aclosing(scorer.stream(reads(2000))) as found:
            async for one in found:
                assert one.contig == "read0"
                break
        await until(lambda: not scorer.waiting)
        assert len(await scorer.score(reads(3))) == 3
    assert sum(len(batch) for _, batch in makes.rules.seen) < 1000


async def test_a_lost_device_is_survived(makes: MakesScorer) -> None:
    makes.rules.lost = {"fake:0": 1}
    seen: list[ScorerProgress] = []
    async with makes(budget=100, devices=2, on_progress=seen.append) as scorer:
        found = await asyncio.gather(*(scorer.score(reads(50, seed)) for seed in range(4)))
        assert scorer.is_open
    for seed, predictions in enumerate(found):
        assert scores_of(predictions) == expected_scores(reads(50, seed), makes.bundle)
    assert seen[-1].devices == ("fake:1",)
    assert seen[-1].orfs == sum(len(scores_of(predictions)) for predictions in found)
    assert seen[-1].waiting == 0


async def test_without_devices_every_caller_is_told(makes: MakesScorer) -> None:
    makes.rules.lost = {"fake:0": 2}
    async with makes(budget=100) as scorer:
        ended = await asyncio.gather(
            *(scorer.score(reads(50, seed)) for seed in range(3)), return_exceptions=True
        )
        assert [type(error) for error in ended] == [NoDevicesLeft] * 3
        assert not scorer.is_open
        with pytest.raises(NoDevicesLeft):
            await scorer.score(reads(1))


async def test_a_device_that_does_not_load_is_told_when_it_is_entered(makes: MakesScorer) -> None:
    makes.rules.lost = {"fake:0": -1}
    with pytest.raises(NoDevicesLeft):
        async with makes():
            pass
    assert not makes.rules.open


async def test_while_too_much_waits_callers_wait_or_are_told(makes: MakesScorer) -> None:
    makes.rules.pause_after = 0
    async with makes(budget=100, max_waiting=10) as scorer, anyio.create_task_group() as tasks:
        assert not scorer.is_busy
        tasks.start_soon(scorer.score, reads(30))
        await until(lambda: scorer.is_busy)
        with pytest.raises(ScorerBusy, match=r"too much waits already \(\d+ ORFs\): try again in a moment"):
            await scorer.score(reads(1), wait=False)
        before = scorer.waiting
        tasks.start_soon(scorer.score, reads(5))
        await anyio.sleep(0.02)
        assert scorer.waiting == before, "nothing of the second caller was read"
        makes.rules.go_on.set()
    assert scorer.waiting == 0


async def test_closing_ends_what_still_waits(makes: MakesScorer) -> None:
    makes.rules.pause_after = 1
    ended: list[BaseException] = []

    async def score(scorer: Scorer) -> None:
        try:
            await scorer.score(reads(100))
        except ScorerClosed as error:
            ended.append(error)

    async with anyio.create_task_group() as tasks, makes(budget=100) as scorer:
        tasks.start_soon(score, scorer)
        await makes.rules.paused.wait()
        makes.rules.go_on.set()
    assert len(ended) == 1
    assert not makes.rules.open
    with pytest.raises(ScorerClosed, match="use it within 'async with"):
        await scorer.score(reads(1))


async def test_an_error_of_the_program_leaves_nothing_open(makes: MakesScorer) -> None:
    with pytest.raises(ZeroDivisionError):
        async with makes():
            raise ZeroDivisionError
    assert not makes.rules.open


async def test_an_orf_without_a_score_is_named(makes: MakesScorer) -> None:
    makes.rules.strange = 42
    async with makes() as scorer:
        found = await scorer.score([("short", OPEN * 40), ("fine", OPEN * 30)])
    assert set(found[0].failures) == {"fragment 1: ESM-2: its score is not finite"}
    assert found[0].failures
    assert found[1].failures == ()
    assert scores_of(found[1:]) == expected_scores([("fine", OPEN * 30)], makes.bundle)


class Biopython:
    def __init__(self, id: str, seq: str) -> None:
        self.id, self.seq = id, seq


class Dnaio:
    def __init__(self, name: str, sequence: str) -> None:
        self.name, self.sequence = name, sequence


async def test_records_of_any_kind(makes: MakesScorer, tmp_path: Path) -> None:
    file = tmp_path / "a.fa"
    file.write_text(">in_file x\nGCAGCAGCA\nGCA\n")
    records = [
        ("pair", "GCA" * 4),
        (b"bytes", b"GCAGCAGCAGCA"),
        Biopython("bio", "GCA" * 4),
        file,
        Dnaio("dna io", "gca" * 4),
        str(file),
    ]
    async with makes() as scorer:
        found = await scorer.score(records)
        one_file = await scorer.score(str(file))
    assert [one.contig for one in found] == ["pair", "bytes", "bio", "in_file", "dna", "in_file"]
    assert {one.mean_p_virus for one in found} == {one_file[0].mean_p_virus}
    assert found[0].fragment_scores == one_file[0].fragment_scores


async def test_an_asynchronous_source_is_read_as_it_comes(makes: MakesScorer) -> None:
    async def source() -> AsyncIterator[Pair]:
        for record in reads(30):
            await anyio.lowlevel.checkpoint()
            yield record

    async with makes(window=7) as scorer:
        found = [one async for one in scorer.stream(source())]
    assert scores_of(found) == expected_scores(reads(30), makes.bundle)


async def test_what_a_source_raises_is_the_callers(makes: MakesScorer) -> None:
    def source() -> Iterator[Pair]:
        yield from reads(3)
        raise ZeroDivisionError

    async with makes() as scorer:
        with pytest.raises(ZeroDivisionError):
            await scorer.score(source())
        assert len(await scorer.score(reads(2))) == 2


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (("id", "ACGT"), "Put a single record into a list"),
        (Biopython("id", "ACGT"), "Put a single record into a list"),
        (b"ACGT", "Put a single record into a list"),
        (7, "records must be a path, or an iterable"),
        ([("id", "ACGT"), 7], r"record 2 must be an \(id, sequence\) pair"),
        ([("id", 7)], r"record 1 must be an \(id, sequence\) pair"),
    ],
)
async def test_what_is_no_record_is_refused(makes: MakesScorer, records: object, message: str) -> None:
    async with makes() as scorer:
        with pytest.raises(UsageError, match=message):
            await scorer.score(records)  # type: ignore[arg-type]


async def test_a_record_that_is_not_dna_is_named(makes: MakesScorer) -> None:
    async with makes() as scorer:
        with pytest.raises(BadRecord) as caught:
            await scorer.score([("fine", "ACGT"), ("bad\n\x1b[1m one", "ACGE")])
    assert (caught.value.record, caught.value.id) == (2, b"bad")
    assert str(caught.value) == "record 2 (bad): 'E' is not a nucleotide letter (is this protein or text?)"


async def test_a_broken_file_ends_a_stream_behind_what_it_has(makes: MakesScorer, tmp_path: Path) -> None:
    file = tmp_path / "a.fq"
    file.write_text("@a\nGCAGCA\n+\nIIIIII\n@b\nGCA\n")
    got: list[str] = []

    async def collect(scorer: Scorer) -> None:
        async for one in scorer.stream([("first", "GCA"), file, ("never", "GCA")]):
            got.append(one.contig)  # noqa: PERF401

    async with makes() as scorer:
        with pytest.raises(BrokenInput, match="breaks after 1 record"):
            await collect(scorer)
        with pytest.raises(UnreadableInput):
            await scorer.score(tmp_path / "missing.fa")
    assert got == ["first", "a"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(embeddings=True), "embeddings has no meaning for a scorer"),
        (Settings(calls=CallRules()), "calls has no meaning for a scorer"),
        (Settings(overwrite=True), "overwrite has no meaning"),
        ("tiny-500", "settings must be Settings"),
    ],
)
def test_settings_of_runs_are_refused(settings: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer(settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"max_wait": -1}, {"max_wait": float("nan")}, {"max_waiting": 0}])
def test_limits_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).replace("_", " ")):
        Scorer(**options)  # type: ignore[arg-type]


async def test_is_opened_and_closed_by_different_tasks(makes: MakesScorer) -> None:
    scorer = makes()
    await asyncio.create_task(scorer.open())
    assert scorer.is_open
    assert len(await asyncio.create_task(scorer.score(reads(2)))) == 2
    await asyncio.create_task(scorer.close())
    await scorer.close()
    assert not scorer.is_open
    await scorer.open()
    assert len(await scorer.score(reads(1))) == 1
    await scorer.close()


async def test_opening_can_be_cancelled(makes: MakesScorer) -> None:
    makes.rules.load_seconds = 30
    scorer = makes()
    with anyio.move_on_after(0.2) as scope:
        await scorer.open()
    assert scope.cancelled_caught
    assert not scorer.is_open
    assert not makes.rules.open


async def test_is_entered_once(makes: MakesScorer) -> None:
    async with makes() as scorer:
        with pytest.raises(UsageError, match="open already"):
            await scorer.__aenter__()
        assert len(await scorer.score(reads(1))) == 1


async def test_nothing_is_nothing(makes: MakesScorer) -> None:
    async with makes() as scorer:
        assert list(await scorer.score([])) == []
        found = await scorer.score(iter(()))
    assert repr(found) == "<Predictions [0 records, 0 viral]>"
    assert found.to_pandas().columns[0] == "contig"
