"""The command as a process: pipes and exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, start


@pytest.mark.parametrize("command", [["--help"], ["models", "list"]])
@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_closed_pipe_is_not_a_traceback(command: list[str], environment: dict[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open(write, "wb") as pipe:
        words = [sys.executable, "-m", "virnuc_async", *command]
        done = subprocess.run(words, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, env=usual | environment)
    assert done.stderr == b""
    assert done.returncode in (0, 1)  # argparse ignores a closed pipe where it notices it


def test_process_exits_with_the_code_of_the_command(tmp_path: Path) -> None:
    stderr = tmp_path / "stderr"
    with start("predict", "only-one-name", stderr=stderr) as process:
        assert process.wait() == 64
    assert stderr.read_text() == "virnuc-async: name an input before the output directory 'only-one-name'\n"
