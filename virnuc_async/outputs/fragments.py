"""
The tables of fragments: the published one, and ``fragments.tsv``, which has their scores and places.

The published one is ``prediction_results_highestscore.csv``, in which tabs separate the columns. Programs
that were built on VirNucPro have the highest scores in it as well.
"""

from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from virnuc_async.runs.blocks import FRAMES, Block
from virnuc_async.runs.reader import BlockReader
from virnuc_async.sequences.fragments import ranges

from .columns import (
    Chunks,
    TextColumn,
    constant_column,
    encode_lines,
    float_column,
    fragment_suffixes,
    integer_column,
    join_lines,
    text_column,
)
from .sorting import PIECES, RUN_BYTES, sort_lines
from .verdicts import Votes, vote

_ROWS = 1 << 16  # of the table in memory at a time: there are contigs with more fragments
_SCORED = ("Modified_ID", "Is_Virus", "max_score_0", "max_score_1")  # as post-processing programs expect them
_COLUMNS = (*_SCORED, "contig", "fragment", "start", "end", "frames", "best_frame")


def published_fragment_chunks(
    reader: BlockReader, run_bytes: int = RUN_BYTES, pieces: int = PIECES
) -> Chunks:
    """Yield ``prediction_results_highestscore.csv``, some lines at a time, sorted by the fragments' names."""
    yield b"Modified_ID\tIs_Virus\n"
    blocks = map(_published_lines, reader.blocks())
    with closing(sort_lines(blocks, reader.scratch, run_bytes, pieces)) as sorted_lines:
        for lines in sorted_lines:
            yield encode_lines(lines)


def scored_fragment_chunks(reader: BlockReader, run_bytes: int = RUN_BYTES, pieces: int = PIECES) -> Chunks:
    """Yield the published table with the fragments' highest scores, some lines at a time, sorted by name."""
    yield "\t".join(_SCORED).encode() + b"\n"
    blocks = (_scored_lines(block, vote(block)) for block in reader.blocks())
    with closing(sort_lines(blocks, reader.scratch, run_bytes, pieces, _name_of_scored)) as sorted_lines:
        for lines in sorted_lines:
            yield encode_lines(lines)


def fragment_chunks(reader: BlockReader, length: int, rows: int = _ROWS) -> Chunks:
    """
    Yield ``fragments.tsv``, at most *rows* lines at a time: every fragment with a scored ORF, in input order.

    *length* is what contigs were cut into, in bases.
    """
    yield "\t".join(_COLUMNS).encode() + b"\n"
    for block in reader.blocks():
        fragments = vote(block)
        best = _best_frames(block, fragments)
        for first in range(0, len(best), rows):
            part = slice(first, first + rows)
            yield encode_lines(_fragment_lines(block, fragments.part(part), best[part], length))


def _published_lines(block: Block) -> list[str]:
    fragments, names = vote(block), block.names()
    return join_lines(
        map(names.__getitem__, fragments.rows.tolist()),
        fragment_suffixes(fragments.numbers),
        _truth_column(fragments.are_viral),
    )


def _scored_lines(block: Block, fragments: Votes) -> list[str]:
    names = block.names()
    return join_lines(
        map(names.__getitem__, fragments.rows.tolist()),
        fragment_suffixes(fragments.numbers),
        _truth_column(fragments.are_viral),
        float_column(fragments.others),
        float_column(fragments.highest),
    )


def _name_of_scored(line: str) -> str:
    return line.rsplit("\t", len(_SCORED) - 1)[0]


def _fragment_lines(block: Block, fragments: Votes, best: NDArray[np.int32], length: int) -> list[str]:
    lengths, rows, numbers = block.contigs["length"], fragments.rows, fragments.numbers
    starts, ends = ranges(lengths, rows, numbers - np.int64(1), length).T
    names = list(map(block.names().__getitem__, rows.tolist()))
    places = join_lines(
        names,
        constant_column(b"", len(names)),
        *map(integer_column, (numbers, starts, ends, fragments.frames)),
        text_column(FRAMES)[best],
    )
    scores = _scored_lines(block, fragments)
    return [f"{left}\t{right}" for left, right in zip(scores, places, strict=True)]


def _best_frames(block: Block, fragments: Votes) -> NDArray[np.int32]:
    """Return the frame of each fragment's highest P(virus), the first of several."""
    highest = np.repeat(fragments.highest, fragments.frames)
    orfs = np.flatnonzero(block.scores["virus"] == highest)
    first = orfs[np.searchsorted(orfs, fragments.starts)]
    frames: NDArray[np.int32] = block.scores["frame"][first]
    return frames


def _truth_column(truths: NDArray[np.bool_]) -> TextColumn:
    column: TextColumn = text_column((b"False", b"True"))[truths.astype(np.intp)]
    return column
