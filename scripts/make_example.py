"""
Make ``docs/examples/metagenome.fa.gz`` and ``.tsv``: contigs of known origin, viral and not.

A contig is a random part of one genome, on either strand. Where a piece of the genome is too short,
several are joined in the order of the file.
"""

import argparse
import gzip
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from genomes import Piece, read_pieces, reverse_complement

PER_CLASS = 30
SHORTEST = 150  # bases
LONGEST = {True: 12_000, False: 20_000}  # the longest virus here has 12,375


@dataclass(frozen=True, slots=True)
class Example:
    """A contig of the example, and its true class and source."""

    viral: bool
    source: str
    pieces: int
    bases: bytes


def main() -> None:
    """Write both files; the same genomes and seed result in the same bytes."""
    options = _arguments()
    random = np.random.default_rng(options.seed)
    pieces = read_pieces(options.genomes, "val")
    examples = [e for viral in (True, False) for e in _draw([p for p in pieces if p.viral is viral], random)]
    order = random.permutation(len(examples))
    _write([examples[at] for at in order], options.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genomes", type=Path, required=True, help="directory of val.*.fna.gz")
    parser.add_argument("--output", type=Path, default=Path("docs/examples"))
    parser.add_argument("--seed", type=int, default=500)
    return parser.parse_args()


def _draw(pieces: list[Piece], random: np.random.Generator) -> Iterator[Example]:
    """Yield contigs from each group in turn, with evenly spaced log lengths; no piece is used twice."""
    groups = _by_group(pieces, random)
    # Longest first: few genomes are long enough for the long contigs.
    for length in np.geomspace(LONGEST[pieces[0].viral], SHORTEST, PER_CLASS).round().astype(int).tolist():
        group = next(name for name, genomes in groups.items() if any(_size(g) >= length for g in genomes))
        genomes = groups.pop(group)
        genome = genomes.pop(next(n for n, pieces in enumerate(genomes) if _size(pieces) >= length))
        first, last = _shortest_span(genome, length)
        yield _cut(genome[first:last], length, random)
        # The group and the genome go to the end of their queues.
        groups[group] = [*genomes, genome[:first] + genome[last:]]


def _by_group(pieces: list[Piece], random: np.random.Generator) -> dict[str, list[list[Piece]]]:
    genomes = defaultdict(list)
    for piece in pieces:
        genomes[piece.group, piece.genome].append(piece)
    names = list(genomes)
    random.shuffle(names)
    groups = defaultdict(list)
    for group, name in names:
        groups[group].append(genomes[group, name])
    return dict(sorted(groups.items()))


def _shortest_span(genome: list[Piece], length: int) -> tuple[int, int]:
    """Return the half-open range of the fewest adjacent pieces that have *length* bases."""
    spans = ((n, n + count) for count in range(1, len(genome) + 1) for n in range(len(genome) - count + 1))
    return next((first, last) for first, last in spans if _size(genome[first:last]) >= length)


def _cut(pieces: list[Piece], length: int, random: np.random.Generator) -> Example:
    """Return *length* bases of the joined *pieces*, from either strand."""
    joined = b"".join(piece.bases for piece in pieces)
    start = int(random.integers(len(joined) - length + 1))
    bases = joined[start : start + length]
    if random.random() < 0.5:
        bases = reverse_complement(bases)
    return Example(pieces[0].viral, pieces[0].source, len(pieces), bases)


def _size(pieces: list[Piece]) -> int:
    return sum(len(piece.bases) for piece in pieces)


def _write(examples: list[Example], directory: Path) -> None:
    fasta, table = [], ["contig\tlength\tclass\tsource"]
    for number, example in enumerate(examples, 1):
        name = f"contig_{number:03}"
        joined = f" ({example.pieces} pieces joined)" if example.pieces > 1 else ""
        fasta += [f">{name} {example.source}{joined}", *textwrap.wrap(example.bases.decode("ascii"), 80)]
        label = "virus" if example.viral else "others"
        table.append(f"{name}\t{len(example.bases)}\t{label}\t{example.source}")
    directory.mkdir(parents=True, exist_ok=True)
    text = "\n".join(fasta) + "\n"
    # Without a time stamp the file is the same whenever it is made.
    (directory / "metagenome.fa.gz").write_bytes(gzip.compress(text.encode("ascii"), mtime=0))
    (directory / "metagenome.tsv").write_text("\n".join(table) + "\n", "ascii")


if __name__ == "__main__":
    main()
