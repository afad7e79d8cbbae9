"""``predict``: inputs of every kind, and the tables that it writes."""

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from running import NO_FILE, OPEN, SHUT, predict, rows, verdicts
from support import REPORTS, TABLES, fasta

from virnuc_async.models.bundle import Bundle


def test_one_file(good: Path, out: Path) -> None:
    ended = predict(good, out)
    assert (ended.code, ended.out) == (0, "")
    assert re.fullmatch(
        r"virnuc-async \S+ with tiny-500, fragments of 500 bp\n"
        r"WARNING: tiny-500 is a small demonstration model, .*\n"
        r"cpu:0: CPU \(.+\), \d+ GiB, .*FP32.* 2,048 tokens per batch\n"
        rf"Viral: \d of 2 contigs \(6 ORFs of 2 fragments scored in .* s\). Tables are in {out}\n",
        ended.err,
    )
    assert sorted(path.name for path in out.iterdir()) == sorted(
        (*TABLES, *REPORTS, "summary.json", "progress.json", "run.log", "run.sqlite3")
    )
    names = [row[0] for row in rows(out / "prediction_results.txt")[1:]]
    assert names == [f"good_chunk_1{frame}" for frame in ("F1", "F2", "F3", "R1", "R2", "R3")]
    assert [row[:4] for row in rows(out / "contigs.tsv")[1:]] == [
        ["good", str(good), "300", "1"],
        ["shut", str(good), str(len(SHUT)), "1"],
    ]


def test_scores_are_those_of_the_published_program(
    source: Path, golden: Path, model: Bundle, out: Path
) -> None:
    assert predict(source, out, "--model", model.directory).code == 0
    expected = golden / "upstream" / "expected_500"
    ours, published = (rows(path / "prediction_results.txt") for path in (out, expected))
    assert [row[:2] for row in ours] == [row[:2] for row in published]
    scores, published_scores = (
        np.array([row[2:] for row in table[1:]], float) for table in (ours, published)
    )
    np.testing.assert_allclose(scores, published_scores, rtol=0, atol=1e-5)
    name = "prediction_results_highestscore.csv"
    assert (out / name).read_bytes() == (expected / name).read_bytes()


def test_several_inputs_of_every_kind(tmp_path: Path, out: Path) -> None:
    reads = tmp_path / "reads"
    reads.mkdir()
    (reads / "b.fastq").write_text("@from_b\nGCAGCA\n+\nIIIIII\n")
    (reads / "a.fa.gz").write_bytes(gzip.compress(b">from_a\nGCAGCA\n"))
    (reads / ".hidden.fa").write_text(">hidden\nGCAGCA\n")
    (reads / "notes.txt").write_text("not sequences\n")
    single = tmp_path / "without.suffix"
    single.write_text(">single\nGCAGCA\n")
    assert predict(single, reads, "-", out, stdin=b">piped\nGCAGCA\n").code == 0
    lines = rows(out / "contigs.tsv")[1:]
    assert [row[:2] for row in lines] == [
        ["single", str(single)],
        ["from_a", str(reads / "a.fa.gz")],
        ["from_b", str(reads / "b.fastq")],
        ["piped", "-"],
    ]


def test_options_between_names(good: Path, tmp_path: Path, out: Path) -> None:
    other = tmp_path / "other.fa"
    other.write_text(">other\nGCAGCA\n")
    assert predict("--threshold", "0", good, "--quiet", other, "--devices", "cpu", out).code == 0
    assert list(verdicts(out)) == ["good", "shut", "other"]


@pytest.mark.parametrize("choice", ["auto", "on", "off"])
def test_compile_of_earlier_versions_has_no_effect_and_says_so(good: Path, out: Path, choice: str) -> None:
    ended = predict(good, out, "--compile", choice)
    assert ended.code == 0
    assert ended.err.count("WARNING: compile has no effect: ") == 1
    assert "compile" not in json.loads((out / "summary.json").read_text())["settings"]


def test_input_and_output_dir_options(good: Path, tmp_path: Path, out: Path) -> None:
    other = tmp_path / "other.fa"
    other.write_text(">other\nGCAGCA\n")
    assert predict("--input", good, "--input", other, "--output-dir", out).code == 0
    assert list(verdicts(out)) == ["good", "shut", "other"]


def test_input_list(good: Path, tmp_path: Path, out: Path) -> None:
    other, last = tmp_path / "other\udcff.fa", tmp_path / "last.fa"
    other.write_text(">other\nGCAGCA\n")
    last.write_text(">last\nGCAGCA\n")
    names = tmp_path / "names.txt"
    names.write_bytes(os.fsencode(f"{other}\r\n\n  {last}\n"))
    assert predict(good, "--input-list", names, out).code == 0
    assert list(verdicts(out)) == ["good", "shut", "other", "last"]


def test_input_list_that_is_missing_or_empty(tmp_path: Path, out: Path) -> None:
    names = tmp_path / "names.txt"
    assert predict("--input-list", names, out) == (1, "", f"virnuc-async: {names}: {NO_FILE}\n")
    names.write_text("\n")
    message = f"virnuc-async: the input list '{names}' is empty\n"
    assert predict("--input-list", names, out) == (64, "", message)


def test_standard_input_may_be_compressed(source: Path, tmp_path: Path) -> None:
    assert predict(source, tmp_path / "file").code == 0
    assert predict("-", tmp_path / "pipe", stdin=gzip.compress(source.read_bytes())).code == 0
    for name in TABLES[:2]:
        assert (tmp_path / "pipe" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()


def test_ids_and_names_that_are_not_utf8(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in\udcff.fa"
    source.write_bytes(
        b">caf\xe9 one\nGCAGCA\n>\xc3\xa9\nGCAGCA\n>caf\xe9\nTTAATTAATTAATTAA\n>caf\xe9\nGCATTT\n"
    )
    missing = tmp_path / "no\udcfe.fa"
    assert predict(source, missing, out, "--skip-missing").code == 2
    contigs = [line.split(b"\t") for line in (out / "contigs.tsv").read_bytes().splitlines()[1:]]
    path = os.fsencode(source)
    assert [row[:3] for row in contigs] == [
        [b"caf\xe9", path, b"6"],
        [b"\xc3\xa9", path, b"6"],
        [b"caf\xe9", path, b"16"],
        [b"caf\xe9", path, b"6"],
    ]
    scored = (out / "prediction_results.txt").read_bytes().splitlines()[1:]
    assert {line.split(b"\t")[0][:-2] for line in scored} == {b"caf\xe9_chunk_1", b"\xc3\xa9_chunk_1"}
    fragments = (out / "prediction_results_highestscore.csv").read_bytes().splitlines()[1:]
    assert [line.split(b"\t")[0] for line in fragments] == [
        b"caf\xe9_chunk_1",
        b"caf\xe9_chunk_1",
        b"\xc3\xa9_chunk_1",
    ]
    failed = (out / "failed_files.txt").read_bytes()
    assert failed == b"%s|Input|%s\n" % (os.fsencode(missing), NO_FILE.encode())


def test_equal_ids_have_one_row_each(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "pairs.fq"
    source.write_text("@r\nGCAGCA\n+\nIIIIII\n@r\nGCAGCAGCA\n+\nIIIIIIIII\n@r\nACG\n+\nIII\n")
    assert predict(source, out).code == 0
    assert [row[:4:2] for row in rows(out / "contigs.tsv")[1:]] == [["r", "6"], ["r", "9"], ["r", "3"]]
    names = [row[0] for row in rows(out / "prediction_results.txt")[1:]]
    frames = ["F1", "F2", "F3", "R1", "R2", "R3"]
    assert names == [f"r_chunk_1{frame}" for frame in (*frames, *frames, "F1", "R1")]
    assert len(rows(out / "prediction_results_highestscore.csv")) == 1 + 3


def test_records_without_an_orf_are_kept(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in.fa"
    source.write_text(fasta([("none", ""), ("two", "AC"), ("shut", SHUT), ("open", OPEN), ("N", "N" * 99)]))
    assert predict(source, out).code == 0
    assert [
        [*row[2:9], row[9] == "no_orf", *row[10:]]
        for row in rows(out / "contigs.tsv")[1:]
        if row[0] != "open"
    ] == [
        ["0", "0", "0", "0", "", "", "", True, ""],
        ["2", "1", "0", "0", "", "", "", True, ""],
        [str(len(SHUT)), "1", "0", "0", "", "", "", True, ""],
        ["99", "1", "0", "0", "", "", "", True, ""],
    ]
    assert verdicts(out)["open"] in ("virus", "others")
