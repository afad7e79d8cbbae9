"""Sequence files that tests write, in every form, and how they are read."""

import bz2
import gzip
import io
import lzma
import random
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from virnuc_async.errors import InputError
from virnuc_async.sequences.fastx import DEFAULT_LIMITS, Contig, Limits
from virnuc_async.sequences.inputs import read_contigs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class Form(NamedTuple):
    """A way to compress, and what a test needs to know about it."""

    pack: Callable[[bytes], bytes]
    unpacker: Callable[[], object]
    header: int  # bytes before the data


FORMS = {
    "gz": Form(gzip.compress, lambda: zlib.decompressobj(31), 10),
    "bz2": Form(lambda text: bz2.compress(text, 1), bz2.BZ2Decompressor, 4),
    "xz": Form(lzma.compress, lzma.LZMADecompressor, 12),
    "zst": Form(zstd.compress, zstd.ZstdDecompressor, 4),
}

EACH_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())

EACH_BLOCK = pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 20])


def some_records(count: int, seed: int = 0) -> list[Contig]:
    rng = random.Random(seed)
    return [Contig(b"r%d" % i, bytes(rng.choices(b"ACGT", k=rng.randint(1, 300)))) for i in range(count)]


def as_fasta(records: list[Contig]) -> bytes:
    return b"".join(b">%s\n%s\n" % (record.id, record.bases) for record in records)


def as_fastq(records: list[Contig]) -> bytes:
    return b"".join(b"@%s\n%s\n+\n%s\n" % (r.id, r.bases, b"I" * len(r.bases)) for r in records)


def until_failure(contigs: Iterator[Contig]) -> tuple[list[Contig], InputError]:
    found = []
    while True:
        try:
            found.append(next(contigs))
        except InputError as failure:
            return found, failure


def read(content: bytes, limits: Limits = DEFAULT_LIMITS) -> list[Contig]:
    return list(read_contigs("-", stdin=io.BytesIO(content), limits=limits))


def read_until_failure(path: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[list[Contig], InputError]:
    return until_failure(read_contigs(str(path), limits=limits))
