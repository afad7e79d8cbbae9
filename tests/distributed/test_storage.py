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

from virnuc_async.distributed.plan import PLAN, SHARDS, RunPlan, write_plan
from virnuc_async.distributed.storage import PUBLISHED, Published, RemoteRun, missing_shards
from virnuc_async.errors import CannotWrite, NoPlan, ShardsMissing, UsageError
from virnuc_async.runs.lock import LOCK

NAME = "00003-of-00100"
PREDICTIONS, STORE = "prediction_results.txt", "run.sqlite3"


def plan_of(count: int = 5) -> RunPlan:
    return planned([[1000] * count], 1000)


def worker(bucket: Bucket, scratch: Path, files: dict[str, bytes] | None = None) -> RemoteRun:
    """Return a run as a worker has it that has finished a shard, of these files."""
    run = RemoteRun(f"{bucket.root}/a/run/", scratch, IMPATIENT)
    directory = run.directory / SHARDS / NAME
    directory.mkdir(parents=True)
    for name, content in (files or {}).items():
        (directory / name).write_bytes(content)
    return run


@contextmanager
def faulty(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> Iterator[Bucket]:
    """Reach a new bucket by a server that has *fault*."""
    with s3_server(fault) as url:
        other = Bucket.create(url)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield other


def of_object(method: str, name: str, answer: Answer, times: int = 1000) -> Fault:
    """Return a fault that gives *answer* to so many requests of *method* for an object called *name*."""
    left = [times]

    def fault(environ: dict[str, Any], _: Answer) -> Answer | None:
        if environ["REQUEST_METHOD"] != method or not environ["PATH_INFO"].endswith(name) or not left[0]:
            return None
        left[0] -= 1
        return answer

    return fault


# The plan


def test_a_plan_is_there_once(bucket: Bucket, tmp_path: Path):
    one, other = (worker(bucket, tmp_path / name) for name in "ab")
    write_plan(plan_of(5), one.directory)
    write_plan(plan_of(6), other.directory)
    assert one.publish_plan()
    assert not other.publish_plan()
    assert (other.fetch_plan(), other.fetch_plan().digest) == (plan_of(5), plan_of(5).digest)
    write_plan(plan_of(6), other.directory)
    assert other.publish_plan(overwrite=True)
    assert one.fetch_plan() == plan_of(6)
    assert bucket.keys() == [f"a/run/{PLAN}"]


def test_another_plan_is_another_run_on_this_machine(bucket: Bucket, tmp_path: Path):
    run = worker(bucket, tmp_path)
    write_plan(plan_of(6), run.directory)
    run.publish_plan()
    (run.directory / SHARDS / NAME / STORE).write_bytes(b"store")
    assert run.fetch_plan() == plan_of(6)
    assert (run.directory / SHARDS / NAME / STORE).read_bytes() == b"store"
    bucket.put(f"a/run/{PLAN}", _plan_text(plan_of(7), tmp_path))
    assert run.fetch_plan() == plan_of(7)
    assert not (run.directory / SHARDS).exists()


def _plan_text(plan: RunPlan, scratch: Path) -> bytes:
    write_plan(plan, scratch / "other")
    return (scratch / "other" / PLAN).read_bytes()


def test_a_run_without_a_plan_says_how_to_make_one(bucket: Bucket, tmp_path: Path):
    url = f"{bucket.root}/a/run"
    with pytest.raises(NoPlan) as raised:
        RemoteRun(url, tmp_path).fetch_plan()
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
    files = {STORE: os.urandom(20 << 20), PREDICTIONS: b"a\tb\n", "shard.json": b"{}", "empty.tsv": b""}
    run = worker(bucket, tmp_path / "a", {**files, LOCK: b"me", ".hidden": b"x", ".x.partial": b"x"})
    assert run.shards() == []
    assert run.published(NAME) is None
    assert run.publish(NAME, "digest")
    found = run.published(NAME)
    assert found is not None
    assert (found.plan, found.shard, {name: file.bytes for name, file in found.files.items()}) == (
        "digest",
        NAME,
        {name: len(content) for name, content in files.items()},
    )
    place = f"a/run/{SHARDS}/{NAME}"
    assert bucket.keys() == sorted(
        [f"{place}/{PUBLISHED}", *(f"{place}/{found.attempt}/{name}" for name in files)]
    )
    other = RemoteRun(run.url, tmp_path / "b")
    assert other.shards() == [NAME]
    directory = other.fetch(found)
    assert directory == other.directory / SHARDS / NAME
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == files
    run.forget(NAME)
    assert not (run.directory / SHARDS / NAME).exists()


def test_some_files_are_fetched_alone(bucket: Bucket, tmp_path: Path):
    run = worker(bucket, tmp_path / "a", {STORE: b"store", "shard.json": b"{}"})
    run.publish(NAME, "digest")
    found = run.published(NAME)
    assert found is not None
    directory = RemoteRun(run.url, tmp_path / "b").fetch(found, ["shard.json"])
    assert [path.name for path in directory.iterdir()] == ["shard.json"]


@pytest.mark.parametrize("count", [2, 8])
def test_of_workers_that_race_one_publishes(count: int, bucket: Bucket, tmp_path: Path):
    contents = [{STORE: b"of worker %d" % number, PREDICTIONS: b"%d\n" % number} for number in range(count)]
    runs = [worker(bucket, tmp_path / str(number), files) for number, files in enumerate(contents)]
    begin = threading.Barrier(count)

    def publish(run: RemoteRun) -> bool:
        begin.wait()
        return run.publish(NAME, "digest")

    with ThreadPoolExecutor(count) as threads:
        done = list(threads.map(publish, runs))
    assert sorted(done) == [False] * (count - 1) + [True]
    reader = RemoteRun(runs[0].url, tmp_path / "reader")
    found = reader.published(NAME)
    assert found is not None
    directory = reader.fetch(found)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == contents[done.index(True)]
    # The others have deleted what they wrote.
    assert len(bucket.keys()) == 1 + len(contents[0])


def test_an_answer_that_is_lost_is_no_other_worker(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fault(environ: dict[str, Any], answer: Answer) -> Answer | None:
        if environ["REQUEST_METHOD"] != "PUT" or not environ["PATH_INFO"].endswith(PUBLISHED) or lost:
            return None
        lost.append(True)

        def answer_and_fail(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            list(answer(environ, lambda *_: None))
            return fails(environ, start_response)

        return answer_and_fail

    lost: list[bool] = []
    with faulty(bucket, monkeypatch, fault) as other:
        run = worker(other, tmp_path, {STORE: b"store"})
        assert run.publish(NAME, "digest")
        assert lost
        found = run.published(NAME)
        assert found is not None
        assert other.get(f"a/run/{SHARDS}/{NAME}/{found.attempt}/{STORE}") == b"store"


def test_a_shard_that_may_be_published_keeps_its_files(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fault(environ: dict[str, Any], answer: Answer) -> Answer | None:
        if environ["REQUEST_METHOD"] != "PUT" or not environ["PATH_INFO"].endswith(PUBLISHED):
            return None

        def answer_and_fail(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            list(answer(environ, lambda *_: None))
            return refuses(environ, start_response)

        return answer_and_fail

    with faulty(bucket, monkeypatch, fault) as other:
        run = worker(other, tmp_path / "a", {STORE: b"store"})
        with pytest.raises(CannotWrite):
            run.publish(NAME, "digest")
        # The next worker finds it, with all that it names.
        found = RemoteRun(run.url, tmp_path / "b").published(NAME)
        assert found is not None
        assert (RemoteRun(run.url, tmp_path / "b").fetch(found) / STORE).read_bytes() == b"store"


def test_a_bucket_that_refuses_is_said_and_nothing_is_published(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with faulty(bucket, monkeypatch, of_object("PUT", PREDICTIONS, refuses)) as other:
        run = worker(other, tmp_path, {STORE: b"store", PREDICTIONS: b"rows"})
        with pytest.raises(CannotWrite) as raised:
            run.publish(NAME, "digest")
        assert "the server refuses it: 403 Forbidden (AccessDenied: Access Denied)" in str(raised.value)
        assert "Set in the environment: AWS_ACCESS_KEY_ID" in str(raised.value)
        assert raised.value.path.startswith(f"{run.url}/{SHARDS}/{NAME}/")
        assert other.keys() == []
        assert (run.directory / SHARDS / NAME / STORE).read_bytes() == b"store"


def test_broken_transfers_are_repeated(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with faulty(bucket, monkeypatch, of_object("PUT", STORE, fails, times=2)) as other:
        run = worker(other, tmp_path, {STORE: b"store"})
        assert run.publish(NAME, "digest")


_PUBLISH = """
import sys
from pathlib import Path
from virnuc_async.distributed.storage import RemoteRun
RemoteRun(sys.argv[1], Path(sys.argv[2])).publish(sys.argv[3], "digest")
"""


def test_a_worker_that_is_killed_while_it_publishes_leaves_nothing_that_counts(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reached, go_on = threading.Event(), threading.Event()

    def hangs(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        reached.set()
        go_on.wait(30)
        return fails(environ, start_response)

    with faulty(bucket, monkeypatch, of_object("PUT", PUBLISHED, hangs, times=1)) as other:
        first = worker(other, tmp_path / "a", {STORE: b"of the first", "only-here": b""})
        process = subprocess.Popen(
            [sys.executable, "-c", _PUBLISH, first.url, str(tmp_path / "a"), NAME], cwd=ROOT
        )
        assert reached.wait(30)
        process.kill()
        process.wait()
        go_on.set()
        assert first.published(NAME) is None
        second = worker(other, tmp_path / "b", {STORE: b"of the second"})
        assert second.publish(NAME, "digest")
        found = second.published(NAME)
        assert found is not None
        directory = RemoteRun(first.url, tmp_path / "c").fetch(found)
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == {STORE: b"of the second"}


# What is read is not trusted


@pytest.mark.parametrize("content", [b"of another", b"stor", b""])
def test_what_is_not_what_was_published_is_refused(content: bytes, bucket: Bucket, tmp_path: Path):
    run = worker(bucket, tmp_path / "a", {STORE: b"store"})
    run.publish(NAME, "digest")
    found = run.published(NAME)
    assert found is not None
    bucket.put(f"a/run/{SHARDS}/{NAME}/{found.attempt}/{STORE}", content)
    reader = RemoteRun(run.url, tmp_path / "b")
    with pytest.raises(ShardsMissing, match="is not what was published: run the shard again"):
        reader.fetch(found)
    assert list((reader.directory / SHARDS / NAME).iterdir()) == []


def test_a_file_that_is_gone_is_named(bucket: Bucket, tmp_path: Path):
    run = worker(bucket, tmp_path / "a", {STORE: b"store"})
    found = Published("digest", NAME, "0" * 32, {STORE: (5, "0")})  # type: ignore[dict-item]
    with pytest.raises(ShardsMissing, match=f"{SHARDS}/{NAME}/{'0' * 32}/{STORE}: there is no such object"):
        run.fetch(Published.from_json(json.dumps(_published(found)).encode()))


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
    os.chown(run.directory, 12345, -1)
    with pytest.raises(CannotWrite, match="belongs to another user"):
        _ = RemoteRun(f"{bucket.root}/a/run", tmp_path).directory


# Which shards are there


def test_shards_that_are_missing_are_named(bucket: Bucket, tmp_path: Path):
    run = RemoteRun(f"{bucket.root}/a/run", tmp_path)
    some = Published("digest", "", "0" * 32, {})
    assert missing_shards(run, plan_of(3), {}) == ["no shard of it is published"]
    assert missing_shards(run, plan_of(3), {"00001-of-00003": some}) == [
        "shard 0/3: not published",
        "shard 2/3: not published",
    ]
    # Shards without a segment need not be there.
    names = [f"{number:05}-of-00005" for number in range(3)]
    assert missing_shards(run, plan_of(3), dict.fromkeys(names, some)) == []
    both = {"00001-of-00003": some, "00001-of-00004": some}
    assert missing_shards(run, plan_of(3), both) == ["there are several sets of shards"]
