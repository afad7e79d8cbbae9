"""VirNucPro's container command: its tables compared with those of predict, its options, its exit codes."""

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import virnucpro_cli
from running import OPEN, Ran, predict, run, some_reads, wait_until
from support import DATA, ROOT, fasta, read_table

from virnuc_async.models.bundle import Bundle
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle

COMMAND = ROOT / "scripts" / "virnucpro_cli.py"
SOURCE = DATA / "golden" / "upstream" / "input.fa"
# Reads of pairs have one name in BAM; a name may look like one that a repeated one gets.
NAMES = ["r", "r", "r_1", "s", "r", "r_1", "s_1", "s"]
UNIQUE = ["r", "r_1", "r_1_1", "s", "r_2", "r_1_2", "s_1", "s_2"]
HEADERS = ("Sequence_ID\tPrediction\tscore1\tscore2\n", "Modified_ID\tIs_Virus\tmax_score_0\tmax_score_1\n")


class Written(NamedTuple):
    """The two tables."""

    predictions: list[list[str]]
    fragments: list[list[str]]


@pytest.fixture(scope="session")
def model(golden_parts: CheckpointPaths, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return import_bundle(golden_parts, tmp_path_factory.mktemp("models") / "golden", "golden", 300)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.fa"
    path.write_text(fasta([("small", OPEN * 20)]))
    return path


def cli(*words: str | Path) -> Ran:
    return run(*words, make_parser=virnucpro_cli.make_parser)


def process(*words: str | Path) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, COMMAND, *map(str, words)], cwd=ROOT, **pipes)  # type: ignore[call-overload]


def written(out: Path) -> Written:
    return Written(*(read_table(path) for path in (out, out.with_name(f"{out.stem}_highestscore.csv"))))


def expected(directory: Path) -> Written:
    """Return what the tables of a run have if all names differ."""
    fragments = [row[:4] for row in read_table(directory / "fragments.tsv")]
    rows = sorted(fragments[1:], key=lambda row: row[0].encode("utf-8", "surrogateescape"))
    return Written(read_table(directory / "prediction_results.txt"), [fragments[0], *rows])


def reads() -> list[tuple[str, str]]:
    rng = random.Random(3)
    # Long enough for two fragments each, with an ORF.
    return [(name, OPEN * 30 + "".join(rng.choices("AC", k=400))) for name in NAMES]


def write_bam(path: Path, records: Sequence[tuple[str, str]]) -> Path:
    pysam = pytest.importorskip("pysam", reason="the extra [bam] is not installed")
    with pysam.AlignmentFile(str(path), "wb", header={"HD": {"VN": "1.6"}}) as file:
        for name, bases in records:
            record = pysam.AlignedSegment(file.header)
            record.query_name, record.flag, record.query_sequence = name, 4, bases
            file.write(record)
    return path


def write_as(kind: str, path: Path, records: Sequence[tuple[str, str]]) -> Path:
    if kind == "BAM":
        return write_bam(path, records)
    content = fasta(records).encode()
    path.write_bytes(gzip.compress(content) if kind == "gz" else content)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("FASTA", 8), ("gz", 8), ("BAM", 8), ("BAM", 0)])
def test_a_real_process_writes_the_tables_of_predict(
    kind: str, count: int, model: Bundle, tmp_path: Path
) -> None:
    records = [(f"read{number}", bases) for number, (_, bases) in enumerate(reads()[:count])]
    path, out = write_as(kind, tmp_path / "in", records), tmp_path / "results" / "out.tsv"
    running = process(path, out, "--expected-length", "300", "--no-gpu", "--model", model.directory)
    assert running.communicate()[0] == ""
    assert running.returncode == 0
    (tmp_path / "in.fa").write_text(fasta(records))
    assert predict(tmp_path / "in.fa", tmp_path / "run", "--model", model.directory).code == 0
    assert written(out) == expected(tmp_path / "run")
    assert len(written(out).fragments) == 1 + 2 * count
    assert sorted(os.listdir(out.parent)) == ["out.tsv", "out.tsv.run", "out_highestscore.csv"]
    summary = json.loads((tmp_path / "results" / "out.tsv.run" / "summary.json").read_text())
    assert summary["command"].startswith(f"virnucpro_cli.py {path} ")


def test_real_sequences_packed_and_from_a_name_without_tsv(model: Bundle, tmp_path: Path) -> None:
    packed, out = tmp_path / "in.fa.gz", tmp_path / "out"
    packed.write_bytes(gzip.compress(SOURCE.read_bytes()))
    assert cli(packed, out, "--no-gpu", "--model", model.directory).code == 0
    assert predict(SOURCE, tmp_path / "run", "--model", model.directory).code == 0
    assert written(out) == expected(tmp_path / "run")
    # With another way to read: the highest scores of the ORFs of each fragment.
    orfs: dict[str, list[tuple[float, float]]] = {}
    for name, _, others, virus in written(out).predictions[1:]:
        orfs.setdefault(name[:-2], []).append((float(others), float(virus)))
    highest = {name: tuple(map(max, zip(*scores, strict=True))) for name, scores in orfs.items()}
    assert {row[0]: (float(row[2]), float(row[3])) for row in written(out).fragments[1:]} == highest


def test_repeated_names_are_numbered_in_both_tables(model: Bundle, tmp_path: Path) -> None:
    bam, out = write_bam(tmp_path / "in.bam", reads()), tmp_path / "out.tsv"
    assert cli(bam, out, "--no-gpu", "--model", model.directory).code == 0
    # The same reads with these names from the beginning give the same tables.
    unique = [(name, bases) for name, (_, bases) in zip(UNIQUE, reads(), strict=True)]
    (tmp_path / "unique.fa").write_text(fasta(unique))
    assert predict(tmp_path / "unique.fa", tmp_path / "run", "--model", model.directory).code == 0
    assert written(out) == expected(tmp_path / "run")
    # There only: the tables of the run have the names of the input.
    contigs = read_table(tmp_path / "out.tsv.run" / "contigs.tsv")
    assert [row[0] for row in contigs[1:]] == NAMES


def test_an_empty_bam_gives_header_lines(model: Bundle, tmp_path: Path) -> None:
    bam, out = write_bam(tmp_path / "in.bam", []), tmp_path / "out.tsv"
    assert cli(bam, out, "--no-gpu", "--model", model.directory).code == 0
    assert (out.read_text(), (tmp_path / "out_highestscore.csv").read_text()) == HEADERS


def test_the_same_command_resumes_and_another_run_is_replaced(model: Bundle, small: Path) -> None:
    out = small.parent / "out.tsv"
    assert cli(small, out, "--no-gpu", "--model", model.directory).code == 0
    before = written(out)
    out.unlink()
    ended = cli(small, out, "--no-gpu", "--model", model.directory, "--resume")
    assert (ended.code, written(out)) == (0, before)
    assert "this run is finished already" in ended.err
    tiny = ("--no-gpu", "--model", "tiny-500")
    ended = cli(small, out, *tiny, "--resume")
    assert (ended.code, written(out)) == (1, before)
    assert ended.err.startswith(f"virnuc-async: {out}.run: contains a different run: ")
    assert ended.err.endswith(". Without --resume it is replaced\n")
    ended = cli(small, out, *tiny)
    assert ended.code == 0
    assert f"{out}.run contains a different run (" in ended.err
    assert predict(small, small.parent / "run", "--model", "tiny-500").code == 0
    assert written(out) == expected(small.parent / "run") != before


def test_a_part_that_failed_is_exit_code_2(model: Bundle, tmp_path: Path) -> None:
    broken, out = tmp_path / "in.fa.gz", tmp_path / "out.tsv"
    broken.write_bytes(gzip.compress(SOURCE.read_bytes())[:-2000])
    assert cli(broken, out, "--no-gpu", "--model", model.directory).code == 2
    assert 1 < len(written(out).fragments) < 67
    assert (tmp_path / "out.tsv.run" / "failed_files.txt").read_text().startswith(f"{broken}|Input|")


def test_length_and_model_must_agree_before_anything_is_read(model: Bundle, tmp_path: Path) -> None:
    words = (tmp_path / "missing.fa", tmp_path / "out.tsv", "--model", model.directory)
    assert cli(*words, "--expected-length", "500") == (
        64,
        "",
        f"virnuc-async: --expected-length is 500, but the model '{model.directory}' is for fragments "
        "of 300 bases\n",
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("words", "name"), [((), "500"), (("--expected-length", "300"), "300")])
def test_a_model_that_is_not_installed(words: tuple[str, ...], name: str, small: Path) -> None:
    ended = cli(small, small.parent / "out.tsv", *words)
    assert (ended.code, ended.err.splitlines()) == (
        1,
        [
            f"virnuc-async: no model 'virnucpro-{name}' here. Installed: tiny-500. "
            f"Get it with: models download virnucpro-{name}",
            "Or name a model with --model or the environment variable VIRNUC_ASYNC_MODEL",
        ],
    )


def test_the_model_is_the_option_else_the_variable_else_the_installed_one(
    model: Bundle, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used(*words: str) -> str:
        out = small.parent / "out.tsv"
        assert cli(small, out, "--no-gpu", *words).code == 0
        return json.loads((small.parent / "out.tsv.run" / "summary.json").read_text())["bundle"]["name"]

    cache = small.parent / "cache"
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "virnucpro-300").symlink_to(model.directory)
    monkeypatch.setenv("VIRNUC_ASYNC_CACHE_DIR", str(cache))
    assert used("--expected-length", "300") == "golden"
    monkeypatch.setenv("VIRNUC_ASYNC_MODEL", "tiny-500")
    assert used() == "tiny-500"
    assert used("--model", "virnucpro-300") == "golden"


def test_options_reach_the_run(model: Bundle, small: Path) -> None:
    words = ("--esm-batch-size", "777", "--threads", "1", "--verbose")
    ended = cli(small, small.parent / "out.tsv", "--no-gpu", "--model", model.directory, *words)
    assert ended.code == 0
    settings = json.loads((small.parent / "out.tsv.run" / "summary.json").read_text())["settings"]
    assert (settings["tokens_per_batch"], settings["threads"], settings["devices"]) == (777, 1, ["cpu"])
    assert "batch 0.0 done on cpu:0" in ended.err
    assert "without effect" not in ended.err


def test_options_without_effect_are_named_in_one_line(model: Bundle, small: Path) -> None:
    words = [
        "--parallel",
        "--batch-size",
        "5",
        "--persistent-models",
        "--v1-attention",
        "--dnabert-batch-size",
        "9",
    ]
    ended = cli(small, small.parent / "out.tsv", "--no-gpu", "--model", model.directory, *words)
    assert ended.code == 0
    (line,) = [line for line in ended.err.splitlines() if "without effect" in line]
    assert line == (
        "without effect here: --parallel (all devices of a run work at once); --batch-size, "
        "--dnabert-batch-size (both encoders and the classifier take the same batch, of --esm-batch-size "
        "tokens); --persistent-models (the model is loaded once and stays loaded); --v1-attention (there is "
        "one way to compute, with the scores of the published program)"
    )


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--use-gpu",), 1, "no device 'cuda' here. There are: cpu"),
        (("--no-gpu", "--gpus", "0"), 64, "choose --no-gpu or --gpus, not both"),
        (("--batch-size", "many"), 64, "argument --batch-size/-b: invalid int value: 'many'"),
    ],
)
def test_devices_that_cannot_be(words: tuple[str, ...], code: int, message: str, small: Path) -> None:
    ended = cli(small, small.parent / "out.tsv", "--model", "tiny-500", *words)
    assert ended.code == code
    assert f"virnuc-async: {message}" in ended.err


def test_wrong_places_of_the_table(small: Path) -> None:
    ended = cli(small, small.parent, "--model", "tiny-500")
    message = f"virnuc-async: OUT.tsv must be a file, but '{small.parent}' is a directory\n"
    assert ended == (64, "", message)


@pytest.mark.slow
def test_a_real_process_that_is_stopped_is_resumed(model: Bundle, tmp_path: Path) -> None:
    path, out = tmp_path / "in.fa", tmp_path / "out.tsv"
    path.write_text(fasta(some_reads(4000, 300).items()))
    words = (path, out, "--no-gpu", "--model", model.directory)
    running = process(*words)
    log = tmp_path / "out.tsv.run" / "run.log"
    wait_until(lambda: log.exists() and "batch 0.1 done" in log.read_text(), running)
    running.terminate()
    assert running.communicate()[1].endswith(". The same command resumes this run.\n")
    assert running.returncode == 143
    assert not out.exists()
    assert "before, of 4,000 fragments" in cli(*words).err
    assert cli(path, tmp_path / "undisturbed.tsv", *words[2:]).code == 0
    assert written(out) == written(tmp_path / "undisturbed.tsv")


@pytest.mark.slow
def test_calls_at_once_do_not_disturb_each_other(model: Bundle, tmp_path: Path) -> None:
    words = ("--no-gpu", "--model", model.directory)
    inputs, outputs = [], []
    for number, sequences in enumerate((reads()[:4], reads()[4:])):
        inputs.append(tmp_path / f"{number}.fa")
        inputs[-1].write_text(fasta(sequences))
        outputs.append(tmp_path / f"out{number}.tsv")
    running = [process(path, out, *words) for path, out in zip(inputs, outputs, strict=True)]
    assert [one.communicate()[0] for one in running] == ["", ""]
    assert [one.returncode for one in running] == [0, 0]
    for path, out in zip(inputs, outputs, strict=True):
        assert cli(path, tmp_path / "alone.tsv", *words).code == 0
        assert written(out) == written(tmp_path / "alone.tsv")
