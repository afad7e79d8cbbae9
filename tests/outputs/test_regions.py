"""Viral stretches of contigs, compared with a slow and simple implementation; and their two tables."""

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import predict
from stored_runs import LENGTH, Record, ScoredOrf, store_run
from support import ROOT, read_table

from virnuc_async._version import __version__
from virnuc_async.errors import UsageError
from virnuc_async.outputs.region_tables import bed_chunks, gff3_chunks
from virnuc_async.outputs.regions import Region, contig_regions, find_regions, viral_share
from virnuc_async.runs.store import Store
from virnuc_async.sequences.fragments import cut
from virnuc_async.settings import RegionRules, Settings

SCORES = st.sampled_from([0.0, 0.1, 0.5, 0.55, 0.6, 0.75, 0.9, 1.0])
# Without smoothing, from one fragment of 100 bases on.
PLAIN = RegionRules(open_score=0.8, close_score=0.5, smoothing=0, gap=100, min_length=100, min_contig=0)


@st.composite
def rules(draw: st.DrawFn) -> RegionRules:
    low, high = sorted(draw(st.tuples(SCORES, SCORES)))
    sizes = draw(st.tuples(*[st.sampled_from([0, 99, 100, 250, 1000])] * 4))
    return RegionRules(high, low, *sizes, draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])))


def slow_regions(
    places: Sequence[tuple[int, int]], scores: Sequence[float], length: int, rules: RegionRules
) -> list[Region]:
    """Return the regions that the docstrings describe, one fragment after the other."""
    spans = [list(place) for place in places]
    for left, right in pairwise(spans):
        if right[0] < left[1]:
            left[1] = right[0] = (right[0] + left[1]) // 2
    smoothed = [slow_mean(spans, scores, sum(span), rules.smoothing) for span in spans]
    groups: list[list[int]] = []
    for number in sorted(slow_members(spans, smoothed, rules)):
        if groups and spans[number][0] - spans[groups[-1][-1]][1] <= rules.gap:
            groups[-1] = list(range(groups[-1][0], number + 1))
        else:
            groups.append([number])
    found = []
    for group in groups if length >= rules.min_contig else []:
        start, end = spans[group[0]][0], spans[group[-1]][1]
        own = [spans[n] for n in group], [scores[n] for n in group]
        is_whole = end - start >= rules.whole_fraction * length
        kind = "viral_contig" if is_whole else "prophage_candidate"
        if end - start >= rules.min_length:
            found.append(Region(start, end, pytest.approx(slow_mean(*own, 0, 1e9)), len(group), kind))
    return found


def slow_mean(
    spans: Sequence[Sequence[int]], scores: Sequence[float], twice_middle: int, width: float
) -> float:
    near = [
        (end - start, score)
        for (start, end), score in zip(spans, scores, strict=True)
        if abs(start + end - twice_middle) <= width
    ]
    return round(sum(n * s for n, s in near) / sum(n for n, _ in near), 9)


def slow_members(spans: Sequence[Sequence[int]], smoothed: Sequence[float], rules: RegionRules) -> set[int]:
    """Return the numbers of the fragments that are reached from one that opens a region."""
    inside: set[int] = set()
    for seed in (number for number, score in enumerate(smoothed) if score >= rules.open_score):
        for step in (1, -1):
            at = seed
            while at in range(len(spans)) and smoothed[at] >= rules.close_score:
                inside.add(at)
                left, right = sorted((at, at + step))
                if at + step in range(len(spans)) and spans[right][0] - spans[left][1] > rules.gap:
                    break
                at += step
    return inside


@given(
    length=st.integers(0, 2500),
    scores=st.lists(SCORES | st.none(), min_size=25, max_size=25),
    rules=rules(),
)
def test_regions_are_those_of_the_simple_implementation(
    length: int, scores: list[float | None], rules: RegionRules
) -> None:
    scored = [(place, score) for place, score in zip(cut(length, LENGTH), scores, strict=False)]
    places = [place for place, score in scored if score is not None]
    known = [score for _, score in scored if score is not None]
    found = find_regions(np.array(places).reshape(-1, 2), np.array(known), length, rules)
    assert found == slow_regions(places, known, length, rules)


def regions_of(scores: Sequence[float | None], length: int, rules: RegionRules) -> list[tuple[int, int, str]]:
    """Return start, end and kind of the regions of a contig of which some fragments have no score."""
    scored = [p for p in zip(cut(length, LENGTH), scores, strict=True) if p[1] is not None]
    places = np.array([place for place, _ in scored]).reshape(-1, 2)
    found = find_regions(places, np.array([score for _, score in scored]), length, rules)
    return [(region.start, region.end, region.kind) for region in found]


ISLAND, WHOLE = "prophage_candidate", "viral_contig"


@pytest.mark.parametrize(
    ("scores", "length", "changes", "expected"),
    [
        ([0.1] * 9, 900, {}, []),
        ([0.9] * 9, 900, {}, [(0, 900, WHOLE)]),
        ([], 0, {}, []),
        ([None] * 9, 900, {}, []),
        ([0.1, 0.9, 0.6, 0.1, 0.1, 0.6, 0.1, 0.1, 0.1], 900, {}, [(100, 300, ISLAND)]),  # 0.6 opens none
        ([0.1, 0.9, 0.6, 0.1, 0.6, 0.9, 0.1, 0.1, 0.1], 900, {}, [(100, 600, ISLAND)]),  # a gap of 100
        (
            [0.1, 0.9, 0.6, 0.1, 0.6, 0.9, 0.1, 0.1],
            800,
            {"gap": 99},
            [(100, 300, ISLAND), (400, 600, ISLAND)],
        ),
        ([0.9, None, 0.9, None, None, 0.9], 600, {}, [(0, 300, ISLAND), (500, 600, ISLAND)]),
        ([0.1, 0.9, 0.1], 300, {"min_length": 101}, []),
        ([0.9, 0.9], 200, {"min_contig": 201}, []),
        ([0.9, 0.9], 200, {"min_contig": 200}, [(0, 200, WHOLE)]),
        ([0.9] * 8 + [0.1] * 2, 1000, {}, [(0, 800, ISLAND)]),
        ([0.9] * 8 + [0.1] * 2, 1000, {"whole_fraction": 0.8}, [(0, 800, WHOLE)]),
        # The last fragment is of 51 bases and overlaps: the seam is in the middle of [50, 100).
        ([0.1, 0.9], 101, {"min_length": 1}, [(75, 101, ISLAND)]),
        ([0.9, 0.1], 101, {"min_length": 1}, [(0, 75, ISLAND)]),
        # A single fragment of another kind does not decide, in either direction.
        ([0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1], 700, {"smoothing": 200}, []),
        ([0.9, 0.9, 0.9, 0.2, 0.9, 0.9, 0.9], 700, {"smoothing": 200, "gap": 0}, [(0, 700, WHOLE)]),
    ],
)
def test_examples(
    scores: list[float | None], length: int, changes: dict[str, float], expected: list[tuple[int, int, str]]
) -> None:
    values = {name: getattr(PLAIN, name) for name in PLAIN.__dataclass_fields__}
    assert regions_of(scores, length, RegionRules(**values | changes)) == expected


def test_equal_scores_reach_a_threshold_that_is_as_high() -> None:
    rules = RegionRules(open_score=0.7, close_score=0.7, min_length=0, min_contig=0)
    for number in range(1, 60):
        assert regions_of([0.7] * number, 100 * number, rules) == [(0, 100 * number, WHOLE)]


def test_the_score_of_a_fragment_is_half_where_the_vote_is_a_tie() -> None:
    others, virus = np.array([[0.9, 0.2, 0, 0.5], [0.9, 0.6, 0, 0.499]], np.float32)
    assert viral_share(others, virus) == pytest.approx([0.5, 0.75, 0, 0.49949], abs=1e-5)


def test_rules_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match=r"close score must not be above open score: 0\.8 > 0\.7"):
        RegionRules(open_score=0.7, close_score=0.8)
    with pytest.raises(UsageError, match="gap must be at least 0, not -1"):
        RegionRules(gap=-1)
    with pytest.raises(UsageError, match="whole fraction must be a number from 0 to 1, not 2"):
        RegionRules(whole_fraction=2)


def contig(name: bytes, scores: str) -> Record:
    """Return a contig with a fragment for each letter: viral (v), not (n), without an ORF (.)."""
    values = {"v": (0.1, 0.9), "n": (0.9, 0.1)}
    scored = ((number, values[letter]) for number, letter in enumerate(scores, 1) if letter != ".")
    return Record(name, tuple(ScoredOrf(number, 0, *pair) for number, pair in scored))


def stored(directory: Path, *records: Record) -> Store:
    return store_run(directory, records, size=5)


def test_regions_of_a_run_are_those_of_each_contig() -> None:
    records = [
        contig(b"a", "nnnvvvnnn"),
        contig(b"b", "n" * 9),
        contig(b"c", "v" * 12),
        contig(b"d", "." * 9),
    ]
    with tempfile.TemporaryDirectory() as directory:
        store = stored(Path(directory), *records)
        found = [(one.id, one.length, one.regions) for one in contig_regions(store.reader, LENGTH, PLAIN)]
        store.close()
    # Contig c, the third, has 1,186 bases, so that its fragments overlap by one or two.
    island, whole = (pytest.approx(0.9, abs=1e-6),) * 2
    assert found == [
        (b"a", 900, [Region(300, 600, island, 3, ISLAND)]),
        (b"c", 1186, [Region(0, 1186, whole, 12, WHOLE)]),
    ]


def test_bed_and_gff3(tmp_path: Path) -> None:
    store = stored(tmp_path, contig(b"a", "nvvnnnnvv"), contig(b"b", "v" * 9))
    bed = b"".join(bed_chunks(store.reader, LENGTH, PLAIN)).decode()
    gff3 = b"".join(gff3_chunks(store.reader, LENGTH, PLAIN)).decode()
    store.close()
    assert bed.splitlines() == [
        "#contig\tstart\tend\tname\tscore\tstrand\tkind\tfragments\tmean_score",
        "a\t100\t300\tregion_1\t900\t.\tprophage_candidate\t2\t0.900",
        "a\t700\t900\tregion_2\t900\t.\tprophage_candidate\t2\t0.900",
        "b\t0\t893\tregion_3\t900\t.\tviral_contig\t9\t0.900",
    ]
    source = f"virnuc-async_{__version__}"
    assert gff3.splitlines() == [
        "##gff-version 3",
        "##sequence-region a 1 900",
        f"a\t{source}\tprophage\t101\t300\t0.900\t.\t.\tID=region_1;kind=prophage_candidate;fragments=2",
        f"a\t{source}\tprophage\t701\t900\t0.900\t.\t.\tID=region_2;kind=prophage_candidate;fragments=2",
        "##sequence-region b 1 893",
        f"b\t{source}\tviral_sequence\t1\t893\t0.900\t.\t.\tID=region_3;kind=viral_contig;fragments=9",
    ]


def test_a_run_without_regions_has_tables_with_their_headers(tmp_path: Path) -> None:
    store = stored(tmp_path, contig(b"a", "n" * 9))
    assert list(gff3_chunks(store.reader, LENGTH, PLAIN)) == [b"##gff-version 3\n"]
    assert len(list(bed_chunks(store.reader, LENGTH, PLAIN))) == 1
    store.close()


HOSTILE = {
    b"NODE_1|x.y:2": (b"NODE_1|x.y:2", "NODE_1|x.y:2"),
    b">a;b=c,d&e%f": (b">a;b=c,d&e%f", "%3Ea%3Bb%3Dc%2Cd%26e%25f"),
    b"\xff\xc3\xa9": (b"\xff\xc3\xa9", "%FF%C3%A9"),
    b"#1": (b"%231", "%231"),
    b"": (b".", "."),
}


def test_hostile_ids(tmp_path: Path) -> None:
    store = stored(tmp_path, *(contig(name, "v" * 9) for name in HOSTILE))
    _, *lines = bed_chunks(store.reader, LENGTH, PLAIN)
    _, *features = gff3_chunks(store.reader, LENGTH, PLAIN)
    found = (line.split(b"\t")[0] for line in lines), (text.decode().splitlines()[1] for text in features)
    in_bed, in_gff3 = found[0], (line.split("\t")[0] for line in found[1])
    assert dict(zip(HOSTILE, zip(in_bed, in_gff3, strict=True), strict=True)) == HOSTILE
    store.close()


SOURCE = ROOT / "docs" / "examples" / "metagenome.fa.gz"
# Rules for contigs that are a few fragments long.
SIZES = {"min-contig": 2000, "min-length": 500, "smoothing": 0, "gap": 200}
SHORT = tuple(word for name, size in SIZES.items() for word in (f"--region-{name}", size))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("regions") / "out"
    assert predict(SOURCE, out, *SHORT).code == 0
    return out


def test_both_tables_have_the_regions_of_the_fragments(finished: Path) -> None:
    lengths = {row[0]: int(row[2]) for row in read_table(finished / "contigs.tsv")[1:]}
    fragments: dict[str, list[tuple[int, int, float]]] = {name: [] for name in lengths}
    for row in read_table(finished / "fragments.tsv")[1:]:
        others, virus = float(row[2]), float(row[3])
        fragments[row[4]].append((int(row[6]), int(row[7]), virus / (virus + others)))
    rules = RegionRules(min_contig=2000, min_length=500, smoothing=0, gap=200)
    expected = []
    for name, rows in fragments.items():
        found = slow_regions([row[:2] for row in rows], [row[2] for row in rows], lengths[name], rules)
        expected += [(name, region.start, region.end, region.kind, region.fragments) for region in found]
    bed = [
        (name, int(start), int(end), kind, int(count))
        for name, start, end, _, _, _, kind, count, _ in read_table(finished / "regions.bed")[1:]
    ]
    assert bed == expected
    assert {row[3] for row in bed} == {ISLAND, WHOLE}
    gff3 = [row for row in read_table(finished / "regions.gff3") if not row[0].startswith("##")]
    assert [(row[0], int(row[3]) - 1, int(row[4])) for row in gff3] == [row[:3] for row in bed]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--region-open-score", 0.99),
        ("--region-close-score", 0.1),
        ("--region-smoothing", 3000),
        ("--region-gap", 5000),
        ("--region-min-length", 1200),
        ("--region-min-contig", 4000),
        ("--region-whole-fraction", 0.2),
    ],
)
def test_every_rule_changes_the_regions(finished: Path, option: str, value: float) -> None:
    assert predict(SOURCE, finished, *SHORT).code == 0
    bed = (finished / "regions.bed").read_bytes()
    ended = predict(SOURCE, finished, *SHORT, option, value)
    assert "writing the tables of this finished run again" in ended.err
    assert (finished / "regions.bed").read_bytes() != bed


def test_regions_stay_by_the_rules_of_the_last_time(finished: Path) -> None:
    assert predict(SOURCE, finished, *SHORT).code == 0
    bed = (finished / "regions.bed").read_bytes()
    assert "its files are unchanged" in predict(SOURCE, finished).err
    assert "regions: smoothing=0, gap=200, min_length=500, min_contig=2000 -> the default" in (
        predict(SOURCE, finished, "--regions").err
    )
    assert (finished / "regions.bed").read_bytes() != bed
    with pytest.raises(UsageError, match="regions must be RegionRules, not True"):
        Settings(regions=True)  # type: ignore[arg-type]
