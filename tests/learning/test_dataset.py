"""Labelled records: labels from headers and tables; a split never divides a cluster."""

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
    EXCLUDED,
    TEST,
    TRAINING,
    VALIDATION,
    LabelledFiles,
    Records,
    SubsequenceSampler,
    check_splits,
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


def test_labels_from_headers(data: LabelledFiles) -> None:
    records = read_records(data)
    assert records.are_viral.tolist() == [True, True, True, False, False]
    assert records.lengths.tolist() == [4, 5, 6, 6, 1]
    # Records of one genome form one cluster; any other record is its own cluster, even if ids are equal.
    assert records.clusters.tolist() == [0, 0, 1, 2, 3]
    assert records.cluster_names == ("11", "v3", "n1", "v3")
    assert groups_of(records) == [
        (True, "phages"),
        (True, "viral"),
        (True, "viral"),
        (False, "fungi"),
        (False, "nonviral"),
    ]
    summary = {"group": "viral", "class": "viral", "records": 2, "bases": 11, "clusters": 2}
    assert records.group_summaries()[1] == summary


def test_labels_from_tables(data: LabelledFiles, tmp_path: Path) -> None:
    clusters = table(tmp_path / "c.tsv", "# made by hand\n11\tA\r\nv3\tB\n\nn1\tA\n")
    groups = table(tmp_path / "g.tsv", "v1\tx\n11\ty\nv3\tx\nn1\tx\n")
    records = read_records(label_files(data.viral, data.nonviral, clusters, groups))
    # Viral and nonviral records may be in one cluster.
    assert [records.cluster_names[number] for number in records.clusters] == ["A", "A", "B", "A", "B"]
    # The line of a record has precedence over that of its genome; a group is of one class.
    assert groups_of(records) == [(True, "x"), (True, "y"), (True, "x"), (False, "x"), (False, "x")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("v1\tA\n", "has no line for v2 or 11"),
        ("11\tA\nv3\tB\n", "has no line for n1"),
        ("11 A\n", "line 1 is not a name, a tab and another name"),
        ("11\tA\tB\n", "line 1 is not a name, a tab and another name"),
        ("#\n11\t\n", "line 2 is not a name, a tab and another name"),
        ("11\tA\n11\tA\n11\tB\n", "line 3: 11 is already in A"),
    ],
)
def test_bad_tables(data: LabelledFiles, tmp_path: Path, text: str, reason: str) -> None:
    path = table(tmp_path / "c.tsv", text)
    for tables in ((path, None), (None, path)):
        with pytest.raises(BadTable, match="c.tsv") as caught:
            read_records(label_files(data.viral, data.nonviral, *tables))
        assert caught.value.reason == reason


def test_missing_table(data: LabelledFiles, tmp_path: Path) -> None:
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


def test_files_that_cannot_be_read_completely(data: LabelledFiles, tmp_path: Path) -> None:
    for name, content, error in (
        ("protein.fa", ">p\nMALWMRLLPLLALLALW\n", NotSequences),
        ("broken.fq", "@r\nACGT\n+\nIIII\n@r\nAC\n", BrokenInput),
        ("missing.fa", None, UnreadableInput),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        with pytest.raises(error):
            read_records(label_files([*data.viral, path], data.nonviral, None, None))


def test_files_of_both_classes_and_standard_input(data: LabelledFiles) -> None:
    with pytest.raises(UsageError, match="cannot be both viral and nonviral"):
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
def test_split_never_divides_a_cluster(numbers: list[int], fractions: tuple[float, float], seed: int) -> None:
    viral = [number % 2 == 0 for number in numbers]
    records = some_records(numbers, viral)
    too_few = [len({number for number in numbers if number % 2 == kind}) < 3 for kind in (0, 1)]
    if any(too_few):
        with pytest.raises(TooFewClusters):
            split_records(records, *fractions, seed)
        return
    splits = split_records(records, *fractions, seed)
    for number in set(numbers):
        assert len(set(splits[np.array(numbers) == number].tolist())) == 1
    for kind in (True, False):
        assert set(splits[records.are_viral == kind].tolist()) == {TRAINING, VALIDATION, TEST}
    assert (split_records(records, *fractions, seed) == splits).all()


def test_splits_have_their_fractions_of_the_bases() -> None:
    numbers = [number // 3 for number in range(3000)]
    records = some_records(numbers, [number % 2 == 0 for number in numbers])
    one, other = (split_records(records, 0.1, 0.25, seed) for seed in (1, 2))
    assert (one != other).any()
    for splits in (one, other):
        for kind in (True, False):
            of_kind = records.lengths * (records.are_viral == kind)
            fractions = [
                of_kind[splits == split].sum() / of_kind.sum() for split in (TRAINING, VALIDATION, TEST)
            ]
            assert fractions == pytest.approx([0.65, 0.1, 0.25], abs=0.01)


def test_cluster_larger_than_a_held_out_split_is_for_training() -> None:
    records = some_records(
        [0] * 50 + [1] * 50 + list(range(2, 20)), [True] * 50 + [False] * 50 + [True, False] * 9
    )
    for seed in range(5):
        splits = split_records(records, 0.1, 0.2, seed)
        assert set(splits[:100].tolist()) == {TRAINING}


def test_published_split_by_fragment() -> None:
    splits = split_fragments(1000, 0.1, 0.2, 0)
    assert np.bincount(splits).tolist() == [700, 100, 200]
    assert (split_fragments(1000, 0.1, 0.2, 0) == splits).all()
    assert (split_fragments(1000, 0.1, 0.2, 1) != splits).any()
    assert len(split_fragments(0, 0.1, 0.2, 0)) == 0


def test_every_split_needs_both_classes() -> None:
    splits = np.array([TRAINING, TRAINING, VALIDATION, VALIDATION, TEST, TEST, EXCLUDED], np.uint8)
    truth = np.array([True, False] * 3 + [True])
    check_splits(truth, splits, "ORFs")
    truth[4] = False
    with pytest.raises(MissingClassError, match="nothing viral in the ORFs for test"):
        check_splits(truth, splits, "ORFs")


def test_subsequences_match_their_records(tmp_path: Path) -> None:
    reads = some_reads(6, 90)
    (tmp_path / "v.fa").write_text(fasta([*list(reads.items())[:3], ("short", "acgtn" * 8)]))
    (tmp_path / "n.fa").write_text(fasta(list(reads.items())[3:]))
    data = label_files([tmp_path / "v.fa"], [tmp_path / "n.fa"], None, None)
    records = read_records(data)
    swap = str.maketrans("ACGTacgt", "TGCAtgca")
    known = reads | {"short": "acgtn" * 8}
    names = [contig.id.decode() for contig in data.contigs()]
    for sampler, expected in (
        (SubsequenceSampler(50, 0, 3), [0, 0, 0, 1, 1, 1, 2, 2, 2, 4, 4, 4, 5, 5, 5, 6, 6, 6]),
        (SubsequenceSampler(50, 0), [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6]),
    ):
        index = sampler.record_index(records).tolist()
        assert index == expected
        lines = [line.decode() for line in sampler.subsequences(data, records)]
        strands = set()
        for line, number in zip(lines, index, strict=True):
            header, bases, _ = line.split("\n")
            name, location = header[1:].rsplit(":", 1)
            first, last = map(int, location[:-1].split("-"))
            assert name == names[number]
            part = known[name][first - 1 : last]
            assert bases == (part if location[-1] == "+" else part.translate(swap)[::-1])
            assert len(bases) == min(50, len(known[name]))
            strands.add(location[-1])
        assert strands == {"+", "-"}
        assert lines == [line.decode() for line in sampler.subsequences(data, records)]
        other = SubsequenceSampler(sampler.length, 1, sampler.count)
        assert lines != [line.decode() for line in other.subsequences(data, records)]
