"""Networks to compare with: DNABERT-S's golden outputs, and fair-esm's ESM-2 with random weights."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import esm
import numpy as np
import torch
import weights
from safetensors.torch import save_file
from torch import Tensor, nn

from virnuc_async.models.checkpoint_formats import read_nucleotide, read_protein
from virnuc_async.models.peers import fair_esm_states
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.shapes import NucleotideShape, ProteinShape

EXACT = {"rtol": 0, "atol": 1e-5}  # FP32, two or three layers
DNABERT_SETS = ("tiny_h48_l2_a6", "tiny_h64_l3_a4", "tiny_h96_l2_a12", "wide_full_h768_l2_a12_i3072")


def build_with(network: Callable[[], nn.Module], tensors: dict[str, Tensor]) -> nn.Module:
    """Return a network with *tensors*, ready for inference."""
    with torch.device("meta"):
        built = network()
    built.load_state_dict(tensors, assign=True)
    return built.requires_grad_(False).eval()


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)


class GoldenDnabert(NamedTuple):
    """A golden set of DNABERT-S: the network, the names of its inputs, and all arrays."""

    network: DnabertS
    shape: NucleotideShape
    cases: tuple[str, ...]
    arrays: dict[str, np.ndarray]

    def ids(self, case: str) -> list[int]:
        return self.arrays[f"{case}/ids"].tolist()

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])


def read_dnabert(path: Path, directory: Path) -> GoldenDnabert:
    """Return the golden set at *path*, a name without suffix; its weights are computed in *directory*."""
    described = json.loads(path.with_suffix(".json").read_bytes())
    (directory / "config.json").write_text(json.dumps(described["config"]))
    tensors = {
        name: torch.from_numpy(values) for name, values in weights.dnabert(described["config"]).items()
    }
    save_file(tensors, directory / "model.safetensors")
    tensors, shape = read_nucleotide(directory)
    cases = tuple(case["name"] for case in described["cases"])
    return GoldenDnabert(
        build_with(lambda: DnabertS(shape), tensors), shape, cases, dict(np.load(path.with_suffix(".npz")))
    )


class EsmPair(NamedTuple):
    """fair-esm's ESM-2, and ours with the same weights."""

    theirs: esm.ESM2
    ours: Esm2
    shape: ProteinShape


def esm_pair(shape: ProteinShape, path: Path) -> EsmPair:
    """Return both networks with weights as large as a trained network's; ours is imported from *path*."""
    torch.manual_seed(shape.layers + shape.width + shape.heads)
    theirs = esm.ESM2(shape.layers, shape.width, shape.heads).requires_grad_(False).eval()
    for name, tensor in theirs.state_dict().items():
        if "layer_norm" in name:
            tensor.uniform_(0.5, 1.5) if name.endswith("weight") else tensor.uniform_(-0.3, 0.3)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.1)
        elif "inv_freq" not in name:
            tensor.normal_(0, 1 if "embed_tokens" in name else 1.5 * shape.width**-0.5)
    settings = Namespace(
        encoder_layers=shape.layers,
        encoder_embed_dim=shape.width,
        encoder_attention_heads=shape.heads,
    )
    model = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"cfg": {"model": settings}, "model": model}, path)
    tensors, found = read_protein(path)
    assert found == shape
    return EsmPair(theirs, build_with(lambda: Esm2(shape), tensors), shape)


def some_proteins(*lengths: int) -> list[bytes]:
    """Return random proteins of *lengths*, of all letters that ESM-2 knows."""
    rng = np.random.default_rng(7)
    letters = list(b"LAGVSERTIDPKQNFYMHWCXBUZO")
    return [rng.choice(letters, size).astype(np.uint8).tobytes() for size in lengths]


def states_by_fair_esm(model: esm.ESM2, protein: bytes) -> Tensor:
    """Return the hidden states of *protein*, with <cls> and <eos>: (T, C)."""
    _, _, tokens = model.alphabet.get_batch_converter()([("", protein.decode())])
    return fair_esm_states(model)(tokens)[0]
