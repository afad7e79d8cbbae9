"""
Long contigs with viral stretches at known places, made of held-out pieces of real genomes.

A background is the pieces of non-viral genomes of one group, genome after genome, and an insertion the
pieces of viral genomes that have such hosts; each piece is on a random strand. What begins with the same
word, such as a genus, is in contigs of one half only.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

from genomes import Piece, read_pieces, reverse_complement

HALVES = ("tuning", "test")
# Groups of hosts, and of the viruses that are inserted.
_VIRUSES = {
    "bacteria": "phages",
    "archaea": "archaeal viruses",
    "fungi": "other viruses",
    "vertebrates": "other viruses",
}
_BACKGROUND = (40_000, 90_000)  # bases; the logarithms of the sizes are uniform, here and below
_INSERTION = (5_000, 40_000)
_INSERTIONS = (0, 1, 1, 2)  # of a contig, each as likely


@dataclass(frozen=True, slots=True)
class MadeContig:
    """A contig, and the half-open ranges that are viral."""

    id: str
    half: str
    group: str  # of the host
    bases: bytes
    viral: tuple[tuple[int, int], ...]


def make_contigs(genomes: Path, seed: int) -> list[MadeContig]:
    """Return contigs of all held-out pieces in *genomes* of the groups of hosts."""
    rng = random.Random(seed)
    pieces = read_pieces(genomes, "val")
    return [contig for half in HALVES for contig in _contigs_of_half(pieces, half, rng)]


def write_fasta(path: Path, contigs: list[MadeContig]) -> None:
    """Write *contigs* to *path*."""
    path.write_bytes(b"".join(b">%s\n%s\n" % (one.id.encode(), one.bases) for one in contigs))


def _contigs_of_half(pieces: list[Piece], half: str, rng: random.Random) -> Iterator[MadeContig]:
    for host, virus in _VIRUSES.items():
        background = _text(_units(pieces, host, half), rng)
        viral_units = _units(pieces, virus, half)
        viral, number = _text(viral_units, rng), 0
        while len(background) >= _BACKGROUND[0]:
            size = _size(_BACKGROUND, rng)
            insertions = []
            for _ in range(rng.choice(_INSERTIONS)):
                length = _size(_INSERTION, rng)
                while len(viral) < length:  # there are fewer viruses than hosts: they come again
                    viral += _text(viral_units, rng)
                insertions.append(viral[:length])
                viral = viral[length:]
            number += 1
            bases, ranges = _insert(background[:size], insertions, rng)
            yield MadeContig(f"{half}_{host}_{number}", half, host, bases, ranges)
            background = background[size:]


def _units(pieces: list[Piece], group: str, half: str) -> list[list[Piece]]:
    """Return the pieces of *group* by the first word of their sources, of which *half* gets about a half."""
    units: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        if piece.group == group:
            units[piece.source.removeprefix("Candidatus ").split()[0]].append(piece)
    halves: dict[str, list[list[Piece]]] = {name: [] for name in HALVES}
    for unit in sorted(units.values(), key=_bases, reverse=True):
        smaller = min(HALVES, key=lambda name: sum(map(_bases, halves[name])))
        halves[smaller].append(unit)
    return halves[half]


def _bases(pieces: list[Piece]) -> int:
    return sum(len(piece.bases) for piece in pieces)


def _text(units: list[list[Piece]], rng: random.Random) -> bytes:
    """Return the bases of all *units*, in random order, each piece on a random strand."""
    pieces = [piece for unit in rng.sample(units, len(units)) for piece in unit]
    return b"".join(
        piece.bases if rng.random() < 0.5 else reverse_complement(piece.bases) for piece in pieces
    )


def _size(limits: tuple[int, int], rng: random.Random) -> int:
    low, high = map(log, limits)
    return round(exp(rng.uniform(low, high)))


def _insert(
    background: bytes, insertions: list[bytes], rng: random.Random
) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """Insert each of *insertions* in a part of *background* of its own; return the bases and the places."""
    text, ranges, before = b"", [], 0
    for number, insertion in enumerate(insertions):
        part = len(background) // len(insertions)
        place = rng.randrange(number * part, (number + 1) * part)
        text += background[before:place]
        ranges.append((len(text), len(text) + len(insertion)))
        text, before = text + insertion, place
    return text + background[before:], tuple(ranges)
