"""The options of ``predict``, and what it prints and logs."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from running import NO_FILE, log, predict, rows, summary, tables, verdicts

from virnuc_async import __version__
from virnuc_async.models.bundle import Bundle


def test_threshold_is_the_fraction_that_makes_a_contig_viral(source: Path, tmp_path: Path) -> None:
    seen = {}
    for threshold in ("0", "0.6", "1"):
        out = tmp_path / threshold
        assert predict(source, out, "--threshold", threshold).code == 0
        lines = rows(out / "contigs.tsv")[1:]
        assert [row[9] for row in lines] == [
            "no_orf" if row[4] == "0" else "virus" if float(row[6]) >= float(threshold) else "others"
            for row in lines
        ]
        seen[threshold] = verdicts(out)
        counts = summary(out)["counts"]["viral_contigs"]
        assert counts == list(seen[threshold].values()).count("virus")
    assert "others" not in seen["0"].values()
    assert seen["0"] != seen["1"]


def test_threads_are_shared_and_change_no_table(source: Path, tmp_path: Path) -> None:
    for threads, devices, line in (
        (3, "cpu", "3 threads"),
        (1, "cpu", "1 thread"),
        (4, "cpu,cpu", "2 threads"),
    ):
        out = tmp_path / str(threads)
        assert predict(source, out, "--devices", devices, "--threads", threads).code == 0
        assert re.search(rf"cpu:0: .*, {line}, ", log(out))
        assert tables(out) == tables(tmp_path / "3")
    assert predict(source, tmp_path / "none", "--threads", 0).err.startswith(
        "virnuc-async: threads must be at least 1, not 0"
    )


def test_embeddings_are_loaded_with_weights_only(
    source: Path, out: Path, model: Bundle, golden: Path
) -> None:
    assert predict(source, out, "--model", model.directory, "--embeddings").code == 0
    features = torch.load(out / "merged_features.pt", weights_only=True)
    published = torch.load(golden / "upstream" / "expected_500" / "merged.pt", weights_only=True)
    assert features["ids"] == published["ids"]
    assert features["data"].dtype == torch.float32
    torch.testing.assert_close(features["data"], published["data"], rtol=0, atol=1e-5)
    assert not [path.name for path in out.iterdir() if "partial" in path.name or "rows" in path.name]


def test_tokens_per_batch_is_the_maximum_of_a_batch(source: Path, tmp_path: Path) -> None:
    batches = {}
    for size in ("1", "700", "100000", "auto"):
        out = tmp_path / size
        assert predict(source, out, "--tokens-per-batch", size).code == 0
        facts = summary(out)
        batches[size] = facts["counts"]["batches"]
        used = 2048 if size == "auto" else int(size)
        assert facts["settings"]["tokens_per_batch"] == facts["devices"][0]["tokens_per_batch"] == used
    orfs = len(rows(tmp_path / "1" / "prediction_results.txt")) - 1
    assert (batches["1"], batches["100000"]) == (orfs, 1)
    assert 1 < batches["auto"] < batches["700"] < orfs


def test_half_precisions_change_last_digits(source: Path, tmp_path: Path, model: Bundle) -> None:
    scores = {}
    for precision in ("fp32", "bf16", "fp16", "auto"):
        out = tmp_path / precision
        ended = predict(source, out, "--precision", precision, "--model", model.directory)
        assert ended.code == 0
        used = "fp32" if precision == "auto" else precision
        for half in ("bf16", "fp16"):
            assert (f"{half.upper()} enabled" in ended.err) == (used == half)
        facts = summary(out)
        assert facts["settings"]["precision"] == facts["devices"][0]["precision"] == used
        lines = rows(out / "prediction_results.txt")[1:]
        scores[precision] = np.array([row[2:] for row in lines], float)
    assert np.array_equal(scores["auto"], scores["fp32"])
    for half, smallest, largest in (("bf16", 1e-5, 0.2), ("fp16", 1e-6, 0.02)):
        assert smallest < np.abs(scores[half] - scores["fp32"]).max() < largest


def test_three_devices_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    assert predict(source, one, "--devices", "cpu", "--tokens-per-batch", "300").code == 0
    ended = predict(source, three, "--devices", "cpu, cpu,cpu", "--tokens-per-batch", "300")
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


def test_quiet_prints_only_errors(good: Path, tmp_path: Path, out: Path, model: Bundle) -> None:
    quiet = ("--quiet", "--model", model.directory)
    assert predict(good, out, *quiet) == (0, "", "")
    missing = tmp_path / "missing.fa"
    ended = predict(good, missing, tmp_path / "two", "--skip-missing", *quiet)
    assert ended == (2, "", f"ERROR: {missing}: {NO_FILE}\n")


def test_verbose_prints_every_batch(good: Path, tmp_path: Path) -> None:
    assert "batch 0.0 done on cpu:0\n" in predict(good, tmp_path / "loud", "--verbose").err
    assert "batch 0.0" not in predict(good, tmp_path / "plain").err
    assert "batch 0.0 done on cpu:0\n" in log(tmp_path / "plain")


def test_run_log(good: Path, tmp_path: Path, out: Path, model: Bundle) -> None:
    missing = tmp_path / "missing.fa"
    predict(good, missing, out, "--skip-missing", "--quiet", "--model", model.directory)
    lines = log(out).splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]+ +\S", line) for line in lines)
    messages = [line[20:] for line in lines if " PROGRESS " not in line]
    for line, begins in zip(
        messages,
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
    assert "cpu:0" in ended.err
    assert f"Tables are in {out}" in ended.err.replace("\r", "").replace("\n", "")


def test_older_name_of_tokens_per_batch(good: Path, tmp_path: Path) -> None:
    for option in ("--tokens-per-batch", "--esm-batch-size"):
        assert predict(good, tmp_path / option, option, "300").code == 0
        assert summary(tmp_path / option)["settings"]["tokens_per_batch"] == 300
