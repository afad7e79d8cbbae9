"""The inputs of commands: missing, empty, named twice, left out of directories."""

import os
from pathlib import Path

import pytest
import torch
from running import NO_FILE, log, predict, rows, run, summary, tables, verdicts
from support import TABLES

CORRECT = "Nothing was begun: correct the name"
OR_SKIP = ", or use --skip-missing to go on without"
BAD_MODEL = ("--model", "no-such-model")


def contigs(out: Path) -> list[str]:
    return [row[0] for row in rows(out / "contigs.tsv")[1:]]


# What is missing


def test_every_missing_input_is_named_before_a_model_is_looked_for(good: Path, tmp_path: Path, out: Path):
    missing = [tmp_path / "one.fa", tmp_path / "two.fa"]
    missing[1].symlink_to("purged.fa")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{good}\n{missing[1]}\n")
    ended = predict(missing[0], "--input-list", listed, "--output-dir", out, *BAD_MODEL)
    lines = [
        f"2 inputs cannot be read. {CORRECT}s{OR_SKIP}",
        *(f"{path}: {NO_FILE}" for path in missing),
    ]
    assert ended == (1, "", "virnuc-async: " + "\n".join(lines) + "\n")
    assert not out.exists()


def test_one_missing_input(good: Path, tmp_path: Path, out: Path):
    ended = predict(good, tmp_path / "one.fa", out)
    message = f"virnuc-async: {tmp_path / 'one.fa'}: {NO_FILE}. {CORRECT}{OR_SKIP}\n"
    assert ended == (1, "", message)
    assert not out.exists()


def test_missing_inputs_can_be_skipped(good: Path, tmp_path: Path, out: Path, good_tables: dict[str, bytes]):
    (tmp_path / "link.fa").symlink_to("purged.fa")
    ended = predict(tmp_path / "one.fa", good, tmp_path / "link.fa", out, "--skip-missing")
    assert ended.code == 2
    failed = "".join(f"{tmp_path / name}|Input|{NO_FILE}\n" for name in ("one.fa", "link.fa"))
    assert (out / "failed_files.txt").read_text() == failed
    assert list(verdicts(out)) == ["good", "shut"]
    assert tables(out)["prediction_results.txt"] == good_tables["prediction_results.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read(good: Path, tmp_path: Path, out: Path):
    (tmp_path / "d").mkdir(mode=0)
    ended = predict(good, tmp_path / "d", out)
    assert ended.code == 1
    assert ended.err.startswith(f"virnuc-async: {tmp_path / 'd'}: Permission denied. Nothing was begun")
    assert predict(good, tmp_path / "d", out, "--skip-missing").code == 2
    assert (out / "failed_files.txt").read_text() == f"{tmp_path / 'd'}|Input|Permission denied\n"


# Names that make no sense


@pytest.mark.parametrize(
    "names",
    [
        ("-", "-", "out"),
        ("-", "/dev/stdin", "out"),
        ("--input", "-", "--input", "-", "--output-dir", "out"),
        ("--input", "-", "-", "out"),
        ("--input-list", "list.txt", "-", "out"),
        ("--input-list", "list.txt", "/dev/fd/0", "out", "--allow-duplicates"),
    ],
)
def test_standard_input_is_named_once(names: tuple[str, ...], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("-\n")
    ended = predict(*names, *BAD_MODEL, stdin=b">a\nGCAGCA\n")
    assert ended.code == 64
    assert ended.err.startswith("virnuc-async: standard input can be read only once, but is named as ")
    assert not Path("out").exists()


@pytest.mark.parametrize("names", [("", "out"), ("good.fa", "", "out"), ("--input", "", "good.fa", "out")])
def test_an_input_has_a_name(names: tuple[str, ...], good: Path, monkeypatch):
    monkeypatch.chdir(good.parent)
    ended = predict(*names, *BAD_MODEL)
    assert ended.code == 64
    assert "an input has an empty name" in ended.err
    assert not Path("out").exists()


# No records


def check_header_lines_alone(out: Path) -> None:
    assert {name: content.count(b"\n") for name, content in tables(out).items()} == dict.fromkeys(TABLES, 1)
    facts = summary(out)
    assert facts["finished"]
    assert {facts["counts"][name] for name in ("contigs", "fragments", "orfs", "failures")} == {0}
    assert not (out / "failed_files.txt").exists()


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["-", "empty.fa"])
def test_no_record_gives_tables_without_rows(content: bytes, name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.fa").write_bytes(content)
    for _ in range(2):
        ended = predict(name, "out", stdin=content)
        assert (ended.code, ended.out) == (0, "")
        check_header_lines_alone(Path("out"))
    Path("out/contigs.tsv").unlink()
    assert predict(name, "out", stdin=content).code == 0
    check_header_lines_alone(Path("out"))
    assert f"WARNING  {name} holds no sequence\n" in log(Path("out"))
    assert "WARNING  no input holds a record: the tables have their header lines alone\n" in log(Path("out"))


def test_no_record_loads_no_model_and_has_all_files(tmp_path: Path, out: Path):
    for mate in (1, 2):
        (tmp_path / f"x_R{mate}.fq").touch()
    ended = predict(tmp_path / "x_R1.fq", tmp_path / "x_R2.fq", out, "--embeddings", "--verbose")
    assert ended.code == 0
    check_header_lines_alone(out)
    assert summary(out)["devices"] == []
    assert summary(out)["seconds"]["load"] == 0
    features = torch.load(out / "merged_features.pt", weights_only=True)
    assert features["ids"] == []
    assert features["data"].shape == (0, features["data"].shape[1])
    assert not (out / "pairs.tsv").exists()


def test_no_record_and_a_failure(tmp_path: Path, out: Path):
    empty, text = tmp_path / "empty.fa", tmp_path / "text.fa"
    empty.touch()
    text.write_text("hello\n")
    ended = predict(empty, text, out)
    assert ended.code == 1
    assert "no sequence record in the 2 inputs\n" in ended.err
    assert not out.exists()


# The same file twice


def test_a_file_that_is_named_twice(good: Path, tmp_path: Path, out: Path, good_tables: dict[str, bytes]):
    link = tmp_path / "link.fa"
    link.symlink_to(good)
    ended = predict(good, link, out)
    assert ended.code == 0
    warning = f"named more than once, read once: {good} and {link} (--allow-duplicates reads each)"
    assert f"WARNING: {warning}\n" in ended.err
    assert f"WARNING  {warning}\n" in log(out)
    assert tables(out)["prediction_results.txt"] == good_tables["prediction_results.txt"]
    assert contigs(out) == ["good", "shut"]
    both = predict(good, link, tmp_path / "both", "--allow-duplicates")
    assert both.code == 0
    assert "more than once" not in both.err
    assert contigs(tmp_path / "both") == ["good", "shut"] * 2


# Directories


def test_what_a_directory_has_besides(good: Path, tmp_path: Path, out: Path):
    samples = tmp_path / "samples"
    (samples / "barcode01").mkdir(parents=True)
    for name in ("a.fa", "a.fa~", "barcode01/b.fa"):
        (samples / name).write_text(f">{name}\nGCAGCAGCA\n")
    (samples / "gone.fa").symlink_to("purged.fa")
    ended = predict(samples, out)
    assert ended.code == 0
    assert contigs(out) == ["a.fa"]
    for warning in (
        f"left out 1 link that leads nowhere: {samples / 'gone.fa'}",
        f"left out 1 subdirectory: {samples / 'barcode01'} (--recursive reads them)",
        f"left out 1 editor's copy: {samples / 'a.fa~'}",
    ):
        assert f"WARNING: {warning}\n" in ended.err
        assert f"WARNING  {warning}\n" in log(out)
    assert predict(samples, tmp_path / "all", "--recursive", "--quiet").code == 0
    assert contigs(tmp_path / "all") == ["a.fa", "barcode01/b.fa"]


def test_a_directory_with_nothing_to_read_says_what_is_there(tmp_path: Path, out: Path):
    samples = tmp_path / "samples"
    (samples / "barcode01").mkdir(parents=True)
    ended = predict(samples, out)
    assert ended.code == 1
    assert f"WARNING: left out 1 subdirectory: {samples / 'barcode01'} (--recursive reads them)" in ended.err
    assert f"{samples}: a directory without sequence files\n" in ended.err


# Labelled sequences


@pytest.mark.parametrize("command", ["train", "evaluate", "calibrate"])
def test_labelled_sequences_that_are_missing(command: str, good: Path, tmp_path: Path, out: Path):
    missing = tmp_path / "a.fa", tmp_path / "b.fa"
    ended = run(command, "--viral", missing[0], "--nonviral", good, missing[1], "--output", out)
    lines = [
        "virnuc-async: 2 inputs cannot be read. Nothing was begun: correct the names",
        *(f"{path}: {NO_FILE}" for path in missing),
    ]
    assert ended == (1, "", "\n".join(lines) + "\n")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "records"), [((), 1), (("--allow-duplicates",), 2), (("--recursive",), 2)]
)
def test_labelled_sequences_of_a_directory(
    options: tuple[str, ...], records: int, good: Path, tmp_path: Path, out: Path
):
    viral = tmp_path / "viral"
    (viral / "deeper").mkdir(parents=True)
    for name in ("a.fa", "deeper/b.fa"):
        (viral / name).write_text(">v\n" + "GCA" * 60 + "\n")
    words = ("--viral", viral, viral / "a.fa", "--nonviral", good, "--output", out, "--lengths", "150")
    ended = run("evaluate", *words, "--resamples", "10", "--devices", "cpu", *options)
    assert ended.code == 0, ended.err
    assert len(contigs(out / "records")) == records + 2
    assert ("left out 1 subdirectory" in ended.err) == ("--recursive" not in options)
    assert ("named more than once" in ended.err) == ("--allow-duplicates" not in options)
