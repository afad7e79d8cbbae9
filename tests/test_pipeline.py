"""The orchestrator: what waits for what, what is kept when something fails, and the golden answer."""

import asyncio
import gzip
import json
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from fakes import Rules, fake_devices, p_virus
from support import DATA, TABLES, assert_published_scores, read_table

from virnuc_async import pipeline
from virnuc_async.engine.devices import Device
from virnuc_async.engine.gpu_memory import MemoryUse
from virnuc_async.engine.replica import Replica, Scores
from virnuc_async.errors import (
    BadBundle,
    CannotWrite,
    DamagedStore,
    DirectoryLockedError,
    ForeignDirectoryError,
    NoDevicesLeft,
    NoRecords,
    RunMismatchError,
    UnknownDevice,
)
from virnuc_async.log import logger
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle
from virnuc_async.outputs import predictions as results
from virnuc_async.outputs.summary import Summary
from virnuc_async.pipeline import Plan, Supply, run_pipeline, score_with
from virnuc_async.runs.lock import LOCK, Lock, Owner, owner_of, take_over
from virnuc_async.runs.store import STORE, Store
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.inputs import Contig, read_contigs
from virnuc_async.sequences.orfs import open_frames
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.settings import Precision, Settings


@pytest.fixture(params=[1, 3])
def count(request: pytest.FixtureRequest) -> int:
    """The number of devices: everything works the same with one and with several."""
    return request.param


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("replica")]


@pytest.fixture(scope="session")
def bundle(golden_parts: CheckpointPaths, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One length is enough for all that is not about the published answer."""
    return import_bundle(golden_parts, tmp_path_factory.mktemp("bundle"), "golden", 500)


class PipelineHarness:
    """Runs the pipeline on fake devices; a small budget and window, so that there is much to do."""

    def __init__(self, source: Path, bundle: Bundle, out: Path) -> None:
        self.source, self.bundle, self.out = source, bundle, out
        self.settings = Settings(tokens_per_batch=400)
        self.window = 15
        self.copies = 1

    async def run(self, rules: Rules | None = None, devices: int = 1, out: str = "out") -> Summary:
        paths = (str(self.source),) * self.copies
        plan = Plan(paths, self.settings, self.bundle, fake_devices(devices), self.window)
        return await score_with(plan, self.out / out, (rules or Rules()).scorer)

    def tables(self, out: str = "out") -> dict[str, bytes]:
        return {name: (self.out / out / name).read_bytes() for name in TABLES}

    def orfs(self) -> dict[str, int]:
        """The id of every ORF with its number of tokens, by the slow way."""
        lengths = {}
        for contig in read_contigs(str(self.source)):
            for number, (start, end) in enumerate(cut(len(contig.bases), self.bundle.length), 1):
                for orf in open_frames(contig.bases[start:end], [(0, end - start)]):
                    lengths[f"{contig.id.decode()}_chunk_{number}{orf.frame.name}"] = len(orf.protein) + 2
        return lengths


@pytest.fixture
def bench(source: Path, bundle: Bundle, tmp_path: Path) -> PipelineHarness:
    return PipelineHarness(source, bundle, tmp_path)


# The published answer


async def test_the_published_answer(
    source: Path, expected: Path, golden_bundle: Bundle, tmp_path: Path, count: int
) -> None:
    settings = Settings(golden_bundle.directory, devices=("cpu",) * count, embeddings=True)
    await run_pipeline([source], tmp_path, settings)
    assert_published_scores(tmp_path, expected)
    name = "prediction_results_highestscore.csv"
    assert (tmp_path / name).read_bytes() == (expected / name).read_bytes()
    features = torch.load(tmp_path / "merged_features.pt", weights_only=True)
    merged = torch.load(expected / "merged.pt", weights_only=True)
    assert features["ids"] == merged["ids"]
    torch.testing.assert_close(features["data"], merged["data"], rtol=0, atol=1e-5)


async def test_contigs_by_the_published_scores(
    source: Path, expected: Path, golden_bundle: Bundle, tmp_path: Path
) -> None:
    await run_pipeline([source], tmp_path, Settings(golden_bundle.directory, threshold=0.6))
    rows = read_table(tmp_path / "contigs.tsv")[1:]
    scores: dict[str, dict[str, tuple[float, float]]] = {}
    for name, _, others, virus in read_table(expected / "prediction_results.txt")[1:]:
        contig, _, orf = name.rpartition("_chunk_")
        best = scores.setdefault(contig, {}).setdefault(orf[:-2], (0.0, 0.0))
        scores[contig][orf[:-2]] = (max(best[0], float(others)), max(best[1], float(virus)))
    contigs = list(read_contigs(str(source)))
    assert [row[0] for row in rows] == [contig.id.decode() for contig in contigs]
    for contig, (name, file, length, fragments, with_orf, viral, *shares, verdict) in zip(
        contigs, rows, strict=True
    ):
        best = list(scores.get(name, {}).values())
        count = sum(virus >= others for others, virus in best)
        cuts = list(cut(len(contig.bases), golden_bundle.length))
        assert (file, int(length), int(fragments)) == (str(source), len(contig.bases), len(cuts))
        assert (int(with_orf), int(viral)) == (len(best), count)
        share = count / len(best) if best else 0
        means = (np.mean([virus for _, virus in best]), max(virus for _, virus in best)) if best else (0, 0)
        np.testing.assert_allclose([float(share) for share in shares], [share, *means], rtol=0, atol=1e-5)
        assert verdict == ("no_orf" if not best else "virus" if share >= 0.6 else "others")


async def test_one_or_three_replicas_give_the_same_bytes(
    source: Path, bundle: Bundle, tmp_path: Path
) -> None:
    for devices in (1, 3):
        settings = Settings(bundle.directory, devices=("cpu",) * devices, tokens_per_batch=500)
        summary = await run_pipeline([source], tmp_path / str(devices), settings)
        assert summary.counts["batches"] > 6
        assert summary.reproducible
    for name in TABLES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


# As part of another program


async def test_runs_beside_other_tasks_and_beside_itself(
    source: Path, bundle: Bundle, tmp_path: Path
) -> None:
    """The host's loop goes on while two runs share it, and each run has its own answer."""
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    heart = asyncio.create_task(beat())
    half = tmp_path / "half.fa"
    half.write_bytes(source.read_bytes().split(b">Bas03")[0])
    settings = Settings(bundle.directory)
    one, other = await asyncio.gather(
        run_pipeline([source], tmp_path / "one", settings),
        run_pipeline([half], tmp_path / "other", settings),
    )
    heart.cancel()
    assert beats > 5
    assert (one.counts["contigs"], other.counts["contigs"]) == (33, 10)
    await run_pipeline([half], tmp_path / "alone", settings)
    for name in TABLES[:2]:
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert (tmp_path / "one" / "run.log").read_text().count("Viral: ") == 1


async def test_prints_nothing(bench: PipelineHarness, capfd: pytest.CaptureFixture[str]) -> None:
    await bench.run()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("batches", [0, 1, 4])
async def test_cancelled_it_ends_and_resumes(bench: PipelineHarness, count: int, batches: int) -> None:
    await bench.run(devices=count, out="calm")
    rules = Rules(pause_after=batches)
    task = asyncio.create_task(bench.run(rules, devices=count))
    await rules.paused.wait()
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()  # what the devices have begun is waited for
    rules.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not rules.open
    begun = len(rules.seen)
    assert batches <= begun <= batches + count  # each device ends the one that it has begun
    again = Rules()
    summary = await bench.run(again, devices=count)
    assert begun + len(again.seen) == summary.counts["batches"]  # none is lost, none is done twice
    assert bench.tables() == bench.tables("calm")
    assert summary.finished


async def test_cancelled_while_standard_input_is_silent(bundle: Bundle, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin, os.fdopen(writer, "wb") as pipe:
        with anyio.move_on_after(0.3) as scope:
            await run_pipeline(["-"], tmp_path / "out", Settings(bundle.directory), stdin=stdin)
        assert scope.cancelled_caught
        pipe.write(b">a\nACGT\n")


async def test_cancelled_while_a_table_is_written(
    bench: PipelineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.run(out="calm")
    begun, predictions = threading.Event(), results.predictions

    def endless(store: Store) -> results.Chunks:
        for part in predictions(store):
            begun.set()
            while True:
                yield part

    monkeypatch.setattr(results, "predictions", endless)
    task = asyncio.create_task(bench.run())
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    out = bench.out / "out"
    assert {path.name for path in out.iterdir()} == {"run.sqlite3", "run.log", "summary.json"}
    assert json.loads((out / "summary.json").read_bytes())["finished"] is False
    rules = Rules()
    summary = await bench.run(rules)
    assert summary.finished
    assert not rules.seen
    assert bench.tables() == bench.tables("calm")


async def test_cancelled_at_any_moment_from_outside(bench: PipelineHarness) -> None:
    """A task's own cancellation, not a scope's, which knows no shield."""
    began = time.monotonic()
    await bench.run(out="calm")
    whole = time.monotonic() - began
    for step in range(20):
        task = asyncio.create_task(bench.run())
        await asyncio.sleep(whole * step / 20)
        task.cancel()
        await asyncio.wait([task])
    assert (await bench.run()).finished
    assert bench.tables() == bench.tables("calm")


async def test_a_finished_run_asked_for_again_says_so_and_touches_nothing(bench: PipelineHarness) -> None:
    first = await bench.run()
    log = bench.out / "out" / "run.log"
    said = len(log.read_text())
    before = {path.name: path.stat() for path in (bench.out / "out").iterdir() if path != log}

    def read(path: str) -> Iterator[Contig]:
        raise AssertionError(f"{path} is read again")

    rules = Rules()
    plan = Plan((str(bench.source),), bench.settings, bench.bundle, fake_devices(3), bench.window)
    run = pipeline._Run(plan, bench.out / "out", rules.scorer, read)
    await run.go("", anyio.CancelScope())
    run.stop_reading()
    assert run.summary == first
    assert not rules.proofs
    assert not rules.seen
    assert "this run is finished already, and its files are as they were written" in log.read_text()[said:]
    after = {path.name: path.stat() for path in (bench.out / "out").iterdir() if path != log}
    assert after.keys() == before.keys()
    for name, facts in before.items():
        assert (after[name].st_ino, after[name].st_mtime_ns) == (facts.st_ino, facts.st_mtime_ns), name


@pytest.mark.parametrize("change", ["unlink", "shorten", "edit"])
@pytest.mark.parametrize("name", [*TABLES, "summary.json"])
async def test_what_a_finished_run_has_lost_is_written_again(
    name: str, change: str, bench: PipelineHarness
) -> None:
    await bench.run()
    path = bench.out / "out" / name
    content = path.read_bytes()
    if change == "unlink":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if change == "shorten" else content.swapcase())
    rules = Rules()
    summary = await bench.run(rules)
    assert not rules.seen
    assert summary.finished
    if name in TABLES:
        assert path.read_bytes() == content
    else:
        assert json.loads(path.read_bytes())["counts"] == json.loads(content)["counts"]


async def test_a_finished_run_does_not_ask_for_the_devices_that_it_had(bench: PipelineHarness) -> None:
    first = await bench.run()
    gpu = Device("cuda:0", "GPU", 1 << 30, (9, 0), uuid="GPU-1")
    plan = Plan(
        (str(bench.source),), Settings(), bench.bundle, (gpu,), bench.window, lambda _: None, compiled=True
    )
    assert await score_with(plan, bench.out / "out", Rules().scorer) == first


# A directory that another process has


def hold(out: Path, **facts: object) -> Owner:
    """Have *out* held by a process on another machine."""
    held = Lock(out)
    owner = owner_of(out)
    held.release()
    assert owner is not None
    owner = replace(owner, host="node7", pid=4711, **facts)  # type: ignore[arg-type]
    (out / LOCK).write_text(json.dumps(asdict(owner)))
    return owner


@pytest.fixture
def quick_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "HEARTBEAT_INTERVAL", 0.02)
    monkeypatch.setattr(pipeline, "LEASE_DURATION", 0.2)


async def test_what_a_dead_process_elsewhere_holds_is_taken_over(
    bench: PipelineHarness, quick_signs: None
) -> None:
    await bench.run(out="calm")
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 3}))
    owner = hold(bench.out / "out")
    said: list[str] = []
    sink = logger.add(lambda message: said.append(message.record["message"]), level="WARNING")
    summary = await bench.run()
    logger.remove(sink)
    assert summary.finished
    assert bench.tables() == bench.tables("calm")
    assert said == [
        f"{bench.out / 'out'} is held by process 4711 on node7 (since {owner.since}), which cannot be seen "
        "from here: if it gives no sign of life for 0 s, it is taken for dead",
        f"no sign of life from process 4711 on node7 (since {owner.since}): going on in its place",
    ]
    assert not (bench.out / "out" / LOCK).exists()


async def test_what_a_living_process_elsewhere_holds_is_left_to_it(
    bench: PipelineHarness, quick_signs: None
) -> None:
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 3}))
    owner = hold(bench.out / "out")

    async def live() -> None:
        await anyio.sleep(0.1)
        (bench.out / "out" / LOCK).write_text(json.dumps(asdict(replace(owner, heartbeats=1))))

    rules = Rules()
    with pytest.raises(DirectoryLockedError, match="process 4711 on node7 .* is writing there"):  # noqa: PT012
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(live())
            try:
                await bench.run(rules)
            except DirectoryLockedError as busy:
                error = busy
        raise error
    assert not rules.seen
    assert (bench.out / "out" / LOCK).exists()


async def test_a_run_shows_that_it_lives(bench: PipelineHarness, quick_signs: None) -> None:
    rules = Rules(pause_after=1)
    task = asyncio.create_task(bench.run(rules))
    await rules.paused.wait()
    first = owner_of(bench.out / "out")
    while owner_of(bench.out / "out") == first:  # noqa: ASYNC110 (a file has no event)
        await anyio.sleep(0.02)
    later = owner_of(bench.out / "out")
    assert first is not None
    assert later is not None
    assert (later.pid, later.token) == (os.getpid(), first.token)
    rules.go_on.set()
    await task


async def test_a_run_that_was_taken_for_dead_writes_no_more(
    bench: PipelineHarness, quick_signs: None
) -> None:
    """As one that was suspended for minutes, and followed meanwhile."""
    await bench.run(out="calm")
    rules = Rules(pause_after=2)
    task = asyncio.create_task(bench.run(rules))
    await rules.paused.wait()
    owner = owner_of(bench.out / "out")
    assert owner is not None
    take_over(bench.out / "out", owner)
    rules.go_on.set()
    with pytest.raises(DirectoryLockedError, match=r"its run\.lock is gone"):
        await task
    assert not rules.open
    assert (await bench.run()).finished
    assert bench.tables() == bench.tables("calm")


# A store that is damaged


async def test_a_damaged_store_is_repaired_and_the_rest_computed_again(
    bench: PipelineHarness, count: int
) -> None:
    bench.copies = 6
    await bench.run(out="calm")
    summary = await bench.run(devices=count)
    with closing(sqlite3.connect(bench.out / "out" / STORE)) as db, db:
        db.execute("UPDATE batches SET scores = zeroblob(LENGTH(scores)) WHERE rowid % 3 = 0")
    for name in TABLES:
        (bench.out / "out" / name).unlink()
    with pytest.raises(DamagedStore, match=r"finished batches in it can be saved: .* --repair"):
        await bench.run()
    bench.settings = replace(bench.settings, repair=True)
    rules = Rules()
    repaired = await bench.run(rules, devices=count)
    assert len(rules.seen) == summary.counts["batches"] // 3
    assert bench.tables() == bench.tables("calm")
    assert repaired.counts == summary.counts
    log = (bench.out / "out" / "run.log").read_text()
    kept = summary.counts["batches"] - len(rules.seen)
    assert f"repaired: {kept} batches of " in log
    assert f"what was damaged is in {bench.out / 'out' / 'run.sqlite3.damaged'}" in log


# Devices that fail


async def test_scores_are_each_orfs_own(bench: PipelineHarness, count: int) -> None:
    """Joined by position: whichever device scored an ORF, the row holds the score of its residues."""
    rules = Rules()
    await bench.run(rules, devices=count)
    assert {name for name, _ in rules.seen} == {f"fake:{number}" for number in range(count)}
    tokenizer = OrfTokenizer(bench.bundle.tokenizer())
    rows = read_table(bench.out / "out" / "prediction_results.txt")[1:]
    wanted = []
    for contig in read_contigs(str(bench.source)):
        for number, (start, end) in enumerate(cut(len(contig.bases), bench.bundle.length), 1):
            for orf in open_frames(contig.bases[start:end], [(0, end - start)]):
                score = p_virus(tokenizer.residues([orf.protein]).ids.tolist())
                name = f"{contig.id.decode()}_chunk_{number}{orf.frame.name}"
                wanted.append([name, str(np.float32(1) - score), str(score)])
    assert [[name, others, virus] for name, _, others, virus in rows] == wanted


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
    assert "the same command resumes" in str(caught.value)
    assert not (bench.out / "out" / "contigs.tsv").exists()
    unfinished = json.loads((bench.out / "out" / "summary.json").read_text())
    assert not unfinished["finished"]
    assert unfinished["counts"]["batches"] == len(rules.seen)
    again = Rules()
    summary = await bench.run(again, devices=devices)
    assert len(rules.seen) + len(again.seen) == summary.counts["batches"]
    assert bench.tables() == bench.tables("calm")


async def test_a_full_disk_stops_the_run_and_it_resumes(bench: PipelineHarness, count: int) -> None:
    bench.copies = 12
    await bench.run(out="calm")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # bytes of a file: a few batches' worth
    rules = Rules()
    try:
        with pytest.raises(CannotWrite, match="disk|file|I/O"):
            await bench.run(rules, devices=count)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not rules.open
    assert rules.seen
    summary = await bench.run(devices=count)
    assert bench.tables() == bench.tables("calm")
    assert summary.finished


async def test_a_damaged_model_is_said_before_anything_is_scored(
    source: Path, bundle: Bundle, tmp_path: Path
) -> None:
    broken = replace(bundle, checksums={**bundle.checksums, "tokenizer.json": "0"})
    plan = Plan((str(source),), Settings(), broken, fake_devices(1))
    rules = Rules()
    with pytest.raises(BadBundle, match=r"tokenizer\.json has changed or is damaged"):
        await score_with(plan, tmp_path / "out", rules.scorer)
    assert not rules.seen


# Inputs


async def test_small_files_fill_batches_as_one_large_file_does(
    bench: PipelineHarness, tmp_path: Path
) -> None:
    rules = Rules()
    await bench.run(rules, out="one")
    records = bench.source.read_bytes().split(b">")[1:]
    directory = tmp_path / "many"
    directory.mkdir()
    for number, record in enumerate(records):
        (directory / f"{number:03}.fa.gz").write_bytes(gzip.compress(b">" + record))
    apart = Rules()
    plan = Plan(
        tuple(str(path) for path in sorted(directory.iterdir())),
        bench.settings,
        bench.bundle,
        fake_devices(1),
        bench.window,
    )
    summary = await score_with(plan, tmp_path / "apart", apart.scorer)
    assert [batch.orfs.tolist() for _, batch in apart.seen] == [
        batch.orfs.tolist() for _, batch in rules.seen
    ]
    assert bench.tables("apart") | {"contigs.tsv": b""} == bench.tables("one") | {"contigs.tsv": b""}
    assert [entry["contigs"] for entry in summary.inputs] == [1] * len(records)


async def test_what_cannot_be_read_does_not_stop_the_rest(bench: PipelineHarness, tmp_path: Path) -> None:
    good, cut_short, empty, text = (tmp_path / name for name in ("good.fa", "cut.fq", "empty.fa", "text.fa"))
    good.write_bytes(b">g\nGCAGCAGCA\n")
    cut_short.write_bytes(b"@whole\nGCAGCA\n+\nIIIIII\n@half\nGCA\n")
    empty.write_bytes(b"\n")
    text.write_bytes(b"Dear reviewer,\n")
    missing = tmp_path / "missing.fa"
    paths = [str(path) for path in (missing, cut_short, empty, text, good)]
    plan = Plan(tuple(paths), bench.settings, bench.bundle, fake_devices(1))
    summary = await score_with(plan, tmp_path / "out", Rules().scorer)
    assert [(entry["path"], entry["contigs"], entry["status"]) for entry in summary.inputs] == [
        (str(missing), 0, "failed"),
        (str(cut_short), 1, "broken"),
        (str(empty), 0, "empty"),
        (str(text), 0, "failed"),
        (str(good), 1, "read"),
    ]
    assert [row[0] for row in read_table(tmp_path / "out" / "contigs.tsv")[1:]] == ["whole", "g"]
    assert (tmp_path / "out" / "failed_files.txt").read_text().splitlines() == [
        f"{missing}|Input|No such file or directory",
        f"{cut_short}|Input|breaks after 1 record: line 5: the last record ends early",
        f"{text}|Input|line 1: expected '>' (FASTA) or '@' (FASTQ), saw 'Dear reviewer,'",
    ]
    assert f"{empty} holds no sequence" in (tmp_path / "out" / "run.log").read_text()


async def test_nothing_to_do_leaves_nothing_behind(bench: PipelineHarness, tmp_path: Path) -> None:
    empty, missing = tmp_path / "empty.fa", tmp_path / "missing.fa"
    empty.touch()
    rules = Rules()
    plan = Plan((str(empty), str(missing)), bench.settings, bench.bundle, fake_devices(1))
    with pytest.raises(NoRecords, match=r"in the 2 inputs\n.*missing\.fa: No such file"):
        await score_with(plan, tmp_path / "out", rules.scorer)
    assert not (tmp_path / "out").exists()


async def test_records_without_orfs_are_kept(bench: PipelineHarness, tmp_path: Path) -> None:
    path = tmp_path / "none.fa"
    path.write_bytes(b">empty\n>short\nAC\n>stops\nTAACTAACTAATTAGTTAGTTA\n")
    plan = Plan((str(path),), replace(bench.settings, embeddings=True), bench.bundle, fake_devices(1))
    summary = await score_with(plan, tmp_path / "out", Rules().scorer)
    rows = read_table(tmp_path / "out" / "contigs.tsv")[1:]
    assert [(row[0], row[2], row[3], row[-1]) for row in rows] == [
        ("empty", "0", "0", "no_orf"),
        ("short", "2", "1", "no_orf"),
        ("stops", "22", "1", "no_orf"),
    ]
    assert (summary.counts["orfs"], summary.counts["failures"]) == (0, 0)
    features = torch.load(tmp_path / "out" / "merged_features.pt", weights_only=True)
    assert (features["ids"], tuple(features["data"].shape)) == ([], (0, 160))


async def test_standard_input_is_piped_again_to_resume(bench: PipelineHarness, tmp_path: Path) -> None:
    await bench.run(out="file")
    plan = Plan(("-",), bench.settings, bench.bundle, fake_devices(1), bench.window)
    rules = Rules(lost={"fake:0": 2})
    stdin = BytesIO(bench.source.read_bytes())
    with pytest.raises(NoDevicesLeft):
        await score_with(plan, tmp_path / "out", rules.scorer, stdin=stdin)
    stdin = BytesIO(bench.source.read_bytes())
    await score_with(plan, tmp_path / "out", Rules().scorer, stdin=stdin)
    for name in TABLES[:2]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()


# One directory, one run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 0.7}, "threshold was 0.5, is 0.7 now"),
        ({"embeddings": True}, "embeddings was False, is True now"),
        ({"tokens_per_batch": 500}, "tokens per batch was 400, is 500 now"),
        ({"precision": "bf16"}, "precision was fp32, is bf16 now"),
    ],
)
async def test_another_setting_is_another_run(
    bench: PipelineHarness, change: dict[str, object], said: str
) -> None:
    await bench.run()
    bench.settings = replace(bench.settings, **change)  # type: ignore[arg-type]
    with pytest.raises(RunMismatchError) as caught:
        await bench.run()
    assert caught.value.differences == (said,)
    bench.settings = replace(bench.settings, overwrite=True)
    rules = Rules()
    await bench.run(rules)
    assert rules.seen


async def test_compiled_kernels_are_another_run(bench: PipelineHarness) -> None:
    """They may differ from plain ones in their last digits."""
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 2}))
    plan = Plan(
        (str(bench.source),), bench.settings, bench.bundle, fake_devices(1), bench.window, compiled=True
    )
    with pytest.raises(RunMismatchError, match="compiled kernels was False, is True now"):
        await score_with(plan, bench.out / "out", Rules().scorer)


async def test_another_input_is_another_run(bench: PipelineHarness, tmp_path: Path) -> None:
    bench.source = Path(tmp_path / "copy.fa")
    bench.source.write_bytes(b">a\nGCAGCA\n>b\nGCAGCAGCA\n")
    await bench.run()
    bench.source.write_bytes(b">a\nGCAGCA\n")
    with pytest.raises(RunMismatchError, match="other inputs"):
        await bench.run()


async def test_the_same_content_under_another_name_and_date_is_the_same_run(
    bench: PipelineHarness, tmp_path: Path
) -> None:
    await bench.run(out="calm")
    text = bench.source.read_bytes()
    path = bench.source = tmp_path / "before.fa"
    path.write_bytes(text)
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 3}))
    bench.source = path.rename(tmp_path / "after.fa")
    os.utime(bench.source, (1, 1))
    rules = Rules()
    summary = await bench.run(rules)
    assert len(rules.seen) == summary.counts["batches"] - 3
    assert summary.inputs == [{"path": str(bench.source), "contigs": 33, "status": "read"}]
    calm = bench.tables("calm")["contigs.tsv"]
    original = str(DATA / "golden" / "upstream" / "input.fa").encode()
    assert bench.tables()["contigs.tsv"] == calm.replace(original, str(bench.source).encode())


@pytest.mark.parametrize(
    ("at", "said"),
    [(0, "other inputs: .*copy.fa has changed"), (150_000, "the sequences have changed")],
)
async def test_content_that_changed_under_its_date_is_another_run(
    at: int, said: str, bench: PipelineHarness, tmp_path: Path
) -> None:
    """What the samples of a large file do not see is seen when it is read."""
    path = bench.source = tmp_path / "copy.fa"
    text = bytearray(b">a\nGCAGCA\n>b\n" + b"TAATTAATTAATTAA\n" * 80_000)
    path.write_bytes(text)
    facts = path.stat()
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 0}))
    at += text[at:].index(b"A")
    text[at : at + 1] = b"C"
    path.write_bytes(text)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(RunMismatchError, match=said):
        await bench.run()


async def test_embeddings_that_are_gone_cannot_be_resumed(bench: PipelineHarness) -> None:
    bench.settings = replace(bench.settings, embeddings=True)
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 2}))
    (bench.out / "out" / "merged_features.partial").unlink()
    with pytest.raises(RunMismatchError, match=r"merged_features\.partial, are gone\. .* --overwrite"):
        await bench.run()


async def test_precision_and_budget_of_a_run_are_kept(bench: PipelineHarness) -> None:
    bench.settings = Settings(tokens_per_batch=300)
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 2}))
    bench.settings = Settings()
    summary = await bench.run()
    assert summary.settings["tokens_per_batch"] == 300
    assert summary.settings["precision"] == "fp32"


async def test_a_directory_is_one_run_at_a_time(bench: PipelineHarness) -> None:
    rules = Rules(pause_after=1)
    first = asyncio.create_task(bench.run(rules))
    await rules.paused.wait()
    with pytest.raises(DirectoryLockedError):
        await bench.run()
    rules.go_on.set()
    await first


async def test_a_directory_of_somebody_elses_is_refused(bench: PipelineHarness) -> None:
    (bench.out / "out").mkdir()
    (bench.out / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(ForeignDirectoryError, match=r"holds 'thesis\.tex' and no run of this program"):
        await bench.run()
    assert [path.name for path in (bench.out / "out").iterdir()] == ["thesis.tex"]


async def test_summary_says_what_happened(bench: PipelineHarness, bundle: Bundle) -> None:
    summary = await bench.run(devices=2)
    assert json.loads((bench.out / "out" / "summary.json").read_text()) == summary.as_dict()
    orfs = bench.orfs()
    assert summary.counts["orfs"] == len(orfs) == sum(device["orfs"] for device in summary.devices)
    assert sum(device["tokens"] for device in summary.devices) == sum(orfs.values())
    assert summary.bundle == {"name": bundle.name, "fingerprint": bundle.fingerprint}
    assert summary.seconds["model"] == 0.5 * summary.counts["batches"]


async def test_a_gpu_that_is_nearly_full_is_said_once(bench: PipelineHarness, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "_MEMORY_SECONDS", 0.01)
    asked: list[str] = []
    enough = threading.Event()

    def memory_use(device: Device) -> MemoryUse | None:
        asked.append(device.name)
        if len(asked) == 9:
            enough.set()
        used = {"cuda:0": 70, "cuda:1": 76}.get(device.name)
        return MemoryUse(used << 30, 80 << 30) if used else None

    gpus = [Device(f"cuda:{n}", "GPU", 80 << 30, (9, 0), index=n, uuid=f"GPU-{n}") for n in range(3)]
    second = replace(gpus[0], name="cuda:0/1")  # on the same card: asked about once
    plan = Plan(
        (str(bench.source),),
        bench.settings,
        bench.bundle,
        (*gpus, second),
        bench.window,
        memory_use,
    )
    rules = Rules(pause_after=1)
    task = asyncio.create_task(score_with(plan, bench.out / "out", rules.scorer))
    await asyncio.to_thread(enough.wait)
    rules.go_on.set()
    await task
    log = (bench.out / "out" / "run.log").read_text()
    assert "DEBUG    cuda:0: 70.0 of 80.0 GiB in use (88%)" in log
    assert log.count("cuda:1 is nearly full: 76.0 of 80.0 GiB in use (95%)") == 1
    assert "cuda:0 is nearly full" not in log
    assert set(asked) == {"cuda:0", "cuda:1", "cuda:2"}


# Parts


async def test_supply_gives_batches_in_order_and_waits_for_room(bench: PipelineHarness) -> None:
    rules = Rules()
    await bench.run(rules)
    batches = [batch for _, batch in rules.seen][:4]
    supply = Supply(2)
    await supply.put(batches[0])
    await supply.put(batches[1])
    with anyio.move_on_after(0.01) as scope:
        await supply.put(batches[2])
    assert scope.cancelled_caught
    assert await supply.take() is batches[0]
    assert repr(supply) == "<Supply [1 ready, 1 out, open]>"
    await supply.put(batches[2])
    await supply.done(batches[3], batches[0])  # given back: these two come first
    assert [await supply.take() for _ in range(4)] == [batches[3], batches[0], batches[1], batches[2]]


async def test_an_idle_device_waits_for_what_another_may_give_back(bench: PipelineHarness) -> None:
    rules = Rules()
    await bench.run(rules)
    batch = rules.seen[0][1]
    supply = Supply(2)
    await supply.put(batch)
    await supply.end()
    assert await supply.take() is batch
    taken = asyncio.create_task(supply.take())
    await asyncio.sleep(0)
    assert not taken.done()
    await supply.done(batch)
    assert await taken is batch
    await supply.done()
    assert await supply.take() is None


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
    begun, go_on, submitted = threading.Event(), threading.Event(), []

    class Slow(Replica):
        def _submit(self, batch: Batch) -> Any:
            submitted.append(batch)
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
    assert submitted == [first]
    assert [scores.batch for scores in done] == [first]
    assert np.isfinite(done[0].probabilities).all()


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
    assert log.count("fake:1 has no room for batches of") == len(tried) - 1
    assert "ran out of memory" not in log  # smaller batches are made, not tried


async def test_a_device_without_room_for_anything_is_lost(bench: PipelineHarness) -> None:
    with pytest.raises(NoDevicesLeft, match="not enough memory for a single token"):
        await bench.run(Rules(room=0, proves=True))


async def test_devices_that_do_not_exist(source: Path, bundle: Bundle, tmp_path: Path) -> None:
    for settings in (Settings(bundle.directory, devices=("cuda:9",)), Settings(gpus=(9,))):
        with pytest.raises(UnknownDevice, match="There are: .*cpu"):
            await run_pipeline([source], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


async def test_what_no_device_could_do_as_wanted_is_said_once(bench: PipelineHarness) -> None:
    await bench.run(Rules(warning="no {compiler} here"), devices=3)
    assert (bench.out / "out" / "run.log").read_text().count("no {compiler} here") == 1


def test_the_size_of_the_input_is_known_unless_a_part_of_it_is_not(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"x" * 5)
    two.write_bytes(b"x" * 7)
    assert pipeline._input_bytes([str(one), str(two)]) == 12
    assert pipeline._input_bytes([str(one), "-"]) is None
    assert pipeline._input_bytes([str(one), str(tmp_path / "missing")]) is None
