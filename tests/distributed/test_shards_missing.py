"""What cannot be merged is named, problem by problem, and nothing is written."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from running import run
from sharded import Sharded
from support import fasta

from virnuc_async.distributed.merge import merge_shards
from virnuc_async.errors import DamagedStore, NoPlan, ShardsMissing
from virnuc_async.fileio import Directory
from virnuc_async.models.bundle import Bundle
from virnuc_async.runs.database import values_of
from virnuc_async.runs.lock import Lock
from virnuc_async.runs.output_directory import SHARD_FILE, STORE
from virnuc_async.runs.rows import FileEnd, WindowRow

COUNT = 5
SECOND = f"00001-of-{COUNT:05}"


@pytest.fixture(scope="module")
def scored(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of five shards."""
    directory = tmp_path_factory.mktemp("scored")
    source = directory / "in.fa"
    source.write_text(fasta((f"r{number}", "ACGTTGCAGGTC" * 60) for number in range(20)))
    sharded = Sharded(directory, bundle, [source])
    anyio.run(sharded.score_shards, COUNT)
    return sharded.run


@pytest.fixture
def shards(scored: Path, tmp_path: Path) -> Path:
    """Return a copy of its shards, in a run of which nothing is merged."""
    shutil.copytree(scored, tmp_path / "run")
    return tmp_path / "run" / "shards"


def problems(shards: Path) -> list[str]:
    """Return why shards cannot be merged; check that nothing is written."""
    before = sorted(path.name for path in shards.parent.iterdir())
    with pytest.raises(ShardsMissing) as raised:
        merge_shards(shards.parent)
    assert sorted(path.name for path in shards.parent.iterdir()) == before
    assert str(raised.value).startswith(f"{shards.parent}: cannot be merged: ")
    return list(raised.value.problems)


def remove(shards: Path) -> None:
    for number in (1, 2, 4):
        shutil.rmtree(shards / f"{number:05}-of-{COUNT:05}")


def change(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda shards: (shards / SECOND / name).write_bytes(content)


def fail(shards: Path) -> None:
    (shards / SECOND / SHARD_FILE).unlink()
    (shards / SECOND / "progress.json").write_text(json.dumps({"state": "failed", "message": "disk full"}))


def edit(**values: object) -> Callable[[Path], object]:
    def write(shards: Path) -> None:
        path = shards / SECOND / SHARD_FILE
        path.write_text(json.dumps(json.loads(path.read_bytes()) | values))

    return write


def unseal(shards: Path) -> None:
    with sqlite3.connect(shards / SECOND / STORE) as store:
        store.execute("DELETE FROM run WHERE key = 'finished'")
    store.close()


def records(shards: Path) -> None:
    path = shards / SECOND / SHARD_FILE
    known = json.loads(path.read_bytes())
    path.write_text(json.dumps(known | {"totals": known["totals"] | {"contigs": 3}}))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (remove, "shards 1, 2, 4 of 5: missing"),
        (lambda shards: shutil.rmtree(shards / SECOND), "shard 1/5: missing"),
        (lambda shards: (shards / SECOND / SHARD_FILE).unlink(), "shard 1/5: not finished"),
        (fail, "shard 1/5: failed: disk full"),
        (change(SHARD_FILE, b"{"), "shard 1/5: its shard.json is damaged"),
        (change(SHARD_FILE, b"[]"), "shard 1/5: its shard.json is damaged (it makes no sense): run it again"),
        (edit(seconds={"total": 1}), "shard 1/5: its shard.json is damaged (it makes no sense)"),
        (edit(host=7), "shard 1/5: its shard.json is damaged (a value is of another type)"),
        (edit(devices=[3]), "shard 1/5: its shard.json is damaged (it makes no sense)"),
        (edit(tally=[[0, 1]]), "shard 1/5: its shard.json is damaged (the counts of an input are missing)"),
        (edit(plan="x"), "shard 1/5: of another plan. Remove it, and run it again"),
        (edit(shard=[1, 6]), "shard 1/5: of another plan"),
        (records, "shard 1/5: has 3 records, and 6 are planned: run it again"),
        (change("contigs.tsv", b"x"), "shard 1/5: its contigs.tsv is of 1 bytes instead of"),
        (lambda shards: (shards / SECOND / "contigs.tsv").unlink(), "shard 1/5: its contigs.tsv is missing"),
        (lambda shards: (shards / SECOND / STORE).unlink(), "shard 1/5: its store is missing: run it again"),
        (change(STORE, b"x" * 5000), "shard 1/5: "),
        (change(f"{STORE}-journal", b"x" * 512), "was interrupted while its store was written"),
        (unseal, "shard 1/5: its store has changed since its rows were written: run it again"),
        (edit(files={}), "shard 1/5: has no prediction_results.txt: run it again"),
        (
            lambda shards: (shards / "00003-of-00050").mkdir(),
            "there are several sets of shards, of 5 and of 50. Remove all but one",
        ),
        (lambda shards: shutil.rmtree(shards), "no shard of it has been run: there is nothing in "),
    ],
)
def test_each_problem_is_named(make: Callable[[Path], object], expected: str, shards: Path) -> None:
    make(shards)
    found = problems(shards)
    assert expected in found[0]
    assert len(found) == 1


def test_all_problems_are_named_at_once(shards: Path) -> None:
    remove(shards)
    (shards / "00003-of-00005" / SHARD_FILE).unlink()
    assert problems(shards) == ["shards 1, 2, 4 of 5: missing", "shard 3/5: not finished"]


def test_a_shard_that_is_running_is_named_with_its_process(shards: Path) -> None:
    with Directory(shards / SECOND) as directory:
        lock = Lock(directory)
        (found,) = problems(shards)
        lock.release()
    assert found.startswith("shard 1/5: running, by process ")


def test_a_file_whose_content_has_changed_is_found_while_it_is_read(shards: Path) -> None:
    path = shards / SECOND / "contigs.tsv"
    path.write_bytes(path.read_bytes().replace(b"virus", b"VIRUS"))
    assert problems(shards) == ["shard 1/5: its contigs.tsv has changed: run it again"]


def test_a_sorted_file_whose_content_has_changed_is_found(shards: Path) -> None:
    path = shards / SECOND / "prediction_results_highestscore.csv"
    path.write_bytes(path.read_bytes().replace(b"True", b"TRUE"))
    assert problems(shards) == [
        "shard 1/5: its prediction_results_highestscore.csv has changed: run it again"
    ]


def test_an_input_that_was_not_read_as_planned_is_named(shards: Path) -> None:
    change_ends(shards, lambda ends: tuple(end._replace(contigs=19) for end in ends))
    (found,) = problems(shards)
    assert found.endswith("in.fa was read to its end, with 19 records, unlike when it was planned")
    change_ends(shards, lambda ends: tuple(end._replace(reason="no") for end in ends))
    (found,) = problems(shards)
    assert found.endswith("in.fa broke behind 19 records, unlike when it was planned")


def change_ends(shards: Path, changed: Callable[[tuple[FileEnd, ...]], tuple[FileEnd, ...]]) -> None:
    """Change how files end that end in the last shard; checksums are as they must be."""
    with sqlite3.connect(shards / f"00004-of-{COUNT:05}" / STORE) as store:
        rows = [WindowRow.decode(row) for row in store.execute("SELECT * FROM windows")]
        for row in rows:
            values = row._replace(files=changed(row.files)).encode()
            store.execute(f"REPLACE INTO windows {values_of(values)}", values)
    store.close()


def test_a_damaged_row_is_an_error(shards: Path) -> None:
    with sqlite3.connect(shards / f"00004-of-{COUNT:05}" / STORE) as store:
        store.execute("UPDATE windows SET ids = 'x' || ids")
    store.close()
    with pytest.raises(DamagedStore):
        merge_shards(shards.parent)
    assert sorted(path.name for path in shards.parent.iterdir()) == ["plan.json", "shards"]


def test_the_command_says_it_and_fails(shards: Path) -> None:
    remove(shards)
    ended = run("merge", shards.parent)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (f"virnuc-async: {shards.parent}: cannot be merged: shards 1, 2, 4 of 5: missing\n")


def test_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(NoPlan):
        merge_shards(tmp_path)
    assert run("merge", tmp_path).code == 1


def test_what_lies_among_the_shards_is_left_alone(shards: Path) -> None:
    (shards / "notes.txt").write_text("mine")
    (shards / "00001-of-5").mkdir()
    merge_shards(shards.parent)
    assert (shards / "notes.txt").read_text() == "mine"
