"""The tables of ORFs, fragments and contigs, compared with a slow and simple implementation."""

import errno
import math
import os
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import files_no_larger_than
from slow_scores import log_odds
from stored_runs import LENGTH, Record, ScoredOrf, store_run, table_lines

from virnuc_async.errors import CannotWrite
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs.contigs import contig_chunks
from virnuc_async.outputs.fragments import fragment_chunks, published_fragment_chunks, scored_fragment_chunks
from virnuc_async.outputs.predictions import prediction_chunks
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.orfs import Frame

PENALTY = 0.75

PROBABILITIES = st.floats(0, 1, width=32) | st.sampled_from([0.5, 1e-5, 1 / 3, 1e-30])
TEXTS = ["a", "b", "a_chunk_1", "\u00e9", "\U0001f9a0", "", "a\0", "a_chunk_1\0", "a_chunk_1\1", "long" * 99]
IDS = st.sampled_from([b"\xff", b"\x85", *(text.encode() for text in TEXTS)])


@st.composite
def records(draw: st.DrawFn) -> Record:
    coordinates = draw(st.sets(st.tuples(st.integers(1, 9), st.integers(0, 5)), max_size=8))
    score = st.tuples(PROBABILITIES, PROBABILITIES, st.booleans())
    return Record(draw(IDS), tuple(ScoredOrf(*at, *draw(score)) for at in sorted(coordinates)))


def expected_rows(
    records: Sequence[Record], threshold: float
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return the rows that the three tables must have, without their headers."""
    orf_rows, fragment_rows, contig_rows = [], [], []
    for number, (name, orfs) in enumerate(records):
        best: dict[int, tuple[np.float32, np.float32]] = {}
        for orf in orfs:
            if orf.failed:
                continue
            others, virus = np.float32(orf.others), np.float32(orf.virus)
            fragment = b"%s_chunk_%d" % (name, orf.fragment)
            label = ("others", "virus")[int(np.argmax([others, virus]))]
            rest = (Frame(orf.frame).name, f"\t{label}\t{others!s}\t{virus!s}\n")
            orf_rows.append(fragment + "".join(rest).encode())
            before = best.get(orf.fragment, (np.float32(0), np.float32(0)))
            best[orf.fragment] = (max(before[0], others), max(before[1], virus))
        viral = [bool(virus >= others) for others, virus in best.values()]
        fragment_rows += [
            b"%s_chunk_%d\t%s\n" % (name, fragment, str(is_viral).encode())
            for fragment, is_viral in zip(best, viral, strict=True)
        ]
        cells = ["dir 1/a.fa", _bases(number), 9, len(best), sum(viral), "", "", "", "no_orf"]
        if best:
            share = sum(viral) / len(viral)
            tops = [float(virus) for _, virus in best.values()]
            numbers = (share, math.fsum(tops) / len(tops), max(tops))
            cells[5:] = [*map(np.float32, numbers), "virus" if share >= threshold else "others"]
        cells.append(log_odds([virus for _, virus in best.values()], 9, PENALTY))
        contig_rows.append(name + b"\t" + "\t".join(map(str, cells)).encode() + b"\n")
    # By id. Python's sort is stable: equal ids stay in the order of the input.
    fragment_rows.sort(key=lambda row: row.split(b"\t")[0])
    return orf_rows, fragment_rows, contig_rows


def fragment_rows_in_order(records: Sequence[Record]) -> Iterator[bytes]:
    """Yield the rows that ``fragments.tsv`` must have, without its header."""
    for number, (name, all_orfs) in enumerate(records):
        ranges = list(cut(_bases(number), LENGTH))
        scored = [orf for orf in all_orfs if not orf.failed]
        for fragment, group in groupby(scored, attrgetter("fragment")):
            orfs = list(group)
            others, virus = np.array([(orf.others, orf.virus) for orf in orfs], np.float32).max(0)
            best = next(Frame(orf.frame).name for orf in orfs if np.float32(orf.virus) == virus)
            cells = (virus >= others, others, virus, "", fragment, *ranges[fragment - 1], len(orfs), best)
            before, after = "\t".join(map(str, cells)).split("\t\t")
            yield b"%s_chunk_%d\t%s\t%s\t%s\n" % (name, fragment, before.encode(), name, after.encode())


def _bases(number: int) -> int:
    """Return the length of a synthetic contig."""
    return 9 * LENGTH - 7 * number % LENGTH


@given(
    run=st.lists(records(), max_size=6),
    threshold=st.sampled_from([0, 0.5, 0.6, 1]),
    window=st.sampled_from([1, 2, 5, 4096]),
    run_bytes=st.sampled_from([1, 300, 1 << 20]),
    pieces=st.sampled_from([1, 3]),
)
def test_tables_are_those_of_the_simple_implementation(
    run: list[Record], threshold: float, window: int, run_bytes: int, pieces: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = store_run(Path(directory), run, size=window)
        orf_rows, fragment_rows, contig_rows = expected_rows(run, threshold)
        header, *found = table_lines(prediction_chunks(store.reader, rows=window))
        assert header == b"Sequence_ID\tPrediction\tscore1\tscore2\n"
        assert found == orf_rows
        header, *found = table_lines(published_fragment_chunks(store.reader, run_bytes, pieces))
        assert header == b"Modified_ID\tIs_Virus\n"
        assert found == fragment_rows
        header, *found = table_lines(scored_fragment_chunks(store.reader, run_bytes, pieces))
        assert header == b"Modified_ID\tIs_Virus\tmax_score_0\tmax_score_1\n"
        in_order = (b"\t".join(row.split(b"\t")[:4]) + b"\n" for row in fragment_rows_in_order(run))
        assert found == sorted(in_order, key=lambda row: row.split(b"\t")[0])
        header, *found = table_lines(fragment_chunks(store.reader, LENGTH, rows=window))
        assert header == (
            b"Modified_ID\tIs_Virus\tmax_score_0\tmax_score_1\t"
            b"contig\tfragment\tstart\tend\tframes\tbest_frame\n"
        )
        assert found == list(fragment_rows_in_order(run))
        tally: Counter[str] = Counter()
        header, *found = table_lines(
            contig_chunks(store.reader, VerdictRule(threshold=threshold, penalty=PENALTY), tally)
        )
        assert found == contig_rows
        assert header == (
            b"contig\tfile\tlength\tfragments\tfragments_with_orf\tviral_fragments\t"
            b"viral_fraction\tmean_p_virus\tmax_p_virus\tverdict\tlog_odds\n"
        )
        assert tally == Counter(row.decode("latin-1").split("\t")[9] for row in contig_rows)
        store.close()


def test_fragments_are_sorted_by_code_point_and_equal_ids_stay_in_order(tmp_path: Path) -> None:
    names = ["b", "a", "Z", "\U0001f9a0", "\uffee", "\u00e9", "a", "a_chunk_1"]
    run = [
        Record(name.encode(), tuple(ScoredOrf(fragment, 0, n % 2, 1 - n % 2) for fragment in (1, 2, 10)))
        for n, name in enumerate(names)
    ]
    store = store_run(tmp_path, run)
    _, *found = [line.decode().split("\t") for line in table_lines(published_fragment_chunks(store.reader))]
    ids = [row[0] for row in found]
    assert ids == sorted(ids)
    assert ids[:3] == ["Z_chunk_1", "Z_chunk_10", "Z_chunk_2"]  # as text, like the published table
    assert [row for row in found if row[0] == "a_chunk_1"] == [
        ["a_chunk_1", "False\n"],
        ["a_chunk_1", "True\n"],
    ]
    store.close()


def test_sorting_on_a_full_disk(tmp_path: Path) -> None:
    run = [Record(b"c%d" % n, (ScoredOrf(1, 0, 0.5, 0.5),)) for n in range(5)]
    store = store_run(tmp_path, run, size=1)
    before = set(tmp_path.iterdir())
    with files_no_larger_than(20), pytest.raises(CannotWrite) as caught:
        list(published_fragment_chunks(store.reader, run_bytes=1))
    reason = f"temporary files: {os.strerror(errno.EFBIG)}"
    hint = "Make room there, or set TMPDIR to a directory with more"
    assert str(caught.value) == f"{tmp_path}: {reason}. {hint}"
    assert len(table_lines(published_fragment_chunks(store.reader, run_bytes=1))) == 6
    assert set(tmp_path.iterdir()) == before
    store.close()


def test_one_long_id_costs_its_own_length(tmp_path: Path) -> None:
    long = b"A" * 1_000_000  # a header that lost its line end
    ids = [long, *(b"c%d" % number for number in range(1000))]
    store = store_run(tmp_path, [Record(name, (ScoredOrf(1, 0, 0.5, 0.5),)) for name in ids])
    tracemalloc.start()
    for table in (
        prediction_chunks(store.reader),
        published_fragment_chunks(store.reader),
        fragment_chunks(store.reader, LENGTH),
        contig_chunks(store.reader, VerdictRule(), Counter()),
    ):
        assert len(table_lines(table)) == 1002
    assert tracemalloc.get_traced_memory()[1] < 30 * len(long)
    tracemalloc.stop()
    store.close()
