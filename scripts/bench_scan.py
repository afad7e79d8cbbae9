"""
Scans of input files: bases a second of one core, with zlib-ng and without; and beginning in the middle.

Each form of the same reads (and of contigs, as FASTA) is scanned with zlib-ng and without, in turns; a pair
gives one ratio. Times are CPU seconds of the process, which other programs change less than wall time. Then
a file is entered at its last seek point: the time to the first record from there.
"""

import argparse
import gzip
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measured import facts, installed, save, table
from samples import Source, write

from virnuc_async.sequences import decompression
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.scan import FileScan, scan_file

_MEMBER = 65_280  # bytes of text in a member of BGZF, as bgzip has them
_QUALITIES = np.frombuffer(b"F:,#", np.uint8)
_SHARES = (0.90, 0.06, 0.03, 0.01)  # of each quality, as of a NovaSeq
_Row = dict[str, Any]


def main(arguments: list[str]) -> None:
    """Measure all forms, print a table, and write it if there is a path for it."""
    options = _parser().parse_args(arguments)
    record = facts(arguments)
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        paths = _write_all(Path(directory), Source.read(options.fasta), int(options.megabases * 1e6))
        rows = [_compare(name, path, options.pairs) for name, path in paths.items()]
    print(table(rows))
    if options.output:
        record["versions"]["zlib-ng"] = installed("zlib-ng")
        save(options.output, {**record, "megabases": options.megabases, "cases": rows})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--megabases", type=float, default=100, help="of each file")
    add("--pairs", type=int, default=5, help="of scans, one with zlib-ng and one without")
    add("--fasta", type=Path, default=Path("docs/examples/metagenome.fa.gz"), help="what input is made of")
    add("--work", type=Path, help="where input is written (default: the temporary directory)")
    add("--output", type=Path, help="JSON file to write")
    return parser


def _write_all(work: Path, source: Source, bases: int) -> dict[str, Path]:
    """Write the reads and contigs in each form; return their paths."""
    write(work / "reads.fa", source, "reads", bases)
    write(work / "contigs.fa", source, "contigs", bases)
    (work / "reads.fq").write_bytes(b"".join(_fastq(work / "reads.fa")))
    text = (work / "reads.fq").read_bytes()
    (work / "reads.fq.gz").write_bytes(gzip.compress(text, 6))
    (work / "reads.bgzf").write_bytes(b"".join(_members(text)))
    for name in ("reads.fa", "contigs.fa"):
        (work / f"{name}.gz").write_bytes(gzip.compress((work / name).read_bytes(), 6))
    return {
        "FASTQ.gz": work / "reads.fq.gz",
        "FASTQ, BGZF": work / "reads.bgzf",
        "FASTQ": work / "reads.fq",
        "FASTA.gz of reads": work / "reads.fa.gz",
        "FASTA.gz of contigs": work / "contigs.fa.gz",
    }


def _fastq(fasta: Path) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for number, contig in enumerate(read_contigs(str(fasta))):
        quality = rng.choice(_QUALITIES, len(contig.bases), p=_SHARES).tobytes()
        place = b"1:N:0:ACGTACGT"
        yield b"@A00123:45:HXXXXXXXX:1:1101:%d %b\n%b\n+\n%b\n" % (number, place, contig.bases, quality)


def _members(text: bytes) -> Iterator[bytes]:
    """Yield *text* as bgzip packs it."""
    for begin in range(0, len(text) + _MEMBER, _MEMBER):  # the last one is empty
        block, packer = text[begin : begin + _MEMBER], zlib.compressobj(6, wbits=-15)
        data = packer.compress(block) + packer.flush()
        size = struct.pack("<H", len(data) + 25)
        yield b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + size + data
        yield struct.pack("<II", zlib.crc32(block), len(block))


def _compare(name: str, path: Path, pairs: int) -> _Row:
    """Return medians of scans with zlib-ng and without, and of the ratios of *pairs* pairs of them."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    fast = decompression.zlib_ng
    for number in range(pairs):
        # Whichever is first in a pair, the other one is first in the next.
        for is_fast in (number % 2 == 0, number % 2 == 1):
            decompression.zlib_ng = fast if is_fast else None
            taken, scan = _timed(lambda: scan_file(str(path)))
            seconds[is_fast].append(taken)
    decompression.zlib_ng = fast
    ratios = [slow / quick for slow, quick in zip(seconds[False], seconds[True], strict=True)]
    rate = {is_fast: scan.bases / 1e6 / statistics.median(taken) for is_fast, taken in seconds.items()}
    entering, skipped = _enter(path, scan)
    return {
        "input": name,
        "MB": round(path.stat().st_size / 1e6, 1),
        "zlib, Mb/s": round(rate[False], 1),
        "zlib-ng, Mb/s": round(rate[True], 1),
        "gain": round(statistics.median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
        "enter, s": round(entering, 4),
        "MB passed over": round(skipped / 1e6, 1),
    }


def _enter(path: Path, scan: FileScan) -> tuple[float, int]:
    """Return the seconds to the first record behind the last seek point, and the text passed over for it."""
    point = scan.seek_point(scan.records - 1)
    return _timed(lambda: next(read_contigs(str(path), point)))[0], point.skip


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    done = work()
    return time.process_time() - begin, done


if __name__ == "__main__":
    main(sys.argv[1:])
