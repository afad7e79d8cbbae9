"""Embeddings are by far the largest part of a run: they are copied from file to file, not held in memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import ROOT
from support import fasta

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_WIDTH = 3328  # of the published networks: 13 KB for each ORF
_SCRIPT = """
import json, sys, threading
from dataclasses import replace
from pathlib import Path
import anyio
sys.path[:0] = ["tests"]
from adversity.faults import make_bundle
from fakes import Rules, fake_devices
from virnuc_async.networks.shapes import ClassifierShape
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.settings import Settings

directory, source = map(Path, sys.argv[1:3])
bundle = make_bundle(directory / "bundle")
bundle = replace(bundle, shapes=replace(bundle.shapes, classifier=ClassifierShape(3328, 2)))
settings = Settings(tokens_per_batch=3000, embeddings=True)
plan = Plan((str(source),), settings, bundle, fake_devices(2))
peak, finished = 0, threading.Event()

def watch():
    global peak
    while not finished.wait(0.01):
        status = Path("/proc/self/status").read_text()
        peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)

thread = threading.Thread(target=watch)
thread.start()
summary = anyio.run(execute, plan, directory / "out", Rules().scorer)
finished.set()
thread.join()
print(json.dumps([summary.counts["orfs"], peak]))
"""


def _measure(directory: Path, records: int) -> tuple[int, int, Path]:
    """Run on *records* of one or two ORFs; return the ORFs, the peak memory in bytes, and the features."""
    directory.mkdir()
    reads = ((f"read{number}", "GCA" * 15 + "ACG" * (number % 5)) for number in range(records))
    (directory / "reads.fa").write_text(fasta(reads))
    command = [sys.executable, "-c", _SCRIPT, str(directory), str(directory / "reads.fa")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    orfs, peak = json.loads(done.stdout)
    return orfs, peak, directory / "out" / "merged_features.pt"


def test_memory_does_not_grow_with_the_embeddings(tmp_path: Path) -> None:
    few, low, _ = _measure(tmp_path / "few", 1000)
    many, high, path = _measure(tmp_path / "many", 5000)
    added = (many - few) * _WIDTH * 4
    assert added > 200e6
    assert high - low < 0.15 * added
    features = torch.load(path, weights_only=True, mmap=True)
    assert tuple(features["data"].shape) == (many, _WIDTH)
    assert len(features["ids"]) == many
    print(f"{added / 1e6:.0f} MB more embeddings, {(high - low) / 1e6:.0f} MB more memory")
