"""
Make a bundle of random weights in the shapes of the published networks, for measurements without those.

Its scores are meaningless. The weights are as large as those of trained networks, and the tokenizer is
a byte-pair encoding of 4,096 tokens like DNABERT-S's, trained on the example's contigs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from special_tokens import SPECIAL, UNKNOWN, finish_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn

from virnuc_async.models.bundle import write_manifest
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape, Shapes
from virnuc_async.sequences.inputs import read_contigs

SHAPES = {
    "8M": ProteinShape(6, 320, 20),
    "35M": ProteinShape(12, 480, 20),
    "150M": ProteinShape(30, 640, 20),
    "650M": ProteinShape(33, 1280, 20),
    "3B": ProteinShape(36, 2560, 40),
}
DNABERT_S = NucleotideShape(12, 768, 12, 3072, 4096)
# By the name of ESM-2's shape; the tiny ones are for trying the scripts.
PROTEIN_SHAPES = {**SHAPES, "tiny": ProteinShape(2, 32, 4)}
NUCLEOTIDE_SHAPES = {**dict.fromkeys(SHAPES, DNABERT_S), "tiny": NucleotideShape(2, 24, 3, 48, 4096)}
_CPU = torch.device("cpu")
LENGTH = 500  # bases of a fragment
EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "metagenome.fa.gz"
NOTICE = "random weights: the scores mean nothing"


def scaled(network: nn.Module) -> nn.Module:
    """Fill *network* with random numbers as large as those of a trained network."""
    torch.manual_seed(1)
    for name, tensor in network.named_parameters():
        if tensor.ndim == 2:
            tensor.data.normal_(0, 1 if "embed" in name else tensor.shape[1] ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            tensor.data.uniform_(0.5, 1.5)
        else:
            tensor.data.normal_(0, 0.1)
    return network.requires_grad_(False).eval()


def random_state(
    build: Callable[[], nn.Module], dtype: torch.dtype, device: torch.device = _CPU
) -> dict[str, Tensor]:
    """Return the tensors of a random network, made on *device*; the weights of its layers are in *dtype*."""
    with torch.device("meta"):
        network = build()
    network.to(dtype).to_empty(device=device)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm1d)):
        norm.reset_running_stats()
    return dict(scaled(network).state_dict())


def byte_pairs(vocabulary: int) -> str:
    """Return the ``tokenizer.json`` of a byte-pair encoding of at most *vocabulary* tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=list("ACGT"),
        limit_alphabet=4,
        show_progress=False,
    )
    # In parts of a fragment's length: training takes long on long texts.
    contigs = (contig.bases.decode("ascii") for contig in read_contigs(str(EXAMPLE)))
    parts = (bases[at : at + LENGTH] for bases in contigs for at in range(0, len(bases), LENGTH))
    tokenizer.train_from_iterator((part for part in parts if set(part) <= set("ACGT")), trainer)
    return finish_tokenizer(tokenizer)


def write(
    directory: Path,
    protein: ProteinShape,
    nucleotide: NucleotideShape = DNABERT_S,
    device: torch.device = _CPU,
) -> None:
    """Write a bundle with both encoders in BF16 and a classifier of width 512 in FP32, made on *device*."""
    shapes = Shapes(protein, nucleotide, ClassifierShape(protein.width + nucleotide.width, 512))
    directory.mkdir(parents=True)
    for name, build, dtype in (
        ("protein", lambda: Esm2(protein), torch.bfloat16),
        ("nucleotide", lambda: DnabertS(nucleotide), torch.bfloat16),
        ("classifier", lambda: Classifier(shapes.classifier), torch.float32),
    ):
        save_file(random_state(build, dtype, device), directory / f"{name}.safetensors")
    (directory / "tokenizer.json").write_text(byte_pairs(nucleotide.vocabulary), "utf-8")
    origin = dict.fromkeys(("protein", "nucleotide", "classifier", "tokenizer"), "scripts/random_bundle.py")
    write_manifest(directory, directory.name, LENGTH, shapes, origin, licence="MIT", notice=NOTICE)


def main() -> None:
    """Write the requested bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("shape", choices=list(PROTEIN_SHAPES), help="of ESM-2")
    parser.add_argument("directory", type=Path, help="a new one")
    parser.add_argument("--device", type=torch.device, default=_CPU, help="that makes the numbers")
    options = parser.parse_args()
    shapes = PROTEIN_SHAPES[options.shape], NUCLEOTIDE_SHAPES[options.shape]
    write(options.directory, *shapes, device=options.device)


if __name__ == "__main__":
    main()
