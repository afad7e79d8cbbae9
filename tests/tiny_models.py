"""Labelled sequences that are easy to classify: one class is rich in G and C, the other in A and T."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from support import fasta

# Without stop codons in the first frame, so that every fragment has an ORF.
_RICH = ("GCC", "GCG", "CGC", "GGC", "CCG", "GAC", "CTG", "GTC")
_POOR = ("AAA", "ATT", "TTA", "AAT", "GAA", "TTT", "ATA", "TAT")


class Toys(NamedTuple):
    """A file of each class, for tests that train, calibrate or evaluate."""

    viral: Path
    nonviral: Path

    @property
    def options(self) -> tuple[str | Path, ...]:
        """Return the files as options of the command line."""
        return ("--viral", self.viral, "--nonviral", self.nonviral)


def sequence(rich: bool, length: int, rng: random.Random) -> str:
    """Return *length* bases, in which nine of ten codons are typical of the class."""
    codons = (
        rng.choice((_RICH if rich else _POOR) if rng.random() < 0.9 else (_RICH + _POOR))
        for _ in range(length)
    )
    return "".join(codons)[:length]


def records(rich: bool, count: int, length: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield records; each genome has two records, and there are two groups of genomes."""
    rng = random.Random(f"{seed} {rich}")
    for number in range(count):
        name = f"{'v' if rich else 'n'}{number}"
        header = f"{name} made up genome={name[0]}g{number // 2} group={'ab'[number % 4 // 2]}{name[0]}"
        yield header, sequence(rich, length, rng)


def write_toys(directory: Path, count: int = 40, length: int = 400, seed: int = 0) -> Toys:
    """Write *count* records of each class."""
    return _write(directory, *(list(records(rich, count, length, seed)) for rich in (True, False)))


def write_shuffled(directory: Path, count: int = 40, length: int = 400, seed: int = 0) -> Toys:
    """Write the same records with random labels."""
    both = [*records(True, count, length, seed), *records(False, count, length, seed)]
    random.Random(seed).shuffle(both)
    return _write(directory, both[:count], both[count:])


def _write(directory: Path, viral: Sequence[tuple[str, str]], nonviral: Sequence[tuple[str, str]]) -> Toys:
    directory.mkdir(parents=True, exist_ok=True)
    toys = Toys(directory / "viral.fa", directory / "nonviral.fa")
    toys.viral.write_text(fasta(viral))
    toys.nonviral.write_text(fasta(nonviral))
    return toys
