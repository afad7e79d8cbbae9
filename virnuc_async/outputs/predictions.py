"""Scores become verdicts, and verdicts become the tables that people read."""

import math
import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async.models.calibration import Calibration
from virnuc_async.runs.blocks import FRAMES, Block
from virnuc_async.runs.failure import Failure, failed_line
from virnuc_async.runs.reader import RunReader
from virnuc_async.sequences.mates import Mates

from .pairs import pair_blocks

# A file's content, in parts; closing it lets go of the store.
Chunks = Generator[bytes, None, None]

_ROWS = 1 << 16  # of a table put together at a time: there are contigs with more ORFs

# Lines that are sorted in memory; of those sorted on disk, one in 256 is in memory in the end.
_RUN_BYTES = 64 << 20
_PIECES = 256

# A column of text is a matrix of bytes. What is shorter than the widest is filled up with what
# is in no column, to be taken out of the lines.
_Text = NDArray[np.uint8]
_FILL = ord("\r")

_LEAST, _ONE = np.array([1e-4, 1], np.float32).view(np.int32)
_DIGITS = 12  # behind the point: enough for any float32 above 1e-4
_FOURS = np.array([b"%04d" % number for number in range(10_000)]).view(np.uint32)

LABELS = ("others", "virus", "no_orf")
_LABELS = tuple(label.encode() for label in LABELS)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the ORFs of each contig say together, in columns; means are over its fragments with an ORF."""

    fragments_with_orf: NDArray[np.int64]
    viral_fragments: NDArray[np.int64]
    viral_fraction: NDArray[np.float64]
    mean_p_virus: NDArray[np.float64]
    max_p_virus: NDArray[np.float64]

    def labels(self, threshold: float) -> NDArray[np.intp]:
        """Give which of LABELS each contig's is."""
        labels = (self.viral_fraction >= threshold).astype(np.intp)
        labels[self.fragments_with_orf == 0] = LABELS.index("no_orf")
        return labels


@dataclass(frozen=True, slots=True)
class Votes:
    """The fragments of a block that have a scored ORF, in columns."""

    rows: NDArray[np.int64]  # which of the block's contigs each is of
    numbers: NDArray[np.int32]  # from 1, along the contig
    highest: NDArray[np.float32]  # P(virus) of its ORFs
    are_viral: NDArray[np.bool_]


def vote(block: Block) -> Votes:
    """
    Give each fragment's verdict.

    A fragment is viral where its highest P(virus) is at least its highest P(others): the
    published rule, in which a tie is viral.
    """
    rows, numbers = block.rows, block.scores["fragment"]
    firsts = _firsts(rows, numbers)
    others, virus = (np.maximum.reduceat(block.scores[name], firsts) for name in ("others", "virus"))
    return Votes(rows[firsts], numbers[firsts], virus, virus >= others)


def label_contigs(block: Block) -> Verdicts:
    """Let the fragments of each contig vote."""
    fragments = vote(block)
    rows, size = fragments.rows, len(block.contigs)
    counts = np.bincount(rows, minlength=size)
    viral = np.bincount(rows[fragments.are_viral], minlength=size)
    means, highest = np.zeros(size), np.zeros(size)
    firsts = _firsts(rows)
    some = rows[firsts]  # contigs with a fragment
    means[some] = _exact_sums(fragments.highest, firsts) / counts[some]
    highest[some] = np.maximum.reduceat(fragments.highest, firsts)
    return Verdicts(counts, viral, viral / np.maximum(counts, 1), means, highest)


def _firsts(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """Give where in *keys*, columns of equal length, something new begins."""
    is_new = np.ones(len(keys[0]), bool)
    is_new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return np.flatnonzero(is_new)


def _exact_sums(numbers: NDArray[np.float32], firsts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum each group; however many they are, the sum is rounded once."""
    sums = np.add.reduceat(numbers, firsts, dtype=np.float64)
    ends, values = np.append(firsts[1:], len(numbers)), numbers.tolist()
    # The sum of one or two numbers is rounded once anyhow.
    for group in np.flatnonzero(ends - firsts > 2).tolist():
        sums[group] = math.fsum(values[firsts[group] : ends[group]])
    return sums


def predictions(reader: RunReader) -> Chunks:
    """Give ``prediction_results.txt``, some lines at a time: every scored ORF in input order."""
    yield b"Sequence_ID\tPrediction\tscore1\tscore2\n"
    for block in reader.blocks():
        for first in range(0, len(block.scores), _ROWS):
            some = replace(block, scores=block.scores[first : first + _ROWS])
            yield _encoded(_orf_lines(some))


def _orf_lines(block: Block) -> list[str]:
    scores = block.scores
    labels = (scores["virus"] > scores["others"]).astype(np.intp)
    places = np.hstack((_chunks(scores["fragment"]), _words(*FRAMES)[scores["frame"]]))
    columns = (_words(*_LABELS)[labels], _decimals(scores["others"]), _decimals(scores["virus"]))
    return _lines(_of_rows(block, block.rows), places, *columns)


def fragment_verdicts(reader: RunReader) -> Chunks:
    """Give ``prediction_results_highestscore.csv``, some lines at a time: tabs, in spite of its name."""
    yield b"Modified_ID\tIs_Virus\n"
    with TemporaryFile(dir=reader.directory) as file:
        runs = _sorted_runs(map(_fragment_lines, reader.blocks()), file)
        yield from map(_encoded, _merged(list(runs)))


def _fragment_lines(block: Block) -> list[str]:
    fragments = vote(block)
    verdicts = _words(b"False", b"True")[fragments.are_viral.astype(np.intp)]
    return _lines(_of_rows(block, fragments.rows), _chunks(fragments.numbers), verdicts)


def contig_verdicts(
    reader: RunReader, threshold: float, tally: Counter[str], calibration: Calibration | None = None
) -> Chunks:
    """
    Give ``contigs.tsv``, some lines at a time: records in input order; count verdicts in *tally*.

    With a *calibration*, a column is added at the end.
    """
    yield _header("contig", "file", "length", calibration=calibration)
    paths = _paths(reader)
    for block in reader.blocks():
        files, lengths = block.contigs["file"], block.contigs["length"]
        yield _verdict_lines(
            block,
            _words(*paths[files[0] : files[-1] + 1])[files - files[0]],
            _integers(lengths),
            *_judged(block, threshold, tally, calibration),
        )


def pair_verdicts(
    reader: RunReader,
    all_mates: Iterable[Mates],
    threshold: float,
    tally: Counter[str],
    calibration: Calibration | None = None,
) -> Chunks:
    """
    Give ``pairs.tsv``, some lines at a time: every pair of *all_mates*, whose ids agree, in order.

    The fragments of both mates vote as those of one contig do. Verdicts are counted in *tally*; with
    a *calibration*, a column is added at the end.
    """
    yield _header("pair", "file_1", "file_2", "length_1", "length_2", calibration=calibration)
    paths = _paths(reader)
    for mates in all_mates:
        for pairs in pair_blocks(reader, mates):
            yield _verdict_lines(
                pairs.joint,
                *(_repeated(paths[file], len(pairs.lengths)) for file in mates),
                *map(_integers, pairs.lengths.T),
                *_judged(pairs.joint, threshold, tally, calibration),
            )


def _header(*names: str, calibration: Calibration | None) -> bytes:
    of_verdict = (
        *("fragments", "fragments_with_orf", "viral_fragments"),
        *("viral_fraction", "mean_p_virus", "max_p_virus", "verdict"),
    )
    return "\t".join((*names, *of_verdict, *(["p_virus_calibrated"] * bool(calibration)))).encode() + b"\n"


def _paths(reader: RunReader) -> list[bytes]:
    return [_field(os.fsencode(file.path)) for file in reader.files()]


def _judged(
    block: Block, threshold: float, tally: Counter[str], calibration: Calibration | None
) -> list[_Text]:
    """Give the columns from the fragments to the verdict, which is counted in *tally*, and beyond."""
    verdicts = label_contigs(block)
    labels = verdicts.labels(threshold)
    tally.update(dict(zip(LABELS, np.bincount(labels, minlength=len(LABELS)).tolist(), strict=True)))
    counts = (block.contigs["fragments"], verdicts.fragments_with_orf, verdicts.viral_fragments)
    shares = (verdicts.viral_fraction, verdicts.mean_p_virus, verdicts.max_p_virus)
    columns = [*map(_integers, counts), *map(_decimals, shares), _words(*_LABELS)[labels]]
    return [*columns, _decimals(_calibrated(verdicts, calibration))] if calibration else columns


def _verdict_lines(block: Block, *columns: _Text) -> bytes:
    return _encoded(_lines(block.names(), _repeated(b"", len(block.contigs)), *columns))


def _calibrated(verdicts: Verdicts, calibration: Calibration) -> NDArray[np.float64]:
    """Give each contig's probability by its mean as it is printed; 0, as the mean is, without a score."""
    means = verdicts.mean_p_virus.astype(np.float32)
    return np.where(verdicts.fragments_with_orf > 0, calibration.apply(means), 0.0)


def failed_lines(reader: RunReader, more: Iterable[Failure] = ()) -> Chunks:
    """Give ``failed_files.txt``, line by line: what *reader* knows, and what did beside it."""
    for failure in chain(reader.failures(), more):
        yield failed_line(failure).encode("utf-8", "surrogateescape")


def _sorted_runs(blocks: Iterable[list[str]], file: IO[bytes]) -> Iterator[Iterator[list[str]]]:
    """Sort as many lines at a time as fit into memory; all but the last of these runs go to *file*."""
    lines: list[str] = []
    size = 0
    for block in blocks:
        lines += block
        size += sum(map(str.__sizeof__, block))
        if size >= _RUN_BYTES:
            yield _spilled(_pieces(sorted(lines, key=_name)), file)
            lines, size = [], 0
    if lines:
        yield _pieces(sorted(lines, key=_name))


def _pieces(lines: list[str]) -> Iterator[list[str]]:
    step = len(lines) // _PIECES + 1
    return (lines[first : first + step] for first in range(0, len(lines), step))


def _spilled(pieces: Iterator[list[str]], file: IO[bytes]) -> Iterator[list[str]]:
    """Write *pieces* to *file* at once; give them again, one at a time."""
    ends = [file.tell()]
    for piece in pieces:
        file.write("\n".join(piece).encode("latin-1"))
        ends.append(file.tell())
    file.flush()
    read = partial(os.pread, file.fileno())
    return (read(end - start, start).decode("latin-1").split("\n") for start, end in pairwise(ends))


def _merged(runs: list[Iterator[list[str]]]) -> Iterator[list[str]]:
    """Merge sorted runs; lines of equal names come in the order of their runs."""
    heads = [next(run) for run in runs]
    while heads:
        bound, slowest = min((_name(head[-1]), number) for number, head in enumerate(heads))
        # What that run still holds back comes behind all that is taken: of equal names, the
        # later runs wait for it.
        ready = []
        for number, head in enumerate(heads):
            end = (bisect_right if number <= slowest else bisect_left)(head, bound, key=_name)
            ready += head[:end]
            del head[:end]
        yield ready if len(heads) == 1 else sorted(ready, key=_name)
        heads[slowest] = next(runs[slowest], [])
        if not heads[slowest]:
            del heads[slowest], runs[slowest]


def _name(line: str) -> str:
    return line.rpartition("\t")[0]


def _lines(names: Iterable[str], *columns: _Text) -> list[str]:
    """Give a line for each row: a name, what is in the first column behind it, and the others after tabs."""
    tab, end = (_repeated(mark, len(columns[0])) for mark in (b"\t", b"\n"))
    parts = [part for column in columns for part in (column, tab)]
    text = np.hstack([*parts[:-1], end]).tobytes().translate(None, bytes([_FILL])).decode("latin-1")
    # Names are no column: a single one may be as long as all others together.
    return [name + rest for name, rest in zip(names, text.split("\n")[:-1], strict=True)]


def _encoded(lines: list[str]) -> bytes:
    return "\n".join([*lines, ""]).encode("latin-1")


def _of_rows(block: Block, rows: NDArray[np.int64]) -> Iterator[str]:
    return map(block.names().__getitem__, rows.tolist())


def _repeated(word: bytes, rows: int) -> _Text:
    return np.broadcast_to(np.frombuffer(word, np.uint8), (rows, len(word)))


def _words(*words: bytes) -> _Text:
    lengths = np.array([len(word) for word in words])
    text = np.full((len(words), lengths.max()), _FILL, np.uint8)
    text[np.arange(text.shape[1]) < lengths[:, None]] = np.frombuffer(b"".join(words), np.uint8)
    return text


def _chunks(numbers: NDArray[np.int32]) -> _Text:
    """Give what is behind a contig's id in the published names of its fragments."""
    return np.hstack((_repeated(b"_chunk_", len(numbers)), _integers(numbers)))


def _integers(numbers: NDArray[Any]) -> _Text:
    width = len(str(numbers.max(initial=0)))
    left = numbers[:, None] // 10 ** np.arange(width)[::-1]
    text = (left % 10 + ord("0")).astype(np.uint8)
    text[:, :-1][left[:, :-1] == 0] = _FILL
    return text


def _decimals(numbers: NDArray[np.floating[Any]]) -> _Text:
    """Print each number as ``str`` does a float32: the shortest decimal that gives it back."""
    singles = numbers.astype(np.float32)
    # As integers, to tell a minus zero. Of those that are printed in columns, 112 million, each
    # has been compared with its str.
    bits = singles.view(np.int32)
    are_odd = (bits != 0) & ((bits <= _LEAST) | (bits > _ONE))
    text = _plain_decimals(np.where(are_odd, 0, singles).astype(np.float64))
    if not are_odd.any():
        return text
    odd = _words(*(str(single).encode() for single in singles[are_odd]))
    wide = np.full((len(text), max(text.shape[1], odd.shape[1])), _FILL, np.uint8)
    wide[~are_odd, : text.shape[1]] = text[~are_odd]
    wide[are_odd, : odd.shape[1]] = odd
    return wide


def _plain_decimals(numbers: NDArray[np.float64]) -> _Text:
    decimals = _decimals_needed(numbers)
    left = (np.rint(numbers * 10.0**decimals) * 10.0 ** (_DIGITS - decimals)).astype(np.int64)
    fours = np.empty((len(numbers), _DIGITS // 4), np.uint32)
    for column in reversed(range(_DIGITS // 4)):
        left, four = np.divmod(left, 10_000)
        fours[:, column] = _FOURS[four]
    digits = fours.view(np.uint8)
    np.copyto(digits, _FILL, where=np.arange(_DIGITS) >= decimals[:, None])
    return np.hstack((_integers(left), _repeated(b".", len(numbers)), digits))


def _decimals_needed(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Give how many decimals of each float32 it takes to give it back."""
    needed = np.zeros(len(numbers), np.int64)
    left = np.arange(len(numbers))
    for count in range(1, _DIGITS + 1):
        scale, values = 10.0**count, numbers[left]
        is_enough = (np.rint(values * scale) / scale).astype(np.float32) == values.astype(np.float32)
        needed[left[is_enough]] = count
        left = left[~is_enough]
    return needed


def _field(text: bytes) -> bytes:
    return text.translate(bytes.maketrans(b"\t\n\r", b"   "))
