"""
Train the demonstration bundle ``tiny-500``, end to end and from nothing, on the CPU.

Two small encoders of the shapes of ESM-2 and DNABERT-S and the classifier on top learn together
to tell the ORFs of viral from those of other genomes. The same files, arguments and number of
threads give the same bundle.
"""

import argparse
import copy
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from genomes import Piece, read_pieces, reverse_complement
from measure_tiny import measure
from numpy.typing import NDArray
from safetensors.torch import save
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

from virnuc_async.bundles import Bundle, Shapes, find, seal
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.packing import Packed, pack
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape
from virnuc_async.orfs import Orf, open_frames
from virnuc_async.tokens import OrfTokenizer

LENGTH = 500  # bases of a fragment
SHORTEST = 150
NOTICE = (
    "tiny-500 is a small demonstration model, not for conclusions; docs/models.md says how to use the "
    "published ones."
)

_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")  # ids 0 to 4, as published
_SHORTENED = 0.35  # of the stretches are shorter than a fragment
_WINDOW = 2048  # stretches whose ORFs are mixed before they are cut into batches

Key = TypeVar("Key", bound=tuple[object, ...])


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

    def forward(self, bases: Packed, residues: Packed) -> Tensor:
        """Give the logits of a batch, (B, 2): others, virus."""
        features = self.nucleotide.embeddings(bases), self.protein.embeddings(residues)
        return self.classifier.logits(torch.cat(features, 1))


@dataclass(frozen=True, slots=True)
class Example:
    """An ORF to learn from."""

    orf: Orf
    viral: bool


class Sampler:
    """Draws stretches of *pieces* at random: as many viral as not, all groups in balance."""

    def __init__(self, pieces: Sequence[Piece], random: np.random.Generator) -> None:
        self._pieces = pieces
        self._random = random
        self._shares = _shares(pieces)

    def stretches(self, count: int) -> Iterator[tuple[bytes, bool]]:
        """Give *count* stretches of at most :data:`LENGTH` bases, on either strand, and if they are viral."""
        for at in self._random.choice(len(self._pieces), count, p=self._shares):
            piece = self._pieces[at]
            bases = self._stretch(piece.bases)
            yield (reverse_complement(bases) if self._random.random() < 0.5 else bases), piece.viral

    def examples(self) -> Iterator[Example]:
        """Give ORFs without end, mixed."""
        while True:
            window = [
                Example(orf, viral)
                for bases, viral in self.stretches(_WINDOW)
                for orf in open_frames(bases, [(0, len(bases))])
            ]
            yield from (window[at] for at in self._random.permutation(len(window)))

    def _stretch(self, bases: bytes) -> bytes:
        short = self._random.random() < _SHORTENED
        length = int(self._random.integers(SHORTEST, LENGTH)) if short else LENGTH
        start = int(self._random.integers(max(len(bases) - length, 0) + 1))
        return bases[start : start + length]


def _shares(pieces: Sequence[Piece]) -> NDArray[np.float64]:
    """
    Give the chance of each piece to be drawn.

    Half for each class. Within a class the groups, and within a group the genomes, share by the
    square root of their bases: a few large ones do not decide, and the smallest are not learnt by
    heart. Within a genome, pieces share by their bases.
    """
    genomes: dict[tuple[bool, str, str], int] = defaultdict(int)
    for piece in pieces:
        genomes[_place(piece)] += len(piece.bases)
    of_genome = _by_root(genomes)
    groups: dict[tuple[bool, str], int] = defaultdict(int)
    for (viral, group, _), size in genomes.items():
        groups[viral, group] += size
    of_group = _by_root(groups)
    weights = [
        of_group[place[:2]] * of_genome[place] * len(piece.bases) / genomes[place]
        for piece, place in zip(pieces, map(_place, pieces), strict=True)
    ]
    return np.array(weights) / sum(weights)


def _place(piece: Piece) -> tuple[bool, str, str]:
    return piece.viral, piece.group, piece.genome


def _by_root(sizes: dict[Key, int]) -> dict[Key, float]:
    """Share 1 among the members of each parent, the parent being the key but its last part."""
    totals: dict[tuple[object, ...], float] = defaultdict(float)
    for key, size in sizes.items():
        totals[key[:-1]] += math.sqrt(size)
    return {key: math.sqrt(size) / totals[key[:-1]] for key, size in sizes.items()}


def main() -> None:
    """Train, write the bundle, and print what it is worth on genomes that it has not seen."""
    told = _arguments()
    torch.set_num_threads(told.threads)
    torch.manual_seed(told.seed)
    pieces = read_pieces(told.genomes, "train")
    sampler = Sampler(pieces, np.random.default_rng(told.seed))
    definition = train_tokenizer(sampler, told.vocabulary)
    shapes = _shapes(told, OrfTokenizer(definition).vocabulary)
    network = train(Tiny(shapes), sampler, OrfTokenizer(definition), told)
    measure(write(network, shapes, definition, told.output), told.genomes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--genomes", type=Path, required=True, help="directory of {train,val}.*.fna.gz")
    parser.add_argument("--output", type=Path, default=Path("virnuc_async/models/tiny-500"))
    parser.add_argument("--width", type=int, default=64, help="of both encoders")
    parser.add_argument("--layers", type=int, default=2, help="of both encoders")
    parser.add_argument("--heads", type=int, default=4, help="of both encoders")
    parser.add_argument("--hidden", type=int, default=256, help="width of the classifier's hidden layer")
    parser.add_argument("--vocabulary", type=int, default=4096, help="of the byte-pair encoding of bases")
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--rows", type=int, default=64, help="ORFs of a batch")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at its highest")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=500)
    return parser.parse_args()


def _shapes(told: argparse.Namespace, vocabulary: int) -> Shapes:
    return Shapes(
        ProteinShape(told.layers, told.width, told.heads),
        NucleotideShape(told.layers, told.width, told.heads, 2 * told.width, vocabulary),
        ClassifierShape(2 * told.width, told.hidden),
    )


def train_tokenizer(sampler: Sampler, vocabulary: int, stretches: int = 10_000) -> str:
    """Learn a byte-pair encoding from *stretches* random stretches; give its ``tokenizer.json``."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=list("ACGT"),
        limit_alphabet=4,
        show_progress=False,
    )
    texts = (bases.decode("ascii") for bases, _ in sampler.stretches(stretches))
    tokenizer.train_from_iterator((text for text in texts if set(text) <= set("ACGT")), trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer.to_str(pretty=True)


def train(network: Tiny, sampler: Sampler, tokens: OrfTokenizer, told: argparse.Namespace) -> Tiny:
    """Train *network* for ``told.steps`` steps; give the running average of its weights."""
    optimizer = torch.optim.AdamW(_parameters(network), lr=told.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / told.steps))
    average = copy.deepcopy(network)
    examples = sampler.examples()
    began, losses = time.perf_counter(), []
    for step in range(1, told.steps + 1):
        batch = [next(examples) for _ in range(told.rows)]
        losses.append(_learn(network, optimizer, batch, tokens))
        schedule.step()
        _follow(average, network, step)
        if step % 100 == 0:
            pace = step * told.rows / (time.perf_counter() - began)
            loss = np.mean(losses[-100:])
            print(f"step {step:,} of {told.steps:,}: loss {loss:.4f}, {pace:.0f} ORFs/s", flush=True)
    return average.eval()


def _parameters(network: nn.Module) -> list[dict[str, object]]:
    """Let only matrices decay; norms and biases have nothing to forget."""
    matrices = [tensor for tensor in network.parameters() if tensor.ndim > 1]
    vectors = [tensor for tensor in network.parameters() if tensor.ndim == 1]
    return [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]


def _rate(done: float) -> float:
    """Rise for the first twentieth, then fall along a cosine to zero; *done* goes from 0 to 1."""
    return min(done * 20, 0.5 + 0.5 * math.cos(math.pi * done))


def _learn(
    network: Tiny, optimizer: torch.optim.Optimizer, batch: Sequence[Example], tokens: OrfTokenizer
) -> float:
    bases = pack(tokens.nucleotides([example.orf.bases for example in batch]))
    residues = pack(tokens.residues([example.orf.protein for example in batch]))
    truth = torch.tensor([int(example.viral) for example in batch])
    loss = functional.cross_entropy(network(bases, residues), truth)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, step: int) -> None:
    """Move *average* towards *network*: over about the last tenth of the steps, at most 500."""
    pull = max(1 / 500, 10 / (10 + step))
    for name, tensor in average.state_dict().items():
        new = network.state_dict()[name]
        if tensor.is_floating_point():
            tensor.lerp_(new, pull)
        else:
            tensor.copy_(new)  # batch norm's count of batches


def write(network: Tiny, shapes: Shapes, definition: str, output: Path) -> Bundle:
    """Put the bundle in the place of what *output* holds; a model card there stays."""
    # Made beside and then renamed: nobody ever finds half a bundle.
    made, old = (output.with_name(f".{output.name}.{state}") for state in ("new", "old"))
    for left_over in (made, old):
        shutil.rmtree(left_over, ignore_errors=True)
    made.mkdir(parents=True)
    for part in ("protein", "nucleotide", "classifier"):
        (made / f"{part}.safetensors").write_bytes(save(getattr(network, part).state_dict()))
    (made / "tokenizer.json").write_text(definition, "utf-8")
    origin = dict.fromkeys(("protein", "nucleotide", "classifier", "tokenizer"), "scripts/train_tiny.py")
    seal(made, output.name, LENGTH, shapes, origin, licence="MIT", notice=NOTICE)
    if output.is_dir():
        if (output / "README.md").is_file():
            shutil.copy(output / "README.md", made)
        output.rename(old)
    made.rename(output)
    shutil.rmtree(old, ignore_errors=True)
    return find(output)


if __name__ == "__main__":
    main()
