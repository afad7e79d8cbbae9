"""
The table of inputs, ``samples.tsv``: what is in each, and the sums of reads and of contigs.

A million reads and a thousand contigs are not a million and a thousand of anything: they are never added up.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnuc_async.runs.blocks import Block
from virnuc_async.runs.reader import FileLine, RunReader
from virnuc_async.sequences.inputs import KINDS, kind_by_name

from .columns import Chunks, one_line
from .verdicts import LABELS

SAMPLES_TABLE = "samples.tsv"
_SUM = "*"  # in the place of a file
COUNTED = ("records", "bases", "fragments", "orfs", *LABELS, "short")

Tally = dict[int, NDArray[np.int64]]  # by the number of an input: as many as there are of COUNTED
Judge = Callable[[Block], NDArray[np.intp]]  # returns the label of each record, as an index into LABELS


class Sample(NamedTuple):
    """An input, or all of a kind."""

    file: str
    kind: str  # of KINDS
    status: str
    counts: Counter[str]  # of records that are not short: by their labels; of all: the rest

    def line(self) -> bytes:
        """Return the row of the table."""
        numbers = (str(self.counts[name]) for name in (*COUNTED, "failures"))
        facts = "\t".join((self.kind, self.status, *numbers))
        return b"%s\t%s\n" % (one_line(os.fsencode(self.file)), facts.encode())


def sample_chunks(samples: Sequence[Sample]) -> Chunks:
    """Yield ``samples.tsv``: every input in order, then the sums of each kind that there is."""
    yield "\t".join(("file", "kind", "status", *COUNTED, "failures")).encode() + b"\n"
    yield b"".join(sample.line() for sample in (*samples, *sums(samples)))


def sums(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Yield the sums of each kind of *samples*."""
    for kind in KINDS:
        counts = [sample.counts for sample in samples if sample.kind == kind]
        if counts:
            yield Sample(_SUM, kind, "", sum(counts, Counter()))


def count_samples(reader: RunReader, judge: Judge) -> list[Sample]:
    """Return every input of the run that *reader* reads, with the labels that *judge* gives its records."""
    return samples_of(reader, count_records(reader, judge), reader.failures_by_file())


def count_records(reader: RunReader, judge: Judge) -> Tally:
    """Return how many records of each input there are, and what of them, by the numbers of the inputs."""
    tally: Tally = {}
    for block in reader.all_blocks():
        first = int(block.contigs["file"][0])
        for file, counts in enumerate(_count(block, judge(block), reader.min_length).T, first):
            tally[file] = tally.get(file, 0) + counts
    return tally


def samples_of(reader: RunReader, tally: Tally, failures: Mapping[int, int]) -> list[Sample]:
    """Return every input of the run that *reader* reads, with what :func:`count_records` has counted."""
    kinds, nothing = input_kinds(reader), np.zeros(len(COUNTED), np.int64)
    counts = (
        dict(zip(COUNTED, tally.get(file, nothing).tolist(), strict=True), failures=failures.get(file, 0))
        for file in count()
    )
    return [
        Sample(file.path, kind, status(file), Counter(counted))
        for file, kind, counted in zip(reader.files(), kinds, counts, strict=False)
    ]


def input_kinds(reader: RunReader) -> list[str]:
    """Return of which kind the records of each input are: as they were read, or else as it is named."""
    noted = zip(reader.kinds(), reader.paths(), strict=True)
    return [kind or kind_by_name(path) for kind, path in noted]


def status(file: FileLine) -> str:
    """Return how an input was read."""
    if file.failed:
        return "broken" if file.contigs else "failed"
    return "read" if file.contigs else "empty"


def _count(block: Block, labels: NDArray[np.intp], min_length: int) -> NDArray[np.int64]:
    """Return the numbers of a block for each of its files, in columns."""
    lengths = block.contigs["length"]
    files = block.contigs["file"] - block.contigs["file"][0]
    are_long = lengths >= min_length
    orfs = np.bincount(block.rows, minlength=len(files))
    rows = (
        *(np.ones_like(lengths), lengths, block.contigs["fragments"], orfs),
        *(are_long & (labels == label) for label in range(len(LABELS))),
        ~are_long,
    )
    # Exact: sums of whole numbers below 2**53.
    return np.array([np.bincount(files, row) for row in rows], np.float64).astype(np.int64)
