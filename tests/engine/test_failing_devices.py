"""Devices that fail in the middle of a run: what is split, requeued, lost, and kept."""

import asyncio
import json

import pytest
from fakes import Rules, fake_devices
from harness import PipelineHarness
from support import read_table

from virnuc_async.engine.devices import Device
from virnuc_async.errors import NoDevicesLeft
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.batches import Batch


async def test_a_batch_that_does_not_fit_is_halved(bench: PipelineHarness, count: int) -> None:
    await bench.run(out="calm")
    rules = Rules(room=max(bench.orfs().values()))
    summary = await bench.run(rules, devices=count)
    assert bench.tables() == bench.tables("calm")
    assert all(batch.tokens <= rules.room for _, batch in rules.seen)
    assert not summary.reproducible
    assert summary.counts["failures"] == 0
    assert "ran out of memory on a batch of" in (bench.out / "out" / "run.log").read_text()


async def test_a_device_that_ran_out_of_memory_is_not_asked_for_as_much_again(bench: PipelineHarness) -> None:
    longest = max(bench.orfs().values())
    tried: list[int] = []

    class Remembering(Rules):
        def scorer(self, *args: object) -> object:
            scorer = super().scorer(*args)  # type: ignore[arg-type]
            score = scorer.score

            async def remember(batch: Batch) -> object:
                tried.append(batch.tokens)
                return await score(batch)

            scorer.score = remember  # type: ignore[method-assign, assignment]
            return scorer

    await bench.run(Remembering(room=longest, depth=1))
    refused = [tokens for tokens in tried if tokens > longest]
    assert refused == sorted(refused, reverse=True)
    assert len(set(refused)) == len(refused)


async def test_halves_are_kept_when_the_run_is_resumed(bench: PipelineHarness) -> None:
    room = max(bench.orfs().values())
    await bench.run(Rules(room=room), out="calm")
    rules = Rules(room=room, pause_after=3)
    task = asyncio.create_task(bench.run(rules))
    await rules.paused.wait()
    task.cancel()
    rules.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    roomy = Rules()
    summary = await bench.run(roomy)
    assert not summary.reproducible
    scored = sorted(orf for _, batch in [*rules.seen, *roomy.seen] for orf in batch.orfs.tolist())
    assert scored == list(range(len(bench.orfs())))


async def test_one_orf_that_does_not_fit_fails_alone(bench: PipelineHarness, count: int) -> None:
    lengths = bench.orfs()
    longest = max(lengths.values())
    failed = [name for name, length in lengths.items() if length == longest]
    summary = await bench.run(Rules(room=longest - 1), devices=count)
    rows = read_table(bench.out / "out" / "prediction_results.txt")[1:]
    assert [row[0] for row in rows] == [name for name in lengths if name not in failed]
    lines = (bench.out / "out" / "failed_files.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{bench.source}|ESM-2|{name}" for name in failed]
    assert lines[0].endswith(f"ran out of memory on a batch of {longest} tokens")
    assert summary.counts["failures"] == len(failed)


async def test_a_score_that_is_not_finite_fails_alone(bench: PipelineHarness, count: int) -> None:
    lengths = bench.orfs()
    strange = sorted(lengths.values())[len(lengths) // 2]
    failed = [name for name, length in lengths.items() if length == strange]
    await bench.run(Rules(strange=strange), devices=count)
    rows = read_table(bench.out / "out" / "prediction_results.txt")[1:]
    assert [row[0] for row in rows] == [name for name in lengths if name not in failed]
    lines = (bench.out / "out" / "failed_files.txt").read_text().splitlines()
    assert lines == [f"{bench.source}|ESM-2|{name}: its score is not finite" for name in failed]


@pytest.mark.parametrize("lives", [-1, 0, 2])  # -1: it does not even load
async def test_a_lost_device_leaves_its_batches_to_the_others(bench: PipelineHarness, lives: int) -> None:
    await bench.run(out="calm")
    rules = Rules(lost={"fake:0": lives, "fake:2": lives})
    summary = await bench.run(rules, devices=3)
    assert bench.tables() == bench.tables("calm")
    assert sum(name == "fake:0" for name, _ in rules.seen) <= max(lives, 0)
    assert summary.reproducible
    assert "fake:0 failed: it fell off the bus" in (bench.out / "out" / "run.log").read_text()


async def test_a_device_lost_with_halves_gives_back_what_is_left(bench: PipelineHarness) -> None:
    room = max(bench.orfs().values())
    await bench.run(out="calm")
    await bench.run(Rules(room=room, lost={"fake:0": 1}), devices=2)
    assert bench.tables() == bench.tables("calm")


@pytest.mark.parametrize(("devices", "lost"), [(1, 1), (2, 2), (5, 3)])
async def test_too_many_lost_devices_end_the_run_and_it_resumes(
    bench: PipelineHarness, devices: int, lost: int
) -> None:
    await bench.run(out="calm")
    rules = Rules(lost={f"fake:{number}": 1 for number in range(lost)})
    with pytest.raises(NoDevicesLeft) as caught:
        await bench.run(rules, devices=devices)
    assert sorted(failure.device for failure in caught.value.lost) == sorted(rules.lost)
    assert "rerun the same command to resume" in str(caught.value)
    assert not (bench.out / "out" / "contigs.tsv").exists()
    unfinished = json.loads((bench.out / "out" / "summary.json").read_text())
    assert not unfinished["finished"]
    assert unfinished["counts"]["batches"] == len(rules.seen)
    again = Rules()
    summary = await bench.run(again, devices=devices)
    assert len(rules.seen) + len(again.seen) == summary.counts["batches"]
    assert bench.tables() == bench.tables("calm")


@pytest.mark.parametrize("room", [10_000, 300])
async def test_devices_prove_themselves_with_the_largest_batch(bench: PipelineHarness, room: int) -> None:
    await bench.run(out="calm")
    longest = max(bench.orfs().values())
    assert longest < 300
    rules = Rules(room=room, proves=True)
    summary = await bench.run(rules, devices=2)
    assert bench.tables() == bench.tables("calm")
    budget, log = summary.settings["tokens_per_batch"], (bench.out / "out" / "run.log").read_text()
    tried = [tokens for name, tokens in rules.proofs if name == "fake:1"]
    assert tried == [budget >> step for step in range(len(tried))]
    assert tried[-1] <= room
    assert all(tokens > room for tokens in tried[:-1])
    assert summary.reproducible == (len(tried) == 1)
    assert log.count("fake:1 has not enough memory for batches of") == len(tried) - 1
    assert "ran out of memory" not in log  # smaller batches are made, not tried


async def test_a_device_without_room_for_anything_is_lost(bench: PipelineHarness) -> None:
    with pytest.raises(NoDevicesLeft, match="not enough memory for a single token"):
        await bench.run(Rules(room=0, proves=True))


async def test_what_no_device_could_do_as_wanted_is_said_once(bench: PipelineHarness) -> None:
    await bench.run(Rules(warning="no {compiler} here"), devices=3)
    assert (bench.out / "out" / "run.log").read_text().count("no {compiler} here") == 1


async def test_a_card_that_failed_before_the_run_is_left_out(bench: PipelineHarness) -> None:
    await bench.run(out="calm")
    broken = [
        Device(f"cuda:{number}", "unknown GPU", 0, (0, 0), index=number, failure="GPU is lost")
        for number in range(3)
    ]
    rules = Rules()
    plan = Plan((str(bench.source),), bench.settings, bench.bundle, (*broken, *fake_devices(2)), bench.window)
    summary = await execute(plan, bench.out / "out", rules.scorer)
    assert bench.tables() == bench.tables("calm")
    assert {device["name"] for device in summary.devices} <= {"fake:0", "fake:1"}
    assert summary.reproducible
    log = (bench.out / "out" / "run.log").read_text()
    assert [log.count(f"cuda:{number} failed: GPU is lost; it is left out") for number in range(3)] == [1] * 3


async def test_a_run_without_a_card_that_answers_says_why(bench: PipelineHarness) -> None:
    card = Device("cuda:0", "unknown GPU", 0, (0, 0), failure="GPU is lost")
    plan = Plan((str(bench.source),), bench.settings, bench.bundle, (card,), bench.window)
    with pytest.raises(NoDevicesLeft, match="cuda:0 failed: GPU is lost"):
        await execute(plan, bench.out / "out", Rules().scorer)
