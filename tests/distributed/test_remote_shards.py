"""Shards of a run in an object store: the rows of a shard in a directory, from workers that come and go."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from batch_scorer import BatchRules
from object_stores import Bucket, refuses, s3_server
from support import TABLES, fasta

from virnuc_async.distributed.plan import SHARDS, Shard, write_plan
from virnuc_async.distributed.planning import make_plan
from virnuc_async.distributed.remote_merge import merge_run
from virnuc_async.distributed.remote_shard import score_shard
from virnuc_async.distributed.run_place import RunPlace
from virnuc_async.distributed.shard import run_shard
from virnuc_async.distributed.status import ShardState, read_status
from virnuc_async.distributed.storage import PUBLISHED, RemoteRun
from virnuc_async.errors import CannotWrite, NoPlan, PlanMismatch, ShardsMissing, UsageError
from virnuc_async.outputs.shard_file import SHARD_FILE
from virnuc_async.outputs.shard_rows import ShardSummary
from virnuc_async.settings import Settings

SETTINGS = Settings(devices=("cpu",), tokens_per_batch=2000)
SEGMENT, WINDOW = 2000, 60
FIRST = Shard(0, 2)


class Run:
    """A run in a bucket, of which each worker has a disk of its own, and the same run in a directory."""

    def __init__(self, bucket: Bucket, directory: Path) -> None:
        self.bucket, self.directory = bucket, directory
        self.url, self.local = f"{bucket.root}/run", directory / "local"

    async def plan(self) -> None:
        rng = random.Random(7)
        # Without a stop in any frame.
        records = [(f"c{n}", "".join(rng.choices("GC", k=rng.randint(200, 1500)))) for n in range(12)]
        path = self.bucket.put("in/contigs.fa", fasta(records).encode())
        plan = replace(await make_plan(path, self.local, SETTINGS, segment_bases=SEGMENT), window=WINDOW)
        write_plan(plan, self.local)
        assert RunPlace(self.url, self.directory).write_plan(plan, overwrite=False)

    async def score(self, shard: Shard, worker: str, rules: BatchRules | None = None) -> ShardSummary:
        """Score *shard* on the disk of *worker*."""
        settings = replace(SETTINGS, temporary_dir=self.directory / worker)
        return await score_shard(self.url, shard, settings, make_scorer=(rules or BatchRules()).scorer)

    async def score_locally(self, shard: Shard) -> dict[str, bytes]:
        """Return the rows of *shard* of the run in a directory."""
        await run_shard(self.local, shard, SETTINGS, make_scorer=BatchRules().scorer)
        return rows(self.local / SHARDS / shard.name)

    def published(self, shard: Shard) -> dict[str, bytes]:
        run = RemoteRun(self.url, self.directory)
        found = run.published(shard.name)
        assert found is not None
        return rows(run.fetch(found, self.directory / "reader"))

    def place(self, shard: Shard, worker: str) -> Path:
        """Return where *worker* works on *shard*."""
        return RemoteRun(self.url, self.directory / worker).require_plan().directory / SHARDS / shard.name


def rows(directory: Path) -> dict[str, bytes]:
    """Return what a shard has for the tables: its store, logs and times are those of a session."""
    names = {"run.sqlite3", "run.log", "progress.json", SHARD_FILE}
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in names}


@pytest.fixture
async def run(bucket: Bucket, tmp_path: Path) -> Run:
    run = Run(bucket, tmp_path)
    await run.plan()
    return run


def _merge(run: Run, place: str | Path, out: str) -> dict[str, bytes]:
    merge_run(place, run.directory / out, temporary_dir=run.directory / "merging")
    return {name: (run.directory / out / name).read_bytes() for name in TABLES}


async def test_tables_of_a_run_in_an_object_store_are_those_of_one_in_a_directory(run: Run):
    for number in (2, 0, 1):
        shard = Shard(number, 3)
        with pytest.raises(
            ShardsMissing, match="no shard of it is published" if number == 2 else "shard 1/3"
        ):
            _merge(run, run.url, "out")
        assert (await run.score(shard, f"worker {number}")).shard == (number, 3)
        assert run.published(shard) == await run.score_locally(shard)
        # Nothing is left on the worker's disk.
        assert not run.place(shard, f"worker {number}").exists()
    # Nor beside what is published.
    names = {key.rpartition("/")[2] for key in run.bucket.objects() if key.count("/") == 3}
    assert (names, (run.directory / "out").exists()) == ({PUBLISHED}, False)
    said: list[str] = []
    merging = run.directory / "merging"
    merge_run(run.url, run.directory / "out", before_each=said.append, temporary_dir=merging)
    copying = [f"copying shard {Shard(number, 3).name}" for number in range(3)]
    assert said[:4] == ["looking for the shards", *copying]
    assert not list(merging.rglob("run.sqlite3"))  # the copies
    expected = _merge(run, run.local, "expected")
    assert expected["contigs.tsv"].count(b"\n") == 13
    # Those of an earlier merge are replaced.
    assert _merge(run, run.url, "out") == expected


async def test_a_merge_of_what_is_not_what_was_published_writes_nothing(run: Run):
    await run.score(Shard(0, 1), "one")
    (key,) = (key for key in run.bucket.objects() if key.endswith("contigs.tsv"))
    run.bucket.put(key, b"other rows")
    with pytest.raises(ShardsMissing, match="contigs.tsv is not what was published: run the shard again"):
        _merge(run, run.url, "out")
    assert not (run.directory / "out").exists()


def test_a_merge_of_a_url_needs_a_directory_for_the_tables():
    with pytest.raises(
        UsageError, match="name a directory of this machine for the tables: merge s3://b/r OUT/"
    ):
        merge_run("s3://b/r")


async def test_a_shard_that_is_published_is_left_as_it_is(run: Run):
    first = await run.score(FIRST, "one")
    before, rules = run.bucket.objects(), BatchRules()
    again = await run.score(FIRST, "other", rules)
    assert (again, rules.seen, run.bucket.objects()) == (first, [], before)


async def test_of_two_workers_on_one_shard_both_end_well_and_one_publishes(run: Run):
    found: list[ShardSummary] = []

    async def score(worker: str) -> None:
        found.append(await run.score(FIRST, worker))

    async with anyio.create_task_group() as tasks:
        for worker in ("one", "other"):
            tasks.start_soon(score, worker)
    assert found[0].counts == found[1].counts
    assert run.published(FIRST) == await run.score_locally(FIRST)
    attempts = {key.split("/")[3] for key in run.bucket.objects() if key.count("/") == 4}
    assert len(attempts) == 1


async def test_a_worker_that_was_stopped_resumes_on_its_disk(run: Run):
    rules = BatchRules(pause_after=3, depth=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.score, FIRST, "one", rules)
        await rules.paused.wait()
        tasks.cancel_scope.cancel()
        rules.go_on.set()
    assert RemoteRun(run.url, run.directory).published(FIRST.name) is None
    (division,) = read_status(run.url, run.directory).divisions
    assert division.shards[0].state is ShardState.STOPPED
    assert division.shards[0].message == "it was interrupted"
    more = BatchRules()
    await run.score(FIRST, "one", more)
    whole = BatchRules()
    await run_shard(run.local, FIRST, SETTINGS, make_scorer=whole.scorer)
    assert 0 < len(more.seen) < len(whole.seen)
    assert run.published(FIRST) == rows(run.local / SHARDS / FIRST.name)


async def test_a_store_that_refuses_keeps_the_finished_shard_for_the_next_attempt(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    def fault(environ: dict[str, str], _: object) -> object:
        is_published = environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("contigs.tsv")
        return refuses if is_published and refused else None

    refused = [True]
    with s3_server(fault) as url:  # type: ignore[arg-type]
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        other = Run(Bucket.create(url), run.directory / "other")
        await other.plan()
        with pytest.raises(CannotWrite, match="the server refuses it: 403 Forbidden"):
            await other.score(FIRST, "one")
        (division,) = read_status(other.url, run.directory).divisions
        assert division.shards[0].state is ShardState.STOPPED
        refused.clear()
        rules = BatchRules()
        await other.score(FIRST, "one", rules)
        assert (rules.seen, set(other.published(FIRST))) == ([], set(await other.score_locally(FIRST)))


async def test_what_is_published_of_another_plan_is_not_taken(run: Run):
    await run.score(FIRST, "one")
    plan = replace(RemoteRun(run.url, run.directory).require_plan().plan, tokens_per_batch=999)
    assert RunPlace(run.url, run.directory).write_plan(plan, overwrite=True)
    with pytest.raises(PlanMismatch) as raised:
        await run.score(FIRST, "one")
    assert str(raised.value) == (
        f"{run.url}: is not as planned: shard 0/2 is published of another plan: "
        f"delete {run.url}/{SHARDS}/{FIRST.name}/"
    )


async def test_errors_name_the_run_and_not_the_directory_of_the_worker(run: Run):
    plan = replace(RemoteRun(run.url, run.directory).require_plan().plan, version="0.0.1")
    assert RunPlace(run.url, run.directory).write_plan(plan, overwrite=True)
    with pytest.raises(PlanMismatch) as raised:
        await run.score(FIRST, "one")
    assert raised.value.path == run.url
    with pytest.raises(NoPlan):
        await score_shard(f"{run.url}/elsewhere", FIRST, SETTINGS)


@pytest.fixture(autouse=True)
def _quick_first_sign(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("virnuc_async.distributed.announcing._FIRST", 0.01)
    return
