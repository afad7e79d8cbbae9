"""Reads that were aligned to contigs, in columns: where each lies and how well it fits."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import BrokenInput

from .alignments import AlignmentParser

_AT_ONCE = 1 << 16  # reads
_LEFT_OUT = 0x4 | 0x100 | 0x800  # unmapped, secondary, supplementary
_REVERSE = 0x10
# In the counts of a CIGAR by operation, as pysam returns them: M, I, D, N, S, H, P, =, X, B; then NM.
_ALIGNED, _OF_QUERY, _NM = [0, 1, 2, 7, 8], [0, 1, 7, 8], 10


@dataclass(frozen=True, slots=True)
class AlignedReads:
    """Consecutive primary alignments of a file."""

    names: NDArray[np.object_]
    lengths: NDArray[np.int64]  # of the reads, clipped bases included
    references: NDArray[np.int64]  # number of the contig that each lies on
    are_forward: NDArray[np.bool_]
    quality: NDArray[np.int64]  # of the mapping
    identity: NDArray[np.float64]  # percent of the alignment
    coverage: NDArray[np.float64]  # percent of the read that is aligned


def aligned_reads(alignments: AlignmentParser, at_once: int = _AT_ONCE) -> Iterator[AlignedReads]:
    """
    Yield the primary alignments of mapped reads, *at_once* at a time, in the order of the file.

    Identity is 100 (length - NM) / length of an alignment of M + I + D + = + X columns.

    Raises:
        BrokenInput: the file breaks half way, or a record has no NM tag
        UnreadableInput: pysam is not installed
    """
    mapped = (record for record in alignments.all_records() if not record.flag & _LEFT_OUT)
    while part := list(islice(mapped, at_once)):
        yield _columns(part, alignments)


def _columns(records: list[Any], alignments: AlignmentParser) -> AlignedReads:
    for record in records:
        if not record.has_tag("NM"):
            reason = (
                f"the alignment of {record.query_name!r} has no NM tag, the number of its differences. "
                "Add it: samtools calmd -b IN.bam CONTIGS.fa > OUT.bam"
            )
            raise BrokenInput(alignments.path, alignments.records, reason)
        alignments.records += 1
    counts = np.array([record.get_cigar_stats()[0] for record in records], np.float64)
    aligned, of_query = counts[:, _ALIGNED].sum(1), counts[:, _OF_QUERY].sum(1)
    lengths = np.array([record.infer_read_length() or 0 for record in records])
    with np.errstate(all="ignore"):
        identity, coverage = 100 * (aligned - counts[:, _NM]) / aligned, 100 * of_query / lengths
    return AlignedReads(
        names=np.array([record.query_name for record in records], object),
        lengths=lengths,
        references=np.array([record.reference_id for record in records]),
        are_forward=np.array([not record.flag & _REVERSE for record in records]),
        quality=np.array([record.mapping_quality for record in records]),
        identity=np.nan_to_num(identity),
        coverage=np.nan_to_num(coverage),
    )
