"""
Realistic input of any size: reads, contigs, or both in one file.

Records are random parts of a few real contigs, from either strand, with a few substitutions: frames
without a stop codon are as frequent as in the real contigs, and records hardly ever repeat.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from genomes import reverse_complement
from numpy.typing import NDArray

from virnuc_async.sequences.inputs import read_contigs

KINDS = ("reads", "contigs", "mixed")
READ = 150  # bases
_CONTIG = (500, 12_000)  # bases; the logarithms of the lengths are uniform
_SHORT = 1500  # bases, at most, of the contigs of many files
_SUBSTITUTED = 0.003  # of the letters: more would add stop codons to open frames
_BLOCK = 1 << 20  # bases made at a time
_LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Source:
    """Both strands of the contigs that records are taken from; a record may span two contigs."""

    strands: tuple[bytes, bytes]

    @classmethod
    def read(cls, path: Path) -> "Source":
        """Read the FASTA file *path*, which should hold at least 12,000 bases."""
        bases = b"".join(contig.bases.upper() for contig in read_contigs(str(path)))
        return cls((bases, reverse_complement(bases)))


def write(path: Path, source: Source, kind: str, bases: int, seed: int = 0) -> int:
    """Write records of *kind* with at least *bases* bases in total to *path*; return their number."""
    count = 0
    with open(path, "wb") as file:
        for block in _blocks(source, kind, bases, np.random.default_rng(seed)):
            file.writelines(
                b">%s_%d\n%s\n" % (kind.encode(), count + at, row) for at, row in enumerate(block)
            )
            count += len(block)
    return count


def endless(source: Source, kind: str, seed: int = 0) -> Iterator[bytes]:
    """Yield FASTA with records of *kind* without end, about a megabyte at a time."""
    for number, block in enumerate(_blocks(source, kind, 1 << 62, np.random.default_rng(seed))):
        yield b"".join(b">%s_%d_%d\n%s\n" % (kind.encode(), number, at, row) for at, row in enumerate(block))


def write_many(directory: Path, source: Source, files: int, each: int, seed: int = 0) -> list[Path]:
    """Write *files* files of *each* short contigs into *directory*; return their paths."""
    rng = np.random.default_rng(seed)
    rows = (row for block in _blocks(source, "contigs", 1 << 62, rng) for row in block)
    paths = [directory / f"sample_{number:05}.fa" for number in range(files)]
    for number, path in enumerate(paths):
        records = enumerate(row[:_SHORT] for row in islice(rows, each))
        path.write_bytes(b"".join(b">contig_%d_%d\n%s\n" % (number, at, row) for at, row in records))
    return paths


def _blocks(source: Source, kind: str, bases: int, rng: np.random.Generator) -> Iterator[list[bytes]]:
    made = 0
    while made < bases:
        lengths = _lengths(kind, min(_BLOCK, bases - made), rng)
        yield _records(source, lengths, rng)
        made += sum(lengths)


def _lengths(kind: str, bases: int, rng: np.random.Generator) -> list[int]:
    """Return random lengths of records; in mixed input, half of the bases are in reads."""
    contigs, made = [], 0
    share = {"reads": 0.0, "contigs": 1.0, "mixed": 0.5}[kind]
    while made < share * bases:
        contigs.append(round(float(np.exp(rng.uniform(*np.log(_CONTIG))))))
        made += contigs[-1]
    lengths = contigs + [READ] * -(-max(0, bases - made) // READ)
    rng.shuffle(lengths)
    return lengths


def _records(source: Source, lengths: list[int], rng: np.random.Generator) -> list[bytes]:
    size = len(source.strands[0])
    starts = [int(start) for start in rng.random(len(lengths)) * (size - np.array(lengths))]
    strands = rng.integers(2, size=len(lengths)).tolist()
    spans = zip(strands, starts, lengths, strict=True)
    text = b"".join(source.strands[strand][start : start + length] for strand, start, length in spans)
    text = _substitute(np.frombuffer(text, dtype=np.uint8).copy(), rng).tobytes()
    ends = np.cumsum(lengths).tolist()
    return [text[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _substitute(letters: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    at = rng.integers(len(letters), size=rng.binomial(len(letters), _SUBSTITUTED))
    letters[at] = rng.choice(_LETTERS, size=len(at))
    return letters
