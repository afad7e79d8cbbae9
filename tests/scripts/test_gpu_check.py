"""The check of a machine with a GPU: what it installs, what it runs, and how it ends when time is up."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from zipfile import ZipFile

import gpu_check
import missing_wheels
import pytest
from missing_wheels import MissingPackages, Requirement
from support import ROOT

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
