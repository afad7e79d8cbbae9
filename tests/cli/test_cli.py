"""The command line as its user meets it: exit codes, messages, files."""

import errno
import gzip
import io
import os
import pickle
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import (
    OPEN,
    ROOT,
    SHUT,
    Ran,
    log,
    predict,
    python,
    rows,
    run,
    some_reads,
    start,
    summary,
    tables,
    verdicts,
    wait_until,
)
from safetensors.torch import load_file, save_file
from support import TABLES, assert_scores_alike, fasta

from virnuc_async import __version__
from virnuc_async.models.bundle import Bundle, write_manifest
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle

GOOD = fasta([("good", OPEN * 100), ("shut", SHUT)])
PROTEIN = ">p1\nACGT\n>p2 insulin\nMALWMRLLPLLALLALWGPDPAAA\n"
NO_FILE = os.strerror(errno.ENOENT)


@pytest.fixture(scope="module")
def model(golden_parts: CheckpointPaths, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of the golden networks, for fragments of 500 bases; unlike the default one, it says no notice."""
    return import_bundle(golden_parts, tmp_path_factory.mktemp("models") / "golden", "golden", 500)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file without a fault: one contig with six ORFs and one without."""
    path = tmp_path / "good.fa"
    path.write_text(GOOD)
    return path


@pytest.fixture(scope="module")
def good_tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What *good* alone gives, by the name "good.fa"."""
    directory = tmp_path_factory.mktemp("good")
    (directory / "good.fa").write_text(GOOD)
    assert predict(directory / "good.fa", directory / "out").code == 0
    return tables(directory / "out")


# Exit code 0


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
        (*TABLES, "summary.json", "run.log", "run.sqlite3")
    )
    names = [row[0] for row in rows(out / "prediction_results.txt")[1:]]
    assert names == [f"good_chunk_1{frame}" for frame in ("F1", "F2", "F3", "R1", "R2", "R3")]
    assert [row[:4] for row in rows(out / "contigs.tsv")[1:]] == [
        ["good", str(good), "300", "1"],
        ["shut", str(good), str(len(SHUT)), "1"],
    ]


def test_the_published_answer(source: Path, golden: Path, model: Bundle, out: Path) -> None:
    assert predict(source, out, "--model", model.directory).code == 0
    expected = golden / "upstream" / "expected_500"
    ours, published = (rows(path / "prediction_results.txt") for path in (out, expected))
    assert [row[:2] for row in ours] == [row[:2] for row in published]
    scores, wanted = (np.array([row[2:] for row in table[1:]], float) for table in (ours, published))
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-5)
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


def test_options_may_stand_between_names(good: Path, tmp_path: Path, out: Path) -> None:
    other = tmp_path / "other.fa"
    other.write_text(">other\nGCAGCA\n")
    assert predict("--threshold", "0", good, "--quiet", other, "--devices", "cpu", out).code == 0
    assert list(verdicts(out)) == ["good", "shut", "other"]


def test_options_of_earlier_command_lines(good: Path, tmp_path: Path, out: Path) -> None:
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
    message = f"virnuc-async: the input list '{names}' names no input\n"
    assert predict("--input-list", names, out) == (64, "", message)


def test_standard_input_may_be_compressed(source: Path, tmp_path: Path) -> None:
    assert predict(source, tmp_path / "file").code == 0
    assert predict("-", tmp_path / "pipe", stdin=gzip.compress(source.read_bytes())).code == 0
    for name in TABLES[:2]:
        assert (tmp_path / "pipe" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()


def test_finished_run_asked_again(good: Path, out: Path) -> None:
    assert predict(good, out).code == 0
    first = tables(out)
    ended = predict(good, out)
    assert ended.code == 0
    assert "\nthis run is finished already, and its files are as they were written\nViral: " in ended.err
    (out / "contigs.tsv").unlink()
    ended = predict(good, out)
    assert ended.code == 0
    assert "this run is finished, but not all of its files are as they were: writing them again" in ended.err
    assert tables(out) == first


def test_finished_run_with_failures_asked_again(good: Path, tmp_path: Path, out: Path) -> None:
    for _ in range(2):
        assert predict(good, tmp_path / "missing.fa", out).code == 2
        assert (out / "failed_files.txt").read_text() == f"{tmp_path / 'missing.fa'}|Input|{NO_FILE}\n"


def test_damaged_store_is_said_and_repaired(source: Path, tmp_path: Path, out: Path) -> None:
    assert predict(source, out, "--esm-batch-size", "300").code == 0
    first = tables(out)
    with closing(sqlite3.connect(out / "run.sqlite3")) as db, db:
        db.execute("UPDATE batches SET scores = zeroblob(LENGTH(scores)) WHERE number = 1")
    (out / "contigs.tsv").unlink()
    ended = predict(source, out)
    assert ended.code == 1
    said = r"damaged \(a checksum is wrong\)\. \d+ finished batches in it can be saved: the same .* --repair"
    assert re.search(said, ended.err)
    repaired = predict(source, out, "--repair")
    assert repaired.code == 0
    assert re.search(r"WARNING: repaired: \d+ batches of 1 window are kept; what was damaged", repaired.err)
    assert tables(out) == first
    assert predict(source, out, "--repair", "--overwrite").code == 64


def test_ids_come_back_as_they_came(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in\udcff.fa"
    source.write_bytes(
        b">caf\xe9 one\nGCAGCA\n>\xc3\xa9\nGCAGCA\n>caf\xe9\nTTAATTAATTAATTAA\n>caf\xe9\nGCATTT\n"
    )
    missing = tmp_path / "no\udcfe.fa"
    assert predict(source, missing, out).code == 2
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


def test_equal_ids_are_rows_of_their_own(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "pairs.fq"
    source.write_text("@r\nGCAGCA\n+\nIIIIII\n@r\nGCAGCAGCA\n+\nIIIIIIIII\n@r\nACG\n+\nIII\n")
    assert predict(source, out).code == 0
    assert [row[:4:2] for row in rows(out / "contigs.tsv")[1:]] == [["r", "6"], ["r", "9"], ["r", "3"]]
    names = [row[0] for row in rows(out / "prediction_results.txt")[1:]]
    frames = ["F1", "F2", "F3", "R1", "R2", "R3"]
    assert names == [f"r_chunk_1{frame}" for frame in (*frames, *frames, "F1", "R1")]
    assert len(rows(out / "prediction_results_highestscore.csv")) == 1 + 3


# Exit code 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, NO_FILE),
        (b"", ""),
        (PROTEIN.encode()[9:], "line 2: 'L' is not a nucleotide letter (is this protein or text?)"),
    ],
)
def test_nothing_to_read_is_said_before_a_model_is_loaded(
    content: bytes | None, said: str, tmp_path: Path, out: Path, model: Bundle
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model.directory, broken)
    (broken / "protein.safetensors").write_bytes(b"")
    source = tmp_path / "in.fa"
    if content is not None:
        source.write_bytes(content)
    ended = predict(source, out, "--model", broken)
    lines = [f"virnuc-async: no sequence record in {source}", *([f"{source}: {said}"] if said else [])]
    assert ended == (1, "", "\n".join(lines) + "\n")
    assert not out.exists()


def test_several_inputs_without_a_record(tmp_path: Path, out: Path) -> None:
    one, two = tmp_path / "one.fa", tmp_path / "two.fa"
    lines = ["no sequence record in the 2 inputs", f"{one}: {NO_FILE}", f"{two}: {NO_FILE}"]
    assert predict(one, two, out) == (1, "", "virnuc-async: " + "\n".join(lines) + "\n")


def test_unknown_model_says_which_there_are(good: Path, out: Path) -> None:
    ended = predict(good, out, "--model", "no-such")
    assert (ended.code, ended.out) == (1, "")
    assert re.match(r"virnuc-async: no model 'no-such' here\. Installed: tiny-500", ended.err)
    assert "models download virnucpro-500" in predict(good, out, "--model", "virnucpro-500").err


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cpu,tpu", "cpu:0"])
def test_unknown_device_says_which_there_are(name: str, good: Path, out: Path) -> None:
    ended = predict(good, out, "--devices", name)
    wrong = name.removeprefix("cpu,")
    known = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    said = f"virnuc-async: no device '{wrong}' here. There are: {', '.join([*known, 'cpu'])}\n"
    assert ended == (1, "", said)


def test_broken_model(good: Path, out: Path, model: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model.directory, broken)
    with open(broken / "classifier.safetensors", "ab") as file:
        file.write(b"!")
    ended = predict(good, out, "--model", broken)
    assert ended.code == 1
    assert f"{broken} is not a usable bundle: classifier.safetensors has changed or is damaged" in ended.err


# Exit code 2: what cannot be used, one by one


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
def test_bad_file_beside_a_good_one(
    case: str, good: Path, tmp_path: Path, out: Path, good_tables: dict[str, bytes]
) -> None:
    make, message, kept = BAD[case]
    bad = tmp_path / "bad.fa"
    make(bad)
    ended = predict(good, bad, out)
    assert ended.code == 2
    assert (out / "failed_files.txt").read_text() == f"{bad}|Input|{message}\n"
    assert f"1 failure in {out}/failed_files.txt" in ended.err
    assert re.search(rf"^ERROR: {re.escape(str(bad))}: ", ended.err, re.MULTILINE)
    of_good = {name: content.splitlines() for name, content in good_tables.items()}
    ours = {name: content.splitlines() for name, content in tables(out).items()}
    # Another record in the batch may change the last digit of a score, but no label and no verdict.
    wanted = of_good["prediction_results.txt"]
    scored = ours["prediction_results.txt"][: len(wanted)]
    found, given = ([line.decode().split("\t") for line in lines] for lines in (scored, wanted))
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
    assert predict(good, bad, out).code == 2  # asked again, the same answer


def test_empty_file_is_a_warning(good: Path, tmp_path: Path, out: Path) -> None:
    empty = tmp_path / "empty.fa"
    empty.write_bytes(b"\n")
    ended = predict(good, empty, out)
    assert ended.code == 0
    assert f"WARNING: {empty} holds no sequence\n" in ended.err
    assert not (out / "failed_files.txt").exists()
    assert summary(out)["inputs"][1] == {"path": str(empty), "contigs": 0, "status": "empty"}


def test_records_without_an_orf_are_kept(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in.fa"
    source.write_text(fasta([("none", ""), ("two", "AC"), ("shut", SHUT), ("open", OPEN), ("N", "N" * 99)]))
    assert predict(source, out).code == 0
    assert [
        [*row[2:-1], row[-1] == "no_orf"] for row in rows(out / "contigs.tsv")[1:] if row[0] != "open"
    ] == [
        ["0", "0", "0", "0", "0.0", "0.0", "0.0", True],
        ["2", "1", "0", "0", "0.0", "0.0", "0.0", True],
        [str(len(SHUT)), "1", "0", "0", "0.0", "0.0", "0.0", True],
        ["99", "1", "0", "0", "0.0", "0.0", "0.0", True],
    ]
    assert verdicts(out)["open"] in ("virus", "others")


def test_orf_without_a_finite_score_fails_alone(model: Bundle, tmp_path: Path, out: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(model.directory, odd)
    weights = load_file(odd / "protein.safetensors")
    tryptophan = 22
    weights["embed.weight"][tryptophan] = torch.nan
    save_file(weights, odd / "protein.safetensors")
    write_manifest(odd, "odd", 500, model.shapes, model.origin)
    source = tmp_path / "in.fa"
    source.write_text(">a\nGCAGCA\n>w\nTGGTGG\n")  # F1 is WW, the others hold no W
    ended = predict(source, out, "--model", odd)
    assert ended.code == 2
    failed = (out / "failed_files.txt").read_text()
    assert failed == f"{source}|ESM-2|w_chunk_1F1: its score is not finite\n"
    names = [row[0] for row in rows(out / "prediction_results.txt")[1:]]
    assert "w_chunk_1F1" not in names
    assert {"a_chunk_1F1", "w_chunk_1F2", "w_chunk_1R1"} <= set(names)
    assert summary(out)["counts"]["orfs"] == len(names)


# The output directory


def test_directory_of_somebody_else_is_refused(good: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    said = (
        f"virnuc-async: {out}: holds 'thesis.tex' and no run of this program. "
        "Choose a new or empty directory\n"
    )
    for more in ((), ("--overwrite",)):
        assert predict(good, out, *more) == (1, "", said)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_another_run_is_refused_and_says_why(good: Path, tmp_path: Path, out: Path, model: Bundle) -> None:
    other = tmp_path / "other.fa"
    other.write_text(">other\nGCAGCA\n")
    assert predict(good, out).code == 0
    before = tables(out)
    changes = {
        ("--threshold", "0.7"): "threshold was 0.5, is 0.7 now",
        ("--esm-batch-size", "100"): "tokens per batch was 2048, is 100 now",
        ("--precision", "bf16"): "precision was fp32, is bf16 now",
        ("--embeddings",): "embeddings was False, is True now",
        ("--model", str(model.directory)): "model was tiny-500 (",
        (str(other),): f"other inputs: {other} is new. ",
    }
    for arguments, said in changes.items():
        ended = predict(*arguments, good, out)
        assert ended.code == 1
        assert f"virnuc-async: {out}: holds another run: {said}" in ended.err
        assert ended.err.endswith("Choose another directory, or --overwrite to start anew\n")
    good.write_text(GOOD.replace("good", "GOOD"))
    assert f"other inputs: {good} has changed." in predict(good, out).err
    assert tables(out) == before


def test_overwrite_replaces_a_run_and_nothing_else(good: Path, tmp_path: Path, out: Path) -> None:
    missing = tmp_path / "missing.fa"
    assert predict(good, missing, out, "--embeddings").code == 2
    (out / "notes.txt").write_text("mine")
    other = tmp_path / "other.fa"
    other.write_text(">other\nGCAGCA\n")
    assert predict(other, out, "--overwrite").code == 0
    assert list(verdicts(out)) == ["other"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        (*TABLES, "notes.txt", "summary.json", "run.log", "run.sqlite3")
    )
    assert (out / "notes.txt").read_text() == "mine"
    assert "good" not in log(out)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_output_directory_that_cannot_be(below: str, good: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    place = tmp_path / "loop" / below
    ended = predict(good, place)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"virnuc-async: {place}: ")


# Flags


def test_threshold_is_the_share_that_makes_a_contig_viral(source: Path, tmp_path: Path) -> None:
    seen = {}
    for threshold in ("0", "0.6", "1"):
        out = tmp_path / threshold
        assert predict(source, out, "--threshold", threshold).code == 0
        lines = rows(out / "contigs.tsv")[1:]
        assert [row[-1] for row in lines] == [
            "no_orf" if row[4] == "0" else "virus" if float(row[6]) >= float(threshold) else "others"
            for row in lines
        ]
        seen[threshold] = verdicts(out)
        counts = summary(out)["counts"]["viral_contigs"]
        assert counts == list(seen[threshold].values()).count("virus")
    assert "others" not in seen["0"].values()
    assert seen["0"] != seen["1"]


def test_embeddings_can_be_read_without_trust(source: Path, out: Path, model: Bundle, golden: Path) -> None:
    assert predict(source, out, "--model", model.directory, "--embeddings").code == 0
    features = torch.load(out / "merged_features.pt", weights_only=True)
    published = torch.load(golden / "upstream" / "expected_500" / "merged.pt", weights_only=True)
    assert features["ids"] == published["ids"]
    assert features["data"].dtype == torch.float32
    torch.testing.assert_close(features["data"], published["data"], rtol=0, atol=1e-5)
    assert not [path.name for path in out.iterdir() if "partial" in path.name or "rows" in path.name]


def test_batch_size_is_the_most_tokens_of_a_batch(source: Path, tmp_path: Path) -> None:
    batches = {}
    for size in ("1", "700", "100000", "auto"):
        out = tmp_path / size
        assert predict(source, out, "--esm-batch-size", size).code == 0
        facts = summary(out)
        batches[size] = facts["counts"]["batches"]
        used = 2048 if size == "auto" else int(size)
        assert facts["settings"]["tokens_per_batch"] == facts["devices"][0]["tokens_per_batch"] == used
    orfs = len(rows(tmp_path / "1" / "prediction_results.txt")) - 1
    assert (batches["1"], batches["100000"]) == (orfs, 1)
    assert 1 < batches["auto"] < batches["700"] < orfs


def test_precision_bf16_changes_last_digits(source: Path, tmp_path: Path, model: Bundle) -> None:
    scores = {}
    for precision in ("fp32", "bf16", "auto"):
        out = tmp_path / precision
        ended = predict(source, out, "--precision", precision, "--model", model.directory)
        assert ended.code == 0
        assert ("BF16 enabled" in ended.err) == (precision == "bf16")
        facts = summary(out)
        used = "bf16" if precision == "bf16" else "fp32"
        assert facts["settings"]["precision"] == facts["devices"][0]["precision"] == used
        lines = rows(out / "prediction_results.txt")[1:]
        scores[precision] = np.array([row[2:] for row in lines], float)
    assert np.array_equal(scores["auto"], scores["fp32"])
    difference = np.abs(scores["bf16"] - scores["fp32"]).max()
    assert 1e-5 < difference < 0.2


def test_three_devices_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    assert predict(source, one, "--devices", "cpu", "--esm-batch-size", "300").code == 0
    ended = predict(source, three, "--devices", "cpu, cpu,cpu", "--esm-batch-size", "300")
    assert ended.code == 0
    assert [line[:6] for line in ended.err.splitlines() if line.startswith("cpu")] == [
        "cpu:0:",
        "cpu:1:",
        "cpu:2:",
    ]
    assert tables(three) == tables(one)
    facts = summary(three)
    assert {device["name"] for device in facts["devices"]} <= {"cpu:0", "cpu:1", "cpu:2"}
    assert sum(device["batches"] for device in facts["devices"]) == summary(one)["counts"]["batches"]


def test_quiet_says_only_what_went_wrong(good: Path, tmp_path: Path, out: Path, model: Bundle) -> None:
    quiet = ("--quiet", "--model", model.directory)
    assert predict(good, out, *quiet) == (0, "", "")
    missing = tmp_path / "missing.fa"
    ended = predict(good, missing, tmp_path / "two", *quiet)
    assert ended == (2, "", f"ERROR: {missing}: {NO_FILE}\n")


def test_verbose_says_every_batch(good: Path, tmp_path: Path) -> None:
    assert "batch 0.0 done on cpu:0\n" in predict(good, tmp_path / "loud", "--verbose").err
    assert "batch 0.0" not in predict(good, tmp_path / "plain").err
    assert "batch 0.0 done on cpu:0\n" in log(tmp_path / "plain")


def test_run_log(good: Path, tmp_path: Path, out: Path, model: Bundle) -> None:
    missing = tmp_path / "missing.fa"
    predict(good, missing, out, "--quiet", "--model", model.directory)
    lines = log(out).splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]+ +\S", line) for line in lines)
    said = [line[20:] for line in lines if " PROGRESS " not in line]
    for line, begins in zip(
        said,
        (
            f"INFO     virnuc-async {__version__} with golden, fragments of 500 bp",
            "INFO     cpu:0: CPU (",
            f"ERROR    {missing}: {NO_FILE}",
            "DEBUG    batch 0.0 done on cpu:0",
            "INFO     ",
        ),
        strict=True,
    ):
        assert line.startswith(begins)


def test_bars_on_a_terminal(good: Path, out: Path, model: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    terminal = Terminal(io.BytesIO(), "utf-8", write_through=True)
    ended = predict(good, out, "--model", model.directory, stderr=terminal)
    assert ended.code == 0
    assert "\x1b[" in ended.err
    assert "all" in ended.err
    assert f"Tables are in {out}" in ended.err.replace("\r", "").replace("\n", "")


def test_gpus_are_named_before_torch_is_imported() -> None:
    script = """
import os, sys
from virnuc_async.cli.main import main
class ProgressCallback:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("CUDA_DEVICE_ORDER"), os.environ["CUDA_VISIBLE_DEVICES"])
sys.meta_path.insert(0, ProgressCallback())
os.environ["CUDA_VISIBLE_DEVICES"] = "7"
sys.stderr = sys.stdout
print(main(["predict", "--gpus", "98,99", "no.fa", "no-such-directory"]))
"""
    order, said, code = python(script).splitlines()
    assert order == "PCI_BUS_ID 98,99"
    assert re.fullmatch(r"virnuc-async: no device 'GPU 98' here\. There are: .*", said)
    assert code == "1"


# Exit code 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("predict", "name an input and an output directory"),
        ("predict out", "name an input before the output directory 'out'"),
        ("predict --output-dir out", "name an input before the output directory 'out'"),
        (f"predict a.fa {__file__}", f"the output directory comes last, but '{__file__}' is a file"),
        (
            f"predict a.fa --output-dir {__file__}",
            f"the output directory comes last, but '{__file__}' is a file",
        ),
        ("predict a.fa out --no-such 1", "no such option: --no-such"),
        ("predict a.fa out -x", "no such option: -x"),
        ("predict a.fa out --quiet --verbose", "argument --verbose: not allowed with argument --quiet"),
        ("predict a.fa out --threshold 1.01", "the threshold is a share from 0 to 1, not 1.01"),
        ("predict a.fa out --threshold -0.1", "the threshold is a share from 0 to 1, not -0.1"),
        ("predict a.fa out --threshold nan", "the threshold is a share from 0 to 1, not nan"),
        (
            "predict a.fa out --threshold half",
            "argument --threshold: expected a number from 0 to 1, not 'half'",
        ),
        ("predict a.fa out --esm-batch-size 0", "tokens per batch must be at least 1, not 0"),
        ("predict a.fa out --esm-batch-size 2k", "expected a number of tokens, or auto, not '2k'"),
        ("predict a.fa out --gpus 0,x", "argument --gpus: expected GPU numbers such as 0,2, not '0,x'"),
        ("predict a.fa out --gpus 1,1", "a gpu is named twice"),
        ("predict a.fa out --gpus 0 --devices cpu", "name devices or gpus, not both"),
        ("predict a.fa out --devices ,", "expected names such as cuda:0,cuda:1 or cpu, not ','"),
        ("predict a.fa out --precision fp8", "invalid choice: 'fp8' (choose from"),
        ("predict a.fa out --model", "argument --model: expected one argument"),
        ("predikt a.fa out", "invalid choice: 'predikt'"),
        ("", "the following arguments are required: COMMAND"),
        ("models", "the following arguments are required: ACTION"),
        ("models import", "the following arguments are required: --protein"),
        ("devices all", "unrecognized arguments: all"),
    ],
)
def test_wrong_usage(arguments: str, said: str) -> None:
    ended = run(*arguments.split())
    assert (ended.code, ended.out) == (64, "")
    assert ended.err.startswith("virnuc-async: ")
    assert said in ended.err
    if "argument" in said or "such option" in said:
        assert re.search(r"\nTry 'virnuc-async.* --help'\.\n$", ended.err)


def test_wrong_usage_names_the_help_that_helps() -> None:
    assert run("predict", "a", "b", "--no-such").err.endswith("Try 'virnuc-async predict --help'.\n")


# Exit codes 130 and 143


@pytest.fixture(scope="module")
def reads() -> bytes:
    """More than a window, and than is read at once: a run without the end has batches, and waits."""
    end = some_reads(100, 30, seed=1).items()
    return fasta([*some_reads(300, 30).items(), *(("short", "AC") for _ in range(9000)), *end]).encode()


@pytest.fixture(scope="module")
def undisturbed(reads: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert predict("-", out, stdin=reads).code == 0
    assert b"\nread99_chunk_1F" in tables(out)["prediction_results.txt"]
    return tables(out)


def give_all_but_the_end(reads: bytes, process: "subprocess.Popen[bytes]", out: Path) -> None:
    """Pipe *reads* and wait for a batch; the pipe stays open, so that the run cannot end by itself."""
    assert process.stdin
    process.stdin.write(reads[:-500])
    process.stdin.flush()
    wait_until(lambda: " batch 0." in log(out), process)


def assert_goes_on(ended: Ran) -> None:
    assert ended.code == 0
    kept = re.search(r"^going on after ([\d,]+) ORFs of an earlier session$", ended.err, re.MULTILINE)
    assert kept
    assert int(kept[1].replace(",", "")) > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_goes_on_where_it_was(
    number: signal.Signals, code: int, reads: bytes, undisturbed: dict[str, bytes], tmp_path: Path, out: Path
) -> None:
    with start("predict", "-", out, "--devices", "cpu,cpu", stderr=tmp_path / "said") as process:
        give_all_but_the_end(reads, process, out)
        process.send_signal(number)
        assert process.wait() == code
    said = (tmp_path / "said").read_text()
    assert "Stopping after the batches under way ...\n" in said
    assert said.endswith("Interrupted. The same command resumes this run.\n")
    assert not summary(out)["finished"]
    assert not (out / "prediction_results.txt").exists()
    assert_goes_on(predict("-", out, "--devices", "cpu,cpu", stdin=reads))
    assert tables(out) == undisturbed
    assert summary(out)["finished"]
    assert summary(out)["reproducible"]


def test_second_signal_ends_at_once(
    reads: bytes, undisturbed: dict[str, bytes], tmp_path: Path, out: Path
) -> None:
    with start("predict", "-", out, "--devices", "cpu", stderr=tmp_path / "said") as process:
        give_all_but_the_end(reads, process, out)
        # Both are there when it wakes up, in whichever order: the second ends it before the first has.
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            process.send_signal(number)
        assert process.wait() in (130, 143)
    said = (tmp_path / "said").read_text()
    assert "Stopping after the batches under way ...\n" in said
    assert said.endswith("Interrupted. The same command resumes this run.\n")
    assert_goes_on(predict("-", out, stdin=reads))
    assert tables(out) == undisturbed


def test_directory_of_a_running_process_is_left_to_it(
    reads: bytes, undisturbed: dict[str, bytes], tmp_path: Path, out: Path
) -> None:
    with start("predict", "-", out, "--devices", "cpu", stderr=tmp_path / "said") as process:
        give_all_but_the_end(reads, process, out)
        for more in ((), ("--overwrite",), ("--repair",)):
            ended = predict("-", out, *more, stdin=reads)
            assert ended.code == 1
            assert f"{out}: process {process.pid} on {os.uname().nodename} (since " in ended.err
            assert ended.err.endswith(" is writing there. Wait for it to end, or choose another directory\n")
        assert process.stdin
        process.stdin.write(reads[-500:])
        process.stdin.close()
        assert process.wait() == 0
    assert tables(out) == undisturbed


def test_killed_process_is_followed(
    reads: bytes, undisturbed: dict[str, bytes], tmp_path: Path, out: Path
) -> None:
    with start("predict", "-", out, "--devices", "cpu,cpu", stderr=tmp_path / "said") as process:
        give_all_but_the_end(reads, process, out)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    followed = predict("-", out, "--devices", "cpu,cpu,cpu", stdin=reads)
    assert_goes_on(followed)
    assert re.search(
        rf"^process {process.pid} on \S+ \(since .*\) held this run and has ended$", followed.err, re.M
    )
    assert tables(out) == undisturbed


def test_killed_process_with_features_of_earlier_work_is_followed(tmp_path: Path, out: Path) -> None:
    """Of the first reads there are features; the others, of other names, come behind a window's end."""
    first = fasta(some_reads(300, 30).items()).encode()
    others = [(name.upper(), bases) for name, bases in some_reads(100, 30, seed=1).items()]
    reads = first + fasta([*(("short", "AC") for _ in range(9000)), *others]).encode()
    assert predict("-", tmp_path / "old", "--embeddings", stdin=first).code == 0
    words = ("--reuse-features", tmp_path / "old")
    assert predict("-", tmp_path / "calm", *words, stdin=reads).code == 0
    with start("predict", "-", out, *words, "--devices", "cpu,cpu", stderr=tmp_path / "said") as process:
        give_all_but_the_end(reads, process, out)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not [path.name for path in out.iterdir() if "features" in path.name]
    assert_goes_on(predict("-", out, *words, "--devices", "cpu,cpu,cpu", stdin=reads))
    assert tables(out) == tables(tmp_path / "calm")
    orfs = len(rows(tmp_path / "old" / "prediction_results.txt")) - 1
    assert summary(out)["counts"]["orfs_reused"] == orfs > 1000


class Interrupting(io.BytesIO):
    """A standard input that interrupts the process where it would wait for its end."""

    def __init__(self, content: bytes, out: Path) -> None:
        super().__init__(content)
        self.out = out
        self.is_over = threading.Event()

    def readinto(self, buffer: Any) -> int:
        if count := super().readinto(buffer):
            return count
        while " batch 0." not in log(self.out):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)
        self.is_over.wait()
        return 0


def test_what_is_piped_again_must_be_the_same(reads: bytes, undisturbed: dict[str, bytes], out: Path) -> None:
    stdin = Interrupting(reads[:-500], out)
    assert predict("-", out, stdin=stdin).code == 130
    stdin.is_over.set()
    for other in (reads.replace(b"read7\n", b"READ7\n"), reads[:100]):
        ended = predict("-", out, stdin=other)
        assert ended.code == 1
        assert f"{out}: holds another run: the sequences have changed" in ended.err
        assert ended.err.endswith("Choose another directory, or --overwrite to start anew\n")
    assert_goes_on(predict("-", out, stdin=reads))
    assert tables(out) == undisturbed


# As a process


def test_version_and_help() -> None:
    assert run("--version") == (0, f"virnuc-async {__version__}\n", "")
    actions = [f"models {action}" for action in ("list", "info", "download", "verify", "import")]
    for command in ("", "predict", "train", "evaluate", "calibrate", "models", *actions, "devices"):
        ended = run(*command.split(), "--help")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("usage: virnuc-async")
        assert f"\n  python -m virnuc_async {command}" in ended.out.partition("examples:\n")[2].join(
            ["\n", ""]
        )
    assert "usage: virnuc-async predict INPUT [INPUT ...] OUT_DIR [options]\n" in run("predict", "--help").out
    assert "interrupted, the same command resumes" in run("predict", "--help").out


def test_help_imports_nothing_heavy() -> None:
    script = """
import sys
import virnuc_async.cli.main
helps = [[], ["predict"], ["models", "import"], ["train"], ["evaluate"]]
for words in *([*words, "--help"] for words in helps), ["predict"], ["train"], ["--version"]:
    sys.stdout = sys.stderr = open("/dev/null", "w")
    try:
        virnuc_async.cli.main.main(words)
    except SystemExit:
        pass
sys.stdout = sys.__stdout__
print(*{"torch", "numpy", "rich", "loguru", "anyio", "tokenizers", "safetensors"} & sys.modules.keys())
"""
    assert python(script) == "\n"


def test_examples_of_the_help_are_understood(good: Path) -> None:
    text = run("--help").out + run("predict", "--help").out
    lines = re.findall(r"python -m virnuc_async (predict .*)", text)
    assert len(lines) > 5
    for line in lines:
        assert run(*line.split(), "--threshold", "2").err.startswith("virnuc-async: the threshold") or (
            "samples.txt" in line
        )


def test_examples_of_training_are_understood() -> None:
    text = "".join(run(*words, "--help").out for words in ((), ("train",), ("evaluate",)))
    lines = re.findall(r"python -m virnuc_async ((?:train|evaluate) .*)", text.replace("\\\n", ""))
    assert len(lines) == 6
    for line in lines:
        assert run(*line.split(), "--threshold", "2").err.startswith("virnuc-async: the threshold")


# Models and devices


def test_models_are_imported_used_and_described(
    golden_parts: CheckpointPaths, source: Path, model: Bundle, tmp_path: Path, out: Path
) -> None:
    directory = tmp_path / "mine"
    parts = ("--protein", golden_parts.protein, "--nucleotide", golden_parts.nucleotide)
    more = (
        "--classifier",
        golden_parts.classifier,
        "--length",
        "500",
        "--name",
        "mine",
        "--output",
        directory,
    )
    ended = run("models", "import", *parts, *more)
    assert ended == (0, f"mine is in {directory}. Use it with --model {directory}\n", "")
    assert predict(source, out, "--model", directory).code == 0
    assert summary(out)["bundle"] == {"name": "mine", "fingerprint": model.fingerprint}
    ended = run("models", "info", directory)
    assert ended.code == 0
    facts = dict(re.findall(r"^(.{24})(.*)$", ended.out, re.MULTILINE))
    facts = {name.rstrip(): fact for name, fact in facts.items()}
    assert facts["name"] == "mine"
    assert facts["directory"] == str(directory)
    assert facts["fingerprint"] == model.fingerprint
    assert facts["fragments"] == "500 bp"
    assert facts["protein"] == "ESM-2, 3 layers of 64"
    assert facts["licence"] == "not stated"
    assert facts["protein.safetensors"] == f"sha256 {model.checksums['protein.safetensors']}, checked"
    ended = run("models", "import", *parts, *more)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"virnuc-async: {directory}: exists and is not empty\n"


def test_model_list(model: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ended = run("models", "list")
    assert ended.code == 0
    *table, hint = ended.out.splitlines()
    header, default, *missing = [re.split(r"  +", line) for line in table]
    assert header == ["model", "fragments", "directory"]
    shipped = ROOT / "virnuc_async" / "models" / "tiny-500"
    assert default == ["tiny-500 (default)", "500 bp", str(shipped)]
    assert missing == [[name, "-", "not on this machine"] for name in ("virnucpro-500", "virnucpro-300")]
    assert "docs/how-to/models.md" in hint
    mine = tmp_path / "virnuc-async" / "models" / "virnucpro-500"
    shutil.copytree(model.directory, mine)
    assert re.search(f"^virnucpro-500 +500 bp +{mine}$", run("models", "list").out, re.MULTILINE)
    assert run("models", "info", "virnucpro-500").code == 0
    (mine / "bundle.json").write_text("{")
    ended = run("models", "list")
    assert ended.code == 0
    assert re.search(rf"^virnucpro-500 +not usable: bundle\.json: .* {mine}$", ended.out, re.MULTILINE)


def test_model_info_checks_the_files(model: Bundle, tmp_path: Path) -> None:
    assert "tiny-500 is a small demonstration model" in run("models", "info", "tiny-500").out
    broken = tmp_path / "broken"
    shutil.copytree(model.directory, broken)
    (broken / "tokenizer.json").write_text("{}")
    ended = run("models", "info", broken)
    assert (ended.code, ended.out) == (1, "")
    assert "tokenizer.json has changed or is damaged" in ended.err
    ended = run("models", "info", tmp_path / "none")
    assert ended.code == 1
    assert "Installed: tiny-500" in ended.err


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("part", ["--protein", "--classifier"])
def test_hostile_file_is_refused_and_not_run(
    part: str, golden_parts: CheckpointPaths, tmp_path: Path
) -> None:
    mark, trap, directory = tmp_path / "run", tmp_path / "trap.pt", tmp_path / "new"
    torch.save({"model": Hostile(mark)}, trap)
    pickle.loads(pickle.dumps(Hostile(mark)))
    mark.rmdir()  # it does work
    given = {
        "--protein": golden_parts.protein,
        "--nucleotide": golden_parts.nucleotide,
        "--classifier": golden_parts.classifier,
        part: trap,
    }
    words = [word for pair in given.items() for word in pair]
    ended = run("models", "import", *words, "--length", "500", "--name", "x", "--output", directory)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"virnuc-async: {trap} cannot be imported: ")
    assert not mark.exists()
    assert not directory.exists()


def test_import_says_what_is_wrong_with_its_arguments(golden_parts: CheckpointPaths, tmp_path: Path) -> None:
    good = ("--nucleotide", golden_parts.nucleotide, "--classifier", golden_parts.classifier, "--name", "x")
    missing, file = tmp_path / "no.pt", tmp_path / "file"
    file.touch()
    ended = run(
        "models", "import", *good, "--protein", missing, "--length", "500", "--output", tmp_path / "new"
    )
    assert ended.code == 1
    assert ended.err.startswith(f"virnuc-async: {missing} cannot be imported: ")
    whole = (*good, "--protein", golden_parts.protein)
    ended = run("models", "import", *whole, "--length", "0", "--output", tmp_path / "new")
    assert ended.code == 64
    assert ended.err == "virnuc-async: --length is a number of bases, 300 or 500 as published, not 0\n"
    ended = run("models", "import", *whole, "--length", "500", "--output", file)
    assert ended == (1, "", f"virnuc-async: {file}: {os.strerror(errno.ENOTDIR)}\n")


def test_devices_names_them_as_the_option_wants_them(good: Path, out: Path) -> None:
    ended = run("devices")
    assert (ended.code, ended.err) == (0, "")
    header, *_, cpu = [re.split(r"  +", line) for line in ended.out.splitlines()]
    assert header == ["device", "model", "memory", "capability", "precision", "tokens per batch", "used"]
    name, model, memory, capability, precision, tokens, used = cpu
    assert (name, capability, precision, tokens) == ("cpu", "-", "FP32", "2,048")
    assert model.startswith("CPU (")
    assert re.fullmatch(r"\d+ GiB", memory)
    has_gpu = torch.cuda.is_available()
    assert used == ("no, there are GPUs" if has_gpu else "yes, no GPU here that CUDA can use")
    assert predict(good, out, "--devices", name).code == 0
    assert summary(out)["devices"][0]["kind"] == model


@pytest.mark.parametrize("command", [["--help"], ["models", "list"]])
@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_reader_that_has_gone_is_no_traceback(command: list[str], environment: dict[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open(write, "wb") as pipe:
        words = [sys.executable, "-m", "virnuc_async", *command]
        done = subprocess.run(words, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, env=usual | environment)
    assert done.stderr == b""
    assert done.returncode in (0, 1)  # argparse lets a help that nobody reads pass, if it hears of it


def test_process_ends_with_the_code_of_the_command(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with start("predict", "only-one-name", stderr=said) as process:
        assert process.wait() == 64
    assert said.read_text() == "virnuc-async: name an input before the output directory 'only-one-name'\n"
