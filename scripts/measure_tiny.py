"""
Measure a bundle on genomes that it was not trained on; prints Markdown tables.

Every record of at least a fragment's length is cut as the program cuts contigs, and the frames of
each fragment vote as they do there.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from genomes import Piece, read_pieces
from numpy.typing import NDArray

from virnuc_async.bundles import Bundle, find
from virnuc_async.fragments import cut
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.loading import load
from virnuc_async.networks.packing import pack
from virnuc_async.orfs import Orf, open_frames
from virnuc_async.tokens import OrfTokenizer

LENGTHS = (500, 300, 150)  # bases of a fragment
_ROWS = 128  # ORFs of a batch


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of all ORFs at one fragment length, and whose they are."""

    scores: NDArray[np.float32]  # score1 and score2 of each ORF
    viral: NDArray[np.bool_]  # the truth of each ORF
    fragment: NDArray[np.int64]  # its fragment, counted from 0 without a gap
    groups: tuple[str, ...]  # of each fragment
    cut: int  # fragments, those without an ORF too
    seconds: float


class Scorer:
    """The three networks of a bundle, in FP32 on the CPU."""

    def __init__(self, bundle: Bundle) -> None:
        shapes, directory = bundle.shapes, bundle.directory
        with torch.device("meta"):
            protein, nucleotide = Esm2(shapes.protein), DnabertS(shapes.nucleotide)
            classifier = Classifier(shapes.classifier)
        how = torch.device("cpu"), torch.float32
        self._protein = load(protein, directory / "protein.safetensors", *how)
        self._nucleotide = load(nucleotide, directory / "nucleotide.safetensors", *how)
        self._classifier = load(classifier, directory / "classifier.safetensors", *how)
        self._tokens = OrfTokenizer(bundle.tokenizer())

    @torch.inference_mode()
    def batch(self, orfs: Sequence[Orf]) -> NDArray[np.float32]:
        """Give P(others) and P(virus) of each of *orfs*, (B, 2)."""
        bases = self._nucleotide.embeddings(pack(self._tokens.nucleotides([orf.bases for orf in orfs])))
        residues = self._protein.embeddings(pack(self._tokens.residues([orf.protein for orf in orfs])))
        return self._classifier(torch.cat((bases, residues), 1)).numpy()  # type: ignore[no-any-return]

    def all(self, orfs: Sequence[Orf]) -> NDArray[np.float32]:
        """Give P(others) and P(virus) of any number of *orfs*, (N, 2)."""
        scores = np.empty((len(orfs), 2), np.float32)
        # ORFs of one length are one matrix in attention; mixed, each is its own.
        order = sorted(range(len(orfs)), key=lambda at: len(orfs[at].bases))
        for rows in (order[n : n + _ROWS] for n in range(0, len(order), _ROWS)):
            scores[rows] = self.batch([orfs[at] for at in rows])
        return scores


def main() -> None:
    """Print the held-out figures of one bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genomes", type=Path, required=True, help="directory of val.*.fna.gz")
    parser.add_argument("--model", default="tiny-500", help="name or directory of a bundle")
    told = parser.parse_args()
    measure(find(told.model), told.genomes)


def measure(bundle: Bundle, genomes: Path) -> None:
    """Print how well *bundle* tells the held-out pieces of *genomes* apart."""
    scorer = Scorer(bundle)
    pieces = read_pieces(genomes, "val")
    at = {length: score(scorer, pieces, length) for length in LENGTHS}
    print(_overall(at), _per_group(at), sep="\n\n")


def score(scorer: Scorer, pieces: Sequence[Piece], length: int) -> Scored:
    """Cut *pieces* to fragments of *length* bases and score all their ORFs."""
    orfs: list[Orf] = []
    truth: list[bool] = []
    fragment: list[int] = []
    groups: list[str] = []
    count = 0
    for piece, found in _fragments(pieces, length):
        count += 1
        if found:
            orfs += found
            truth += [piece.viral] * len(found)
            fragment += [len(groups)] * len(found)
            groups.append(piece.group)
    began = time.perf_counter()
    scores = scorer.all(orfs)
    seconds = time.perf_counter() - began
    return Scored(scores, np.array(truth), np.array(fragment), tuple(groups), count, seconds)


def _fragments(pieces: Sequence[Piece], length: int) -> Iterator[tuple[Piece, list[Orf]]]:
    for piece in pieces:
        if len(piece.bases) >= length:
            ranges = list(cut(len(piece.bases), length))
            orfs = open_frames(piece.bases, ranges)
            found: list[list[Orf]] = [[] for _ in ranges]
            for row, orf in zip(orfs.fragments, orfs, strict=True):
                found[row].append(orf)
            yield from ((piece, of_fragment) for of_fragment in found)


def auroc(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """Give the chance that a positive scores above a negative, ties counted half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # equal scores share their mean rank
    positives = int(positive.sum())
    wins = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * (len(scores) - positives)))


def _votes(scored: Scored) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Give each fragment's highest score2, its verdict, and the truth."""
    first = np.flatnonzero(np.diff(scored.fragment, prepend=-1))
    others, virus = np.maximum.reduceat(scored.scores, first).T
    return virus, virus >= others, scored.viral[first]


def _overall(at: dict[int, Scored]) -> str:
    rows = [
        "| fragment | fragments | with an ORF | ORFs | AUROC per ORF | AUROC per fragment | accuracy"
        " | sensitivity | specificity | ORFs/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for length, scored in at.items():
        virus, verdict, truth = _votes(scored)
        areas = auroc(scored.scores[:, 1], scored.viral), auroc(virus, truth)
        rates = (verdict == truth).mean(), verdict[truth].mean(), 1 - verdict[~truth].mean()
        figures = " | ".join(f"{figure:.3f}" for figure in (*areas, *rates))
        counts = f"{scored.cut:,} | {len(truth):,} | {len(scored.scores):,}"
        rows.append(f"| {length} bp | {counts} | {figures} | {len(scored.scores) / scored.seconds:.0f} |")
    return "\n".join(rows)


def _per_group(at: dict[int, Scored]) -> str:
    lengths = " | ".join(f"right at {length} bp" for length in at)
    rows = [f"| group | with an ORF at {next(iter(at))} bp | {lengths} |", "|---" * (len(at) + 2) + "|"]
    first = next(iter(at.values()))
    for group in dict.fromkeys(first.groups):
        shares = (_right(scored, group) for scored in at.values())
        rows.append(f"| {group} | {first.groups.count(group):,} | " + " | ".join(shares) + " |")
    return "\n".join(rows)


def _right(scored: Scored, group: str) -> str:
    _, verdict, truth = _votes(scored)
    members = np.array(scored.groups) == group
    return f"{(verdict == truth)[members].mean():.3f}"


if __name__ == "__main__":
    main()
