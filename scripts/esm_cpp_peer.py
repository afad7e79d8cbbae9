"""esm-cpp, run by the interpreter of a separate environment: it needs another version of numpy."""

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

# Runs in that interpreter, and scores rows of ids, one JSON line at a time.
_SERVER = """
import json, sys
import numpy as np
import esm_cpp
model = esm_cpp.Model.load_from_safetensors(sys.argv[1])
if sys.argv[2] == "INT8":
    model.quantize_weights()
for line in sys.stdin:
    rows = [np.array(row, np.int32) for row in json.loads(line)]
    model.forward_scheduled(rows)
    print("done", flush=True)
"""


def installed_version(python: Path) -> str:
    """Return the version of esm-cpp in the environment of *python*."""
    code = "from importlib.metadata import version; print(version('esm-cpp'))"
    command = [str(python), "-c", code]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


class EsmCpp:
    """The engine in FP32 or INT8; it returns logits but not the hidden states."""

    def __init__(self, python: Path, model: Path, kind: str) -> None:
        command = [str(python), "-c", _SERVER, str(model), kind]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, rows: list[list[int]]) -> None:
        """Score *rows*."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(rows) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("esm-cpp stopped")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
