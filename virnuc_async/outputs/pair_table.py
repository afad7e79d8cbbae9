"""The table of pairs: ``pairs.tsv``."""

from collections import Counter
from collections.abc import Iterable

from virnuc_async.models.calibration import Calibration
from virnuc_async.runs.reader import RunReader
from virnuc_async.sequences.mates import Mates

from .columns import Chunks, constant_column, integer_column
from .contigs import path_fields, verdict_header, verdict_lines
from .pairs import pair_blocks
from .verdicts import count_labels, verdict_columns


def pair_chunks(
    reader: RunReader,
    all_mates: Iterable[Mates],
    threshold: float,
    tally: Counter[str],
    calibration: Calibration | None = None,
) -> Chunks:
    """
    Yield ``pairs.tsv``, some lines at a time: every pair of *all_mates*, whose ids agree, in order.

    The fragments of both mates vote like those of one contig. Verdicts are counted in *tally*;
    with a *calibration*, a column is added at the end.
    """
    yield verdict_header("pair", "file_1", "file_2", "length_1", "length_2", calibration=calibration)
    paths = path_fields(reader)
    for mates in all_mates:
        for pairs in pair_blocks(reader, mates):
            verdicts = verdict_columns(pairs.joint, threshold, calibration)
            count_labels(verdicts, tally)
            yield verdict_lines(
                pairs.joint,
                *(constant_column(paths[file], len(pairs.lengths)) for file in mates),
                *map(integer_column, pairs.lengths.T),
                verdicts=verdicts,
            )
