"""A contig is cut into fragments of a fixed length, as VirNucPro's ``split_fasta_chunk`` does."""

from collections.abc import Iterator


def cut(bases: int, length: int) -> Iterator[tuple[int, int]]:
    """
    Give the half-open range of every fragment of a contig of *bases* bases, in order.

    An empty contig has no fragment; one of at most *length* bases is one fragment.
    """
    # The published rule divides the slack by the fragments, not by the seams between them,
    # so that the last fragment is often short: 501 bases make 500 + 251. Published scores
    # were made that way: do not "fix" it.
    count = -(-bases // length)
    if not count:
        return
    overlap, longer = divmod(count * length - bases, count)
    # All seams but the last are up for the rest, and each takes one base of it.
    longer += overlap
    for number in range(count):
        start = number * (length - overlap) - min(number, longer)
        yield start, min(start + length, bases)
