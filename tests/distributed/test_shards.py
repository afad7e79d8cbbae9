"""Shards: their rows, put one behind the other, are those of the run on one machine."""

import gzip
import random
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_runs import Sample, joined, stored, write_records
from sharded import tables

from virnuc_async import Settings
from virnuc_async.distributed.merge import merge_shards
from virnuc_async.distributed.plan import SHARDS, Shard, read_plan, write_plan
from virnuc_async.errors import DirectoryLockedError, PlanMismatch, RunMismatchError, UsageError
from virnuc_async.fileio import Directory
from virnuc_async.runs.lock import Lock
from virnuc_async.sequences.inputs import InputVersion

ROW_FILES = ("prediction_results.txt", "contigs.tsv", "fragments.tsv")


def mixed(directory: Path) -> list[Path]:
    """Write files whose segments end within them, at their ends and across them; one breaks off."""
    (directory / "empty.fa").write_bytes(b"")
    lengths = [random.Random(1).choice((2, 90, 300, 700, 2_500)) for _ in range(60)]
    broken = write_records(directory / "broken.fa", [400] * 30)
    (directory / "broken.fa.gz").write_bytes(gzip.compress(broken.read_bytes(), 0)[:9_000])
    return [
        directory / "empty.fa",
        write_records(directory / "one.fa", lengths),
        directory / "broken.fa.gz",
        write_records(directory / "last.fa", [1_000, 1_000, 5]),
    ]


def assert_is_the_run(sample: Sample, count: int) -> None:
    """Check that the shards have the rows of the run in one piece, and that its tables are made of them."""
    shards, merged = sample.shards(count), sample.directory / f"merged_of_{count}"
    assert stored(shards) == stored([sample.one])
    for name in ROW_FILES:
        assert joined(shards, name) == (sample.one / name).read_bytes()
    merge_shards(sample.run, merged)
    assert tables(merged) == tables(sample.one)
    shutil.rmtree(sample.run / SHARDS)  # of one division alone


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    directory = tmp_path_factory.mktemp("sample")
    sample = Sample(directory, mixed(directory), 3_000)
    anyio.run(sample.score_at_once)
    anyio.run(sample.plan)
    return sample


@pytest.mark.parametrize("count", [1, 2, 7, pytest.param(100, marks=pytest.mark.slow)])
async def test_shards_have_the_rows_of_one_machine(sample: Sample, count: int) -> None:
    summaries = await sample.score(count)
    assert_is_the_run(sample, count)
    assert sum(summary.counts["contigs"] for summary in summaries) == read_plan(sample.run).records


async def test_a_plan_of_one_segment_is_the_run_of_before(tmp_path: Path) -> None:
    sample = Sample(tmp_path, mixed(tmp_path), 10**9)
    plan = await sample.plan()
    assert len(plan.segments) == 1
    await sample.score_at_once()
    await sample.score(1)
    assert_is_the_run(sample, 1)
    numbers = [row[0] for row in stored([sample.one]) if len(row) == 10]
    assert numbers == list(range(len(numbers)))


_SIZES = st.integers(1, 1_500) | st.integers(1, 200)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.lists(_SIZES, max_size=12), min_size=1, max_size=4).filter(any),
    st.integers(1, 4_000),
    st.integers(1, 9),
)
def test_any_records_segments_and_shards(files: list[list[int]], segment: int, count: int) -> None:
    with TemporaryDirectory() as name:
        directory = Path(name)
        paths = [write_records(directory / f"{n}.fa", sizes, n) for n, sizes in enumerate(files)]
        sample = Sample(directory, paths, segment)
        anyio.run(sample.score_at_once)
        anyio.run(sample.plan)
        anyio.run(sample.score, count)
        assert_is_the_run(sample, count)


async def test_a_finished_shard_is_left_as_it_is(tmp_path: Path) -> None:
    sample = Sample(tmp_path, [write_records(tmp_path / "a.fa", [700] * 9)], 1_000)
    await sample.plan()
    first = await sample.score_one(Shard(1, 3))
    files = {
        path: path.stat().st_mtime_ns for path in sample.shards(3)[1].iterdir() if path.name != "run.log"
    }
    seen = len(sample.rules.seen)
    assert await sample.score_one(Shard(1, 3)) == first
    assert len(sample.rules.seen) == seen
    assert {path: path.stat().st_mtime_ns for path in files} == files


async def test_other_content_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.fa", [700] * 9)
    sample = Sample(tmp_path, [path, write_records(tmp_path / "b.fa", [700] * 9)], 1_000)
    await sample.plan()
    path.write_bytes(path.read_bytes().replace(b"AC", b"CA"))
    with pytest.raises(PlanMismatch, match=r"run: is not as planned: \S+/a\.fa: its content is another one"):
        await sample.score_one(Shard(0, 4))
    assert not sample.rules.seen
    await sample.score_one(Shard(3, 4))  # which does not read that file


async def test_a_file_that_cannot_be_read_for_a_moment_is_no_broken_one(tmp_path: Path) -> None:
    text = write_records(tmp_path / "a.fa", [700] * 9).read_bytes()
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(text, 0))
    sample, whole = Sample(tmp_path, [path], 2_000), path.read_bytes()
    plan = await sample.plan()
    assert plan.files[0].failure is None
    # Now it breaks off, and looks the same as far as it is looked at.
    path.write_bytes(whole[:-20])
    (file,) = (replace(file, fingerprint=InputVersion.of(str(path)).fingerprint) for file in plan.files)
    write_plan(replace(plan, files=(file,)), sample.run)
    said = r"a\.fa\.gz: breaks after 8 records: Compressed .*; as planned: 9 records to its end\. If this was"
    with pytest.raises(PlanMismatch, match=said):
        await sample.score_one(Shard(1, 2))
    await sample.score_one(Shard(0, 2))  # it is read to the end of this shard


async def test_another_version_is_refused(tmp_path: Path) -> None:
    sample = Sample(tmp_path, [write_records(tmp_path / "a.fa", [700] * 9)], 1_000)
    plan = await sample.plan()
    write_plan(replace(plan, version="0.0.1"), sample.run)
    with pytest.raises(PlanMismatch, match=r"version: 0\.0\.1 -> "):
        await sample.score_one(Shard(0, 2))


async def test_another_kind_of_device_is_refused(tmp_path: Path) -> None:
    sample = Sample(tmp_path, [write_records(tmp_path / "a.fa", [700] * 9)], 1_000)
    plan = await sample.plan()
    write_plan(replace(plan, devices="NVIDIA H200 (capability 9.0)"), sample.run)
    with pytest.raises(PlanMismatch, match=r"devices: NVIDIA H200 \(capability 9\.0\) -> CPU"):
        await sample.score_one(Shard(0, 2))
    assert not sample.rules.seen


async def test_a_plan_that_was_made_anew_does_not_mix_with_old_shards(tmp_path: Path) -> None:
    sample = Sample(tmp_path, [write_records(tmp_path / "a.fa", [700] * 9)], 1_000)
    await sample.plan()
    await sample.score_one(Shard(0, 2))
    kept = sample.shards(2)[0]
    shutil.move(kept, tmp_path / "kept")
    shutil.rmtree(sample.run)
    sample.segment = 1_500
    await sample.plan()
    kept.parent.mkdir()
    shutil.move(tmp_path / "kept", kept)
    with pytest.raises(RunMismatchError, match="plan: "):
        await sample.score_one(Shard(0, 2))


async def test_a_shard_has_one_writer(tmp_path: Path) -> None:
    sample = Sample(tmp_path, [write_records(tmp_path / "a.fa", [700] * 9)], 1_000)
    await sample.plan()
    held = sample.shards(2)[0]
    held.mkdir(parents=True)
    with Directory(held) as directory:
        lock = Lock(directory)
        with pytest.raises(DirectoryLockedError, match="is writing there"):
            await sample.score_one(Shard(0, 2))
        lock.release()
    await sample.score_one(Shard(0, 2))


async def test_what_a_shard_cannot_have(tmp_path: Path) -> None:
    sample = Sample(tmp_path, [write_records(tmp_path / "a.fa", [700] * 9)], 1_000)
    await sample.plan()
    with pytest.raises(UsageError, match="a shard cannot reuse features"):
        await sample.score_one(Shard(0, 2), Settings(reuse_features=tmp_path))
