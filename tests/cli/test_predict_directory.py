"""The output directory of ``predict``: finished, damaged, third-party and different runs."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from running import NO_FILE, log, predict, some_reads, tables, verdicts
from support import REPORTS, TABLES, fasta

from virnuc_async.models.bundle import Bundle


def test_finished_run_is_not_repeated(good: Path, out: Path) -> None:
    assert predict(good, out).code == 0
    first = tables(out)
    ended = predict(good, out)
    assert ended.code == 0
    assert "\nthis run is finished already, and its files are unchanged\nViral: " in ended.err
    (out / "contigs.tsv").unlink()
    ended = predict(good, out)
    assert ended.code == 0
    assert "this run is finished, but some of its files have changed: writing them again" in ended.err
    assert tables(out) == first


def test_finished_run_with_failures_keeps_its_exit_code(good: Path, tmp_path: Path, out: Path) -> None:
    for _ in range(2):
        assert predict(good, tmp_path / "missing.fa", out, "--skip-missing").code == 2
        assert (out / "failed_files.txt").read_text() == f"{tmp_path / 'missing.fa'}|Input|{NO_FILE}\n"


def test_damaged_store_is_reported_and_repaired(source: Path, tmp_path: Path, out: Path) -> None:
    assert predict(source, out, "--tokens-per-batch", "300").code == 0
    first = tables(out)
    with closing(sqlite3.connect(out / "run.sqlite3")) as db, db:
        db.execute("UPDATE batches SET scores = zeroblob(LENGTH(scores)) WHERE number = 1")
    (out / "contigs.tsv").unlink()
    ended = predict(source, out)
    assert ended.code == 1
    message = (
        r"damaged \(a checksum is wrong\)\. \d+ finished batches in it can be recovered: use --repair to keep"
    )
    assert re.search(message, ended.err)
    repaired = predict(source, out, "--repair")
    assert repaired.code == 0
    assert re.search(r"WARNING: repaired: kept \d+ batches of 1 window; the damaged store", repaired.err)
    assert tables(out) == first
    assert predict(source, out, "--repair", "--overwrite").code == 64


def test_directory_with_files_of_our_names_is_refused(good: Path, out: Path) -> None:
    out.mkdir()
    (out / "contigs.tsv").write_text("years of work")
    message = (
        f"virnuc-async: {out}: contains 'contigs.tsv' and no run of this program, which would write files of "
        "these names. Choose a new or empty directory\n"
    )
    for more in ((), ("--overwrite",)):
        assert predict(good, out, *more) == (1, "", message)
    assert [path.name for path in out.iterdir()] == ["contigs.tsv"]


def test_log_of_the_job_in_the_directory_is_no_obstacle(good: Path, out: Path) -> None:
    out.mkdir()
    (out / "slurm-1.out").write_text("job 1\n")
    for more in ((), ("--overwrite",)):
        assert predict(good, out, *more).code == 0
    assert (out / "slurm-1.out").read_text() == "job 1\n"
    assert list(verdicts(out)) == ["good", "shut"]


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu,cpu"])
def test_an_input_is_added_and_a_name_is_corrected(devices: str, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.fa" for name in ("first", "second", "third"))
    for number, path in enumerate((first, second, third)):
        path.write_text(fasta(some_reads(20, 200, number).items()))
    words = ("--devices", devices)
    predict(first, second, tmp_path / "out", *words)
    ended = predict(first, second, third, tmp_path / "out", *words)
    assert f"inputs: {third} was added. Every window before the first difference is kept\n" in ended.err
    predict(first, second, third, tmp_path / "fresh", *words)
    assert tables(tmp_path / "out") == tables(tmp_path / "fresh")


def test_different_run_is_refused_with_the_differences(
    good: Path, tmp_path: Path, out: Path, model: Bundle
) -> None:
    other = tmp_path / "other.fa"
    other.write_text(">other\nGCAGCA\n")
    assert predict(good, out).code == 0
    before = tables(out)
    changes = {
        ("--tokens-per-batch", "100"): "tokens per batch: 2048 -> 100",
        ("--precision", "bf16"): "precision: fp32 -> bf16",
        ("--embeddings",): "embeddings: False -> True",
        ("--model", str(model.directory)): "model: tiny-500 (",
    }
    for arguments, message in changes.items():
        ended = predict(*arguments, good, out)
        assert ended.code == 1
        assert f"virnuc-async: {out}: contains a different run: {message}" in ended.err
        assert ended.err.endswith("Use another directory, or --overwrite\n")
    nothing_in_common = f"contains a different run: inputs: {other} was added, {good} was removed. "
    assert nothing_in_common in predict(other, out).err
    good.write_text(good.read_text().replace("good", "GOOD"))
    assert f"inputs: {good} has changed." in predict(good, out).err
    assert tables(out) == before


def test_overwrite_replaces_the_run_and_keeps_other_files(good: Path, tmp_path: Path, out: Path) -> None:
    missing = tmp_path / "missing.fa"
    assert predict(good, missing, out, "--skip-missing", "--embeddings").code == 2
    (out / "notes.txt").write_text("mine")
    other = tmp_path / "other.fa"
    other.write_text(">other\nGCAGCA\n")
    assert predict(other, out, "--overwrite").code == 0
    assert list(verdicts(out)) == ["other"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        (*TABLES, *REPORTS, "notes.txt", "summary.json", "progress.json", "run.log", "run.sqlite3")
    )
    assert (out / "notes.txt").read_text() == "mine"
    assert "good" not in log(out)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_output_directory_that_cannot_be_created(below: str, good: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    place = tmp_path / "loop" / below
    ended = predict(good, place)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"virnuc-async: {place}: ")
