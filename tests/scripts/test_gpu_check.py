"""The check of a machine with a GPU: what it installs, what it runs, and how it ends when time is up."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import gpu_check
import measured
import missing_wheels
import profile_encoders
import pytest
import torch
from gpu_targets import describe_targets
from missing_wheels import MissingPackages, Requirement
from support import ROOT

from virnuc_async._version import __version__

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def wheel(folder: Path, name: str, version: str = "1.0", requires: str = "") -> None:
    """Write a wheel of a module that says its version."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requires}"] if requires else []
    with ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> list[Requirement]:
    """What the program needs, for this test."""
    needed: list[Requirement] = []
    monkeypatch.setattr(missing_wheels, "requirements", lambda: needed)
    return needed


def test_this_environment_has_all_that_is_required() -> None:
    names = {requirement.name for requirement in missing_wheels.requirements()}
    assert {"torch", "loguru", "fair-esm", "pytest", "hypothesis"} <= names
    assert not {"nox", "dnaio", "pytest-asyncio", "pysam"} & names
    assert missing_wheels.missing(missing_wheels.requirements()) == []


def test_without_a_folder_the_command_that_fills_one_is_printed(
    tmp_path: Path, needs: list[Requirement], capsys: pytest.CaptureFixture[str]
) -> None:
    needs += [Requirement("numpy>=1.26"), Requirement("no_such_thing<3,>=2.1")]
    assert gpu_check.main(["--device", "cpu", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"{sys.executable} lacks no_such_thing<3,>=2.1. " in said
    assert f"pip download --no-deps --only-binary=:all: --python-version {PYTHON} " in said
    assert said.rstrip().endswith("-d wheels 'no_such_thing<3,>=2.1'\n\nthen name it with --wheels")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_and_what_that_needs_is_taken_from_wheels(
    tmp_path: Path, needs: list[Requirement]
) -> None:
    folder, target = tmp_path / "wheels", tmp_path / "target"
    needs += [Requirement("first_thing>=1.5")]
    wheel(folder, "first_thing", "1.0")
    with pytest.raises(MissingPackages, match=rf"nor {folder} has first_thing>=1.5\."):
        missing_wheels.install(folder, target)
    wheel(folder, "first_thing", "1.7", requires="second_thing")
    with pytest.raises(MissingPackages, match=r"has second_thing\."):
        missing_wheels.install(folder, target)
    wheel(folder, "second_thing", "0.3", requires="third_thing; extra == 'more'")
    missing_wheels.install(folder, target)
    assert (target / "first_thing.py").read_text() == "version = '1.7'\n"
    assert (target / "second_thing.py").read_text() == "version = '0.3'\n"


def test_torch_is_never_installed(tmp_path: Path, needs: list[Requirement]) -> None:
    needs += [Requirement("torch>=1000")]
    wheel(tmp_path, "torch", "1000.0")
    with pytest.raises(MissingPackages, match="torch>=1000; torch must be the machine's own"):
        missing_wheels.install(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def run_tests(directory: Path, until: float) -> tuple[int, list[dict[str, object]]]:
    """Run three tests, the second of which fails, with the plugin; return the exit code and the lines."""
    path = directory / "test_three.py"
    path.write_text(
        "import time\ndef test_a(): time.sleep(0.2)\ndef test_b(): assert 1 == 2\ndef test_c(): pass\n"
    )
    (directory / "pytest.ini").write_text("[pytest]\n")
    words = ["-q", "-p", "no:cacheprovider", "-p", "report_lines", "-c", str(directory / "pytest.ini")]
    report = {"REPORT_LINES": str(directory / "lines"), "REPORT_UNTIL": str(until)}
    environment = os.environ | report | {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-m", "pytest", *words, str(path)], env=environment, check=False)
    return done.returncode, [json.loads(line) for line in (directory / "lines").read_text().splitlines()]


def test_each_test_is_a_line(tmp_path: Path) -> None:
    code, lines = run_tests(tmp_path, time.time() + 100)
    assert code == 1
    assert [(line["test"], line["outcome"]) for line in lines] == [
        ("test_three.py::test_a", "passed"),
        ("test_three.py::test_b", "failed"),
        ("test_three.py::test_c", "passed"),
    ]
    assert "assert 1 == 2" in str(lines[1]["error"])


def test_tests_that_were_not_reached_are_named_and_are_no_success(tmp_path: Path) -> None:
    code, lines = run_tests(tmp_path, time.time() - 1)
    assert code == 75
    assert lines == [{"not reached": [f"test_three.py::test_{letter}" for letter in "abc"]}]


def test_measurements_need_no_installed_distribution() -> None:
    versions = measured.facts([])["versions"]
    assert versions["virnuc-async"] == __version__
    assert versions["torch"] == measured.installed("torch")
    assert measured.installed("no-such-package") is None


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_part_that_fails_does_not_keep_the_next_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {"good": 0, "bad": 2, "late": 75, "also good": 0}

    def parts(check: gpu_check.Check, lines: Path, until: float) -> Iterator[gpu_check.Part]:
        for name, code in codes.items():
            text = f"import sys; print('about {name}', file=sys.stderr); sys.exit({code})"
            yield gpu_check.Part(name, (sys.executable, "-c", text))

    monkeypatch.setattr(gpu_check, "STEPS", {"tests": parts})
    monkeypatch.setattr(gpu_check, "install", lambda folder, target: None)
    monkeypatch.setattr(gpu_check, "_device_problem", lambda device, environment: None)
    assert gpu_check.main(["--device", "cpu", "--output", str(tmp_path)]) == 1
    rows = rows_of(tmp_path / "tests.jsonl")
    assert [(row["part"], row["outcome"], row.get("errors")) for row in rows] == [
        ("good", "DONE", None),
        ("bad", "FAILED", "about bad\n"),
        ("late", "TIME_IS_UP", "about late\n"),
        ("also good", "DONE", None),
    ]
    assert "tests: late: time is up\n" in capsys.readouterr().out
    del codes["bad"]
    assert gpu_check.main(["--device", "cpu", "--output", str(tmp_path)]) == 75
    del codes["late"]
    assert gpu_check.main(["--device", "cpu", "--output", str(tmp_path)]) == 0
    assert gpu_check.main(["--device", "cpu", "--output", str(tmp_path), "--minutes", "0"]) == 75


def test_what_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_GRACE_SECONDS", 0.3)
    ignore = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    part = gpu_check.Part("endless", (sys.executable, "-c", ignore))
    with (tmp_path / "errors").open("w") as errors:
        began = time.time()
        assert gpu_check._run(part, dict(os.environ), began + 0.2, errors) == 75
    assert time.time() - began < 20


def test_a_device_that_torch_cannot_use_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_check.main(["--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("torch cannot use cuda here: ")


def test_targets_are_compared_with_what_was_measured(tmp_path: Path) -> None:
    assert list(describe_targets(tmp_path)) == []
    esm2 = {"measured": "forward", "encoder": "ESM-2", "way": "kernels"}
    bf16 = {"precision": "BF16", "of the matrix rate": 0.83, "host ms": 9.5, "tokens/s": 100.0}
    fp8 = {"precision": "FP8", "of the matrix rate": 0.6, "host ms": 1.0, "tokens/s": 150.0}
    smaller = {"precision": "BF16", "of the matrix rate": 0.1, "host ms": 1, "tokens/s": 1}
    rows = [esm2 | row for row in (bf16 | {"matrix TFLOP/s": 700}, smaller, fp8 | {"matrix TFLOP/s": 1400})]
    (tmp_path / "profile.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows) + '{"measured": "for'
    )
    peers = {"measured": "encoder", "engine": "kernels BF16", "tokens": "168", "x fair-esm FP32": 11.0}
    (tmp_path / "encoders.jsonl").write_text(json.dumps(peers | {"x transformers BF16": 1.25}) + "\n")
    assert list(describe_targets(tmp_path)) == [
        "BF16, share of the matrix rate: 0.83 (at least 0.8: met)",
        "host, ms a batch: 9.5 (at most 8: missed)",
        "BF16, times fair-esm FP32: 11 (at least 10: met)",
        "BF16, times the best peer: 1.25 (at least 1.3: missed)",
        "FP8, times our BF16: 1.5 (at least 1.35: met)",
        "FP8, times the BF16 matrix rate: 1.2 (at least 1.15: met)",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_step_on_the_cpu(tmp_path: Path) -> None:
    """The script itself, at the smallest size; its tests need a GPU and are skipped."""
    command = [sys.executable, "scripts/gpu_check.py", "--device", "cpu", "--shape", "tiny"]
    command += ["--tokens", "512,256", "--seconds", "1", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["outcome"] for row in rows_of(tmp_path / "tests.jsonl")} == {"skipped", "DONE"}
    (golden,) = (row for row in rows_of(tmp_path / "pipeline.jsonl") if row.get("measured") == "golden")
    assert golden["largest difference"] == 0
    engines = {row["engine"] for row in rows_of(tmp_path / "encoders.jsonl") if "engine" in row}
    assert {"packed FP32", "packed BF16", "fair-esm FP32", "transformers BF16"} <= engines


def test_the_forward_of_both_encoders_is_profiled(tmp_path: Path) -> None:
    words = ["bf16", "--device", "cpu", "--shape", "tiny", "--tokens", "300", "--square", "64"]
    assert profile_encoders.main([*words, "--lines", str(tmp_path / "lines")]) == 0
    rows = [row for row in rows_of(tmp_path / "lines") if row["measured"] == "forward"]
    assert [(row["encoder"], row["way"], row["rows"]) for row in rows] == [
        ("ESM-2", "packed", 1),
        ("ESM-2", "plain", 1),
        ("DNABERT-S", "packed", 2),
        ("DNABERT-S", "plain", 2),
    ]
    assert all(0 < row["tokens/s"] < row["tokens"] / row["ms"] * 1000 for row in rows)
    kernels = [row for row in rows_of(tmp_path / "lines") if row["measured"] == "kernels"]
    assert all(row["attention ms a layer"] > 0 for row in kernels if row["encoder"] == "ESM-2")
    assert profile_encoders.main([*words, "--lines", str(tmp_path / "late"), "--until", "1"]) == 75
    assert {"not reached": ["ESM-2 BF16 packed 300"]} in rows_of(tmp_path / "late")
