"""
The viral records, as they are in their files: ``viral.fasta``, ``viral.fastq``, and both mates of pairs.

The store has no sequences: they are read from the inputs again, which must be what was scored. A record
is viral by the verdict of its contig in ``contigs.tsv``, and a mate by that of its pair in ``pairs.tsv``.
Records are matched by their positions, never by their ids.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnuc_async.runs.blocks import Block
from virnuc_async.runs.originals import Originals
from virnuc_async.sequences.inputs import FASTA_SUFFIXES, FASTQ_SUFFIXES, split_packed
from virnuc_async.sequences.mates import Mates

from .pairs import pair_blocks
from .verdicts import LABELS, VERDICT

if TYPE_CHECKING:
    from .output_files import FinishedRun

SINGLE, FIRST, SECOND = ROLES = ("", "_R1", "_R2")  # of records, as in the names of their files
_MEAN = "mean_p_virus"
_VIRUS = LABELS.index("virus")
_LINE_END = re.compile(rb"\r*\n|\r|")

OpenFile = Callable[[str], BinaryIO]


class Kind(NamedTuple):
    """What is in one of the files."""

    is_fastq: bool
    role: str  # of ROLES


KINDS = tuple(map(Kind._make, product((False, True), ROLES)))


def file_names(name: str) -> dict[Kind, str]:
    """
    Return the name of each file, made of *name*.

    This is the name of the one with FASTA or FASTQ, as its suffix says, of records without a mate.
    """
    stem, packed = split_packed(name)
    plain, suffix = os.path.splitext(stem)
    suffixes = {False: ".fasta", True: ".fastq"}
    for is_fastq, known in ((False, FASTA_SUFFIXES), (True, FASTQ_SUFFIXES)):
        if suffix.lower() in known:
            suffixes[is_fastq], stem = suffix, plain
    return {kind: f"{stem}{kind.role}{suffixes[kind.is_fastq]}{packed}" for kind in KINDS}


def write_viral_sequences(
    run: "FinishedRun", originals: Originals, files: "ViralFiles", before_each: Callable[[], None]
) -> None:
    """
    Write the viral records of *run*, which has these *originals*, to *files*, in input order.

    *before_each* is called before some thousand records at most, and may raise to stop.

    Raises:
        LostInput: an input is not there, or not what was scored
    """
    originals.check()
    for file in range(len(originals)):
        with closing(originals.read(file)) as records:
            for labels in _labels_of_file(run, file):
                before_each()
                _write_labelled(labels, records, files)
            assert next(records, None) is None, "every record has a label"
    originals.end()
    files.open_any()


class ViralFiles:
    """
    The files that are being written, by their *names*: *open_file* opens each when there is a record for it.

    Headers get scores unless they are to be *original_headers*.
    """

    def __init__(self, names: Mapping[Kind, str], open_file: OpenFile, original_headers: bool) -> None:
        self.counts: Counter[str] = Counter()  # of records, by the names of the files
        self._names = names
        self._open_file = open_file
        self._original_headers = original_headers
        self._opened: dict[Kind, BinaryIO] = {}
        self._line_ends: dict[Kind, bytes] = {}  # that the last record lacks

    def open(self, kind: Kind) -> None:
        """Make the file for records of *kind*, if it is not there yet."""
        if kind in self._opened:
            return
        self._opened[kind] = self._open_file(self._names[kind])
        self.counts[self._names[kind]] += 0

    def open_any(self) -> None:
        """Make a file of no records if there is none yet: whatever comes next finds one."""
        if not self._opened:
            self.open(KINDS[0])

    def write(self, kind: Kind, parts: tuple[bytes, ...], scores: bytes) -> None:
        """Write a record, with *scores* behind its header: all its *parts* but the last end with that."""
        text = (b"" if self._original_headers else scores).join(parts)
        self._opened[kind].write(self._line_ends.get(kind, b"") + text)
        is_ended = parts[-1].endswith((b"\n", b"\r"))
        self._line_ends[kind] = b"" if is_ended else _line_end(parts)
        self.counts[self._names[kind]] += 1


def _line_end(parts: Sequence[bytes]) -> bytes:
    """Return the line end of a record, by that of its header."""
    found = _LINE_END.match(parts[1])
    return (found and found[0]) or b"\n"


@dataclass(frozen=True, slots=True)
class _Labels:
    """Consecutive records of a file, in columns."""

    are_viral: NDArray[np.bool_]
    means: NDArray[np.float64]  # of P(virus)
    roles: NDArray[np.intp]  # number in ROLES


def _write_labelled(labels: _Labels, records: Iterator[Any], files: ViralFiles) -> None:
    rows = zip(labels.are_viral.tolist(), labels.means.tolist(), labels.roles.tolist(), strict=True)
    for is_viral, mean, role in rows:
        record = next(records)
        kind = Kind(record.is_fastq, ROLES[role])
        files.open(kind)
        if is_viral:
            # As it is printed in the tables.
            scores = f" virnuc_p={np.float32(mean)!s} virnuc_verdict=virus".encode()
            files.write(kind, record.text, scores)


def _labels_of_file(run: "FinishedRun", file: int) -> Iterator[_Labels]:
    """Yield labels for all records of input number *file*, in order."""
    mates = next((mates for mates in run.paired.mates if file in mates), None)
    paired = 0
    if mates is not None:
        for labels in _labels_of_mates(run, mates, file):
            paired += len(labels.roles)
            yield labels
    # What is behind the end of the other file, or of the last pair, has a verdict of its own.
    if paired < run.contigs_of(file):
        yield from _labels_of_others(run, file, paired)


def _labels_of_mates(run: "FinishedRun", mates: Mates, file: int) -> Iterator[_Labels]:
    for pairs in pair_blocks(run.reader.at_least(0), mates):
        are_long = pairs.lengths.max(1) >= run.reader.min_length
        labels = _labels(run, pairs.joint, are_long, ROLES.index(FIRST))
        if mates.are_interleaved:
            size = len(labels.roles)
            roles = np.tile([ROLES.index(FIRST), ROLES.index(SECOND)], size)
            yield _Labels(np.repeat(labels.are_viral, 2), np.repeat(labels.means, 2), roles)
        else:
            role = ROLES.index(FIRST if file == mates.first else SECOND)
            yield _Labels(labels.are_viral, labels.means, np.full(len(labels.roles), role))


def _labels_of_others(run: "FinishedRun", file: int, begin: int) -> Iterator[_Labels]:
    before = 0
    for block in run.reader.all_blocks(file):
        first, before = before, before + len(block.contigs)
        if before > begin:
            labels = _labels(run, block, block.contigs["length"] >= run.reader.min_length, 0)
            part = slice(max(0, begin - first), None)
            yield _Labels(labels.are_viral[part], labels.means[part], labels.roles[part])


def _labels(run: "FinishedRun", block: Block, are_long: NDArray[np.bool_], role: int) -> _Labels:
    verdicts = run.verdicts(block)
    are_viral = (verdicts[VERDICT] == _VIRUS) & are_long
    return _Labels(are_viral, verdicts[_MEAN], np.full(len(are_viral), role))
