"""From scores to verdicts to tables, against a slow and plain account of the same rules."""

import errno
import math
import os
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from running import files_no_larger_than

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import Stage
from virnuc_async.outputs.embeddings import save_features
from virnuc_async.outputs.predictions import (
    LABELS,
    Verdicts,
    contig_verdicts,
    failed_line,
    fragment_verdicts,
    label_contigs,
    predictions,
)
from virnuc_async.runs.blocks import CONTIG, SCORE, Block
from virnuc_async.runs.reader import Failure
from virnuc_async.runs.store import Store
from virnuc_async.sequences.batches import Batch, ContigRow, FileRow, Window
from virnuc_async.sequences.orfs import Frame
from virnuc_async.sequences.tokens import Ragged

WIDTH = 4


class ScoredOrf(NamedTuple):
    """An ORF of a made-up run."""

    fragment: int  # from 1
    frame: int
    others: float
    virus: float
    failed: bool = False


class Record(NamedTuple):
    """A contig of a made-up run; *orfs* are in order."""

    id: bytes
    orfs: tuple[ScoredOrf, ...]


def stored(directory: Path, records: Sequence[Record], embeddings: bool = False, size: int = 4096) -> Store:
    """Keep *records* as a run with windows of *size* ORFs does, in batches that are not in input order."""
    orfs = [orf for record in records for orf in record.orfs]
    store = Store(directory)
    store.bind_run({}, ["dir\t1/a.fa"])
    for window in _windows(records, size):
        store.add_window(window)
        for batch in reversed(list(window.batches(max(3, len(window.origins) // 4)))):
            store.add_batch(_scored(batch, orfs, embeddings))
    return store


def _windows(records: Sequence[Record], size: int) -> Iterator[Window]:
    """Form windows as a run does: they end with a fragment."""
    number, first = 0, 0
    rows: list[ContigRow] = []
    origins: list[tuple[int, int, int]] = []
    for contig, record in enumerate(records):
        rows.append(ContigRow(contig, 0, record.id, 7 * contig, 9))
        for fragment, orfs in groupby(record.orfs, attrgetter("fragment")):
            origins += [(contig, fragment, orf.frame) for orf in orfs]
            if len(origins) >= size:
                yield _window(number, first, rows, origins)
                number, first = number + 1, first + len(origins)
                rows, origins = [], []
    yield _window(number, first, rows, origins)


def _window(
    number: int, first: int, rows: Sequence[ContigRow], places: Sequence[tuple[int, int, int]]
) -> Window:
    table = np.array(places, np.int64).reshape(-1, 3)
    tokens = Ragged(np.full(len(table), 5, np.int32), np.ones(len(table), np.int64))
    files = (FileRow(0, "a", 1, None),)
    return Window(number, first, tuple(rows), files, table, b"", tokens, tokens)


def _scored(batch: Batch, orfs: Sequence[ScoredOrf], embeddings: bool) -> ScoredBatch:
    own = [orfs[number] for number in batch.orfs]
    scores = np.array([(orf.others, orf.virus) for orf in own], np.float32)
    failures = {row: (Stage.PROTEIN, "no") for row, orf in enumerate(own) if orf.failed}
    features = np.repeat(batch.orfs[:, None], WIDTH, 1).astype(np.float32)
    return ScoredBatch(batch, "cpu:0", 0.0, scores, features if embeddings else None, failures)


def a_block(*scores: tuple[int, float, float]) -> Block:
    """Give a contig whose ORFs are of these fragments, with these scores for others and virus."""
    rows = [
        (number, 0, fragment, 0, others, virus) for number, (fragment, others, virus) in enumerate(scores)
    ]
    return Block(np.zeros(1, CONTIG), b"c\n", np.array(rows, SCORE))


def verdict(*of_one: float) -> Verdicts:
    """Give the verdict on a single contig."""
    return Verdicts(*(np.array([number]) for number in of_one))


# The verdict on a contig


@pytest.mark.parametrize(
    ("scores", "expected", "label"),
    [
        ([], (0, 0, 0.0, 0.0, 0.0), "no_orf"),
        ([(1, 0.25, 0.75)], (1, 1, 1.0, 0.75, 0.75), "virus"),
        ([(1, 0.5, 0.5)], (1, 1, 1.0, 0.5, 0.5), "virus"),  # a tie is viral
        ([(1, 0.625, 0.375)], (1, 0, 0.0, 0.375, 0.375), "others"),
        # The highest of each decides, not the same ORF's and not their number.
        ([(1, 0.75, 0.25), (1, 0.75, 0.25), (1, 0.125, 0.875)], (1, 1, 1.0, 0.875, 0.875), "virus"),
        ([(1, 0.875, 0.125), (1, 0.125, 0.875)], (1, 1, 1.0, 0.875, 0.875), "virus"),
        # Half of the fragments is enough; fragment 2 had no ORF and does not count.
        ([(1, 0.25, 0.75), (3, 1.0, 0.0)], (2, 1, 0.5, 0.375, 0.75), "virus"),
        ([(1, 0.25, 0.75), (3, 1.0, 0.0), (9, 1.0, 0.25)], (3, 1, 1 / 3, 1 / 3, 0.75), "others"),
    ],
)
def test_judge(scores: list[tuple[int, float, float]], expected: tuple[float, ...], label: str) -> None:
    found = label_contigs(a_block(*scores))
    assert tuple(column.item() for column in astuple(found)) == expected
    assert LABELS[found.labels(0.5).item()] == label


def test_label_at_the_threshold() -> None:
    found = label_contigs(a_block(*((n, float(n > 3), float(n <= 3)) for n in range(1, 6))))
    assert found.viral_fraction.item() == 0.6
    labels = [LABELS[found.labels(at).item()] for at in (0, 0.6, math.nextafter(0.6, 1), 1)]
    assert labels == ["virus", "virus", "others", "others"]
    assert LABELS[verdict(1, 0, 0.0, 0.0, 0.0).labels(0).item()] == "virus"
    assert LABELS[verdict(0, 0, 0.0, 0.0, 0.0).labels(0).item()] == "no_orf"


def test_mean_is_rounded_once() -> None:
    # Added one after the other, the small ones would be lost.
    found = label_contigs(a_block((1, 0, 1), *((n, 0, 2.0**-53) for n in range(2, 10))))
    assert found.mean_p_virus.item() == (1 + 2.0**-50) / 9


# The tables


PROBABILITIES = st.floats(0, 1, width=32) | st.sampled_from([0.5, 1e-5, 1 / 3, 1e-30])
TEXTS = ["a", "b", "a_chunk_1", "\u00e9", "\U0001f9a0", "", "a\0", "a_chunk_1\0", "a_chunk_1\1", "long" * 99]
IDS = st.sampled_from([b"\xff", b"\x85", *(text.encode() for text in TEXTS)])


@st.composite
def records(draw: st.DrawFn) -> Record:
    places = draw(st.sets(st.tuples(st.integers(1, 12), st.integers(0, 5)), max_size=8))
    score = st.tuples(PROBABILITIES, PROBABILITIES, st.booleans())
    return Record(draw(IDS), tuple(ScoredOrf(*place, *draw(score)) for place in sorted(places)))


def slowly(records: Sequence[Record], threshold: float) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """What the three tables must hold, their headers aside."""
    orf_rows, fragment_rows, contig_rows = [], [], []
    for number, (name, orfs) in enumerate(records):
        best: dict[int, tuple[np.float32, np.float32]] = {}
        for orf in orfs:
            if orf.failed:
                continue
            others, virus = np.float32(orf.others), np.float32(orf.virus)
            where = b"%s_chunk_%d" % (name, orf.fragment)
            label = ("others", "virus")[int(np.argmax([others, virus]))]
            cells = (Frame(orf.frame).name, f"\t{label}\t{others!s}\t{virus!s}\n")
            orf_rows.append(where + "".join(cells).encode())
            before = best.get(orf.fragment, (np.float32(0), np.float32(0)))
            best[orf.fragment] = (max(before[0], others), max(before[1], virus))
        viral = [bool(virus >= others) for others, virus in best.values()]
        fragment_rows += [
            b"%s_chunk_%d\t%s\n" % (name, fragment, str(is_viral).encode())
            for fragment, is_viral in zip(best, viral, strict=True)
        ]
        share = sum(viral) / len(viral) if viral else 0.0
        tops = [float(virus) for _, virus in best.values()]
        numbers = (share, math.fsum(tops) / len(tops) if tops else 0.0, max(tops, default=0.0))
        verdict = "no_orf" if not best else "virus" if share >= threshold else "others"
        facts = ["dir 1/a.fa", 7 * number, 9, len(best), sum(viral), *map(np.float32, numbers), verdict]
        contig_rows.append(name + b"\t" + "\t".join(map(str, facts)).encode() + b"\n")
    # By id; Python's sort, too, leaves equal ids in the order of the input.
    fragment_rows.sort(key=lambda row: row.split(b"\t")[0])
    return orf_rows, fragment_rows, contig_rows


def lines(table: Iterator[bytes]) -> list[bytes]:
    """Give the lines of a table; no part of it may be empty: that would be taken for its end."""
    parts = list(table)
    assert all(parts)
    return b"".join(parts).splitlines(keepends=True)


@given(
    run=st.lists(records(), max_size=6),
    threshold=st.sampled_from([0, 0.5, 0.6, 1]),
    window=st.sampled_from([1, 2, 5, 4096]),
    room=st.sampled_from([1, 300, 1 << 20]),
    pieces=st.sampled_from([1, 3]),
)
def test_tables_against_the_slow_way(
    run: list[Record], threshold: float, window: int, room: int, pieces: int
) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        for name, value in (("_RUN_BYTES", room), ("_PIECES", pieces), ("_ROWS", window)):
            patch.setattr(f"virnuc_async.outputs.predictions.{name}", value)
        store = stored(Path(directory), run, size=window)
        orf_rows, fragment_rows, contig_rows = slowly(run, threshold)
        assert lines(predictions(store.reader)) == [b"Sequence_ID\tPrediction\tscore1\tscore2\n", *orf_rows]
        assert lines(fragment_verdicts(store.reader)) == [b"Modified_ID\tIs_Virus\n", *fragment_rows]
        tally: Counter[str] = Counter()
        header, *found = lines(contig_verdicts(store.reader, threshold, tally))
        assert found == contig_rows
        assert header == (
            b"contig\tfile\tlength\tfragments\tfragments_with_orf\tviral_fragments\t"
            b"viral_fraction\tmean_p_virus\tmax_p_virus\tverdict\n"
        )
        assert tally == Counter(row.decode("latin-1").split("\t")[-1].rstrip("\n") for row in contig_rows)
        store.close()


def texts_of(numbers: np.ndarray, directory: Path) -> list[str]:
    """Give what prediction_results.txt has for scores of these numbers."""
    pairs = enumerate(zip(numbers[::2].tolist(), numbers[1::2].tolist(), strict=True), start=1)
    store = stored(directory, [Record(b"c", tuple(ScoredOrf(n, 0, *pair) for n, pair in pairs))])
    rows = [row.decode().rstrip("\n").split("\t") for row in lines(predictions(store.reader))[1:]]
    store.close()
    return [text for row in rows for text in row[2:]]


@given(st.lists(st.integers(0, 2**32 - 1), max_size=30))
def test_every_float32_is_printed_as_str_does(bits: list[int]) -> None:
    numbers = np.array([*bits, *bits], np.uint32).view(np.float32)
    with tempfile.TemporaryDirectory() as directory:
        assert texts_of(numbers, Path(directory)) == list(map(str, numbers))


def test_probabilities_are_printed_as_str_does(tmp_path: Path) -> None:
    first, last = np.array([0.9e-4, 1], np.float32).view(np.int32)
    some = np.arange(first, last, 2003, dtype=np.int32)
    numbers = np.concatenate([some, last - np.arange(1000, dtype=np.int32)]).view(np.float32)
    numbers = numbers[: len(numbers) // 2 * 2]
    assert texts_of(numbers, tmp_path) == list(map(str, numbers))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.1, "0.1"),
        (1 / 3, "0.33333334"),
        (0.0001, "1e-04"),
        (0.00001, "1e-05"),
        (1.2345678e-05, "1.2345678e-05"),
        (1.0, "1.0"),
        (0.0, "0.0"),
        (1 - 2**-24, "0.99999994"),
        (1e-45, "1e-45"),
        (0.037826713, "0.037826713"),
    ],
)
def test_decimals_are_the_shortest_that_give_back_the_number(
    number: float, text: str, tmp_path: Path
) -> None:
    store = stored(tmp_path, [Record(b"c", (ScoredOrf(1, 0, number, 1.0),))])
    _, row = lines(predictions(store.reader))
    assert row.decode("latin-1").split("\t")[2] == text == str(np.float32(number))
    store.close()


def test_fragments_are_sorted_by_code_point_and_equal_ids_stay(tmp_path: Path) -> None:
    names = ["b", "a", "Z", "\U0001f9a0", "\uffee", "\u00e9", "a", "a_chunk_1"]
    run = [
        Record(name.encode(), tuple(ScoredOrf(fragment, 0, n % 2, 1 - n % 2) for fragment in (1, 2, 10)))
        for n, name in enumerate(names)
    ]
    store = stored(tmp_path, run)
    _, *found = [line.decode().split("\t") for line in lines(fragment_verdicts(store.reader))]
    ids = [row[0] for row in found]
    assert ids == sorted(ids)
    assert ids[:3] == ["Z_chunk_1", "Z_chunk_10", "Z_chunk_2"]  # as text, as published
    assert [row for row in found if row[0] == "a_chunk_1"] == [
        ["a_chunk_1", "False\n"],
        ["a_chunk_1", "True\n"],
    ]
    store.close()


def test_sorting_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virnuc_async.outputs.predictions._RUN_BYTES", 1)
    run = [Record(b"c%d" % n, (ScoredOrf(1, 0, 0.5, 0.5),)) for n in range(5)]
    store = stored(tmp_path, run, size=1)
    before = set(tmp_path.iterdir())
    with files_no_larger_than(20), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        list(fragment_verdicts(store.reader))
    assert len(lines(fragment_verdicts(store.reader))) == 6
    assert set(tmp_path.iterdir()) == before
    store.close()


def test_one_long_id_costs_its_own_length(tmp_path: Path) -> None:
    long = b"A" * 1_000_000  # a header that lost its line end
    ids = [long, *(b"c%d" % number for number in range(1000))]
    store = stored(tmp_path, [Record(name, (ScoredOrf(1, 0, 0.5, 0.5),)) for name in ids])
    tracemalloc.start()
    for table in (
        predictions(store.reader),
        fragment_verdicts(store.reader),
        contig_verdicts(store.reader, 0.5, Counter()),
    ):
        assert len(lines(table)) == 1002
    assert tracemalloc.get_traced_memory()[1] < 30 * len(long)
    tracemalloc.stop()
    store.close()


# failed_files.txt


@pytest.mark.parametrize(
    ("path", "message", "line"),
    [
        ("a.fa", "gone", "a.fa|Input|gone\n"),
        ("a|b.fa", "saw '|'", "a\\|b.fa|Input|saw '\\|'\n"),
        ("a\\b", "c\\|d", "a\\\\b|Input|c\\\\\\|d\n"),
        ("a\nb", "c\r\nd\re", "a\\nb|Input|c\\nd\\ne\n"),
        ("caf\u00e9\udcff", "\t", "caf\u00e9\udcff|Input|\t\n"),
    ],
)
def test_failed_line(path: str, message: str, line: str) -> None:
    assert failed_line(Failure(path, Stage.INPUT, message)) == line


@given(st.text(), st.sampled_from(list(Stage)), st.text())
def test_failed_line_can_be_taken_apart_again(path: str, stage: Stage, message: str) -> None:
    line = failed_line(Failure(path, stage, message))
    assert line.count("\n") == 1
    assert "\r" not in line
    fields, field, escaped = [], "", False
    for letter in line[:-1]:
        if escaped:
            field += {"n": "\n"}.get(letter, letter)
            escaped = False
        elif letter == "|":
            fields.append(field)
            field = ""
        elif letter == "\\":
            escaped = True
        else:
            field += letter
    assert not escaped
    ends = [text.replace("\r\n", "\n").replace("\r", "\n") for text in (path, stage, message)]
    assert [*fields, field] == ends


# merged_features.pt


def orf(fragment: int, frame: int, failed: bool = False) -> ScoredOrf:
    return ScoredOrf(fragment, frame, 0.5, 0.5, failed)


@pytest.mark.parametrize("block", [1, 2, 1 << 20])
def test_features_are_those_of_scored_orfs(block: int, tmp_path: Path) -> None:
    run = [
        Record(b"x", (orf(1, 0), orf(1, 3, failed=True), orf(2, 5))),
        Record(b"none", ()),
        Record(b"caf\xe9", (orf(1, 1, failed=True), orf(1, 2), orf(1, 4, failed=True))),
    ]
    store = stored(tmp_path / "out", run, embeddings=True)
    path = tmp_path / "out" / ".features"
    save_features(store.reader, WIDTH, path, block_bytes=block * 4 * WIDTH)
    found = torch.load(path, weights_only=True)
    assert found["ids"] == ["x_chunk_1F1", "x_chunk_2R3", "caf\udce9_chunk_1F3"]
    assert found["data"].dtype == torch.float32
    assert found["data"].tolist() == [[0] * WIDTH, [2] * WIDTH, [4] * WIDTH]
    assert not [left.name for left in (tmp_path / "out").iterdir() if "rows" in left.name]
    store.close()


@pytest.mark.parametrize("run", [[], [Record(b"x", (orf(1, 0, failed=True),))], [Record(b"x", ())]])
def test_features_of_nothing(run: list[Record], tmp_path: Path) -> None:
    store = stored(tmp_path, run, embeddings=True)
    save_features(store.reader, WIDTH, tmp_path / "features.pt")
    found = torch.load(tmp_path / "features.pt", weights_only=True)
    assert found["ids"] == []
    assert found["data"].shape == (0, WIDTH)
    store.close()


def test_features_on_a_full_disk(tmp_path: Path) -> None:
    many = Record(b"x", tuple(orf(fragment, 0) for fragment in range(1, 5000)))
    store = stored(tmp_path, [many], embeddings=True)
    path = tmp_path / "features.pt"
    rows = 4 * WIDTH * 4999
    for room in (rows // 2, rows):  # for the rows, and for the file that is made of them
        with files_no_larger_than(room), pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            save_features(store.reader, WIDTH, path)
    save_features(store.reader, WIDTH, path)
    assert len(torch.load(path, weights_only=True)["ids"]) == 4999
    store.close()
