"""``plan``, ``predict --plan RUN/ --shard N/COUNT`` and ``merge``, as a scheduler calls them."""

from pathlib import Path

import pytest
from running import log, predict, rows, run
from support import fasta

from virnuc_async.models.bundle import Bundle

_BASES = "ATGGCTGACCTGTTCGGAAAGCTTCTGGCA" * 30


@pytest.fixture
def planned(tmp_path: Path, model: Bundle) -> Path:
    """A run of two inputs in several segments; one of the inputs breaks."""
    (tmp_path / "one.fa").write_text(fasta([(f"one{number}", _BASES) for number in range(4)]))
    (tmp_path / "two.fa").write_text(fasta([("two", _BASES)]) + ">protein\nMKLVINGKTLKGEIT\n")
    inputs = (tmp_path / "one.fa", tmp_path / "two.fa")
    place = tmp_path / "run"
    options = ("--model", model.directory, "--segment-bases", "1000", "--devices", "cpu")
    assert run("plan", *inputs, place, *options).code == 0
    return place


def shard(place: Path, which: str, *options: str | Path) -> tuple[int, str]:
    ended = run("predict", "--plan", place, "--shard", which, "--devices", "cpu", *options)
    return ended.code, ended.err


def test_shards_with_inputs_that_failed_are_done_and_merge_says_so(planned: Path, model: Bundle) -> None:
    assert [shard(planned, f"{number}/2")[0] for number in (1, 0)] == [0, 0]
    assert "two.fa: line 4" in log(planned / "shards" / "00001-of-00002")
    assert run("merge", planned).code == 2
    one = planned.with_name("out")
    inputs = [planned.with_name(name) for name in ("one.fa", "two.fa")]
    assert predict(*inputs, one, "--model", model.directory, "--devices", "cpu").code == 2
    failed = [(place / "failed_files.txt").read_text() for place in (planned, one)]
    assert failed[0] == failed[1]
    # Batches of other segments have other last digits: the labels are the same.
    assert [row[:2] for row in rows(planned / "prediction_results.txt")] == [
        row[:2] for row in rows(one / "prediction_results.txt")
    ]


@pytest.mark.parametrize(
    ("variable", "which"),
    [
        ("SLURM_ARRAY_TASK_ID", "auto/3"),
        ("AWS_BATCH_JOB_ARRAY_INDEX", "auto/3"),
        ("JOB_COMPLETION_INDEX", "auto/3"),
    ],
)
def test_the_number_of_the_task(
    planned: Path, monkeypatch: pytest.MonkeyPatch, variable: str, which: str
) -> None:
    monkeypatch.setenv(variable, "1")
    assert shard(planned, which)[0] == 0
    assert [path.name for path in (planned / "shards").iterdir()] == ["00001-of-00003"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--threshold", "0.7"), "--threshold"),
        (("--no-report", "--calls"), "--no-report, --calls"),
        (("--model", "tiny-500-of-mine"), "--model"),
        (("--precision", "fp32"), "--precision"),
        (("--tokens-per-batch", "500"), "--tokens-per-batch"),
        (("--pairs", "off"), "--pairs"),
        (("--reuse-features", "."), "--reuse-features"),
        (("in.fa", "out"), "INPUT or OUT_DIR"),
        (("-",), "INPUT or OUT_DIR"),
    ],
)
def test_what_the_plan_decides(planned: Path, options: tuple[str, ...], named: str) -> None:
    code, said = shard(planned, "0/2", *options)
    assert code == 64
    assert f"with --plan, the plan decides on {named.split(',')[0]}" in said
    assert all(name in said for name in named.split(", "))
    assert not (planned / "shards").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shard", "1/4"), "--shard is one of a run that was planned: name that with --plan"),
        (("--plan", "."), "which shard of .? For example: virnuc-async predict --plan run/ --shard 3/100"),
        (("--plan", ".", "--shard", "4/4"), "there is no shard 4/4: shards are counted from 0 to 3"),
        (("--plan", ".", "--shard", "one"), "a shard is written as NUMBER/COUNT, such as 3/100"),
        (("--plan", ".", "--shard", "auto/4"), "none of SLURM_ARRAY_TASK_ID, AWS_BATCH_JOB_ARRAY_INDEX"),
    ],
)
def test_wrong_words(words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_ARRAY_TASK_ID", "AWS_BATCH_JOB_ARRAY_INDEX", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    ended = run("predict", *words)
    assert ended.code == 64
    assert said in ended.err


def test_options_of_the_machine_and_the_session(planned: Path, tmp_path: Path) -> None:
    options = ("--threads", "1", "--max-seconds", "600", "--verbose")
    assert shard(planned, "0/2", *options)[0] == 0
    code, said = shard(planned, "0/2")
    assert (code, "this shard is finished already" in said) == (0, True)
    code, said = shard(planned, "0/2", "--overwrite", "--quiet")
    assert code == 0
    assert log(planned / "shards" / "00000-of-00002").count("this shard is finished already") <= 1


def test_inputs_keep_the_names_that_they_were_given(
    tmp_path: Path, model: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables have relative paths as they were given, wherever shards are scored and merged."""
    (tmp_path / "reads").mkdir()
    (tmp_path / "one.fa").write_text(fasta([("one", _BASES)]))
    (tmp_path / "reads" / "two.fa").write_text(fasta([("two", _BASES)]) + ">protein\nMKLVINGKTLKGEIT\n")
    options = ("--model", model.directory, "--devices", "cpu", "--viral-fasta")
    monkeypatch.chdir(tmp_path)
    assert run("plan", "./one.fa", "reads", "run", *options).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert shard(tmp_path / "run", "0/1")[0] == 0
    assert run("merge", tmp_path / "run").code == 2
    monkeypatch.chdir(tmp_path)
    assert predict("./one.fa", "reads", "out", *options).code == 2
    assert b"\t./one.fa\t" in (tmp_path / "out" / "contigs.tsv").read_bytes()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    same = names - {"run.sqlite3", "run.log", "progress.json", "summary.json", "report.html"}
    assert {"contigs.tsv", "samples.tsv", "failed_files.txt", "viral.fasta"} <= same
    for name in same - {"virnuc_statistics_mqc.json", "virnuc_mqc.json"}:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
