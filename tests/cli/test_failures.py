"""Exit codes 1 and 2: inputs, models and devices that cannot be used."""

import errno
import gzip
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import NO_FILE, OPEN, predict, rows, some_reads, summary, tables
from safetensors.torch import load_file, save_file
from support import assert_scores_alike, fasta

from virnuc_async.models.bundle import Bundle, write_manifest

PROTEIN = ">p1\nACGT\n>p2 insulin\nMALWMRLLPLLALLALWGPDPAAA\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "line 1: expected '>' (FASTA) or '@' (FASTQ), saw 'hello'"),
        (PROTEIN.encode()[9:], "line 2: 'L' is not a nucleotide letter (is this protein or text?)"),
    ],
)
def test_inputs_without_records_fail_before_the_model_is_loaded(
    content: bytes, message: str, tmp_path: Path, out: Path, model: Bundle
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model.directory, broken)
    (broken / "protein.safetensors").write_bytes(b"")
    source = tmp_path / "in.fa"
    source.write_bytes(content)
    ended = predict(source, out, "--model", broken)
    assert ended == (1, "", f"virnuc-async: no sequence record in {source}\n{source}: {message}\n")
    assert not out.exists()


def test_several_inputs_without_a_record(tmp_path: Path, out: Path) -> None:
    one, two = tmp_path / "one.fa", tmp_path / "two.fa"
    two.touch()
    lines = ["no sequence record in the 2 inputs", f"{one}: {NO_FILE}"]
    assert predict(one, two, out, "--skip-missing") == (1, "", "virnuc-async: " + "\n".join(lines) + "\n")
    assert not out.exists()


def test_unknown_model_lists_the_known_ones(good: Path, out: Path) -> None:
    ended = predict(good, out, "--model", "no-such")
    assert (ended.code, ended.out) == (1, "")
    assert re.match(r"virnuc-async: no model 'no-such' here\. Installed: tiny-500", ended.err)
    assert "models download virnucpro-500" in predict(good, out, "--model", "virnucpro-500").err


def test_close_names_are_suggested(good: Path, out: Path) -> None:
    ended = predict(good, out, "--model", "tiny500")
    assert ended == (
        1,
        "",
        "virnuc-async: no model 'tiny500' here. Did you mean tiny-500? Installed: tiny-500. "
        "To download: virnucpro-500, virnucpro-300.\n",
    )
    ended = predict(good, out, "--devices", "cpu0")
    assert ended.code == 1
    assert ended.err.startswith("virnuc-async: no device 'cpu0' here. Did you mean cpu? There are: ")


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cpu,tpu", "cpu:0"])
def test_unknown_device_lists_the_known_ones(name: str, good: Path, out: Path) -> None:
    ended = predict(good, out, "--devices", name)
    wrong = name.removeprefix("cpu,")
    known = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    message = f"virnuc-async: no device '{wrong}' here. There are: {', '.join([*known, 'cpu'])}\n"
    assert ended == (1, "", message)


def test_broken_model(good: Path, out: Path, model: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model.directory, broken)
    with open(broken / "classifier.safetensors", "ab") as file:
        file.write(b"!")
    ended = predict(good, out, "--model", broken)
    assert ended.code == 1
    assert f"{broken} is not a usable bundle: classifier.safetensors has changed or is damaged" in ended.err


def break_gzip(path: Path) -> None:
    packed = gzip.compress(
        fasta([("before", OPEN * 4), ("after", "".join(some_reads(9, 900).values()))]).encode()
    )
    path.write_bytes(packed[:-1500])


BAD: dict[str, tuple[Callable[[Path], object], str, list[str]]] = {
    "missing": (lambda path: None, NO_FILE, []),
    "directory without sequences": (lambda path: path.mkdir(), "a directory without sequence files", []),
    "unreadable": (lambda path: path.symlink_to(path), os.strerror(errno.ELOOP), []),
    "text": (
        lambda path: path.write_text("\nDear all,\n"),
        "line 2: expected '>' (FASTA) or '@' (FASTQ), saw 'Dear all,'",
        [],
    ),
    "binary": (
        lambda path: path.write_bytes(b"\x7fELF\x02\x01\x01|\n"),
        r"line 1: expected '>' (FASTA) or '@' (FASTQ), saw '\\x7fELF\\x02\\x01\\x01\|'",
        [],
    ),
    "protein": (
        lambda path: path.write_text(PROTEIN),
        "line 4: 'L' is not a nucleotide letter (is this protein or text?)",
        ["p1"],
    ),
    "short FASTQ record": (
        lambda path: path.write_text("@before\nGCAGCA\n+\nIIIIII\n@after\nGCA"),
        "breaks after 1 record: line 5: the last record ends early",
        ["before"],
    ),
    "broken gzip": (
        break_gzip,
        "breaks after 1 record: Compressed file ended before the end-of-stream marker was reached",
        ["before"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_next_to_a_good_one(
    case: str, good: Path, tmp_path: Path, out: Path, good_tables: dict[str, bytes]
) -> None:
    make, message, kept = BAD[case]
    bad = tmp_path / "bad.fa"
    make(bad)
    ended = predict(good, bad, out, "--skip-missing")
    assert ended.code == 2
    assert (out / "failed_files.txt").read_text() == f"{bad}|Input|{message}\n"
    assert f"1 failure in {out}/failed_files.txt" in ended.err
    assert re.search(rf"^ERROR: {re.escape(str(bad))}: ", ended.err, re.MULTILINE)
    of_good = {name: content.splitlines() for name, content in good_tables.items()}
    ours = {name: content.splitlines() for name, content in tables(out).items()}
    # Another record in the batch may change the last digit of a score, but no label and no verdict.
    expected = of_good["prediction_results.txt"]
    scored = ours["prediction_results.txt"][: len(expected)]
    found, given = ([line.decode().split("\t") for line in lines] for lines in (scored, expected))
    assert_scores_alike(found, given, atol=1e-6)
    assert set(of_good["prediction_results_highestscore.csv"]) <= set(
        ours["prediction_results_highestscore.csv"]
    )
    lines = rows(out / "contigs.tsv")[1:]
    assert [row[:2] for row in lines] == [
        ["good", str(good)],
        ["shut", str(good)],
        *([k, str(bad)] for k in kept),
    ]
    of_contigs = [line.decode().split("\t") for line in of_good["contigs.tsv"][1:]]
    assert [row[2:7] + row[9:] for row in lines[:2]] == [row[2:7] + row[9:] for row in of_contigs]
    assert summary(out)["inputs"] == [
        {"path": str(good), "contigs": 2, "status": "read"},
        {"path": str(bad), "contigs": len(kept), "status": "broken" if kept else "failed"},
    ]
    assert summary(out)["counts"]["failures"] == 1
    assert predict(good, bad, out, "--skip-missing").code == 2  # the same answer again


def test_empty_file_is_a_warning(good: Path, tmp_path: Path, out: Path) -> None:
    empty = tmp_path / "empty.fa"
    empty.write_bytes(b"\n")
    ended = predict(good, empty, out)
    assert ended.code == 0
    assert f"WARNING: {empty} holds no sequence\n" in ended.err
    assert not (out / "failed_files.txt").exists()
    assert summary(out)["inputs"][1] == {"path": str(empty), "contigs": 0, "status": "empty"}


def test_only_the_orf_without_a_finite_score_fails(model: Bundle, tmp_path: Path, out: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(model.directory, odd)
    weights = load_file(odd / "protein.safetensors")
    tryptophan = 22
    weights["embed.weight"][tryptophan] = torch.nan
    save_file(weights, odd / "protein.safetensors")
    write_manifest(odd, "odd", 500, model.shapes, model.origin)
    source = tmp_path / "in.fa"
    source.write_text(">a\nGCAGCA\n>w\nTGGTGG\n")  # F1 is WW, the others have no W
    ended = predict(source, out, "--model", odd)
    assert ended.code == 2
    failed = (out / "failed_files.txt").read_text()
    assert failed == f"{source}|ESM-2|w_chunk_1F1: its score is not finite\n"
    names = [row[0] for row in rows(out / "prediction_results.txt")[1:]]
    assert "w_chunk_1F1" not in names
    assert {"a_chunk_1F1", "w_chunk_1F2", "w_chunk_1R1"} <= set(names)
    assert summary(out)["counts"]["orfs"] == len(names)
