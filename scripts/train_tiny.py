"""
Train the demonstration bundle ``tiny-500``, end to end and from nothing, on the CPU.

Two small encoders of the shapes of ESM-2 and DNABERT-S and the classifier on top learn together
to tell the ORFs of viral from those of other genomes. The same files, arguments and kind of CPU
give the same bundle.
"""

import argparse
import copy
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from genomes import read_pieces
from safetensors.torch import load_file, save
from special_tokens import SPECIAL, UNKNOWN, finished
from stretches import Example, Sampler, diverge, hide, words
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from virnuc_async.fileio import atomic_directory
from virnuc_async.models.bundle import Bundle, Shapes, find, write_manifest
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.esm2 import Layer as ProteinLayer
from virnuc_async.networks.packing import Packed, pack
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape
from virnuc_async.sequences.orfs import Orf
from virnuc_async.sequences.tokens import ESM2_ALPHABET, OrfTokenizer

LENGTH = 500  # bases of a fragment
PARTS = ("protein", "nucleotide", "classifier")
SHORTER = (150, 200, 250, 300, 350, 400, 450)
NOTICE = (
    "tiny-500 is a small demonstration model, not for conclusions; docs/how-to/models.md says how to use the "
    "published ones."
)

_MASKS = SPECIAL.index("[MASK]"), ESM2_ALPHABET.index("<mask>")
_WARMING = 200  # steps
_SETTLING = 0.2  # of the steps, at the end
_MEMORY = 500  # steps that the average of the weights looks back
# Residues that the heads of each layer look at in the beginning, from where they stand.
_NEIGHBOURS = ((1, -1, 2, -2, 3, -3, 4), (2, -2, 5, -5, 9, -9, 14))


class Tiny(nn.Module):
    """Both encoders and the classifier, as one network to train."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.protein = Esm2(shapes.protein)
        self.nucleotide = DnabertS(shapes.nucleotide)
        self.classifier = Classifier(shapes.classifier, dropout=0.2)
        with torch.no_grad():
            # Small, so that the embeddings of rare tokens move within a short training.
            self.protein.embed.weight.normal_(0, 0.3)
            self.nucleotide.embed.weight.normal_(0, 0.05)
            self.nucleotide.token_type.zero_()
            for layer, offsets in zip(self.protein.layers, _NEIGHBOURS, strict=False):
                _look_at(cast(ProteinLayer, layer), offsets)

    def forward(self, bases: Packed, residues: Packed) -> tuple[Tensor, Tensor]:
        """Give both embeddings of each ORF, (B, C) each."""
        return self.nucleotide.embeddings(bases), self.protein.embeddings(residues)


class Sideline(nn.Module):
    """What is learnt besides, so that the embeddings tell more; it is thrown away in the end."""

    def __init__(self, shapes: Shapes, groups: int, genomes: int) -> None:
        super().__init__()
        both = shapes.classifier.inputs
        self.groups, self.genomes = nn.Linear(both, groups), nn.Linear(both, genomes)
        self.alone = nn.ModuleList(
            nn.Linear(width, 2) for width in (shapes.nucleotide.width, shapes.protein.width)
        )

    def loss(self, features: tuple[Tensor, Tensor], batch: list[Example], truth: Tensor) -> Tensor:
        """Tell groups and genomes by both embeddings, and viruses by each alone."""
        both = torch.cat(features, 1)
        group = torch.tensor([example.group for example in batch])
        genome = torch.tensor([example.genome for example in batch])
        loss = 0.3 * functional.cross_entropy(self.groups(both), group)
        loss += 0.1 * functional.cross_entropy(self.genomes(both), genome)
        for head, embedding in zip(self.alone, features, strict=True):
            loss += 0.3 * functional.cross_entropy(head(embedding), truth)
        return loss


@torch.no_grad()
def _look_at(layer: ProteinLayer, offsets: tuple[int, ...]) -> None:
    """
    Let each head but the last attend to one neighbour, in the beginning.

    Where queries and keys are the same whatever the residue, rotary positions make their product
    a function of the distance alone; turned by an offset, it is highest there.
    """
    qkv, heads = layer.qkv, layer.heads
    width = qkv.in_features // heads
    rates = 1 / 10000 ** (torch.arange(0, width, 2).float() / width)
    strength = torch.zeros(width // 2)
    strength[:2] = torch.tensor([2.5, 1.5]) * width**0.25
    qkv.weight[: 2 * qkv.in_features] *= 0.5
    bias = qkv.bias.view(3, heads, 2, width // 2).zero_()
    for head, offset in enumerate(offsets[: heads - 1]):
        bias[0, head, 0] = strength * torch.cos(rates * offset)
        bias[0, head, 1] = strength * torch.sin(rates * offset)
        bias[1, head, 0] = strength


def codon_pairs() -> str:
    """
    Give the ``tokenizer.json`` of pairs of codons; what is left at the end is a token of its own.

    An ORF begins with a codon, so a token is two codons, and the network sees in which frame it
    reads: which codons are used, and which follow each other, tells genomes apart.
    """
    vocabulary = [*SPECIAL, *(word for length in (1, 2, 3, 6) for word in words("ACGT", length))]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    # A codon with another letter is one unknown token: the frame goes on behind it.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[ACGT]{6}|.{1,3}"), "isolated")
    return finished(tokenizer)


class Trainer:
    """One of the processes that train together: each with batches of its own, all with the same weights."""

    def __init__(self, told: argparse.Namespace, rank: int) -> None:
        torch.manual_seed(told.seed)  # the same weights in each process
        self._told, self._rank = told, rank
        self._random = np.random.default_rng([told.seed, rank])
        self._sampler = Sampler(read_pieces(told.genomes, "train"), self._random)
        self._tokens = OrfTokenizer(codon_pairs())
        self.shapes = _shapes(told, self._tokens.vocabulary)
        self.network = Tiny(self.shapes)
        if told.start:
            _start(self.network, told.start)
        self._sideline = Sideline(self.shapes, len(self._sampler.groups), len(self._sampler.genomes))
        self._parameters = [*self.network.parameters(), *self._sideline.parameters()]
        self._optimizers = list(_optimizers(self.network, self._sideline, told))
        torch.manual_seed(told.seed + rank)  # other dropout in each

    def train(self) -> Iterator[tuple[int, Tiny]]:
        """Take all steps; give the running average of the weights at the end, and where it is to be kept."""
        told, average = self._told, copy.deepcopy(self.network).eval()
        began, losses = time.perf_counter(), []
        for step in range(1, told.steps + 1):
            self._set_rate(told.rate * _share_of_rate(step, told.steps))
            losses.append(self._learn())
            _follow(average, self.network, step)
            if step % 100 == 0 and not self._rank:
                pace = step * told.rows / (time.perf_counter() - began)
                loss = np.mean(losses[-100:])
                print(f"step {step:,} of {told.steps:,}: loss {loss:.4f}, {pace:.0f} ORFs/s", flush=True)
            if step == told.steps or (told.keep and step % told.keep == 0):
                yield step, average

    def _set_rate(self, rate: float) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _learn(self) -> float:
        batch = self._batch()
        features = self.network(*self._tokenized(batch))
        truth = torch.tensor([int(example.viral) for example in batch])
        loss = functional.cross_entropy(self.network.classifier.logits(torch.cat(features, 1)), truth)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        (loss + self._sideline.loss(features, batch, truth)).backward()  # type: ignore[no-untyped-call]
        self._share_gradients()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        return loss.item()

    def _batch(self) -> list[Example]:
        """Half of the ORFs have a fragment's length, the others one of two that are shorter."""
        rows = self._told.rows // self._told.processes
        shorter = self._random.choice(SHORTER, 2, replace=False).tolist()
        counts = {LENGTH: rows - rows // 4 * 2, shorter[0]: rows // 4, shorter[1]: rows // 4}
        return [
            example for length, count in counts.items() for example in self._sampler.examples(count, length)
        ]

    def _tokenized(self, batch: list[Example]) -> tuple[Packed, Packed]:
        orfs: list[Orf] = [example.orf for example in batch]
        bases = self._tokens.nucleotides([orf.bases for orf in orfs])
        residues = self._tokens.residues([orf.protein for orf in orfs])
        residues = diverge(residues, self._told.diverge, self._random)
        bases, residues = (
            hide(tokens, self._told.hide, mask, self._random)
            for tokens, mask in zip((bases, residues), _MASKS, strict=True)
        )
        return pack(bases), pack(residues)

    def _share_gradients(self) -> None:
        """Give each process the mean of all."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(whole)
        whole /= self._told.processes
        parts = torch.split(whole, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _optimizers(
    network: Tiny, sideline: Sideline, told: argparse.Namespace
) -> Iterator[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the layers, AdamW for everything else."""
    inner: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, tensor in [*network.named_parameters(), *sideline.named_parameters()]:
        is_inner = tensor.ndim == 2 and ".layers." in name
        (inner if is_inner else others if tensor.ndim == 2 else vectors).append(tensor)
    yield torch.optim.Muon(inner, lr=told.rate, weight_decay=told.decay, adjust_lr_fn="match_rms_adamw")
    # Norms and biases have nothing to forget.
    groups = [
        {"params": others, "weight_decay": told.decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    yield torch.optim.AdamW(groups, lr=told.rate, betas=(0.9, 0.98))


def _share_of_rate(step: int, steps: int) -> float:
    """Rise, stay, and settle along a line to zero."""
    return min(step / _WARMING, 1.0, (steps - step) / (steps * _SETTLING))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, step: int) -> None:
    """Move *average* towards *network*: over about the last tenth of the steps, at most 500."""
    pull = max(1 / _MEMORY, 10 / (10 + step))
    new = network.state_dict()
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(new[name], pull)
        else:
            tensor.copy_(new[name])  # batch norm's count of batches


def _start(network: Tiny, directory: Path) -> None:
    for part in PARTS:
        getattr(network, part).load_state_dict(load_file(directory / f"{part}.safetensors"))


def _shapes(told: argparse.Namespace, vocabulary: int) -> Shapes:
    return Shapes(
        ProteinShape(told.layers, told.protein_width, told.protein_width // 16),
        NucleotideShape(
            told.layers, told.nucleotide_width, told.nucleotide_width // 16, told.intermediate, vocabulary
        ),
        ClassifierShape(told.protein_width + told.nucleotide_width, told.hidden),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write the bundle."""
    told = _arguments(arguments)
    with tempfile.TemporaryDirectory() as directory:
        spawn(_train, (told, directory), told.processes)  # type: ignore[no-untyped-call]


def _train(rank: int, told: argparse.Namespace, directory: str) -> None:
    """Be one of the processes; the first one writes."""
    torch.set_num_threads(1)
    meeting = f"file://{directory}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=told.processes)
    trainer = Trainer(told, rank)
    for step, network in trainer.train():
        if not rank:
            is_last = step == told.steps
            kept = told.output if is_last else told.output.with_name(f"{told.output.name}.step-{step}")
            write(network, trainer.shapes, codon_pairs(), kept)
    distributed.destroy_process_group()


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--genomes", type=Path, required=True, help="directory of {train,val}.*.fna.gz")
    parser.add_argument("--output", type=Path, default=Path("virnuc_async/models/tiny-500"))
    parser.add_argument("--layers", type=int, default=2, help="of both encoders")
    parser.add_argument("--protein-width", type=int, default=64, help="16 for each head")
    parser.add_argument("--nucleotide-width", type=int, default=128, help="16 for each head")
    parser.add_argument("--intermediate", type=int, default=256, help="width of the gated MLP")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the classifier's hidden layer")
    parser.add_argument("--steps", type=int, default=5250)
    parser.add_argument("--rows", type=int, default=128, help="ORFs of a step, of all processes together")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at its highest")
    parser.add_argument("--decay", type=float, default=0.05, help="of the weights")
    parser.add_argument("--hide", type=float, default=0.15, help="share of the tokens that is not shown")
    parser.add_argument("--diverge", type=float, default=0.2, help="residues exchanged at most")
    parser.add_argument("--processes", type=int, default=2, help="that share the work, each on one core")
    parser.add_argument("--keep", type=int, metavar="N", help="write OUTPUT.step-N, -2N, ..., too")
    parser.add_argument("--start", type=Path, metavar="DIR", help="a bundle of this script to go on with")
    parser.add_argument("--seed", type=int, default=500)
    return parser.parse_args(arguments)


def write(network: Tiny, shapes: Shapes, definition: str, output: Path) -> Bundle:
    """Put the bundle in the place of what *output* holds; a model card there stays."""
    with atomic_directory(output) as made:
        for part in PARTS:
            (made / f"{part}.safetensors").write_bytes(save(getattr(network, part).state_dict()))
        (made / "tokenizer.json").write_text(definition, "utf-8")
        origin = dict.fromkeys((*PARTS, "tokenizer"), "scripts/train_tiny.py")
        write_manifest(made, output.name, LENGTH, shapes, origin, licence="MIT", notice=NOTICE)
        if (output / "README.md").is_file():
            shutil.copy(output / "README.md", made)
        shutil.rmtree(output, ignore_errors=True)
    return find(output)


if __name__ == "__main__":
    main()
