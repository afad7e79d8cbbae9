"""The scripts that measure: that they run, that their input is right, and that the replay is faithful."""

import json
from pathlib import Path

import bench_attention
import bench_merge
import bench_pipeline
import bench_segments
import bench_shards
import bench_storage
import measure_progress
import pytest
import random_bundle
import replay
import samples
import simulate
import terminal_pictures
import torch
from running import predict
from support import ROOT, read_table

from virnuc_async.models.bundle import Bundle, find
from virnuc_async.networks.shapes import NucleotideShape, ProteinShape
from virnuc_async.sequences.inputs import read_contigs

FASTA = ROOT / "docs" / "examples" / "metagenome.fa.gz"


@pytest.mark.parametrize("kind", ["reads", "contigs", "mixed"])
def test_samples_have_the_requested_size_and_kind(tmp_path: Path, kind: str) -> None:
    source, path = samples.Source.read(FASTA), tmp_path / "sample.fa"
    count = samples.write(path, source, kind, 200_000, seed=1)
    lengths = [len(contig.bases) for contig in read_contigs(str(path))]
    assert len(lengths) == count
    assert 200_000 <= sum(lengths) < 200_000 + 12_000
    in_reads = sum(length for length in lengths if length == samples.READ) / sum(lengths)
    assert in_reads == pytest.approx({"reads": 1, "contigs": 0, "mixed": 0.5}[kind], abs=0.05)


def test_the_same_seed_gives_the_same_sample(tmp_path: Path) -> None:
    source = samples.Source.read(FASTA)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        samples.write(tmp_path / name, source, "mixed", 50_000, seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_the_replay_gives_the_published_scores(golden: Path, golden_bundle: Bundle, expected: Path) -> None:
    replayed = replay.replay([str(golden / "upstream" / "input.fa")], golden_bundle)
    published = read_table(expected / "prediction_results.txt")[1:]
    assert list(replayed.scores) == [row[0] for row in published]
    expected_scores = [(float(row[2]), float(row[3])) for row in published]
    assert [replayed.scores[row[0]] for row in published] == [
        pytest.approx(s, abs=1e-5) for s in expected_scores
    ]


def test_a_bundle_of_random_weights_gives_scores(golden: Path, tmp_path: Path) -> None:
    directory = tmp_path / "random"
    random_bundle.write(directory, ProteinShape(2, 32, 4), NucleotideShape(2, 24, 3, 48, 4096))
    find(directory).check()
    assert predict(golden / "upstream" / "input.fa", tmp_path / "out", "--model", directory).code == 0
    rows = read_table(tmp_path / "out" / "prediction_results.txt")[1:]
    virus = [float(row[3]) for row in rows]
    assert 0 < min(virus) < max(virus) < 1
    assert len(set(virus)) > len(virus) / 2


def test_simulated_devices_compute_as_long_as_the_model_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "simulated.json"
    options = "--devices 1,2 --kinds reads --seconds 0.2 --tokens-per-batch 4096 --overhead-ms 1 --host-ms 1"
    simulate.main([*options.split(), "--fasta", str(FASTA), "--output", str(output)])
    found = json.loads(output.read_bytes())
    assert found["simulated"] is True
    assert [point["devices"] for point in found["points"]] == [1, 2]
    for point in found["points"]:
        tokens = 0.2 * 104_000 * point["devices"]
        busy = point["ideal_seconds"] * point["devices"]
        assert busy == pytest.approx(tokens / 104_000 + 0.001 * point["batches"], rel=0.25)
        assert 0 < point["efficiency"] < point["scoring_efficiency"] <= 1
    assert "simulated devices" in capsys.readouterr().out


@pytest.mark.slow
def test_labelling_of_reads_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("duckdb", reason="the extra [reads] is not installed")
    measure_labels = pytest.importorskip("measure_labels")
    measure_labels.main(["--reads", "300", "--output", str(tmp_path / "labels.json")])
    found = json.loads((tmp_path / "labels.json").read_text())["result"]
    assert found["alignments"] == 300
    assert 150 < found["reads"] < 250
    assert found["peak_bytes"] >= found["peak_bytes_before"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_part_of_the_pipeline_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "pipeline.json"
    bench_pipeline.main(["--quick", "--fasta", str(FASTA), "--output", str(output)])
    parts = json.loads(output.read_bytes())["parts"]
    assert set(parts) == {"start", "front", "memory", "files", "replay", "predict"}
    many, one = parts["files"]
    assert many["batches"] == one["batches"]
    assert parts["replay"][0]["largest difference of a score"] < 1e-5
    assert all(row["wall / model"] >= 1 for row in parts["predict"])


def test_both_ways_of_attention_are_measured() -> None:
    for has_bias in (False, True):
        shape = bench_attention.Shape(2, 5, 4, 16, has_bias)
        row = bench_attention.measure(shape, torch.bfloat16, repeats=1)
        assert (row["precision"], row["bias"]) == ("BF16", "ALiBi" if has_bias else "")
        assert row["sdpa / products"] > 0
        assert all(0 < float(row[f"{way}, error"]) < 1e-2 for way in ("sdpa", "products"))


def test_what_segments_cost_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "segments.json"
    words = [
        "--kinds",
        "contigs",
        "--megabases",
        "1",
        "--segment-megabases",
        "0.25",
        "--pairs",
        "2",
        "--devices",
        "2",
        "--rate",
        "0",
    ]
    bench_segments.main([*words, "--work", str(tmp_path), "--fasta", str(FASTA), "--output", str(output)])
    (row,) = json.loads(output.read_text())["rows"]
    first, second = row["pairs"]
    assert (list(first), list(second)) == (["segments", "whole"], ["whole", "segments"])
    assert {run["orfs"] for pair in row["pairs"] for run in pair.values()} == {row["ORFs"]}
    # Each of the four segments ends with a batch that is not full.
    assert first["whole"]["batches"] < first["segments"]["batches"] <= first["whole"]["batches"] + 4
    assert row["batches"] == first["segments"]["batches"] / first["whole"]["batches"]
    assert "| input | Mb a segment |" in capsys.readouterr().out


def test_what_a_shard_costs_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "shards.json"
    words = ["--megabases", "0.2", "--segments", "4", "--shards", "2,4", "--work", str(tmp_path)]
    bench_shards.main([*words, "--fasta", str(FASTA), "--output", str(output)])
    found = json.loads(output.read_text())
    long, short = found["rows"]
    assert (long["shards"], short["shards"]) == (2, 4)
    assert long["ORFs a shard"] == pytest.approx(2 * short["ORFs a shard"], rel=0.1)
    costs = found["costs"]
    for row in (long, short):  # both are on the line
        seconds = costs["s of each shard"] + 1e-6 * costs["us of each ORF"] * row["ORFs a shard"]
        assert seconds == pytest.approx(row["s a shard"])
    assert long["files a shard"] == short["files a shard"] > 4
    assert 150 < long["rows, bytes/ORF"] < 300
    assert "| s of each shard |" in capsys.readouterr().out


def test_what_a_run_keeps_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    output = tmp_path / "storage.json"
    words = ["--kinds", "reads", "--megabases", "0.1", "--traced-megabases", "0", "--work", str(tmp_path)]
    bench_storage.main([*words, "--fasta", str(FASTA), "--output", str(output)])
    short, long = json.loads(output.read_text())["rows"]
    assert short["records"] == long["records"] == 667
    assert 0 < short["of it scores"] < short["store, bytes/ORF"] < long["store, bytes/ORF"]
    for row in (short, long):
        texts = row["files"]["tsv"]
        assert sum(texts.values()) == pytest.approx(row["tsv, bytes/ORF"] * row["ORFs"])
        assert "predictions.parquet" in row["files"]["parquet"]
    name = len("A01234:123:HXXXXXXXX:1:1101:12345:")
    assert long["files"]["tsv"]["contigs.tsv"] - short["files"]["tsv"]["contigs.tsv"] == name * 667
    assert "flushed writes a batch: not counted" in capsys.readouterr().out


def test_the_end_of_a_run_is_estimated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "progress.json"
    words = ["--megabases", "0.2", "--files", "20", "--tokens-per-batch", "800"]
    measure_progress.main([*words, "--work", str(tmp_path), "--output", str(output)])
    rows = json.loads(output.read_text())["simulated"]
    assert len(rows) == 5
    assert all(rows[at]["ORFs"] > 0 for at in range(5))
    # One window each: all of it is read before the first batch.
    assert [rows[at]["at 50%"] for at in range(4)] == ["100%"] * 4
    assert "| one contig, FASTA |" in capsys.readouterr().out


def test_pictures_of_a_terminal_are_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terminal_pictures.main(["--output", str(tmp_path), "--megabases", "0.05", "--share", "0.01"])
    pictures = [tmp_path / f"progress-{width}.svg" for width in (40, 80, 140)]
    assert capsys.readouterr().out.split() == [str(path) for path in pictures]
    for path in pictures:
        text = path.read_text("utf-8").replace("&#160;", " ")
        assert "cpu:1" in text
        assert " left" in text
        assert str(tmp_path.parent) not in text
        # Nothing is fetched when one is looked at.
        assert "url(http" not in text


@pytest.mark.slow
def test_merging_shards_that_are_made_up(tmp_path: Path) -> None:
    found = bench_merge.measure(tmp_path, 30_000, 3)
    assert (found["ORFs"], found["shards"]) == (30_000, 3)
    predictions = tmp_path / "out" / "prediction_results.txt"
    assert predictions.read_bytes().count(b"\n") == 30_001
    assert found["bytes written"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert 40_000_000 < found["bytes of memory"] < 400_000_000
