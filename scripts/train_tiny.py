"""
Train the demonstration bundle ``tiny-500``, end to end and from scratch, on the CPU.

Two small encoders with the architectures of ESM-2 and DNABERT-S, and the classifier on top, are
trained together to distinguish ORFs of viral genomes from those of others. The same files, arguments
and kind of CPU result in the same bundle.
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
from special_tokens import SPECIAL, UNKNOWN, finish_tokenizer
from subsequences import Example, Sampler, diverge, hide, words
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from virnuc_async.fileio import atomic_directory
from virnuc_async.models.bundle import Bundle, find, write_manifest
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.esm2 import Layer as ProteinLayer
from virnuc_async.networks.packing import Packed, pack
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape, Shapes
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
_WARM_UP = 200  # steps
_COOL_DOWN = 0.2  # of the steps, in which the rate falls to zero
_AVERAGED = 500  # steps that the running average of the weights covers
# Offsets of the residues that the heads of each layer attend to initially.
_NEIGHBOURS = ((1, -1, 2, -2, 3, -3, 4), (2, -2, 5, -5, 9, -9, 14))


class Tiny(nn.Module):
    """Both encoders and the classifier, as one network to train."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.protein = Esm2(shapes.protein)
        self.nucleotide = DnabertS(shapes.nucleotide)
        self.classifier = Classifier(shapes.classifier, dropout=0.2)
        with torch.no_grad():
            # Small, so that the embeddings of rare tokens change within a short training.
            self.protein.embed.weight.normal_(0, 0.3)
            self.nucleotide.embed.weight.normal_(0, 0.05)
            self.nucleotide.token_type.zero_()
            for layer, offsets in zip(self.protein.layers, _NEIGHBOURS, strict=False):
                _attend_to(cast(ProteinLayer, layer), offsets)

    def forward(self, bases: Packed, residues: Packed) -> tuple[Tensor, Tensor]:
        """Return both embeddings of each ORF, (B, C) each."""
        return self.nucleotide.embeddings(bases), self.protein.embeddings(residues)


class AuxiliaryHeads(nn.Module):
    """Additional heads that make the embeddings more informative; they are dropped after the training."""

    def __init__(self, shapes: Shapes, groups: int, genomes: int) -> None:
        super().__init__()
        both = shapes.classifier.inputs
        self.groups, self.genomes = nn.Linear(both, groups), nn.Linear(both, genomes)
        self.single = nn.ModuleList(
            nn.Linear(width, 2) for width in (shapes.nucleotide.width, shapes.protein.width)
        )

    def loss(self, features: tuple[Tensor, Tensor], batch: list[Example], truth: Tensor) -> Tensor:
        """Return the loss of predicting group and genome from both embeddings, and the class from each."""
        both = torch.cat(features, 1)
        group = torch.tensor([example.group for example in batch])
        genome = torch.tensor([example.genome for example in batch])
        loss = 0.3 * functional.cross_entropy(self.groups(both), group)
        loss += 0.1 * functional.cross_entropy(self.genomes(both), genome)
        for head, embedding in zip(self.single, features, strict=True):
            loss += 0.3 * functional.cross_entropy(head(embedding), truth)
        return loss


@torch.no_grad()
def _attend_to(layer: ProteinLayer, offsets: tuple[int, ...]) -> None:
    """
    Initialize each head but the last so that it attends to one neighbour.

    If queries and keys do not depend on the residue, rotary positions make their product a
    function of the distance alone. Rotated by an offset, it is highest there.
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
    Return the ``tokenizer.json`` of pairs of codons; the rest at the end is a separate token.

    An ORF begins with a codon, so each token is two codons, and the network knows the reading frame:
    the usage of codons and of their pairs distinguishes genomes.
    """
    vocabulary = [*SPECIAL, *(word for length in (1, 2, 3, 6) for word in words("ACGT", length))]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    # A codon with another letter is one unknown token: the frame continues after it.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[ACGT]{6}|.{1,3}"), "isolated")
    return finish_tokenizer(tokenizer)


class Trainer:
    """One of the processes that train together: with its own batches, and the weights of all."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        torch.manual_seed(options.seed)  # the same weights in each process
        self._options, self._rank = options, rank
        self._random = np.random.default_rng([options.seed, rank])
        self._sampler = Sampler(read_pieces(options.genomes, "train"), self._random)
        self._tokens = OrfTokenizer(codon_pairs())
        self.shapes = _shapes(options, self._tokens.vocabulary)
        self.network = Tiny(self.shapes)
        if options.start:
            _start(self.network, options.start)
        self._auxiliary = AuxiliaryHeads(self.shapes, len(self._sampler.groups), len(self._sampler.genomes))
        self._parameters = [*self.network.parameters(), *self._auxiliary.parameters()]
        self._optimizers = list(_optimizers(self.network, self._auxiliary, options))
        torch.manual_seed(options.seed + rank)  # dropout differs between processes

    def train(self) -> Iterator[tuple[int, Tiny]]:
        """Yield the running average of the weights, and its step, at the last step and at those to keep."""
        options, average = self._options, copy.deepcopy(self.network).eval()
        began, losses = time.perf_counter(), []
        for step in range(1, options.steps + 1):
            self._set_rate(options.rate * _rate_schedule(step, options.steps))
            losses.append(self._step())
            _update_average(average, self.network, step)
            if step % 100 == 0 and not self._rank:
                pace = step * options.rows / (time.perf_counter() - began)
                loss = np.mean(losses[-100:])
                print(f"step {step:,} of {options.steps:,}: loss {loss:.4f}, {pace:.0f} ORFs/s", flush=True)
            if step == options.steps or (options.keep and step % options.keep == 0):
                yield step, average

    def _set_rate(self, rate: float) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _step(self) -> float:
        batch = self._batch()
        features = self.network(*self._tokenized(batch))
        truth = torch.tensor([int(example.viral) for example in batch])
        loss = functional.cross_entropy(self.network.classifier.logits(torch.cat(features, 1)), truth)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        (loss + self._auxiliary.loss(features, batch, truth)).backward()  # type: ignore[no-untyped-call]
        self._share_gradients()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        return loss.item()

    def _batch(self) -> list[Example]:
        """Return ORFs: half of them of a fragment's length, the others of two random shorter lengths."""
        rows = self._options.rows // self._options.processes
        shorter = self._random.choice(SHORTER, 2, replace=False).tolist()
        counts = {LENGTH: rows - rows // 4 * 2, shorter[0]: rows // 4, shorter[1]: rows // 4}
        return [
            example for length, count in counts.items() for example in self._sampler.examples(count, length)
        ]

    def _tokenized(self, batch: list[Example]) -> tuple[Packed, Packed]:
        orfs: list[Orf] = [example.orf for example in batch]
        bases = self._tokens.nucleotides([orf.bases for orf in orfs])
        residues = self._tokens.residues([orf.protein for orf in orfs])
        residues = diverge(residues, self._options.diverge, self._random)
        bases, residues = (
            hide(tokens, self._options.hide, mask, self._random)
            for tokens, mask in zip((bases, residues), _MASKS, strict=True)
        )
        return pack(bases), pack(residues)

    def _share_gradients(self) -> None:
        """Replace the gradients by their mean over all processes."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self._options.processes
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _optimizers(
    network: Tiny, auxiliary: AuxiliaryHeads, options: argparse.Namespace
) -> Iterator[torch.optim.Optimizer]:
    """Yield Muon (Jordan et al. 2024) for the matrices of the layers, and AdamW for everything else."""
    inner: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, tensor in [*network.named_parameters(), *auxiliary.named_parameters()]:
        is_inner = tensor.ndim == 2 and ".layers." in name
        (inner if is_inner else others if tensor.ndim == 2 else vectors).append(tensor)
    yield torch.optim.Muon(inner, lr=options.rate, weight_decay=options.decay, adjust_lr_fn="match_rms_adamw")
    # Norms and biases do not decay.
    groups = [
        {"params": others, "weight_decay": options.decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    yield torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98))


def _rate_schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: it rises, stays at 1, and falls linearly to zero."""
    return min(step / _WARM_UP, 1.0, (steps - step) / (steps * _COOL_DOWN))


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, step: int) -> None:
    """Move *average* towards *network*: it covers about the last tenth of the steps, at most 500."""
    weight = max(1 / _AVERAGED, 10 / (10 + step))
    new = network.state_dict()
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(new[name], weight)
        else:
            tensor.copy_(new[name])  # batch norm's count of batches


def _start(network: Tiny, directory: Path) -> None:
    for part in PARTS:
        getattr(network, part).load_state_dict(load_file(directory / f"{part}.safetensors"))


def _shapes(options: argparse.Namespace, vocabulary: int) -> Shapes:
    width, heads = options.nucleotide_width, options.nucleotide_width // 16
    return Shapes(
        ProteinShape(options.layers, options.protein_width, options.protein_width // 16),
        NucleotideShape(options.layers, width, heads, options.intermediate, vocabulary),
        ClassifierShape(options.protein_width + width, options.hidden),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write the bundle."""
    options = _arguments(arguments)
    with tempfile.TemporaryDirectory() as directory:
        spawn(_train, (options, directory), options.processes)  # type: ignore[no-untyped-call]


def _train(rank: int, options: argparse.Namespace, directory: str) -> None:
    """Run one of the processes; the first one writes the bundles."""
    torch.set_num_threads(1)
    rendezvous = f"file://{directory}/rendezvous"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=options.processes)
    trainer = Trainer(options, rank)
    for step, network in trainer.train():
        if not rank:
            suffix = "" if step == options.steps else f".step-{step}"
            output = options.output.with_name(options.output.name + suffix)
            write(network, trainer.shapes, codon_pairs(), output)
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
    parser.add_argument("--rows", type=int, default=128, help="ORFs per step, of all processes together")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay")
    parser.add_argument("--hide", type=float, default=0.15, help="share of the tokens that are masked")
    parser.add_argument("--diverge", type=float, default=0.2, help="highest rate of substituted residues")
    parser.add_argument("--processes", type=int, default=2, help="number of processes, each on one core")
    parser.add_argument("--keep", type=int, metavar="N", help="also write OUTPUT.step-N, OUTPUT.step-2N, ...")
    parser.add_argument("--start", type=Path, metavar="DIR", help="bundle of this script to continue from")
    parser.add_argument("--seed", type=int, default=500)
    return parser.parse_args(arguments)


def write(network: Tiny, shapes: Shapes, definition: str, output: Path) -> Bundle:
    """Write the bundle to *output*, replacing what is there except for a model card; return the bundle."""
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
