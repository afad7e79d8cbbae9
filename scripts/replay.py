"""
The published method, implemented simply: VirNucPro's stages one after the other, each on a whole file.

Codons are translated one by one; DNABERT-S gets one sequence per call; ESM-2 is fair-esm's, in FP32,
in padded batches of 2,048 tokens, shortest first; then both embeddings are joined and classified.
What the published program writes to disk between stages stays in memory here, which is faster.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from esm import Alphabet, FastaBatchedDataset
from esm.model.esm2 import ESM2
from safetensors.torch import load_file
from torch import Tensor

from virnuc_async.models.bundle import Bundle
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.loading import load
from virnuc_async.networks.packing import pack
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer

_TOKENS = 2048  # of a padded batch, like the published program's
_MOST_RESIDUES = 1024
_CODE = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
_CODONS = {
    a + b + c: _CODE[16 * i + 4 * j + k]
    for i, a in enumerate("TCAG")
    for j, b in enumerate("TCAG")
    for k, c in enumerate("TCAG")
}
_OTHER_STRAND = str.maketrans("ACGT", "TGCA")
_FRAMES = ("F1", "F2", "F3", "R1", "R2", "R3")
_NAMES = (
    ("attention_norm", "self_attn_layer_norm"),
    ("out", "self_attn.out_proj"),
    ("mlp_norm", "final_layer_norm"),
    ("up", "fc1"),
    ("down", "fc2"),
)


@dataclass(slots=True)
class Replayed:
    """Scores by the ORFs' ids, and the seconds of each stage."""

    scores: dict[str, tuple[float, float]] = field(default_factory=dict)  # others, virus
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; the times of all files are added."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@torch.inference_mode()
def replay(paths: Sequence[str], bundle: Bundle) -> Replayed:
    """Score every ORF of *paths*, file by file and stage by stage."""
    done = Replayed()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    how = device, torch.float32
    with done.stage("load"):
        tokenizer = OrfTokenizer(bundle.tokenizer())
        protein = _fair_esm(bundle).to(device)
        with torch.device("meta"):
            nucleotide, classifier = DnabertS(bundle.shapes.nucleotide), Classifier(bundle.shapes.classifier)
        nucleotide = load(nucleotide, bundle.directory / "nucleotide.safetensors", *how)
        classifier = load(classifier, bundle.directory / "classifier.safetensors", *how)
    for path in paths:
        with done.stage("translate"):
            orfs = list(_orfs(path, bundle.length))
        with done.stage("DNABERT-S"):
            rows = (pack(tokenizer.nucleotides([orf.encode()])).to(device) for _, _, orf in orfs)
            bases = [nucleotide.embeddings(row).cpu() for row in rows]
        with done.stage("ESM-2"):
            residues = _protein_means(protein, [residues for _, residues, _ in orfs], device)
        with done.stage("classify"):
            scores = classifier(torch.cat((torch.cat(bases), residues), 1).to(device)).tolist()
        done.scores |= {name: (row[0], row[1]) for (name, _, _), row in zip(orfs, scores, strict=True)}
    return done


def _orfs(path: str, length: int) -> Iterator[tuple[str, str, str]]:
    """Yield the id, residues and bases of every frame without a stop codon."""
    for contig in read_contigs(path):
        bases = contig.bases.decode("ascii").upper()
        for number, (start, end) in enumerate(cut(len(bases), length), 1):
            fragment = bases[start:end]
            for frame, strand, offset in _frames(fragment):
                codons = (strand[at : at + 3] for at in range(offset, len(strand) - 2, 3))
                residues = "".join(_CODONS.get(codon, "") for codon in codons)
                if residues and "*" not in residues:
                    used = strand[offset : offset + 3 * len(residues) + 1]
                    yield f"{contig.id.decode()}_chunk_{number}{frame}", residues, used


def _frames(fragment: str) -> Iterator[tuple[str, str, int]]:
    strands = fragment, fragment[::-1].translate(_OTHER_STRAND)
    for number, frame in enumerate(_FRAMES):
        yield frame, strands[number // 3], number % 3


def _protein_means(network: ESM2, proteins: list[str], device: torch.device) -> Tensor:
    """Return each protein's mean over its residues, computed in fair-esm's batches."""
    dataset = FastaBatchedDataset(list(map(str, range(len(proteins)))), proteins)
    collate = network.alphabet.get_batch_converter(_MOST_RESIDUES)
    means = torch.empty(len(proteins), network.embed_dim)
    for rows in dataset.get_batch_indices(_TOKENS, extra_toks_per_seq=1):
        _, texts, tokens = collate([dataset[row] for row in rows])
        output = network(tokens.to(device), repr_layers=[network.num_layers])
        hidden = output["representations"][network.num_layers].cpu()
        for row, text, states in zip(rows, texts, hidden, strict=True):
            means[row] = states[1 : min(_MOST_RESIDUES, len(text)) + 1].mean(0)
    return means


def _fair_esm(bundle: Bundle) -> ESM2:
    """Return fair-esm's network with the bundle's weights."""
    shape = bundle.shapes.protein
    network = ESM2(shape.layers, shape.width, shape.heads, Alphabet.from_architecture("ESM-1b"))
    ours = {
        name: tensor.float() for name, tensor in load_file(bundle.directory / "protein.safetensors").items()
    }
    theirs = {"embed_tokens.weight": ours["embed.weight"], "lm_head.weight": ours["embed.weight"]}
    for kind in ("weight", "bias"):
        theirs[f"emb_layer_norm_after.{kind}"] = ours[f"norm.{kind}"]
        for layer in range(shape.layers):
            parts = ours[f"layers.{layer}.qkv.{kind}"].chunk(3)
            theirs |= {
                f"layers.{layer}.self_attn.{n}_proj.{kind}": p for n, p in zip("qkv", parts, strict=True)
            }
            theirs |= {
                f"layers.{layer}.{to}.{kind}": ours[f"layers.{layer}.{of}.{kind}"] for of, to in _NAMES
            }
    # The language-model and contact heads keep their random weights: they are not used.
    missing, unknown = network.load_state_dict(theirs, strict=False)
    if unknown or not all(
        name.startswith(("lm_head", "contact_head")) or "rot_emb" in name for name in missing
    ):
        raise ValueError(f"names differ from fair-esm's: unknown {unknown}, missing {missing}")
    return network.eval()
