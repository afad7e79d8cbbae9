"""Labelled pieces of real genomes, from ``{train,val}.{viral,nonviral}.fna.gz``, and their groups."""

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADER = re.compile(
    r">(?P<id>\S+) (?P<source>.+?)(?: genome=(?P<genome>\d+))? \[package=(?P<package>[^\]]+)\]$"
)
_UNRESOLVED = "eukaryotic microbe"  # the species is unknown: every record counts as one genome
_COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")

_ARCHAEA = (
    r"archae|halovirus|his 1 virus|acidianus|acidilobus|aciduliprofundum|aeropyrum"
    r"|caldisphaera|desulfurococcus|ferroglobus|ferroplasma|fervidicoccus"
    r"|hal(alkalicoccus|oarcula|obacterium|oferax|ogeometricum|omicrobium|onotius|oquadratum"
    r"|orhabdus|orubrum|oterrigena|ovivax)"
    r"|ignicoccus|ignisphaera|methano|natr(ialba|inema|ono)"
    r"|nitrosop|nitrososph|picrophilus|pyro(baculum|coccus|lobus)|staphylothermus|sulfolob"
    r"|thermo(coccus|filum|gladius|plasma|proteus|sphaera)\b|vulcanisaeta"
)
# The first pattern found in the lower-case source decides.
_VIRAL_GROUPS = (("archaeal viruses", _ARCHAEA), ("phages", "phage|coliphage"), ("other viruses", ""))
_OTHER_GROUPS = (
    ("mitochondria", r"mitochondri(on|al dna)\b"),
    ("plasmids", "plasmid"),
    ("microbial eukaryotes", _UNRESOLVED),
    ("protozoa", "entamoeba|plasmodium|toxoplasma"),
    ("vertebrates", r"homo sapiens|macaca|bos taurus|\bcanis\b|xenopus"),
    ("invertebrates", "^(drosophila|anopheles|enteroctopus)"),
    ("plants", "^oryza"),
    (
        "fungi",
        "ashbya|clavispora|encephalitozoon|enterocytozoon|fibroporia|kluyveromyces|millerozyma"
        "|nosema|saccharomyces",
    ),
    ("archaea", _ARCHAEA),
    ("bacteria", ""),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a genome, in upper case, with the facts in its header."""

    id: str
    source: str  # name of the organism or virus
    genome: str  # the same for all pieces of a genome
    group: str  # "phages", "archaea", ...
    viral: bool
    bases: bytes


def read_pieces(directory: Path, split: str) -> list[Piece]:
    """Return all pieces of *split* ("train" or "val") in file order, the viral ones first."""
    return [
        piece
        for viral, name in ((True, "viral"), (False, "nonviral"))
        for piece in _read(directory / f"{split}.{name}.fna.gz", viral)
    ]


def reverse_complement(bases: bytes) -> bytes:
    """Return the other strand of upper-case *bases*; letters other than A, C, G and T stay."""
    return bases[::-1].translate(_COMPLEMENT)


def _read(path: Path, viral: bool) -> Iterator[Piece]:
    with gzip.open(path, "rt", encoding="ascii") as file:
        for record in ("\n" + file.read()).split("\n>")[1:]:
            header, *lines = record.split("\n")
            yield _piece(f">{header}", "".join(lines).upper().encode("ascii"), viral)


def _piece(header: str, bases: bytes, viral: bool) -> Piece:
    found = _HEADER.match(header)
    if not found:
        raise ValueError(f"the header has an unknown format: {header}")
    source = found["source"]
    genome = found["id"] if source.startswith(_UNRESOLVED) else found["genome"] or source
    return Piece(found["id"], source, genome, _group(source, viral), viral, bases)


def _group(source: str, viral: bool) -> str:
    groups = _VIRAL_GROUPS if viral else _OTHER_GROUPS
    return next(name for name, pattern in groups if re.search(pattern, source.lower()))
