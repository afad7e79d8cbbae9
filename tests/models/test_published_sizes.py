"""Checkpoints of the published forms and sizes, of random numbers: imported, and computed as by fair-esm."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import weights
from checkpoint_files import MLPClassifier
from esm.model.esm2 import ESM2
from golden_networks import some_proteins
from safetensors.torch import load_file
from torch import Tensor

from virnuc_async.models.bundle import Bundle
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle
from virnuc_async.models.peers import embed_padded, fair_esm, fair_esm_states
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.linear import can_prepack
from virnuc_async.networks.loading import load
from virnuc_async.networks.packing import pack
from virnuc_async.networks.shapes import NucleotideShape, ProteinShape
from virnuc_async.sequences.tokens import OrfTokenizer, Ragged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SHAPES = {"650M": ProteinShape(33, 1280, 20), "3B": ProteinShape(36, 2560, 40)}
CPU = torch.device("cpu")


def _require_room(shape: ProteinShape, directory: Path) -> None:
    """Skip the test if memory or disk are too small for networks of *shape*."""
    # In FP32, one network at a time; the checkpoint and the bundle in FP16.
    memory, disk = 5 * shape.parameters + (2 << 30), 4 * shape.parameters + (2 << 30)
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    for what, found, needed in (
        ("memory", available, memory),
        ("disk", shutil.disk_usage(directory).free, disk),
    ):
        if found < needed:
            pytest.skip(f"{needed / 1e9:.0f} GB of {what} are needed, and {found / 1e9:.0f} GB are free")


def _random(name: str, shape: torch.Size) -> Tensor:
    """Return numbers as large as those of a trained ESM-2, in FP16 as published."""
    tensor = torch.empty(shape, dtype=torch.float16)
    if "layer_norm" in name:
        return tensor.uniform_(0.5, 1.5) if name.endswith("weight") else tensor.uniform_(-0.3, 0.3)
    if len(shape) < 2:
        return tensor.normal_(0, 0.1)
    return tensor.normal_(0, 1 if "embed_tokens" in name else shape[1] ** -0.5)


def _write_protein(shape: ProteinShape, path: Path) -> Path:
    torch.manual_seed(5)
    with torch.device("meta"):
        network = ESM2(shape.layers, shape.width, shape.heads)
    model = {
        f"encoder.sentence_encoder.{name}": _random(name, like.shape)
        for name, like in network.state_dict().items()
    }
    settings = Namespace(
        encoder_layers=shape.layers, encoder_embed_dim=shape.width, encoder_attention_heads=shape.heads
    )
    torch.save({"cfg": {"model": settings}, "model": model}, path)
    return path


def _widen(dnabert: Path) -> None:
    """Make the network in *dnabert* as large as the published one; its vocabulary stays."""
    config = json.loads((dnabert / "config.json").read_text())
    config |= {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    config |= {"intermediate_size": 3072}
    (dnabert / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.from_numpy(array) for name, array in weights.dnabert(config).items()}
    torch.save(tensors, dnabert / "pytorch_model.bin")


def _ours(bundle: Bundle, rows: Ragged) -> Tensor:
    with torch.device("meta"):
        network = Esm2(bundle.shapes.protein)
    path = bundle.directory / "protein.safetensors"
    load(network, path, CPU, torch.float32, packed=can_prepack(torch.float32))
    return network.embeddings(pack(rows))


def _theirs(bundle: Bundle, rows: Ragged) -> Tensor:
    found = load_file(bundle.directory / "protein.safetensors")
    network = fair_esm(bundle.shapes.protein, {name: tensor.float() for name, tensor in found.items()})
    lists = [row.tolist() for row in np.split(rows.ids, np.cumsum(rows.lengths)[:-1])]
    return embed_padded(fair_esm_states(network), lists, CPU)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_published_size_is_imported_and_gives_fair_esms_embeddings(
    shape: ProteinShape, dnabert: Path, as_main: type[MLPClassifier], tmp_path: Path
) -> None:
    _require_room(shape, tmp_path)
    _widen(dnabert)
    torch.save(as_main(shape.width + 768, 512), tmp_path / "classifier.pth")
    protein = _write_protein(shape, tmp_path / "esm2.pt")
    paths = CheckpointPaths(protein, dnabert, tmp_path / "classifier.pth")
    bundle = import_bundle(paths, tmp_path / "bundle", "random", 500)
    protein.unlink()
    assert bundle.shapes.protein == shape
    nucleotide = bundle.shapes.nucleotide
    assert nucleotide == NucleotideShape(12, 768, 12, 3072, nucleotide.vocabulary, nucleotide.eps)
    rows = OrfTokenizer.residues(None, some_proteins(166, 90, 12, 1))
    with torch.inference_mode():
        ours, theirs = _ours(bundle, rows), _theirs(bundle, rows)
    deviation = float((ours - theirs).abs().max())
    print(f"{shape.parameters / 1e6:.0f} million parameters: {deviation:.1e}")
    assert deviation < 1e-5
