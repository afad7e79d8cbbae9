"""Records and pairs that are shorter than --min-length: scored, and left out of every table."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from running import log, predict, rows, run, some_reads, summary
from stored_runs import Record, ScoredOrf, store_run
from support import DATA, fasta

SOURCE = DATA / "golden" / "upstream" / "input.fa"
LEAST = 700


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("full") / "out"
    assert predict(SOURCE, out, "--calls", "--embeddings").code == 0
    return out


@pytest.fixture(scope="module")
def cut(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cut") / "out"
    assert predict(SOURCE, out, "--calls", "--embeddings", "--min-length", LEAST).code == 0
    return out


def test_rows_of_short_records_are_left_out_of_every_table(full: Path, cut: Path) -> None:
    lengths = {row[0]: int(row[2]) for row in rows(full / "contigs.tsv")[1:]}
    assert min(lengths.values()) < LEAST < max(lengths.values())
    for name, column in (
        ("contigs.tsv", 0),
        ("fragments.tsv", 4),
        ("contig_calls.tsv", 0),
        ("prediction_results.txt", 0),
        ("prediction_results_highestscore.csv", 0),
    ):
        header, *every = rows(full / name)
        contigs = [row[column].rpartition("_chunk_")[0] or row[column] for row in every]
        kept = [row for row, contig in zip(every, contigs, strict=True) if lengths[contig] >= LEAST]
        assert rows(cut / name) == [header, *kept], name
        assert 0 < len(kept) < len(every)


def test_they_are_counted_and_said(full: Path, cut: Path) -> None:
    short = sum(int(row[2]) < LEAST for row in rows(full / "contigs.tsv")[1:])
    viral = sum(row[9] == "virus" for row in rows(cut / "contigs.tsv")[1:])
    before, after = summary(full)["counts"], summary(cut)["counts"]
    assert after == before | {"viral_contigs": viral, "short_contigs": short}
    assert f"shorter than 700 bases, and in no table: {short} of {after['contigs']} contigs\n" in log(cut)
    assert f"Viral: {viral} of {after['contigs'] - short} contigs (" in log(cut)
    assert "shorter than" not in log(full)


def test_embeddings_are_of_all_records(full: Path, cut: Path) -> None:
    features = [torch.load(out / "merged_features.pt", weights_only=True) for out in (full, cut)]
    assert features[0]["ids"] == features[1]["ids"]
    assert features[0]["data"].equal(features[1]["data"])


def test_it_changes_no_score_and_never_refuses(full: Path, cut: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(SOURCE, out, "--min-length", 10**9).code == 0
    assert rows(out / "contigs.tsv")[1:] == []
    again = predict(SOURCE, out, "--calls", "--min-length", LEAST)
    assert again.code == 0
    assert f"min_length: {10**9} -> {LEAST}: writing the tables of this finished run again" in again.err
    assert summary(out)["session"]["orfs"] == 0
    for name in ("contigs.tsv", "fragments.tsv", "contig_calls.tsv", "prediction_results.txt"):
        assert (out / name).read_bytes() == (cut / name).read_bytes()


@pytest.mark.parametrize("files", [2, 1])
def test_the_longer_mate_of_a_pair_decides(files: int, tmp_path: Path) -> None:
    reads = list(some_reads(6, 200).values())
    sizes = [(200, 80), (80, 200), (80, 81), (200, 200), (199, 80), (100, 100)]
    mates = [[(f"p{at}", reads[at][: size[mate]]) for at, size in enumerate(sizes)] for mate in (0, 1)]
    if files == 2:
        paths = [tmp_path / "a_R1.fa", tmp_path / "a_R2.fa"]
        for path, records in zip(paths, mates, strict=True):
            path.write_text(fasta(records))
    else:
        paths = [tmp_path / "a.fa"]
        paths[0].write_text(fasta(record for pair in zip(*mates, strict=True) for record in pair))
    options = ("--pairs", "interleaved") if files == 1 else ()
    out = tmp_path / "out"
    assert predict(*paths, out, *options, "--min-length", 200).code == 0
    assert [row[0] for row in rows(out / "pairs.tsv")[1:]] == ["p0", "p1", "p3"]
    assert [int(row[2]) for row in rows(out / "contigs.tsv")[1:]] == [200] * 4
    counts = summary(out)["counts"]
    assert (counts["short_contigs"], counts["short_pairs"], counts["pairs"]) == (8, 3, 6)
    assert "in no table: 8 of 12 contigs, 3 of 6 pairs\n" in log(out)


@pytest.mark.parametrize("window", [1, 4096])
@pytest.mark.parametrize("least", [850, 893, 1000])
def test_the_blocks_of_long_records(window: int, least: int, tmp_path: Path) -> None:
    records = [
        Record(b"r%d" % number, tuple(ScoredOrf(1 + at, at, 0.5, number / 9) for at in range(number % 4)))
        for number in range(9)
    ]
    with closing(store_run(tmp_path, records, size=window)) as store:
        every = [(block, row) for block in store.reader.blocks() for row in range(len(block.contigs))]
        expected = [
            (block.names()[row], block.contigs[row], block.scores[block.rows == row].tolist())
            for block, row in every
            if block.contigs["length"][row] >= least
        ]
        found = [
            (block.names()[row], block.contigs[row], block.scores[block.rows == row].tolist())
            for block in store.reader.at_least(least).blocks()
            for row in range(len(block.contigs))
        ]
        assert found == expected


def test_a_length_that_makes_no_sense() -> None:
    assert run("predict", "a.fa", "out", "--min-length", "-1") == (
        *(64, ""),
        "virnuc-async: min length must be at least 0, not -1\n",
    )
    assert "invalid int value: 'x'" in run("predict", "a.fa", "out", "--min-length", "x").err
