"""Embeddings are many times larger than all else of a run: they go from file to file, not through memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import ROOT
from support import fasta

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_WIDTH = 3328  # as published: 13 KB an ORF
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

place, source = map(Path, sys.argv[1:3])
bundle = make_bundle(place / "bundle")
bundle = replace(bundle, shapes=replace(bundle.shapes, classifier=ClassifierShape(3328, 2)))
settings = Settings(tokens_per_batch=3000, embeddings=True)
plan = Plan((str(source),), settings, bundle, fake_devices(2))
most, over = 0, threading.Event()

def watch():
    global most
    while not over.wait(0.01):
        status = Path("/proc/self/status").read_text()
        most = max(most, int(status.split("RssAnon:")[1].split()[0]) * 1024)

thread = threading.Thread(target=watch)
thread.start()
summary = anyio.run(execute, plan, place / "out", Rules().scorer)
over.set()
thread.join()
print(json.dumps([summary.counts["orfs"], most]))
"""


def _measured(place: Path, records: int) -> tuple[int, int, Path]:
    """Run so many records of one ORF or two; give the ORFs, the most memory in bytes, and the features."""
    place.mkdir()
    reads = ((f"read{number}", "GCA" * 15 + "ACG" * (number % 5)) for number in range(records))
    (place / "reads.fa").write_text(fasta(reads))
    command = [sys.executable, "-c", _SCRIPT, str(place), str(place / "reads.fa")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    orfs, most = json.loads(done.stdout)
    return orfs, most, place / "out" / "merged_features.pt"


def test_memory_does_not_grow_with_the_embeddings(tmp_path: Path) -> None:
    few, least, _ = _measured(tmp_path / "few", 1000)
    many, most, path = _measured(tmp_path / "many", 5000)
    more = (many - few) * _WIDTH * 4
    assert more > 200e6
    assert most - least < 0.15 * more
    features = torch.load(path, weights_only=True, mmap=True)
    assert tuple(features["data"].shape) == (many, _WIDTH)
    assert len(features["ids"]) == many
    print(f"{more / 1e6:.0f} MB more embeddings, {(most - least) / 1e6:.0f} MB more memory")
