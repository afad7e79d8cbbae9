"""The three documented ways in, word for word, and the public names."""

import ast
import asyncio
import importlib
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import ROOT, python, tables

import virnuc_async
from virnuc_async import Settings, run_pipeline
from virnuc_async import errors as errors

EXAMPLE = ROOT / "docs" / "examples" / "metagenome.fa.gz"


def test_the_command(tmp_path: Path) -> None:
    """``python -m virnuc_async predict in.fa out/``, in a directory of the user's."""
    shutil.copy(EXAMPLE, tmp_path / "in.fa")
    command = [sys.executable, "-m", "virnuc_async", "predict", "in.fa", "out/", "--devices", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Viral: 36 of 60 contigs" in done.stderr
    assert len(tables(tmp_path / "out")["contigs.tsv"].splitlines()) == 61


def test_the_session_for_gpus() -> None:
    """``nox -s gpu_tests``: one line where there is no GPU; the options of the script where there is one."""
    more = ["--", "--help"] if torch.cuda.is_available() else []
    command = [sys.executable, "-m", "nox", "-s", "gpu_tests", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    if not more:
        (skipped,) = (line for line in done.stderr.splitlines() if "skipped" in line)
        assert skipped.startswith("nox > Session gpu_tests skipped: no GPU here that torch can use")


async def test_the_function_in_the_loop_of_another_program(tmp_path: Path) -> None:
    """``await run_pipeline(...)``, while the program does something else."""
    beats = 0

    async def work_of_its_own() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    other = asyncio.create_task(work_of_its_own())
    summary = await run_pipeline([EXAMPLE], tmp_path / "out", Settings(model="tiny-500", devices=("cpu",)))
    other.cancel()
    assert (summary.counts["contigs"], summary.counts["viral_contigs"]) == (60, 36)
    assert beats > 3


@pytest.mark.parametrize("name", sorted(set(virnuc_async.__all__) - {"__version__"}))
def test_hands_on_the_public_names(name: str) -> None:
    module = importlib.import_module(f"virnuc_async.{virnuc_async._MODULE_OF[name]}")
    assert getattr(virnuc_async, name) is getattr(module, name)
    assert name in dir(virnuc_async)


def test_every_error_of_ours_is_public() -> None:
    ours = {
        name
        for name, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.VirnucError)
    }
    assert ours <= set(virnuc_async.__all__)


def test_type_checkers_see_the_same_names() -> None:
    module = ast.parse(Path(virnuc_async.__file__).read_text("utf-8"))
    (block,) = (node for node in module.body if isinstance(node, ast.If))
    seen = {
        (alias.name, str(node.module).removeprefix("virnuc_async."))
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(virnuc_async._MODULE_OF.items())
    assert {name for name, _ in seen} | {"__version__"} == set(virnuc_async.__all__)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'run_pipelines'"):
        virnuc_async.run_pipelines  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_loads_neither_torch_nor_the_command_line() -> None:
    script = (
        "import sys, virnuc_async; print(*sorted({'torch', 'argparse', 'numpy', 'loguru'} & {*sys.modules}))"
    )
    assert python(script).strip() == ""
