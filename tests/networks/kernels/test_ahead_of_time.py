"""Every kernel is compiled for GPUs that are not here: once for all sizes of a batch, without spills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def compile_kernels(directory: Path, *arguments: str) -> list[dict]:
    """Return what scripts/compile_kernels.py writes; Triton's interpreter, which compiles nothing, is off."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(directory / "cache")}
    output = directory / "compiled.json"
    command = [sys.executable, str(ROOT / "scripts" / "compile_kernels.py"), "--output", str(output)]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(output.read_text())["compiled"]


def modules_with_kernels() -> set[str]:
    files = (ROOT / "virnuc_async" / "networks" / "kernels").glob("*.py")
    return {path.stem for path in files if "@triton.jit" in path.read_text()}


def test_the_kernels_of_the_largest_networks(tmp_path: Path) -> None:
    targets = ("7.5:fp16", "9.0:bf16")
    rows = compile_kernels(tmp_path, "--networks", "3B", "DNABERT-S", "--targets", *targets)
    assert {row["module"] for row in rows} == modules_with_kernels()
    assert {f"{row['capability']}:{row['type']}" for row in rows} == set(targets)
    assert [row for row in rows if row["binary"]["spilled"]] == []
    assert all(0 < row["binary"]["registers"] <= 255 for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_kernel_for_every_architecture(tmp_path: Path) -> None:
    rows = compile_kernels(tmp_path)
    assert {row["capability"] for row in rows} == {"7.5", "8.0", "8.9", "9.0", "10.0", "12.0"}
    assert [row for row in rows if row["binary"]["spilled"]] == []
