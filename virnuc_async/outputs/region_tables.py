"""
The tables of viral stretches: ``regions.bed`` and ``regions.gff3``, with the same regions.

Ids have no white space, since a record's id ends there. In BED they are written as they came, to match
the sequences; in GFF3 what its specification does not allow in them is escaped.
"""

import re
from itertools import count

from virnuc_async._version import __version__
from virnuc_async.runs.reader import RunReader
from virnuc_async.settings import RegionRules

from .columns import Chunks
from .regions import VIRAL_CONTIG, Region, contig_regions

REGIONS_BED, REGIONS_GFF3 = "regions.bed", "regions.gff3"

_COLUMNS = ("contig", "start", "end", "name", "score", "strand", "kind", "fragments", "mean_score")
_SOURCE = f"virnuc-async_{__version__}"
# Terms of the Sequence Ontology, SO:0001041 and SO:0001006.
_VIRAL_SEQUENCE, _PROPHAGE = "viral_sequence", "prophage"
# Of column 1 (GFF3 specification 1.26); all else is escaped by its code.
_NUMBER = re.compile(rb"(?<=\tregion_)\d+|(?<=\tID=region_)\d+")  # of a region: in no id is a tab
_SEQID_LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.:^*$@!+_?-|")


def bed_chunks(reader: RunReader, length: int, rules: RegionRules) -> Chunks:
    """
    Yield ``regions.bed``, a contig at a time: BED6 and three columns more.

    *length* is what contigs were cut into, in bases.
    """
    yield b"#%s\n" % "\t".join(_COLUMNS).encode()
    numbers = count(1)
    for contig in contig_regions(reader, length, rules):
        name, fields = _bed_name(contig.id), (_bed_fields(region, next(numbers)) for region in contig.regions)
        yield b"".join(b"%s\t%s\n" % (name, "\t".join(line).encode()) for line in fields)


def gff3_chunks(reader: RunReader, length: int, rules: RegionRules) -> Chunks:
    """Yield ``regions.gff3``, a contig at a time; *length* is what contigs were cut into, in bases."""
    yield b"##gff-version 3\n"
    numbers = count(1)
    for contig in contig_regions(reader, length, rules):
        name = _escaped(contig.id)
        lines = [f"##sequence-region {name} 1 {contig.length}\n"]
        for region in contig.regions:
            kind = _VIRAL_SEQUENCE if region.kind == VIRAL_CONTIG else _PROPHAGE
            place = f"{region.start + 1}\t{region.end}\t{_printed(region.score)}\t.\t."
            facts = f"ID=region_{next(numbers)};kind={region.kind};fragments={region.fragments}"
            lines.append(f"{name}\t{_SOURCE}\t{kind}\t{place}\t{facts}\n")
        yield "".join(lines).encode()


def numbered_on(lines: bytes, first: int) -> tuple[bytes, int]:
    """Return *lines* of either table with their regions numbered from *first* on, and how many these are."""
    numbers = count(first)
    text, found = _NUMBER.subn(lambda _: b"%d" % next(numbers), lines)
    return text, found


def _bed_fields(region: Region, number: int) -> tuple[str, ...]:
    score = _printed(region.score)
    place = (str(region.start), str(region.end), f"region_{number}", str(round(1000 * float(score))), ".")
    return (*place, region.kind, str(region.fragments), score)


def _bed_name(id: bytes) -> bytes:
    """Return *id* as it came, but for what would make the line a comment, or leave the column empty."""
    return b"%%23%s" % id[1:] if id.startswith(b"#") else id or b"."


def _escaped(id: bytes) -> str:
    """Return *id* as the first column of GFF3 may have it: other letters as ``%`` and their code."""
    return "".join(chr(byte) if byte in _SEQID_LETTERS else f"%{byte:02X}" for byte in id) or "."


def _printed(score: float) -> str:
    return f"{score:.3f}"
