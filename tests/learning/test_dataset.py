"""Labelled records: what headers and tables say of them; a split divides nothing that belongs together."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import some_reads
from support import fasta

from virnuc_async.errors import (
    BadTable,
    BrokenInput,
    MissingClassError,
    NoRecords,
    NotSequences,
    TooFewClusters,
    UnreadableInput,
    UsageError,
)
from virnuc_async.learning.dataset import (
    LEFT_OUT,
    TEST,
    TRAINING,
    VALIDATION,
    LabelledFiles,
    Records,
    SubsequenceSampler,
    check_sides,
    label_files,
    read_records,
    split_fragments,
    split_records,
)

VIRAL = fasta(
    [("v1 a virus genome=11 group=phages", "ACGT"), ("v2 genome=11", "ACGTA"), ("v3 nogenome=12", "ACGTAC")]
)
NONVIRAL = fasta([("n1 group=fungi", "ACGTAC"), ("v3", "A")])


@pytest.fixture
def data(tmp_path: Path) -> LabelledFiles:
    (tmp_path / "v.fa").write_text(VIRAL)
    (tmp_path / "n.fa").write_text(NONVIRAL)
    return label_files([tmp_path / "v.fa"], [tmp_path / "n.fa"], None, None)


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def groups_of(records: Records) -> list[tuple[bool, str]]:
    return [records.group_names[number] for number in records.groups.tolist()]


def test_headers_say_what_belongs_together(data: LabelledFiles) -> None:
    records = read_records(data)
    assert records.are_viral.tolist() == [True, True, True, False, False]
    assert records.lengths.tolist() == [4, 5, 6, 6, 1]
    # Records of one genome are one cluster; others are their own, also where ids are alike.
    assert records.clusters.tolist() == [0, 0, 1, 2, 3]
    assert records.cluster_names == ("11", "v3", "n1", "v3")
    assert groups_of(records) == [
        (True, "phages"),
        (True, "viral"),
        (True, "viral"),
        (False, "fungi"),
        (False, "nonviral"),
    ]
    assert records.told()[1] == {"group": "viral", "class": "viral", "records": 2, "bases": 11, "clusters": 2}


def test_tables_say_what_belongs_together(data: LabelledFiles, tmp_path: Path) -> None:
    clusters = table(tmp_path / "c.tsv", "# made by hand\n11\tA\r\nv3\tB\n\nn1\tA\n")
    groups = table(tmp_path / "g.tsv", "v1\tx\n11\ty\nv3\tx\nn1\tx\n")
    records = read_records(label_files(data.viral, data.nonviral, clusters, groups))
    # A genome's viruses and others may be one cluster.
    assert [records.cluster_names[number] for number in records.clusters] == ["A", "A", "B", "A", "B"]
    # A record's own line goes before its genome's; groups are of one class.
    assert groups_of(records) == [(True, "x"), (True, "y"), (True, "x"), (False, "x"), (False, "x")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v1\tA\n", "has no line for v2 or 11"),
        ("11\tA\nv3\tB\n", "has no line for n1"),
        ("11 A\n", "line 1 is not a name, a tab and another name"),
        ("11\tA\tB\n", "line 1 is not a name, a tab and another name"),
        ("#\n11\t\n", "line 2 is not a name, a tab and another name"),
        ("11\tA\n11\tA\n11\tB\n", "line 3: 11 is in A already"),
    ],
)
def test_tables_that_do_not_serve(data: LabelledFiles, tmp_path: Path, text: str, said: str) -> None:
    path = table(tmp_path / "c.tsv", text)
    for tables in ((path, None), (None, path)):
        with pytest.raises(BadTable, match="c.tsv") as caught:
            read_records(label_files(data.viral, data.nonviral, *tables))
        assert caught.value.reason == said


def test_table_that_is_missing(data: LabelledFiles, tmp_path: Path) -> None:
    with pytest.raises(BadTable, match="No such file"):
        read_records(label_files(data.viral, data.nonviral, tmp_path / "none.tsv", None))


def test_one_class_only(data: LabelledFiles, tmp_path: Path) -> None:
    empty = tmp_path / "empty.fa"
    empty.write_text("")
    with pytest.raises(MissingClassError, match="nothing viral in the labelled sequences"):
        read_records(label_files([empty], data.nonviral, None, None))
    with pytest.raises(MissingClassError, match="nothing nonviral in the labelled sequences"):
        read_records(label_files(data.viral, [empty], None, None))
    other = tmp_path / "other.fa"
    other.write_text("")
    with pytest.raises(NoRecords):
        read_records(label_files([empty], [other], None, None))


def test_files_are_read_wholly_or_not_at_all(data: LabelledFiles, tmp_path: Path) -> None:
    for name, content, failure in (
        ("protein.fa", ">p\nMALWMRLLPLLALLALW\n", NotSequences),
        ("broken.fq", "@r\nACGT\n+\nIIII\n@r\nAC\n", BrokenInput),
        ("missing.fa", None, UnreadableInput),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        with pytest.raises(failure):
            read_records(label_files([*data.viral, path], data.nonviral, None, None))


def test_files_that_make_no_sense(data: LabelledFiles) -> None:
    with pytest.raises(UsageError, match="cannot be viral and nonviral"):
        label_files([*data.viral, data.nonviral[0]], data.nonviral, None, None)
    with pytest.raises(UsageError, match="name files, not standard input"):
        label_files(["-"], data.nonviral, None, None)


def some_records(clusters: list[int], viral: list[bool], seed: int = 0) -> Records:
    rng = random.Random(seed)
    names = sorted(set(clusters))
    return Records(
        are_viral=np.array(viral),
        lengths=np.array([rng.randint(100, 5000) for _ in clusters]),
        clusters=np.array([names.index(cluster) for cluster in clusters]),
        cluster_names=tuple(map(str, names)),
        groups=np.array(viral, np.int64),
        group_names=((False, "nonviral"), (True, "viral")),
    )


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=80),
    st.tuples(st.floats(0.05, 0.45), st.floats(0.05, 0.45)),
    st.integers(0, 5),
)
def test_a_split_divides_no_cluster(numbers: list[int], shares: tuple[float, float], seed: int) -> None:
    viral = [number % 2 == 0 for number in numbers]
    records = some_records(numbers, viral)
    few = [len({number for number in numbers if number % 2 == kind}) < 3 for kind in (0, 1)]
    if any(few):
        with pytest.raises(TooFewClusters):
            split_records(records, *shares, seed)
        return
    sides = split_records(records, *shares, seed)
    for number in set(numbers):
        assert len({side for own, side in zip(numbers, sides.tolist(), strict=True) if own == number}) == 1
    for kind in (True, False):
        assert set(sides[records.are_viral == kind].tolist()) == {TRAINING, VALIDATION, TEST}
    assert (split_records(records, *shares, seed) == sides).all()


def test_sides_have_their_shares_of_the_bases() -> None:
    numbers = [number // 3 for number in range(3000)]
    records = some_records(numbers, [number % 2 == 0 for number in numbers])
    one, other = (split_records(records, 0.1, 0.25, seed) for seed in (1, 2))
    assert (one != other).any()
    for sides in (one, other):
        for kind in (True, False):
            of_kind = records.lengths * (records.are_viral == kind)
            shares = [of_kind[sides == side].sum() / of_kind.sum() for side in (TRAINING, VALIDATION, TEST)]
            assert shares == pytest.approx([0.65, 0.1, 0.25], abs=0.01)


def test_a_cluster_that_is_larger_than_a_side_is_learnt_from() -> None:
    records = some_records(
        [0] * 50 + [1] * 50 + list(range(2, 20)), [True] * 50 + [False] * 50 + [True, False] * 9
    )
    for seed in range(5):
        sides = split_records(records, 0.1, 0.2, seed)
        assert set(sides[:100].tolist()) == {TRAINING}


def test_published_split_is_of_fragments() -> None:
    sides = split_fragments(1000, 0.1, 0.2, 0)
    assert np.bincount(sides).tolist() == [700, 100, 200]
    assert (split_fragments(1000, 0.1, 0.2, 0) == sides).all()
    assert (split_fragments(1000, 0.1, 0.2, 1) != sides).any()
    assert len(split_fragments(0, 0.1, 0.2, 0)) == 0


def test_every_side_needs_both_classes() -> None:
    sides = np.array([TRAINING, TRAINING, VALIDATION, VALIDATION, TEST, TEST, LEFT_OUT], np.uint8)
    truth = np.array([True, False] * 3 + [True])
    check_sides(truth, sides, "ORFs")
    truth[4] = False
    with pytest.raises(MissingClassError, match="nothing viral in the ORFs for test"):
        check_sides(truth, sides, "ORFs")


def test_stretches_are_of_their_records(tmp_path: Path) -> None:
    reads = some_reads(6, 90)
    (tmp_path / "v.fa").write_text(fasta([*list(reads.items())[:3], ("short", "acgtn" * 8)]))
    (tmp_path / "n.fa").write_text(fasta(list(reads.items())[3:]))
    data = label_files([tmp_path / "v.fa"], [tmp_path / "n.fa"], None, None)
    records = read_records(data)
    swap = str.maketrans("ACGTacgt", "TGCAtgca")
    known = reads | {"short": "acgtn" * 8}
    names = [contig.id.decode() for contig in data.contigs()]
    for cutting, wanted in (
        (SubsequenceSampler(50, 0, 3), [0, 0, 0, 1, 1, 1, 2, 2, 2, 4, 4, 4, 5, 5, 5, 6, 6, 6]),
        (SubsequenceSampler(50, 0), [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6]),
    ):
        owners = cutting.owners(records).tolist()
        assert owners == wanted
        lines = [line.decode() for line in cutting.stretches(data, records)]
        strands = set()
        for line, owner in zip(lines, owners, strict=True):
            header, bases, _ = line.split("\n")
            name, place = header[1:].rsplit(":", 1)
            first, last = map(int, place[:-1].split("-"))
            assert name == names[owner]
            piece = known[name][first - 1 : last]
            assert bases == (piece if place[-1] == "+" else piece.translate(swap)[::-1])
            assert len(bases) == min(50, len(known[name]))
            strands.add(place[-1])
        assert strands == {"+", "-"}
        assert lines == [line.decode() for line in cutting.stretches(data, records)]
        other = SubsequenceSampler(cutting.length, 1, cutting.count)
        assert lines != [line.decode() for line in other.stretches(data, records)]
