"""The benchmark of the encoders: all engines compute the same embeddings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_engine_gives_the_same_embeddings(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--shapes", "8M", "--works", "52,mix", "--tokens", "400", "--repeats", "1"]
    command = [
        sys.executable,
        "scripts/bench_encoders.py",
        *options,
        "--output",
        str(tmp_path / "found.json"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    found = json.loads((tmp_path / "found.json").read_text())
    assert {row["tokens"] for row in found["proteins"]} == {"52", "mix"}
    assert len({row["engine"] for row in found["proteins"]}) == 8
    for row in found["proteins"] + found["bases"]:
        assert row["tokens/s"] > 0
        assert float(row["cosine"]) > 0.999
        assert "FP32" not in row["engine"] or float(row["deviation"]) < 1e-5
