"""Runs in object stores: a shard is published once and whole, whatever happens to its workers."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_stores import IMPATIENT, Answer, Bucket, Fault, fails, refuses, s3_server
from plans import planned
from support import ROOT

from virnuc_async.distributed.plan import PLAN, SHARDS, RunPlan, read_plan, write_plan
from virnuc_async.distributed.storage import (
    PUBLISHED,
    Fetched,
    Published,
    RemoteRun,
    StoredFile,
    missing_shards,
)
from virnuc_async.errors import CannotWrite, NoPlan, ShardsMissing, UsageError
from virnuc_async.runs.lock import LOCK

NAME = "00003-of-00100"
PREDICTIONS, STORE = "prediction_results.txt", "run.sqlite3"


def plan_of(count: int = 5) -> RunPlan:
    return planned([[1000] * count], 1000)


class Worker:
    """A worker with a disk of its own, that has finished a shard with these files."""

    def __init__(self, bucket: Bucket, scratch: Path, files: dict[str, bytes]) -> None:
        self.run = RemoteRun(f"{bucket.root}/a/run/", scratch, IMPATIENT)
        self.fetched = Fetched(plan_of(), self.run.workplace("plan"))
        self.place = self.fetched.directory / SHARDS / NAME
        self.place.mkdir(parents=True)
        for name, content in files.items():
            (self.place / name).write_bytes(content)

    def publish(self) -> bool:
        return self.run.publish(self.fetched, NAME)

    def published(self) -> Published:
        """Return what is published, which there must be."""
        found = self.run.published(NAME)
        assert found is not None
        return found


def fetched(run: RemoteRun, found: Published, *names: str) -> dict[str, bytes]:
    """Return the files of a published shard, fetched."""
    place = run.fetch(found, run.workplace("reader"), names or None)
    assert place == run.workplace("reader") / SHARDS / NAME
    return {path.name: path.read_bytes() for path in place.iterdir()}


@contextmanager
def faulty(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> Iterator[Bucket]:
    """Reach a new bucket by a server that has *fault*."""
    with s3_server(fault) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield Bucket.create(url)


def of_object(method: str, name: str, other: Answer, times: int = 1000, does_it: bool = False) -> Fault:
    """
    Return a fault of so many requests of *method* for an object called *name*.

    They are answered as *other* does; with *does_it*, what they ask for is done before.
    """
    left = [times]

    def fault(environ: dict[str, Any], answer: Answer) -> Answer | None:
        if environ["REQUEST_METHOD"] != method or not environ["PATH_INFO"].endswith(name) or not left[0]:
            return None
        left[0] -= 1
        return _answers_and_then(answer, other) if does_it else other

    return fault


# The plan


def test_a_plan_is_there_once(bucket: Bucket, tmp_path: Path):
    run = RemoteRun(f"{bucket.root}/a/run", tmp_path)
    places = {count: run.workplace(f"plan {count}") for count in (5, 6)}
    for count, place in places.items():
        write_plan(plan_of(count), place)
    assert run.fetch_plan() is None
    assert run.publish_plan(places[5])
    assert not run.publish_plan(places[6])
    found = run.require_plan()
    assert (found.plan, read_plan(found.directory)) == (plan_of(5), plan_of(5))
    assert bucket.objects() == [f"a/run/{PLAN}"]
    # Another plan has another directory, so that nothing of the first one is taken for it.
    assert run.publish_plan(places[6], overwrite=True)
    other = run.require_plan()
    assert other.plan == plan_of(6)
    assert other.directory != found.directory
    assert RemoteRun(run.url, tmp_path).require_plan() == other


def test_a_run_without_a_plan_says_how_to_make_one(bucket: Bucket, tmp_path: Path):
    url = f"{bucket.root}/a/run"
    with pytest.raises(NoPlan) as raised:
        RemoteRun(url, tmp_path).require_plan()
    assert str(raised.value) == (
        f"{url}: contains no plan.json. Plan the run first: virnuc-async plan INPUT ... {url}"
    )


def test_a_damaged_plan_is_refused_by_the_name_of_the_run(bucket: Bucket, tmp_path: Path):
    bucket.put(f"a/run/{PLAN}", b'{"format": 1}')
    with pytest.raises(NoPlan) as raised:
        RemoteRun(f"{bucket.root}/a/run", tmp_path).fetch_plan()
    assert raised.value.path == f"{bucket.root}/a/run"
    assert str(tmp_path) not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["https://host/run/", "s3:///run", "s3://bucket/../run", "s3://me:pw@bucket/run"]
)
def test_a_run_is_in_an_object_store(url: str):
    with pytest.raises(UsageError):
        RemoteRun(url)


# Publishing


def test_what_is_published_is_fetched_as_it_was(bucket: Bucket, tmp_path: Path):
    files = {STORE: os.urandom(9 << 20), PREDICTIONS: b"a\tb\n", "shard.json": b"{}", "empty.tsv": b""}
    worker = Worker(bucket, tmp_path / "a", {**files, LOCK: b"me", ".hidden": b"x", ".x.partial": b"x"})
    assert worker.run.shards() == []
    assert worker.run.published(NAME) is None
    assert worker.publish()
    found = worker.published()
    sizes = {name: len(content) for name, content in files.items()}
    assert {name: file.bytes for name, file in found.files.items()} == sizes
    assert (found.plan, found.shard) == (plan_of().digest, NAME)
    place = f"a/run/{SHARDS}/{NAME}"
    keys = [f"{place}/{PUBLISHED}", *(f"{place}/{found.attempt}/{name}" for name in files)]
    assert bucket.objects() == sorted(keys)
    other = RemoteRun(worker.run.url, tmp_path / "b")
    assert other.shards() == [NAME]
    assert fetched(other, found, "shard.json", "not there") == {"shard.json": b"{}"}
    assert fetched(other, found) == files


def test_what_was_fetched_is_not_fetched_again(bucket: Bucket, tmp_path: Path):
    worker = Worker(bucket, tmp_path, {STORE: b"store", PREDICTIONS: b"rows"})
    worker.publish()
    found = worker.published()
    fetched(worker.run, found)
    keys = bucket.objects()
    for key in keys:
        bucket.delete(key)
    assert fetched(worker.run, found) == {STORE: b"store", PREDICTIONS: b"rows"}
    (worker.run.workplace("reader") / SHARDS / NAME / STORE).write_bytes(b"st0re")
    with pytest.raises(ShardsMissing):
        fetched(worker.run, found)


@pytest.mark.parametrize("count", [2, 8])
def test_of_workers_that_race_one_publishes(count: int, bucket: Bucket, tmp_path: Path):
    contents = [{STORE: b"of worker %d" % number, PREDICTIONS: b"%d\n" % number} for number in range(count)]
    workers = [Worker(bucket, tmp_path / str(number), files) for number, files in enumerate(contents)]
    begin = threading.Barrier(count)

    def publish(worker: Worker) -> bool:
        begin.wait()
        return worker.publish()

    with ThreadPoolExecutor(count) as threads:
        done = list(threads.map(publish, workers))
    assert sorted(done) == [False] * (count - 1) + [True]
    reader = RemoteRun(workers[0].run.url, tmp_path / "reader")
    assert fetched(reader, workers[0].published()) == contents[done.index(True)]
    # The others have deleted what they wrote.
    assert len(bucket.objects()) == 1 + len(contents[0])


def _answers_and_then(answer: Answer, other: Answer) -> Answer:
    """Return what does as *answer* says, and answers as *other* does."""

    def both(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        list(answer(environ, lambda *_: None))
        return other(environ, start_response)

    return both


def test_an_answer_that_is_lost_is_no_other_worker(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with faulty(monkeypatch, of_object("PUT", PUBLISHED, fails, times=1, does_it=True)) as other:
        worker = Worker(other, tmp_path, {STORE: b"store"})
        assert worker.publish()
        assert fetched(worker.run, worker.published()) == {STORE: b"store"}


def test_a_shard_that_may_be_published_keeps_its_files(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with faulty(monkeypatch, of_object("PUT", PUBLISHED, refuses, does_it=True)) as other:
        worker = Worker(other, tmp_path, {STORE: b"store"})
        with pytest.raises(CannotWrite):
            worker.publish()
        # The next worker finds it, with all that it names.
        assert fetched(worker.run, worker.published()) == {STORE: b"store"}


def test_a_bucket_that_refuses_is_said_and_nothing_is_published(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with faulty(monkeypatch, of_object("PUT", PREDICTIONS, refuses)) as other:
        worker = Worker(other, tmp_path, {STORE: b"store", PREDICTIONS: b"rows"})
        with pytest.raises(CannotWrite) as raised:
            worker.publish()
        assert "the server refuses it: 403 Forbidden (AccessDenied: Access Denied)" in str(raised.value)
        assert "Set in the environment: AWS_ACCESS_KEY_ID" in str(raised.value)
        assert raised.value.path.startswith(f"{worker.run.url}/{SHARDS}/{NAME}/")
        assert other.objects() == []
        assert (worker.place / STORE).read_bytes() == b"store"


def test_broken_transfers_are_repeated(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with faulty(monkeypatch, of_object("PUT", STORE, fails, times=2)) as other:
        assert Worker(other, tmp_path, {STORE: b"store"}).publish()


_PUBLISH = """
import sys
from pathlib import Path
from virnuc_async.distributed.storage import Fetched, RemoteRun
from plans import planned
run = RemoteRun(sys.argv[1], Path(sys.argv[2]))
run.publish(Fetched(planned([[1000] * 5], 1000), run.workplace("plan")), sys.argv[3])
"""


@pytest.mark.parametrize("name", [PUBLISHED, pytest.param(STORE, marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_while_it_publishes_leaves_nothing_that_counts(
    name: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reached, go_on = threading.Event(), threading.Event()

    def hangs(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        reached.set()
        go_on.wait(30)
        return fails(environ, start_response)

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'distributed'}")
    with faulty(monkeypatch, of_object("PUT", name, hangs, times=1)) as other:
        first = Worker(other, tmp_path / "a", {STORE: b"of the first", "only-here": b""})
        words = [sys.executable, "-c", _PUBLISH, first.run.url, str(tmp_path / "a"), NAME]
        process = subprocess.Popen(words)
        assert reached.wait(30)
        process.kill()
        process.wait()
        go_on.set()
        assert first.run.published(NAME) is None
        second = Worker(other, tmp_path / "b", {STORE: b"of the second"})
        assert second.publish()
        assert fetched(second.run, second.published()) == {STORE: b"of the second"}


# What is read is not trusted


@pytest.mark.parametrize("content", [b"of another", b"stor", b""])
def test_what_is_not_what_was_published_is_refused(content: bytes, bucket: Bucket, tmp_path: Path):
    worker = Worker(bucket, tmp_path, {STORE: b"store"})
    worker.publish()
    found = worker.published()
    bucket.put(f"a/run/{SHARDS}/{NAME}/{found.attempt}/{STORE}", content)
    with pytest.raises(ShardsMissing, match="is not what was published: run the shard again"):
        fetched(worker.run, found)
    assert list((worker.run.workplace("reader") / SHARDS / NAME).iterdir()) == []


def test_a_file_that_is_gone_is_named(bucket: Bucket, tmp_path: Path):
    worker = Worker(bucket, tmp_path, {STORE: b"store"})
    found = Published("digest", NAME, "0" * 32, {STORE: StoredFile(5, "0")})
    with pytest.raises(ShardsMissing, match=f"{SHARDS}/{NAME}/{'0' * 32}/{STORE}: there is no such object"):
        fetched(worker.run, found)


def _published(found: Published, **others: Any) -> dict[str, Any]:
    files = {name: {"bytes": file[0], "sha256": file[1]} for name, file in found.files.items()}
    return {
        "format": 1,
        "plan": found.plan,
        "shard": found.shard,
        "attempt": found.attempt,
        "files": files,
    } | others


@pytest.mark.parametrize(
    "others",
    [
        {"files": {"../../../../evil": {"bytes": 1, "sha256": "0"}}},
        {"files": {"/etc/evil": {"bytes": 1, "sha256": "0"}}},
        {"files": {".bashrc": {"bytes": 1, "sha256": "0"}}},
        {"files": {"": {"bytes": 1, "sha256": "0"}}},
        {"files": {"a\nb": {"bytes": 1, "sha256": "0"}}},
        {"files": [1]},
        {"attempt": "../0000"},
        {"attempt": None},
        {"shard": "00004-of-00100"},
        {"format": 2},
    ],
)
def test_names_that_lead_elsewhere_are_refused(others: dict[str, Any], bucket: Bucket, tmp_path: Path):
    found = Published("digest", NAME, "0" * 32, {})
    bucket.put(f"a/run/{SHARDS}/{NAME}/{PUBLISHED}", json.dumps(_published(found, **others)).encode())
    with pytest.raises(ShardsMissing, match=PUBLISHED):
        RemoteRun(f"{bucket.root}/a/run", tmp_path).published(NAME)


_LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@hypothesis.settings(max_examples=50)
@given(
    st.fixed_dictionaries(
        {"format": st.just(1) | _JSON},
        optional={"plan": _JSON, "shard": _JSON, "attempt": _JSON, "files": _JSON},
    )
    | _JSON
)
def test_whatever_is_there_is_understood_or_refused(value: Any):
    with pytest.raises(ValueError, match="it "):
        Published.from_json(json.dumps(value).encode())


def test_names_in_the_bucket_that_are_no_shards_are_left_alone(bucket: Bucket, tmp_path: Path):
    for key in ("notes/a.txt", "00001-of-00002/x", "1-of-2/x", "00001-of-00002.bak/x"):
        bucket.put(f"a/run/{SHARDS}/{key}", b"x")
    run = RemoteRun(f"{bucket.root}/a/run", tmp_path)
    assert run.shards() == ["00001-of-00002"]
    assert run.published("00001-of-00002") is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file somebody else's")
def test_a_directory_of_somebody_else_is_not_used(bucket: Bucket, tmp_path: Path):
    run = RemoteRun(f"{bucket.root}/a/run", tmp_path)
    os.chown(run.workplace("a").parent, 12345, -1)
    with pytest.raises(CannotWrite, match="belongs to another user"):
        RemoteRun(f"{bucket.root}/a/run", tmp_path).workplace("a")


# Which shards are there


def test_shards_that_are_missing_are_named():
    assert missing_shards(plan_of(3), []) == ["no shard of it is published"]
    assert missing_shards(plan_of(3), ["00001-of-00003"]) == [
        "shard 0/3: not published",
        "shard 2/3: not published",
    ]
    # Shards without a segment need not be there.
    assert missing_shards(plan_of(3), [f"{number:05}-of-00005" for number in range(3)]) == []
    both = ["00001-of-00003", "00001-of-00004"]
    assert missing_shards(plan_of(3), both) == ["there are several sets of shards"]
