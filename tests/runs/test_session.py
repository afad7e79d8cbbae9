"""A directory and its run: resumed, taken over, refused."""

import asyncio
import json
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import anyio
import pytest
from fakes import Rules, fake_devices
from harness import PipelineHarness
from support import DATA, TABLES

from virnuc_async.engine.device_state import DeviceState
from virnuc_async.engine.devices import Device
from virnuc_async.errors import (
    BadBundle,
    CannotWrite,
    DamagedStore,
    DirectoryLockedError,
    ForeignDirectoryError,
    NoDevicesLeft,
    RunMismatchError,
)
from virnuc_async.fileio import Directory
from virnuc_async.log import logger
from virnuc_async.models.bundle import Bundle
from virnuc_async.pipeline import execute
from virnuc_async.runs.lock import LOCK, Lock, Owner, owner_of, take_over
from virnuc_async.runs.output_directory import STORE
from virnuc_async.runs.plan import Intervals, Plan
from virnuc_async.runs.store import Store
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.settings import Precision, Settings


async def test_a_finished_run_asked_for_again_says_so_and_touches_nothing(bench: PipelineHarness) -> None:
    first = await bench.run()
    log = bench.out / "out" / "run.log"
    said = len(log.read_text())
    before = {path.name: path.stat() for path in (bench.out / "out").iterdir() if path != log}

    def read(path: str) -> Iterator[Contig]:
        raise AssertionError(f"{path} is read again")

    rules = Rules()
    plan = Plan((str(bench.source),), bench.settings, bench.bundle, fake_devices(3), bench.window)
    assert await execute(plan, bench.out / "out", rules.scorer, read=read) == first
    assert not rules.proofs
    assert not rules.seen
    assert "this run is finished already, and its files are unchanged" in log.read_text()[said:]
    after = {path.name: path.stat() for path in (bench.out / "out").iterdir() if path != log}
    assert after.keys() == before.keys()
    for name, facts in before.items():
        assert (after[name].st_ino, after[name].st_mtime_ns) == (facts.st_ino, facts.st_mtime_ns), name


async def test_a_finished_run_does_not_ask_for_the_devices_that_it_had(bench: PipelineHarness) -> None:
    first = await bench.run()
    gpu = Device("cuda:0", "GPU", 1 << 30, (9, 0), uuid="GPU-1")
    plan = Plan((str(bench.source),), Settings(), bench.bundle, (gpu,), bench.window, lambda _: DeviceState())
    assert await execute(plan, bench.out / "out", Rules().scorer) == first


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (
            Device("cpu:0", "CPU (AVX512, oneDNN AVX512_CORE)", 1),
            Device("cpu:0", "CPU (AVX512, oneDNN AVX2)", 1),
        ),
        (Device("cuda:0", "A100", 1, (8, 0)), Device("cuda:0", "A10", 1, (8, 6))),
        (Device("cuda:0", "A100", 1, (8, 0)), Device("cuda:0", "A100 MIG 3g.40gb", 1, (8, 0))),
    ],
    ids=["instruction set", "model", "slice"],
)
async def test_a_run_does_not_go_on_on_devices_of_another_kind(
    before: Device, now: Device, bench: PipelineHarness
) -> None:
    def plan(device: Device) -> Plan:
        settings = replace(bench.settings, precision=Precision.FP32)
        return Plan(
            (str(bench.source),), settings, bench.bundle, (device,), bench.window, lambda _: DeviceState()
        )

    out = bench.out / "out"
    with pytest.raises(NoDevicesLeft):
        await execute(plan(before), out, Rules(lost={before.name: 2}).scorer)
    with pytest.raises(RunMismatchError) as caught:
        await execute(plan(now), out, Rules().scorer)
    assert caught.value.differences == (
        f"devices: {before.kind} -> {now.kind} "
        "(last digits would differ: go on with the kind that it was begun on)",
    )
    assert (await execute(plan(before), out, Rules().scorer)).finished


def hold(out: Path, **facts: object) -> Owner:
    """Have *out* held by a process on another machine."""
    held = Lock(Directory(out))
    owner = owner_of(Directory(out))
    held.release()
    assert owner is not None
    owner = replace(owner, host="node7", pid=4711, **facts)  # type: ignore[arg-type]
    (out / LOCK).write_text(json.dumps(asdict(owner)))
    return owner


QUICK = Intervals(heartbeat=0.02, lease=0.2)


async def test_what_a_dead_process_elsewhere_holds_is_taken_over(bench: PipelineHarness) -> None:
    bench.intervals = QUICK
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
        f"{bench.out / 'out'} is locked by process 4711 on node7 (since {owner.since}), whose process cannot "
        "be seen from here. If it sends no heartbeat for 0 s, it is taken for dead",
        f"no heartbeat from process 4711 on node7 (since {owner.since}): taking over its directory",
    ]
    assert not (bench.out / "out" / LOCK).exists()


async def test_what_a_living_process_elsewhere_holds_is_left_to_it(bench: PipelineHarness) -> None:
    bench.intervals = QUICK
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


async def test_a_run_shows_that_it_lives(bench: PipelineHarness) -> None:
    bench.intervals = QUICK
    rules = Rules(pause_after=1)
    task = asyncio.create_task(bench.run(rules))
    await rules.paused.wait()
    first = owner_of(Directory(bench.out / "out"))
    while owner_of(Directory(bench.out / "out")) == first:  # noqa: ASYNC110 (a file has no event)
        await anyio.sleep(0.02)
    later = owner_of(Directory(bench.out / "out"))
    assert first is not None
    assert later is not None
    assert (later.pid, later.token) == (os.getpid(), first.token)
    rules.go_on.set()
    await task


async def test_a_run_that_was_taken_for_dead_writes_no_more(bench: PipelineHarness) -> None:
    """As one that was suspended for minutes, and followed meanwhile."""
    bench.intervals = QUICK
    await bench.run(out="calm")
    rules = Rules(pause_after=2)
    task = asyncio.create_task(bench.run(rules))
    await rules.paused.wait()
    owner = owner_of(Directory(bench.out / "out"))
    assert owner is not None
    take_over(Directory(bench.out / "out"), owner)
    rules.go_on.set()
    with pytest.raises(DirectoryLockedError, match=r"its run\.lock is gone"):
        await task
    assert not rules.open
    assert (await bench.run()).finished
    assert bench.tables() == bench.tables("calm")


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
    with pytest.raises(DamagedStore, match=r"finished batches in it can be recovered: .* --repair"):
        await bench.run()
    bench.settings = replace(bench.settings, repair=True)
    rules = Rules()
    repaired = await bench.run(rules, devices=count)
    assert len(rules.seen) == summary.counts["batches"] // 3
    assert bench.tables() == bench.tables("calm")
    assert repaired.counts == summary.counts
    log = (bench.out / "out" / "run.log").read_text()
    kept = summary.counts["batches"] - len(rules.seen)
    assert f"repaired: kept {kept} batches of " in log
    assert f"the damaged store is in {bench.out / 'out' / 'run.sqlite3.damaged'}" in log


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
        await execute(plan, tmp_path / "out", rules.scorer)
    assert not rules.seen


async def test_standard_input_is_piped_again_to_resume(bench: PipelineHarness, tmp_path: Path) -> None:
    await bench.run(out="file")
    plan = Plan(("-",), bench.settings, bench.bundle, fake_devices(1), bench.window)
    rules = Rules(lost={"fake:0": 2})
    stdin = BytesIO(bench.source.read_bytes())
    with pytest.raises(NoDevicesLeft):
        await execute(plan, tmp_path / "out", rules.scorer, read=partial(read_contigs, stdin=stdin))
    stdin = BytesIO(bench.source.read_bytes())
    await execute(plan, tmp_path / "out", Rules().scorer, read=partial(read_contigs, stdin=stdin))
    for name in TABLES[:2]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"embeddings": True}, "embeddings: False -> True"),
        ({"tokens_per_batch": 500}, "tokens per batch: 400 -> 500"),
        ({"precision": "bf16"}, "precision: fp32 -> bf16"),
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


@pytest.mark.parametrize("lost", [{}, {"fake:0": 2}], ids=["finished", "unfinished"])
@pytest.mark.parametrize("compiled", [False, True])
async def test_a_run_of_a_version_that_compiled_kernels_is_the_same_run(
    bench: PipelineHarness, lost: dict[str, int], compiled: bool
) -> None:
    calm = await bench.run(out="calm")
    with suppress(NoDevicesLeft):
        await bench.run(Rules(lost=lost))
    with closing(Store(bench.out / "out")) as store:
        store.set_meta("identity", store.get_meta("identity") | {"compiled kernels": compiled})
    again = await bench.run()
    assert again.counts == calm.counts
    assert bench.tables() == bench.tables("calm")


async def test_another_input_is_another_run(bench: PipelineHarness, tmp_path: Path) -> None:
    bench.source = Path(tmp_path / "copy.fa")
    bench.source.write_bytes(b">a\nGCAGCA\n>b\nGCAGCAGCA\n")
    await bench.run()
    bench.source.write_bytes(b">a\nGCAGCA\n")
    with pytest.raises(RunMismatchError, match="contains a different run: inputs: "):
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
    [(0, "inputs: .*copy.fa has changed"), (150_000, "the sequences have changed")],
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
    (bench.out / "out" / "contigs.tsv").write_text("precious")
    with pytest.raises(ForeignDirectoryError, match=r"contains 'contigs\.tsv' and no run of this program"):
        await bench.run()
    assert [path.name for path in (bench.out / "out").iterdir()] == ["contigs.tsv"]
