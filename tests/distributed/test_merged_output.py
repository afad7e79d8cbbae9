"""Where merged tables are written: locked, all or nothing, and no file that is not of a merge is replaced."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from half_made import half_made
from running import run
from sharded import Sharded, tables
from support import fasta

from virnuc_async.distributed import merge as module
from virnuc_async.distributed.merge import merge_shards
from virnuc_async.distributed.merged_output import MergedOutput
from virnuc_async.errors import CannotWrite, DirectoryLockedError, ForeignDirectoryError
from virnuc_async.fileio import Directory
from virnuc_async.models.bundle import Bundle
from virnuc_async.outputs.columns import Chunks
from virnuc_async.outputs.output_files import FinishedRun, OutputFile
from virnuc_async.runs.lock import LOCK, Lock, Owner
from virnuc_async.settings import CallRules, Format, Settings

NOT_MERGED = {"plan.json", "shards"}
TABLES = {
    *("prediction_results.txt", "prediction_results_highestscore.csv", "contigs.tsv", "fragments.tsv"),
    *("contig_calls.tsv", "failed_files.txt", "samples.tsv", "summary.json", "merge.json", "report.html"),
    *("virnuc_mqc.json", "virnuc_statistics_mqc.json"),
}


@pytest.fixture(scope="module")
def scored(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Sharded:
    """Return a run of three shards, of which an input fails."""
    directory = tmp_path_factory.mktemp("scored")
    paths = [directory / "a.fa", directory / "b.fa"]
    paths[0].write_text(fasta((f"r{number}", "ACGTTGCAGGTC" * 60) for number in range(20)))
    paths[1].write_text(fasta([("x", "ACGT" * 300)]) + ">y\n!\n")
    sharded = Sharded(directory, bundle, paths, Settings(calls=CallRules()))
    anyio.run(sharded.score_shards, 3)
    return sharded


@pytest.fixture
def path(scored: Sharded, tmp_path: Path) -> Path:
    """Return a copy of the run."""
    shutil.copytree(scored.run, tmp_path / "run")
    return tmp_path / "run"


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_command_says_what_is_viral_and_that_an_input_failed(path: Path) -> None:
    ended = run("merge", path)
    assert (ended.code, ended.out) == (2, "")
    viral = json.loads((path / "summary.json").read_bytes())["counts"]["viral_contigs"]
    assert ended.err == (
        f"Viral: {viral} of 21 contigs. Tables are in {path}; 1 failure in {path / 'failed_files.txt'}\n"
    )
    assert names(path) == NOT_MERGED | TABLES
    quiet = run("merge", path, path.parent / "out", "--quiet")
    assert (quiet.code, quiet.err) == (2, "")
    assert names(path.parent / "out") == TABLES


def test_facts_of_the_merge(path: Path, scored: Sharded) -> None:
    merge_shards(path)
    facts = json.loads((path / "merge.json").read_bytes())
    assert set(facts["files"]) == TABLES - {"merge.json"}
    assert (facts["shards"], facts["finished"], facts["plan"]) == (3, True, scored.make_plan().digest)


@pytest.mark.parametrize("name", ["contigs.tsv", "summary.json", "run.sqlite3", "viral.fasta"])
def test_a_file_that_is_not_of_a_merge_is_not_replaced(name: str, path: Path, tmp_path: Path) -> None:
    for out in (path, tmp_path / "out"):
        out.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        with pytest.raises(ForeignDirectoryError):
            merge_shards(path, out)
        assert (out / name).read_text() == "mine"
        assert names(out) - NOT_MERGED == {name}


def test_other_files_stay(path: Path) -> None:
    for name in ("job.log", "run.log", "progress.json"):
        (path / name).write_text("mine")
    merge_shards(path)
    merge_shards(path)
    assert [(path / name).read_text() for name in ("job.log", "run.log", "progress.json")] == ["mine"] * 3


def test_a_file_is_no_directory(path: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ForeignDirectoryError):
        merge_shards(path, tmp_path / "out")
    (path / "merge.json").write_text("{")
    with pytest.raises(ForeignDirectoryError, match=r"merge\.json is damaged"):
        merge_shards(path)


async def test_files_of_an_earlier_merge_are_replaced_and_removed(
    path: Path, scored: Sharded, tmp_path: Path
) -> None:
    merge_shards(path)
    other = Sharded(tmp_path, scored.bundle, [*map(Path, scored.paths)], Settings(formats=(Format.JSONL,)))
    other.settings = replace(other.settings, report=False)
    shutil.rmtree(path / "shards")
    await other.score_shards(2)
    merge_shards(path)
    expected = {"predictions.jsonl", "contigs.jsonl", "fragments.jsonl"}
    assert names(path) == NOT_MERGED | expected | {
        *("failed_files.txt", "samples.tsv", "summary.json", "merge.json")
    }
    merge_shards(path, tmp_path / "out")
    with pytest.raises(ForeignDirectoryError, match=r"tables of another plan"):
        merge_shards(scored.run, tmp_path / "out")


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), CannotWrite("x", "full")])
def test_nothing_is_changed_when_it_ends_before_all_is_made(
    ends: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chunks(run: FinishedRun) -> Chunks:
        yield b"half"
        raise ends

    (*others, last) = module.FILES
    for is_second in (False, True):
        before = tables(path)
        monkeypatch.setattr(module, "FILES", (*others, last._replace(chunks=chunks)))
        with pytest.raises(type(ends)):
            merge_shards(path)
        monkeypatch.undo()
        assert tables(path) == before
        assert not list(path.glob(".*"))
        assert bool(before) is is_second
        merge_shards(path)


def test_what_was_interrupted_while_files_were_replaced_is_not_finished_and_is_done_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_shards(path)
    before = tables(path)
    moved = []
    rename = Directory.rename

    def stops(directory: Directory, old: str, new: str, into: Directory | None = None) -> None:
        if into is not None and moved:
            raise KeyboardInterrupt
        moved.extend([new] * (into is not None))
        rename(directory, old, new, into)

    monkeypatch.setattr(Directory, "rename", stops)
    with pytest.raises(KeyboardInterrupt):
        merge_shards(path)
    monkeypatch.undo()
    assert not (path / "summary.json").exists()
    assert json.loads((path / "merge.json").read_bytes())["finished"] is False
    merge_shards(path)
    assert tables(path) == before
    assert json.loads((path / "summary.json").read_bytes())["finished"]


def test_a_report_that_cannot_be_written_is_no_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: FinishedRun) -> Chunks:
        yield b"half"
        raise CannotWrite("x", "full")

    monkeypatch.setattr(module, "REPORT_FILES", (OutputFile("report.html", fails),))
    ended = run("merge", path)
    assert ended.code == 2
    assert "x: full; all tables are written. The same command makes the report again" in ended.err
    assert not (path / "report.html").exists()


def test_another_process_is_waited_for_or_refused(path: Path, tmp_path: Path) -> None:
    with Directory(path) as directory:
        lock = Lock(directory)
        with pytest.raises(DirectoryLockedError, match=r"is writing there"):
            merge_shards(path)
        owner = json.loads((path / LOCK).read_bytes())
        lock.release()
    (path / LOCK).write_text(json.dumps(owner | {"host": "another"}))
    notes = list[str]()
    with MergedOutput.open(path, "plan", True, notes.append, lease=0.05) as output:
        output.check()
    (note,) = notes
    assert note.startswith("waiting for a heartbeat of process ")
    assert not (path / LOCK).exists()


def test_a_heartbeat_of_another_process_ends_the_waiting(path: Path) -> None:
    owner = Owner("another", "boot", "namespace", 7, "1", "then", "token")
    facts = {name: getattr(owner, name) for name in Owner.__dataclass_fields__}

    def beat(_: str) -> None:
        (path / LOCK).write_text(json.dumps(facts | {"heartbeats": 1}))

    (path / LOCK).write_text(json.dumps(facts))
    opened = MergedOutput.open(path, "plan", True, beat, lease=5)
    with pytest.raises(DirectoryLockedError, match=r"process 7 on another"), opened:
        pass


def test_a_run_that_cannot_be_written_to_is_merged_somewhere_else(path: Path, tmp_path: Path) -> None:
    if subprocess.run(
        ["mount", "--bind", "-o", "ro", path, path], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        if os.access(path, os.W_OK):
            pytest.skip("it is not mounted read-only")
        merge_shards(path, tmp_path / "out")
    finally:
        subprocess.run(["umount", path], check=True)
    assert names(tmp_path / "out") == TABLES


@pytest.mark.parametrize("command", [("tables",), ("report",), ("calls",), ("tables", "--table", "contigs")])
def test_commands_on_finished_runs_say_that_this_is_none(command: tuple[str, ...], path: Path) -> None:
    merge_shards(path)
    ended = run(command[0], path, *command[1:])
    assert (ended.code, ended.out) == (1, "")
    assert "its tables were merged from the shards of a run" in ended.err


def test_predict_into_it_is_refused(path: Path, scored: Sharded, tmp_path: Path) -> None:
    merge_shards(path, tmp_path / "out")
    for place in (path, tmp_path / "out"):
        ended = run("predict", scored.paths[0], place, "--devices", "cpu")
        assert (ended.code, ended.out) == (1, "")
    assert "and no run of this program" in ended.err


# Merges, and waits in the middle of it for a line from standard input.
MERGER = """
import sys
from pathlib import Path
from virnuc_async.distributed.merge import merge_shards

def wait(status):
    if status == "writing contigs.tsv":
        print("half made", flush=True)
        sys.stdin.readline()

merge_shards(Path(sys.argv[1]), before_each=wait)
"""


def test_what_a_killed_merge_left_is_removed(path: Path) -> None:
    merge_shards(path)
    before = tables(path)
    with half_made(MERGER, path):
        (staging,) = path.glob(".tables.*")
        assert (staging / "prediction_results.txt").exists()
        with pytest.raises(DirectoryLockedError):
            merge_shards(path)
    assert tables(path) == before
    merge_shards(path)
    assert names(path) == NOT_MERGED | TABLES
    assert tables(path) == before
