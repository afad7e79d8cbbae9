"""The table of fragments: ``prediction_results_highestscore.csv``, in which tabs separate the columns."""

from contextlib import closing

import numpy as np

from virnuc_async.runs.blocks import Block
from virnuc_async.runs.reader import RunReader

from .columns import Chunks, encode_lines, fragment_suffixes, join_lines, text_column
from .sorting import PIECES, RUN_BYTES, sort_lines
from .verdicts import vote


def fragment_chunks(reader: RunReader, run_bytes: int = RUN_BYTES, pieces: int = PIECES) -> Chunks:
    """Yield ``prediction_results_highestscore.csv``, some lines at a time, sorted by the fragments' names."""
    yield b"Modified_ID\tIs_Virus\n"
    blocks = map(_fragment_lines, reader.blocks())
    with closing(sort_lines(blocks, reader.directory, run_bytes, pieces)) as sorted_lines:
        for lines in sorted_lines:
            yield encode_lines(lines)


def _fragment_lines(block: Block) -> list[str]:
    fragments, names = vote(block), block.names()
    return join_lines(
        map(names.__getitem__, fragments.rows.tolist()),
        fragment_suffixes(fragments.numbers),
        text_column((b"False", b"True"))[fragments.are_viral.astype(np.intp)],
    )
