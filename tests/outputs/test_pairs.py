"""Mates: which files and records are, which are not, and what both say together."""

import gzip
import json
import lzma
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from fakes import Rules, fake_devices, p_virus
from hypothesis import given
from hypothesis import strategies as st
from running import OPEN, SHUT, Ran, log, predict, rows, run, some_reads, summary, tables
from slow_scores import log_odds
from support import TABLES, fasta

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import NoDevicesLeft
from virnuc_async.models.bundle import find
from virnuc_async.models.calibration import Calibration, Method
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs.pair_table import pair_chunks
from virnuc_async.outputs.pairs import pair_blocks
from virnuc_async.pipeline import execute, run_pipeline
from virnuc_async.runs.plan import Plan
from virnuc_async.runs.store import Store
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.mates import (
    SAMPLE_RECORDS,
    Mates,
    check_first_records,
    compare,
    find_mates,
    pair_id,
)
from virnuc_async.sequences.orfs import open_frames
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, form_windows
from virnuc_async.settings import Pairing, Settings
from virnuc_async.text import plural

# Names of files


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x_R1.fq.gz", "x_R2.fq.gz"),
        ("x_S7_L001_R1_001.fastq.gz", "x_S7_L001_R2_001.fastq.gz"),
        ("x_1.fq", "x_2.fq"),
        ("x.1.fq", "x.2.fq"),
        ("x.R1.fastq.zst", "x.R2.fastq.zst"),
        ("x-R1.fa", "x-R2.fa"),
        ("R1.fq", "R2.fq"),
        ("x_r1.fq", "x_r2.fq"),
        ("x_R1.trimmed.fq.gz", "x_R2.trimmed.fq.gz"),
        ("x_1.fastp.fastq.gz", "x_2.fastp.fastq.gz"),
        ("x_1_paired.fq", "x_2_paired.fq"),
        ("x_1P.fq.gz", "x_2P.fq.gz"),  # Trimmomatic
        ("x_R1_val_1.fq.gz", "x_R2_val_2.fq.gz"),  # Trim Galore
        ("x_R1_001_val_1.fq.gz", "x_R2_001_val_2.fq.gz"),
        ("x_1_val_1.fq.gz", "x_2_val_2.fq.gz"),
        ("x_val_1.fq", "x_val_2.fq"),
        ("V350_L01_1_1.fq.gz", "V350_L01_1_2.fq.gz"),  # BGI
        ("x_R2_R1.fq", "x_R2_R2.fq"),
        ("lane_1_R1.fq", "lane_1_R2.fq"),
        ("X_1.FASTQ", "X_2.FASTQ"),
        ("x_R1.fq.gz", "x_R2.fq"),  # packed in different ways
        ("x_1.fastq.xz", "x_2.fq.bz2"),
        ("x_R1", "x_R2"),
        ("x_R1.reads", "x_R2.reads"),
        ("d/x_R1.fq", "./d/../d/x_R2.fq"),
        ("x\n_R1.fq", "x\n_R2.fq"),
        ("\udcff_1.fq", "\udcff_2.fq"),
    ],
)
def test_names_of_mates(first: str, second: str) -> None:
    assert find_mates([first, second], Pairing.AUTO) == [Mates(0, 1)]
    assert find_mates([second, "-", first], Pairing.AUTO) == [Mates(2, 0)]
    assert find_mates([first, second], Pairing.OFF) == []


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["x_R1.fq"],
        ["x_R1_R2.fq", "x_R1.fq"],
        ["x_R1_R2.fq", "x_R2.fq"],
        ["x_R1.fq", "y_R2.fq"],
        ["a/x_R1.fq", "b/x_R2.fq"],
        ["x_R1.fq", "x_r2.fq"],
        ["x_R1.fq", "x.R2.fq"],
        ["x_R1.fq", "x_2.fq"],
        ["x_R1_001.fq", "x_R2_002.fq"],
        ["x_R2.fq", "x_R3.fq"],
        ["x_R1.fq", "x_R1.fq"],
        ["x_R1.fq", "x_R2.fq", "x_R2.fq"],  # which of the two?
        ["x_R1.fq.gz", "x_R2.fq", "x_R2.fa"],
        ["x_1.fa", "x_2.fa"],  # as good as any numbers
        ["x_1", "x_2"],
        ["x1.fq", "x2.fq"],
        ["1.fq", "2.fq"],
        ["x_11.fq", "x_12.fq"],
        ["x_1_lane3.fq", "x_2_lane3.fq"],
        ["x_1U.fq", "x_2U.fq"],
        ["x_R1_unpaired.fq", "x_R2_unpaired.fq"],
        ["x_1.unpaired.fq", "x_2.unpaired.fq"],
        ["XR1.fq", "XR2.fq"],
        ["x_R1a.fq", "x_R2a.fq"],
        ["-", "-"],
        ["sample.fa", "other.fa"],
    ],
)
def test_names_that_say_nothing(names: list[str]) -> None:
    for order in permutations(names):
        assert find_mates(order, Pairing.AUTO) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b_R1.fq", "b_R2.fq", "a_1.fq", "a_2.fq"], {("b_R1.fq", "b_R2.fq"), ("a_1.fq", "a_2.fq")}),
        (["x_R1.fq", "x_R2.fq", "x_R1_R2.fq", "x.fq"], {("x_R1.fq", "x_R2.fq")}),
        (["x_1.fq", "x_2.fq", "x_3.fq"], {("x_1.fq", "x_2.fq")}),  # SRA's third file has no mates
        # Both forms of both files: those of the same form belong together.
        (
            ["x_R1.fq", "x_R1.fq.gz", "x_R2.fq", "x_R2.fq.gz"],
            {("x_R1.fq", "x_R2.fq"), ("x_R1.fq.gz", "x_R2.fq.gz")},
        ),
        (["x_R1.fq", "x_R1.fq.gz", "x_R2.fq"], {("x_R1.fq", "x_R2.fq")}),
        # R1 and R2 are replicates here, and R1_1 and R1_2 the mates.
        (
            ["x_R1_1.fq", "x_R1_2.fq", "x_R2_1.fq", "x_R2_2.fq"],
            {("x_R1_1.fq", "x_R1_2.fq"), ("x_R2_1.fq", "x_R2_2.fq")},
        ),
        # And here they are the mates, in two parts.
        (["x_R1_1.fq", "x_R2_1.fq"], {("x_R1_1.fq", "x_R2_1.fq")}),
        (
            ["l_1_R1.fq", "l_1_R2.fq", "l_2_R1.fq", "l_2_R2.fq"],
            {("l_1_R1.fq", "l_1_R2.fq"), ("l_2_R1.fq", "l_2_R2.fq")},
        ),
        (["x_1P.fq", "x_1U.fq", "x_2P.fq", "x_2U.fq"], {("x_1P.fq", "x_2P.fq")}),
    ],
)
def test_mates_among_others(names: list[str], expected: set[tuple[str, str]]) -> None:
    for order in permutations(names):
        found = find_mates(order, Pairing.AUTO)
        assert {(order[first], order[second]) for first, second in found} == expected
        assert found == sorted(found)


def test_every_file_may_be_interleaved() -> None:
    assert find_mates(["x_R1.fq", "-", "x_R2.fq"], Pairing.INTERLEAVED) == [(0, 0), (1, 1), (2, 2)]


# Ids of records


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (b"a", b"a", b"a"),
        (b"a/1", b"a/2", b"a"),
        (b"M0:1:2#ACGT/1", b"M0:1:2#ACGT/2", b"M0:1:2#ACGT"),
        (b"SRR1.7.1", b"SRR1.7.2", b"SRR1.7"),
        (b"SRR1.7", b"SRR1.7", b"SRR1.7"),
        (b"SRR9.1.1", b"SRR9.1.2", b"SRR9.1"),
        (b"SRR9.1/1", b"SRR9.1/2", b"SRR9.1"),
        (b"SRR9/1", b"SRR9/2", b"SRR9"),
        (b"xSRR9.1", b"xSRR9.2", b"xSRR9"),
        (b"SRR9.1", b"SRR9.2", None),  # two spots of a run
        (b"ERR10.1", b"ERR10.2", None),
        (b"DRR000001.1", b"DRR000001.2", None),
        (b"a/1", b"a/1", b"a/1"),
        (b"\xff/1", b"\xff/2", b"\xff"),
        (b"a", b"b", None),
        (b"a/2", b"a/1", None),
        (b"a/1", b"b/2", None),
        (b"a/1", b"a.2", None),
        (b"a/1", b"a", None),
        (b"a_1", b"a_2", None),
        (b"a1", b"a2", None),
        (b"SRR1.7", b"SRR1.8", None),
        (b"/1", b"/2", None),
        (b"", b"", None),
        (b"", b"a", None),
        (b"1", b"2", None),
    ],
)
def test_ids_of_mates(first: bytes, second: bytes, expected: bytes | None) -> None:
    assert pair_id(first, second) == expected


# A store of several files, made of real records

_LENGTH = 30  # of fragments
PENALTY = 0.75


class Record(NamedTuple):
    """A record of a made-up file."""

    id: bytes
    bases: bytes


def in_memory() -> "tempfile.TemporaryDirectory[str]":
    """Give a place where nothing waits for a disk, if there is one."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


@cache
def tokenizer() -> OrfTokenizer:
    return OrfTokenizer(find("tiny-500").tokenizer())


def stored(directory: Path, files: Sequence[Sequence[Record]], window: int) -> Store:
    """Keep what *files* hold as a run does that has fake devices and windows of so many ORFs."""
    paths = []
    for number, records in enumerate(files):
        paths.append(str(directory / f"{number}.fa"))
        Path(paths[-1]).write_bytes(b"".join(b">%s\n%s\n" % record for record in records))
    store = Store(directory / "out")
    store.bind_run({}, paths)
    for some in form_windows(paths, read_contigs, Cut(_LENGTH, window), tokenizer()):
        store.add_window(some)
        for batch in some.batches(max(40, len(some.residues.ids) // 3)):
            ends = np.cumsum(batch.residues.lengths)[:-1]
            virus = np.array([p_virus(orf) for orf in np.split(batch.residues.ids, ends)], np.float32)
            store.add_batch(ScoredBatch(batch, "cpu:0", 0.0, np.stack((1 - virus, virus), 1), None, {}))
    return store


# Stretches without a stop, with one in each frame, and of neither kind; some longer than a window.
BASES = st.lists(
    st.sampled_from([b"GCA" * 7, b"TTAATTAATTAATTAA" * 3, b"ACGTTGCAACGG", b"C", b""]), max_size=6
)
SEQUENCES = st.builds(b"".join, BASES)
WINDOWS = st.sampled_from([1, 3, 7, 4096])


@st.composite
def mated(draw: st.DrawFn) -> tuple[list[Record], list[Record]]:
    """Records of two files that are mates, one by one."""
    ids = draw(st.lists(st.sampled_from([b"a", b"b", b"\xe9", b"long" * 50]), max_size=6))
    ends = draw(st.sampled_from([(b"", b""), (b"/1", b"/2"), (b".1", b".2"), (b" 1:N:0:A", b" 2:N:0:A")]))
    first, second = ([Record(id + end, draw(SEQUENCES)) for id in ids] for end in ends)
    return first, second


OTHERS = st.lists(st.builds(Record, st.just(b"x"), SEQUENCES), max_size=3)


def votes(bases: bytes) -> list[tuple[float, float]]:
    """The highest scores for others and for virus of each fragment with an ORF, one after the other."""
    found = []
    for start, end in cut(len(bases), _LENGTH):
        orfs = list(open_frames(bases[start:end], [(0, end - start)]))
        virus = [p_virus(tokenizer().residues([orf.protein]).ids) for orf in orfs]
        if virus:
            found.append((max(1 - score for score in virus), max(virus)))
    return found


def slowly(first: Record, second: Record, paths: tuple[str, str], threshold: float) -> str:
    """The row of pairs.tsv that these two must give."""
    id = first.id.split()[0].decode("latin-1")
    id = id[:-2] if id[-2:] in ("/1", ".1") else id
    sizes = [len(record.bases) for record in (first, second)]
    best = votes(first.bases) + votes(second.bases)
    viral = sum(virus >= others for others, virus in best)
    fragments = sum(-(-size // _LENGTH) for size in sizes)
    facts = [*paths, *sizes, fragments, len(best), viral, "", "", "", "no_orf"]
    if best:
        share, tops = viral / len(best), [float(virus) for _, virus in best]
        numbers = (share, math.fsum(tops) / len(tops), max(tops))
        facts[-4:] = [*map(np.float32, numbers), "virus" if share >= threshold else "others"]
    facts.append(log_odds([virus for _, virus in best], fragments, PENALTY))
    return "\t".join([id, *map(str, facts)])


def table(store: Store, mates: Sequence[Mates], threshold: float = 0.5) -> tuple[list[str], Counter[str]]:
    tally: Counter[str] = Counter()
    text = b"".join(
        pair_chunks(store.reader, mates, VerdictRule(threshold=threshold, penalty=PENALTY), tally)
    ).decode("latin-1")
    assert text.endswith("\n")
    return text[:-1].split("\n"), tally


@given(files=st.lists(OTHERS, max_size=4), window=WINDOWS)
def test_the_records_of_one_file(files: list[list[Record]], window: int) -> None:
    with (
        in_memory() as directory,
        closing(stored(Path(directory), files, window)) as store,
    ):
        every = [
            (name, *contig.tolist()[1:], [row[2:] for row in block.scores[block.rows == at].tolist()])
            for block in store.reader.blocks()
            for at, (name, contig) in enumerate(zip(block.names(), block.contigs, strict=True))
        ]
        for number, records in enumerate(files):
            found = [
                (name, *contig.tolist()[1:], [row[2:] for row in block.scores[block.rows == at].tolist()])
                for block in store.reader.blocks(number)
                for at, (name, contig) in enumerate(zip(block.names(), block.contigs, strict=True))
            ]
            assert found == [row for row in every if row[2] == number]
            assert len(found) == len(records)
            assert [id for some in store.reader.ids(number) for id in some] == [
                record.id for record in records
            ]


@given(before=OTHERS, between=OTHERS, both=mated(), window=WINDOWS, threshold=st.sampled_from([0, 0.5, 1]))
def test_pairs_of_two_files_against_the_slow_way(
    before: list[Record],
    between: list[Record],
    both: tuple[list[Record], list[Record]],
    window: int,
    threshold: float,
) -> None:
    with in_memory() as directory:
        files = [before, both[1], between, both[0]]
        with closing(stored(Path(directory), files, window)) as store:
            header, *found = table(store, [Mates(3, 1)], threshold)[0]
        paths = (f"{directory}/3.fa", f"{directory}/1.fa")
        assert found == [slowly(*pair, paths, threshold) for pair in zip(*both, strict=True)]
        assert header.split("\t") == [
            *("pair", "file_1", "file_2", "length_1", "length_2", "fragments", "fragments_with_orf"),
            *("viral_fragments", "viral_fraction", "mean_p_virus", "max_p_virus", "verdict"),
            "log_odds",
        ]


@given(before=OTHERS, both=mated(), window=WINDOWS, is_cut_short=st.booleans())
def test_pairs_of_an_interleaved_file_against_the_slow_way(
    before: list[Record], both: tuple[list[Record], list[Record]], window: int, is_cut_short: bool
) -> None:
    mixed = [record for pair in zip(*both, strict=True) for record in pair]
    mixed += [Record(b"half", b"GCA" * 20)] * is_cut_short
    with in_memory() as directory:
        with closing(stored(Path(directory), [before, mixed], window)) as store:
            _, *found = table(store, [Mates(1, 1)])[0]
        path = f"{directory}/1.fa"
        assert found == [slowly(*pair, (path, path), 0.5) for pair in zip(*both, strict=True)]


def test_a_long_mate_beside_a_short_one(tmp_path: Path) -> None:
    """Mates of which one runs through many windows, and the other is one of many in a window."""
    first = [Record(b"p%d" % n, b"GCA" * (3 + 200 * (n % 3 == 0))) for n in range(7)]
    second = [Record(b"p%d" % n, b"GCAACG" * (1 + n)) for n in range(7)]
    with closing(stored(tmp_path, [first, second], 20)) as store:
        assert store.reader.window_count() > 15
        _, *found = table(store, [Mates(0, 1)])[0]
        paths = (str(tmp_path / "0.fa"), str(tmp_path / "1.fa"))
        assert found == [slowly(*pair, paths, 0.5) for pair in zip(first, second, strict=True)]


def test_several_mates_stand_behind_each_other_and_are_counted(tmp_path: Path) -> None:
    some, shut = Record(b"a", b"GCA" * 9), Record(b"b", SHUT.encode())
    with closing(stored(tmp_path, [[some], [shut], [some], [shut]], 3)) as store:
        rows, tally = table(store, [Mates(0, 2), Mates(1, 3)], 0)
        assert [row.split("\t")[0] for row in rows[1:]] == ["a", "b"]
        assert [row.split("\t")[-2] for row in rows[1:]] == ["virus", "no_orf"]
        assert tally == {"virus": 1, "no_orf": 1, "others": 0}
        header_only, tally = table(store, [])
        assert (len(header_only), tally) == (1, {})


def test_a_calibration_is_of_a_pairs_mean(tmp_path: Path) -> None:
    calibration = Calibration("", Method.ISOTONIC, 1, ((0, 0.25), (1, 0.75)), 0.01, 0.5)
    both = [Record(b"a/1", b"GCA" * 9), Record(b"a/2", b"ACG" * 9)], [Record(b"s", b""), Record(b"s", b"")]
    files = [[both[0][0], both[1][0]], [both[0][1], both[1][1]]]
    rule = VerdictRule(calibration=calibration)
    with closing(stored(tmp_path, files, 3)) as store:
        text = b"".join(pair_chunks(store.reader, [Mates(0, 1)], rule, Counter())).decode()
    header, *lines = (line.split("\t") for line in text.splitlines())
    assert header[-3:] == ["verdict", "log_odds", "p_virus_calibrated"]
    scored, none = (dict(zip(header, line, strict=True)) for line in lines)
    assert float(scored["p_virus_calibrated"]) == pytest.approx(0.25 + float(scored["mean_p_virus"]) / 2)
    assert none["p_virus_calibrated"] == ""


def test_no_more_than_some_windows_are_in_memory(tmp_path: Path) -> None:
    files = [[Record(b"r%d" % n, b"GCA" * 9) for n in range(40)] for _ in range(2)]
    with closing(stored(tmp_path, files, 12)) as store:
        sizes = [len(block.lengths) for block in pair_blocks(store.reader, Mates(0, 1))]
        assert sum(sizes) == 40
        assert max(sizes) <= 12
        inner = [len(some) for some in store.reader.ids(1)]
        assert (sum(inner), max(inner) <= 12) == (40, True)


# Ids that do not agree


def ids_of(*files: Sequence[bytes]) -> Callable[[int], Iterator[bytes]]:
    return lambda file: iter(files[file])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([], [], (0, None, None)),
        ([b"a", b"b"], [b"a", b"b"], (2, None, None)),
        ([b"a", b"b"], [b"b", b"a"], (0, b"a", b"b")),
        ([b"a", b"b", b"c"], [b"a", b"c"], (1, b"b", b"c")),
        ([b"a", b"b"], [b"a"], (1, b"b", None)),
        ([b"a"], [b"a", b"b"], (1, None, b"b")),
        ([], [b"a"], (0, None, b"a")),
    ],
)
def test_comparing(
    first: list[bytes], second: list[bytes], expected: tuple[int, bytes | None, bytes | None]
) -> None:
    found = compare(Mates(0, 1), ids_of(first, second))
    assert (found.pairs, found.first, found.second) == expected
    assert found.differ == (expected[1:] != (None, None))
    # Nothing is behind the end of what is looked at.
    assert not compare(Mates(0, 1), ids_of(first, second), expected[0]).differ


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], (0, None, None)),
        ([b"a/1", b"a/2", b"b", b"b"], (2, None, None)),
        ([b"a", b"a", b"b"], (1, b"b", None)),
        ([b"a", b"b", b"b", b"a"], (0, b"a", b"b")),
        ([b"r.1", b"r.2", b"r.3", b"r.4"], (1, b"r.3", b"r.4")),  # of single reads, SRA's ids
    ],
)
def test_comparing_neighbours(ids: list[bytes], expected: tuple[int, bytes | None, bytes | None]) -> None:
    found = compare(Mates(0, 0), ids_of(ids))
    assert (found.pairs, found.first, found.second) == expected


# The command


def fastq(ids: Sequence[str], seed: int = 0) -> bytes:
    """Reads with these ids; the same id, ends aside, has the same bases."""
    pool = list(some_reads(100, 150, seed).values())
    bases = [pool[sum(map(ord, id.split()[0].split("/")[0])) % 100] for id in ids]
    return "".join(
        f"@{id}\n{read}\n+\n{'I' * len(read)}\n" for id, read in zip(ids, bases, strict=True)
    ).encode()


IDS = [f"run:7:{number}" for number in range(12)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def mates(tmp_path: Path) -> tuple[Path, Path]:
    """Two files as a sequencer gives them."""
    paths = tmp_path / "x_R1.fq.gz", tmp_path / "x_R2.fq.gz"
    for number, path in enumerate(paths, 1):
        path.write_bytes(gzip.compress(fastq([f"{id} {number}:N:0:ACGT" for id in IDS], number)))
    return paths


def pairs_in(out: Path) -> list[list[str]]:
    return rows(out / "pairs.tsv")[1:]


def check_pairs(out: Path) -> None:
    """See that each row is what the rows of its mates in contigs.tsv say together."""
    of_contigs = [
        dict(zip(rows(out / "contigs.tsv")[0], row, strict=True)) for row in rows(out / "contigs.tsv")[1:]
    ]
    header, *lines = rows(out / "pairs.tsv")
    used: Counter[str] = Counter()
    for line in lines:
        row = dict(zip(header, line, strict=True))
        both = []
        for mate in ("1", "2"):
            own = [contig for contig in of_contigs if contig["file"] == row[f"file_{mate}"]]
            at = used[row[f"file_{mate}"]]
            used[row[f"file_{mate}"]] += 1
            both.append(own[at])
            assert own[at]["contig"].removesuffix(f"/{mate}") == row["pair"]
            assert own[at]["length"] == row[f"length_{mate}"]
        for name in ("fragments", "fragments_with_orf", "viral_fragments"):
            assert int(row[name]) == sum(int(contig[name]) for contig in both)
        with_orf = int(row["fragments_with_orf"])
        numbers = [row[name] for name in ("viral_fraction", "mean_p_virus", "max_p_virus")]
        if not with_orf:
            assert (*numbers, row["verdict"]) == ("", "", "", "no_orf")
            continue
        scored = [contig for contig in both if int(contig["fragments_with_orf"])]
        share = int(row["viral_fragments"]) / with_orf
        mean = sum(int(c["fragments_with_orf"]) * float(c["mean_p_virus"]) for c in scored) / with_orf
        highest = max(float(contig["max_p_virus"]) for contig in scored)
        assert list(map(float, numbers)) == pytest.approx([share, mean, highest], abs=1e-6)
        assert row["verdict"] == ("virus" if share >= 0.5 else "others")


def test_mates_get_one_verdict(mates: tuple[Path, Path], out: Path) -> None:
    ended = predict(*mates, out)
    assert ended.code == 0
    assert f"\n{mates[0]} and {mates[1]} are paired\n" in ended.err
    assert "WARNING" not in ended.err.partition("docs/how-to/models.md")[2]
    check_pairs(out)
    found = pairs_in(out)
    assert [row[:5] for row in found] == [[id, *map(str, mates), "150", "150"] for id in IDS]
    verdicts = Counter(row[-2] for row in found)
    assert len(verdicts) > 1
    counts = summary(out)["counts"]
    assert (counts["contigs"], counts["pairs"], counts["viral_pairs"]) == (24, 12, verdicts["virus"])
    assert summary(out)["settings"]["pairs"] == "auto"
    said = rf"Viral: \d+ of 24 reads, {verdicts['virus']} of 12 pairs \(\d+ ORFs of 24 fragments scored in"
    assert re.search(said, ended.err)


def test_what_is_not_of_pairs_stays_as_it_is(mates: tuple[Path, Path], tmp_path: Path) -> None:
    with_pairs, without = tmp_path / "with", tmp_path / "without"
    assert predict(*mates, with_pairs).code == 0
    ended = predict(*mates, without, "--pairs", "off")
    assert ended.code == 0
    assert not re.search(r"\b(pairs?|mates?)\b", ended.err)
    assert not (without / "pairs.tsv").exists()
    assert "pairs" not in summary(without)["counts"]
    assert tables(with_pairs) == tables(without)


def test_the_first_mate_is_first_in_whatever_order(mates: tuple[Path, Path], tmp_path: Path) -> None:
    for name, order in (("as named", mates), ("turned", mates[::-1])):
        assert predict(*order, tmp_path / name).code == 0
        check_pairs(tmp_path / name)
        assert [row[1:3] for row in pairs_in(tmp_path / name)] == [list(map(str, mates))] * len(IDS)


def test_mates_in_a_directory_or_a_list(tmp_path: Path, out: Path) -> None:
    reads = tmp_path / "reads"
    reads.mkdir()
    for sample in ("a", "b"):
        (reads / f"{sample}_1.fastq").write_bytes(fastq([f"{sample}/1", f"{sample}{sample}/1"]))
        (reads / f"{sample}_2.fastq.xz").write_bytes(
            lzma.compress(fastq([f"{sample}/2", f"{sample}{sample}/2"]))
        )
    (reads / "c_1.fastq").write_bytes(fastq(["single/1"]))
    assert predict(reads, out).code == 0
    check_pairs(out)
    assert [row[0] for row in pairs_in(out)] == ["a", "aa", "b", "bb"]
    assert summary(out)["counts"]["pairs"] == 4
    assert (out / "run.log").read_text().count("are paired") == 2
    names = tmp_path / "names.txt"
    names.write_text(f"{reads / 'b_2.fastq.xz'}\n{reads / 'a_1.fastq'}\n{reads / 'b_1.fastq'}\n")
    assert predict("--input-list", names, tmp_path / "listed").code == 0
    assert [row[0] for row in pairs_in(tmp_path / "listed")] == ["b", "bb"]


def test_many_mates_are_not_all_named(tmp_path: Path, out: Path) -> None:
    for number in range(9):
        for mate in (1, 2):
            (tmp_path / f"{number}_R{mate}.fa").write_text(f">r{number}/{mate}\nGCAGCA\n")
    ended = predict(tmp_path, out)
    assert ended.code == 0
    assert ended.err.count("are paired\n") == 3
    assert "\n6 more pairs of files are paired, too\n" in ended.err
    assert [row[0] for row in pairs_in(out)] == [f"r{number}" for number in range(9)]


def interleaved(path: Path) -> Path:
    ids = [f"{id}/{mate}" for id in IDS for mate in (1, 2)]
    path.write_bytes(fastq(ids))
    return path


def test_interleaved_files_and_standard_input(tmp_path: Path) -> None:
    source = interleaved(tmp_path / "x.fq")
    ended = predict(source, tmp_path / "file", "--pairs", "interleaved")
    assert ended.code == 0
    assert "\nneighbouring records of each file are paired\n" in ended.err
    check_pairs(tmp_path / "file")
    assert [row[:3] for row in pairs_in(tmp_path / "file")] == [[id, str(source), str(source)] for id in IDS]
    piped = predict("-", tmp_path / "pipe", "--pairs", "interleaved", stdin=source.read_bytes())
    assert piped.code == 0
    assert [row[:1] + row[3:] for row in pairs_in(tmp_path / "pipe")] == [
        row[:1] + row[3:] for row in pairs_in(tmp_path / "file")
    ]
    assert predict(source, tmp_path / "auto").code == 0  # nobody said so
    assert not (tmp_path / "auto" / "pairs.tsv").exists()


# What is wrong with them


@pytest.mark.parametrize(
    ("second", "at", "reason"),
    [
        (["a", "c", "b"], 2, "record {number} is 'b' in one and 'c' in the other"),
        (["b", "a", "c"], 1, "record {number} is 'a' in one and 'b' in the other"),
        (["a", "b"], 3, "record {number} of {first} has no mate: {second} has {count}"),
        (["a", "b", "c", "d"], 4, "record {number} of {second} has no mate: {first} has {count}"),
        (["a"], 2, "record {number} of {first} has no mate: {second} has {count}"),
    ],
)
@pytest.mark.parametrize("before", [0, SAMPLE_RECORDS])
def test_ids_that_do_not_agree_give_no_pair(
    second: list[str], at: int, reason: str, before: int, tmp_path: Path, out: Path
) -> None:
    """Whether the difference is found before the run, or after it, behind *before* pairs that agree."""
    names = {"first": tmp_path / "x_R1.fq", "second": tmp_path / "x_R2.fq"}
    same = b"".join(b"@same%d\nG\n+\nI\n" % number for number in range(before))  # too short for an ORF
    names["first"].write_bytes(same + fastq(["a", "b", "c"]))
    names["second"].write_bytes(same + fastq(second))
    right = [tmp_path / "y_R1.fq", tmp_path / "y_R2.fq"]
    for path in right:
        path.write_bytes(fastq(["y"]))
    ended = predict(*names.values(), *right, out)
    assert ended.code == 0
    number, count = f"{before + at:,}", plural(before + at - 1, "record")
    mismatch = reason.format(**names, number=number, count=count)
    warning = f"WARNING: {names['first']} and {names['second']} are named as mates, but {mismatch}. "
    assert ended.err.count(warning) == 1
    assert (
        "'seqkit pair' or BBTools' repair.sh sorts such files; --pairs off ignores the names of files\n"
        in ended.err
    )
    assert (f"{names['first']} and {names['second']} are paired" in ended.err) == (before > 0)
    assert ended.err.index(warning) < ended.err.index("Viral: ")
    assert [row[0] for row in pairs_in(out)] == ["y"]
    assert not (out / "failed_files.txt").exists()
    assert predict(*names.values(), out, "--overwrite").code == 0
    assert not (out / "pairs.tsv").exists()
    assert "pairs" not in summary(out)["counts"]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a/1", "a/2", "b/1", "c/2"], "not interleaved: records 3 and 4 are 'b/1' and 'c/2'"),
        (["a", "a", "b"], "not interleaved: record 3, 'b', has no mate"),
        (["a.1", "a.2", "a.3", "a.4"], "not interleaved: records 3 and 4 are 'a.3' and 'a.4'"),
    ],
)
def test_what_was_said_to_be_interleaved_and_is_not_failed(
    ids: list[str], said: str, tmp_path: Path, out: Path
) -> None:
    wrong, right = tmp_path / "wrong.fq", tmp_path / "right.fq"
    wrong.write_bytes(fastq(ids))
    right.write_bytes(fastq(["y", "y"]))
    for _ in range(2):  # and it stays so, asked again
        ended = predict(wrong, right, out, "--pairs", "interleaved")
        assert ended.code == 2
        assert (out / "failed_files.txt").read_text() == f"{wrong}|Input|{said}\n"
        assert [row[0] for row in pairs_in(out)] == ["y"]
        assert summary(out)["counts"]["failures"] == 1
        assert len(rows(out / "contigs.tsv")) == 1 + len(ids) + 2
        assert f"1 failure in {out}/failed_files.txt" in ended.err
    assert f"ERROR    {wrong}: {said}" in log(out)
    # The scores are there: what was meant costs no more than the tables.
    ended = predict(wrong, right, out)
    assert ended.code == 0
    assert "pairs: interleaved -> auto: writing the tables of this finished run again" in ended.err
    assert not (out / "failed_files.txt").exists()
    assert not (out / "pairs.tsv").exists()


def test_a_mate_that_breaks_half_way_has_pairs_before(mates: tuple[Path, Path], out: Path) -> None:
    whole = fastq([f"{id} 2:N:0:ACGT" for id in IDS], 2)
    mates[1].write_bytes(whole[: whole.index(b"@run:7:5") + 20])
    ended = predict(*mates, out)
    assert ended.code == 2
    assert f"WARNING: {mates[0]} and {mates[1]}: 5 pairs before the break, none behind it\n" in ended.err
    check_pairs(out)
    assert [row[0] for row in pairs_in(out)] == IDS[:5]
    assert len(rows(out / "contigs.tsv")) == 1 + 12 + 5
    assert summary(out)["counts"]["pairs"] == 5


def test_a_mate_that_breaks_before_what_is_wrong_with_it(tmp_path: Path, out: Path) -> None:
    """That the longer one is broken is no excuse."""
    first, second = tmp_path / "x_R1.fq", tmp_path / "x_R2.fq"
    first.write_bytes(fastq(["a"]))
    second.write_bytes(fastq(["a", "b"]) + b"@half\nGCA")
    ended = predict(first, second, out)
    assert ended.code == 2
    assert f"record 2 of {second} has no mate: {first} has 1 record" in ended.err
    assert not (out / "pairs.tsv").exists()


@pytest.mark.parametrize("content", [None, b"Dear reviewer,\n"])
def test_a_mate_that_cannot_be_read(content: bytes | None, mates: tuple[Path, Path], out: Path) -> None:
    mates[1].unlink()
    if content is not None:
        mates[1].write_bytes(content)
    assert predict(*mates, out, "--skip-missing").code == 2
    assert not (out / "pairs.tsv").exists()
    assert len(rows(out / "contigs.tsv")) == 1 + 12
    assert "pairs" not in summary(out)["counts"]


def test_an_interleaved_file_that_breaks(tmp_path: Path, out: Path) -> None:
    source = interleaved(tmp_path / "x.fq")
    whole = source.read_bytes()
    source.write_bytes(whole[: whole.index(b"@run:7:4/2") + 20])
    ended = predict(source, out, "--pairs", "interleaved")
    assert ended.code == 2
    assert [row[0] for row in pairs_in(out)] == IDS[:4]
    assert f"WARNING: {source}: 4 pairs before the break, none behind it\n" in ended.err
    assert (out / "failed_files.txt").read_text().count("\n") == 1


def test_mates_without_a_record(tmp_path: Path, out: Path) -> None:
    for mate in (1, 2):
        (tmp_path / f"x_R{mate}.fq").touch()
    (tmp_path / "y.fa").write_text(fasta([("y", OPEN)]))
    ended = predict(tmp_path, out)
    assert ended.code == 0
    assert "named as mates" not in ended.err
    assert not (out / "pairs.tsv").exists()


def test_named_pipes_are_not_looked_into(tmp_path: Path) -> None:
    paths = [str(tmp_path / "x_R1.fq"), str(tmp_path / "x_R2.fq")]
    for path in paths:
        os.mkfifo(path)
    assert not check_first_records(Mates(0, 1), paths, read_contigs).differ


# A run that is asked for again


def test_a_finished_run_is_asked_for_other_pairs(mates: tuple[Path, Path], out: Path) -> None:
    assert predict(*mates, out).code == 0
    first, scored = (out / "pairs.tsv").read_bytes(), tables(out)
    assert "this run is finished already" in predict(*mates, out).err
    again = predict(*mates, out, "--pairs", "off")
    assert again.code == 0
    assert "pairs: auto -> off: writing the tables of this finished run again\n" in again.err
    assert not (out / "pairs.tsv").exists()
    assert "this run is finished already" in predict(*mates, out, "--pairs", "off").err
    assert predict(*mates, out).code == 0
    assert (out / "pairs.tsv").read_bytes() == first
    assert tables(out) == scored


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"x")])
def test_a_table_of_pairs_that_was_lost_is_written_again(
    change: Callable[[Path], object], mates: tuple[Path, Path], out: Path
) -> None:
    assert predict(*mates, out).code == 0
    first = (out / "pairs.tsv").read_bytes()
    change(out / "pairs.tsv")
    ended = predict(*mates, out)
    assert "some of its files have changed: writing them again" in ended.err
    assert (out / "pairs.tsv").read_bytes() == first
    assert summary(out)["counts"]["pairs"] == 12


def test_files_that_got_names_of_mates(mates: tuple[Path, Path], tmp_path: Path, out: Path) -> None:
    plain = [path.rename(tmp_path / name) for path, name in zip(mates, ("a.fq", "b.fq"), strict=True)]
    assert predict(*plain, out).code == 0
    assert not (out / "pairs.tsv").exists()
    for old, new in zip(plain, mates, strict=True):
        old.rename(new)
    assert predict(*mates, out).code == 0
    check_pairs(out)
    assert len(pairs_in(out)) == 12


def test_overwrite_deletes_the_table_of_pairs(mates: tuple[Path, Path], tmp_path: Path, out: Path) -> None:
    assert predict(*mates, out).code == 0
    (tmp_path / "y.fa").write_text(fasta([("y", OPEN)]))
    assert predict(tmp_path / "y.fa", out, "--overwrite").code == 0
    assert not (out / "pairs.tsv").exists()


def test_options_of_pairs(mates: tuple[Path, Path], out: Path) -> None:
    ended: Ran = predict(*mates, out, "--pairs", "some")
    assert ended.code == 64
    assert "--pairs: invalid choice: 'some'" in ended.err
    said = run("predict", "--help").out
    assert "--pairs {auto,interleaved,off}" in said
    assert "pairs.tsv" in said


def test_what_is_measured_has_no_mates(tmp_path: Path, out: Path) -> None:
    named = []
    for kind, mate in (("viral", 1), ("nonviral", 2)):
        path = tmp_path / f"x_R{mate}.fa"
        path.write_text(fasta([(name, OPEN * 30 + bases) for name, bases in some_reads(5, 150).items()]))
        named.append(f"--{kind}={path}")
    ended = run(
        "evaluate", *named, "--output", out, "--devices", "cpu", "--lengths", "150", "--resamples", "10"
    )
    assert ended.code == 0
    assert "are paired" not in ended.err
    assert not list(out.rglob("pairs.tsv"))


async def test_from_python(mates: tuple[Path, Path], out: Path) -> None:
    found = await run_pipeline(mates, out, Settings(devices=("cpu",), pairs=Pairing.AUTO))
    assert found.counts["pairs"] == 12
    check_pairs(out)
    found = await run_pipeline(mates, out, Settings(devices=("cpu",), pairs=Pairing.OFF))
    assert "pairs" not in found.counts


# Devices and interruptions


@pytest.mark.parametrize("pairing", [Pairing.AUTO, Pairing.INTERLEAVED])
async def test_one_or_three_devices_interrupted_or_not(pairing: Pairing, tmp_path: Path) -> None:
    ids = [f"{id}/{mate}" for id in IDS for mate in (1, 2)]
    paths = [tmp_path / "x_R1.fq", tmp_path / "x_R2.fq"]
    if pairing == Pairing.INTERLEAVED:
        paths[0].write_bytes(fastq(ids))
        paths = paths[:1]
    else:
        for number, path in enumerate(paths):
            path.write_bytes(fastq(ids[number::2], number))
    bundle, settings = find("tiny-500"), Settings(tokens_per_batch=150, pairs=pairing)
    plans = {
        count: Plan(tuple(map(str, paths)), settings, bundle, fake_devices(count), window=7)
        for count in (1, 3)
    }
    for name, count in (("one", 1), ("three", 3)):
        await execute(plans[count], tmp_path / name, Rules().scorer)
    with pytest.raises(NoDevicesLeft):
        await execute(plans[1], tmp_path / "resumed", Rules(lost={"fake:0": 3}).scorer)
    assert not (tmp_path / "resumed" / "pairs.tsv").exists()
    unfinished = json.loads((tmp_path / "resumed" / "summary.json").read_bytes())
    assert "pairs" not in unfinished["counts"]
    await execute(plans[3], tmp_path / "resumed", Rules().scorer)
    check_pairs(tmp_path / "one")
    for name in (*TABLES, "pairs.tsv"):
        expected = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "three" / name).read_bytes() == expected
        assert (tmp_path / "resumed" / name).read_bytes() == expected
