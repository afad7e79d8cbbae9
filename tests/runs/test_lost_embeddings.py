"""Embeddings that are lost or damaged: what is gone is computed again, and nothing else."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import Rules, fake_devices
from harness import PipelineHarness
from running import flip, log

from virnuc_async.engine.devices import Device
from virnuc_async.errors import NoDevicesLeft, RunMismatchError
from virnuc_async.pipeline import execute
from virnuc_async.runs.output_directory import FEATURES, MERGED_FEATURES, STORE
from virnuc_async.runs.plan import Plan

ROW = 4 * 160  # bytes


@pytest.fixture
def embedding(bench: PipelineHarness) -> PipelineHarness:
    bench.settings = replace(bench.settings, embeddings=True)
    return bench


def results(bench: PipelineHarness, out: str = "out") -> dict[str, bytes]:
    return bench.tables(out) | {MERGED_FEATURES: (bench.out / out / MERGED_FEATURES).read_bytes()}


def cut(path: Path) -> None:
    os.truncate(path, 1000)


def flip_all(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip_all, lambda path: flip(path, 3 * ROW + 5)])
async def test_rows_of_an_unfinished_run_that_are_gone(
    damage: Callable[[Path], None], embedding: PipelineHarness
) -> None:
    calm = await embedding.run(out="calm")
    with pytest.raises(NoDevicesLeft):
        await embedding.run(Rules(lost={"fake:0": 4}))
    damage(embedding.out / "out" / FEATURES)
    rules = Rules()
    summary = await embedding.run(rules)
    assert results(embedding) == results(embedding, "calm")
    assert summary.counts == calm.counts
    lost = len(rules.seen) - (calm.counts["batches"] - 4)
    assert lost == (1 if "lambda" in str(damage) else 4 if damage in (Path.unlink, flip_all) else lost)
    word = "batch" if lost == 1 else "batches"
    assert f"the embeddings of {lost} {word} of 4 are lost or damaged, and are computed again" in log(
        embedding.out / "out"
    )
    assert not (embedding.out / "out" / FEATURES).exists()


def need_a_later_zip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 6] = 128  # the version that is needed to read a member
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip_all, need_a_later_zip])
async def test_the_file_of_a_finished_run_that_is_gone(
    damage: Callable[[Path], None], embedding: PipelineHarness
) -> None:
    summary = await embedding.run()
    before = results(embedding)
    damage(embedding.out / "out" / MERGED_FEATURES)
    rules = Rules()
    assert (await embedding.run(rules)).counts == summary.counts
    assert len(rules.seen) == summary.counts["batches"]
    assert results(embedding) == before
    assert not (embedding.out / "out" / FEATURES).exists()
    rules = Rules()
    await embedding.run(rules)
    assert not rules.seen


async def test_one_row_of_the_file_that_is_damaged(embedding: PipelineHarness) -> None:
    await embedding.run()
    before = results(embedding)
    path = embedding.out / "out" / MERGED_FEATURES
    flip(path, path.stat().st_size // 2)
    rules = Rules()
    await embedding.run(rules)
    assert len(rules.seen) == 1
    assert results(embedding) == before


async def test_a_file_that_was_only_touched_is_left_as_it_is(embedding: PipelineHarness) -> None:
    await embedding.run()
    path = embedding.out / "out" / MERGED_FEATURES
    os.utime(path, (1, 1))
    before = path.stat()
    for _ in range(2):
        rules = Rules()
        await embedding.run(rules)
        assert not rules.seen
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_rows_are_there_twice_until_the_file_is_certified(embedding: PipelineHarness) -> None:
    """As after a kill between the two."""
    await embedding.run()
    before = results(embedding)
    out = embedding.out / "out"
    with closing(sqlite3.connect(out / STORE)) as db, db:
        db.execute("DELETE FROM run WHERE key = 'saved features'")
    rules = Rules()
    await embedding.run(rules)
    assert not rules.seen  # taken from the file, and compared
    assert results(embedding) == before
    assert f"the embeddings so far are taken from {MERGED_FEATURES}" in log(out)


async def test_batches_are_split_again_as_they_were(embedding: PipelineHarness) -> None:
    first = Rules(room=max(embedding.orfs().values()))
    counts = (await embedding.run(first)).counts
    before = results(embedding)
    (embedding.out / "out" / MERGED_FEATURES).unlink()
    with pytest.raises(NoDevicesLeft):
        await embedding.run(Rules(lost={"fake:0": 5}))
    again = Rules()
    summary = await embedding.run(again)
    names = {batch.name for _, batch in first.seen}
    assert {batch.name for _, batch in again.seen} < names
    assert any(batch.split_path for _, batch in again.seen)
    assert summary.counts == counts
    assert not summary.reproducible
    assert results(embedding) == before


async def test_a_batch_that_was_split_is_split_further_where_it_has_no_room(
    embedding: PipelineHarness,
) -> None:
    longest = max(embedding.orfs().values())
    await embedding.run(Rules(room=2 * longest))
    before = results(embedding)
    (embedding.out / "out" / MERGED_FEATURES).unlink()
    with pytest.raises(NoDevicesLeft):
        await embedding.run(Rules(room=longest, lost={"fake:0": 3}))
    await embedding.run(Rules())
    assert results(embedding) == before


async def test_failed_orfs_need_no_row(embedding: PipelineHarness) -> None:
    rules = Rules(strange=max(embedding.orfs().values()))
    summary = await embedding.run(rules)
    assert summary.counts["failures"]
    before = results(embedding)
    flip_all(embedding.out / "out" / MERGED_FEATURES)
    assert (await embedding.run(Rules(strange=rules.strange))).counts == summary.counts
    assert results(embedding) == before


async def test_on_another_kind_of_device_nothing_is_computed_again(embedding: PipelineHarness) -> None:
    await embedding.run()
    before = results(embedding)
    path = embedding.out / "out" / MERGED_FEATURES
    path.unlink()
    other = (Device("other:0", "another kind", 1 << 30, capability=(7, 5)),)
    plan = Plan((str(embedding.source),), embedding.settings, embedding.bundle, other, embedding.window)
    with pytest.raises(RunMismatchError, match="devices: "):
        await execute(plan, embedding.out / "out", Rules().scorer)
    await embedding.run(devices=len(fake_devices(2)))
    assert results(embedding) == before


@pytest.mark.parametrize("is_finished", [False, True])
@pytest.mark.parametrize("is_damaged", [False, True])
async def test_repair_of_a_run_with_embeddings(
    is_damaged: bool, is_finished: bool, embedding: PipelineHarness
) -> None:
    await embedding.run(out="calm")
    if is_finished:
        await embedding.run()
    else:
        with pytest.raises(NoDevicesLeft):
            await embedding.run(Rules(lost={"fake:0": 4}))
    out = embedding.out / "out"
    with closing(sqlite3.connect(out / STORE)) as db, db:
        (count,) = db.execute("SELECT COUNT(*) FROM batches").fetchone()
        if is_damaged:
            db.execute("UPDATE batches SET tokens = tokens + 1 WHERE rowid IN (1, 3)")
    embedding.settings = replace(embedding.settings, repair=True)
    rules = Rules()
    summary = await embedding.run(rules)
    assert len(rules.seen) == summary.counts["batches"] - count + 2 * is_damaged
    assert results(embedding) == results(embedding, "calm")
    assert ("run.sqlite3 is intact: there is nothing to repair" in log(out)) is not is_damaged
    assert not (out / FEATURES).exists()
