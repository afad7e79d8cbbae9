"""Loading for the CPU: the packed weights are all that stays, and a layer more is all that comes and goes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import ROOT

from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape, Shapes

SHAPES = Shapes(
    ProteinShape(layers=30, width=640, heads=20),  # the published 150M
    NucleotideShape(layers=1, width=64, heads=4, intermediate=128, vocabulary=64),
    ClassifierShape(inputs=704, hidden=16),
)
_LAYER = 12 * SHAPES.protein.width**2  # parameters
_MORE = 64 << 20  # of libraries that are used for the first time: far less than the weights, 296 MB and more

_SCRIPT = """
import json, sys
from pathlib import Path
import torch
sys.path[:0] = ["tests", "tests/networks"]
from test_loading_memory import SHAPES
from virnuc_async.networks.model import Model

def now():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: int(text.split()[0]) * 1024 for name, text in (line.split(":", 1) for line in lines)
            if name in ("RssAnon", "RssFile", "VmRSS", "VmHWM")}

def measure(dtype):
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, mapped = now(), []
    model = Model.load(Path(sys.argv[1]), SHAPES, torch.device("cpu"), dtype,
                       lambda: mapped.append(now()["RssFile"]))
    after = now()
    return model, {"anonymous": after["RssAnon"] - before["RssAnon"],
                   "most mapped": max(mapped) - before["RssFile"],
                   "mapped": after["RssFile"] - before["RssFile"],
                   "peak": after["VmHWM"] - before["VmRSS"]}

half, of_half = measure(torch.bfloat16)
wide, of_wide = measure(torch.float32)
print(json.dumps([of_half, of_wide]))
"""


def _write(directory: Path) -> None:
    with torch.device("meta"):
        networks = {
            "protein": Esm2(SHAPES.protein),
            "nucleotide": DnabertS(SHAPES.nucleotide),
            "classifier": Classifier(SHAPES.classifier),
        }
    for name, network in networks.items():
        tensors = network.to(torch.bfloat16).state_dict()
        zeros = {key: torch.zeros(like.shape, dtype=like.dtype) for key, like in tensors.items()}
        save_file(zeros, directory / f"{name}.safetensors")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts these pages")
def test_unpacked_weights_and_mapped_pages_are_freed_layer_by_layer(tmp_path: Path) -> None:
    _write(tmp_path)
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    for found, size in zip(json.loads(done.stdout), (2, 4), strict=True):
        weights, layer = SHAPES.protein.parameters * size, _LAYER * size
        assert weights < found["anonymous"] < weights + _MORE
        assert found["peak"] < found["anonymous"] + found["mapped"] + 3 * layer
        assert found["most mapped"] < _LAYER * 2 + _MORE  # the file is in BF16
        assert found["mapped"] < _MORE
        print({name: f"{value / 1e6:.0f} MB" for name, value in found.items()})
