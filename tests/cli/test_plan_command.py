"""``plan`` and ``status`` as commands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from running import predict, python, run, some_reads
from support import ROOT, fasta

from virnuc_async.distributed.plan import SHARDS, read_plan
from virnuc_async.settings import CallRules, Format, Settings

SCHEMAS = ROOT / "virnuc_async" / "outputs" / "schemas"
T4 = ("--for-device", "T4")


def validate(name: str, value: object) -> None:
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text())).validate(value)


@pytest.fixture
def reads(tmp_path: Path) -> Path:
    path = tmp_path / "reads.fa"
    path.write_text(fasta(some_reads(60, 100).items()))
    return path


def test_a_plan_and_what_comes_next(reads: Path, tmp_path: Path) -> None:
    directory = tmp_path / "my run"
    ended = run("plan", reads, directory, *T4, "--segment-bases", "1000")
    assert ended.code == 0
    assert ended.out == (
        "Planned: 60 records, 0.0 Mb, of 1 file; 6 segments\n"
        "Devices: Tesla T4 (capability 7.5, 40 multiprocessors), FP16, 16,384 tokens per batch\n"
        "Next, for each NUMBER from 0 to 5 in any order: "
        f"virnuc-async predict --plan '{directory}' --shard NUMBER/6 (fewer shards are fine)\n"
        f"Then: virnuc-async merge '{directory}'\n"
    )
    assert "planned for devices of the kind Tesla T4" in ended.err
    validate("plan", json.loads((directory / "plan.json").read_text()))
    again = run("plan", reads, directory, *T4, "--segment-bases", "1000")
    assert (again.code, again.out) == (0, ended.out)
    assert again.err == f"{directory} has this plan already\n"
    assert run("plan", reads, directory, *T4, "--segment-bases", "1000", "--quiet").err == ""


def test_one_segment_and_a_file_that_breaks(reads: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.fa"
    broken.write_text(">a\nACGT\n>b\n!\n")
    ended = run("plan", broken, reads, tmp_path / "run", *T4)
    assert ended.code == 0
    planned, _, following, _ = ended.out.splitlines()
    assert planned == "Planned: 61 records, 0.0 Mb, of 2 files, 1 of them not to the end; 1 segment"
    assert following == f"Next: virnuc-async predict --plan {tmp_path / 'run'} --shard 0/1"
    assert f"ERROR: {broken}: line 4: '!' is not a nucleotide letter" in ended.err
    validate("plan", json.loads((tmp_path / "run" / "plan.json").read_text()))


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("--threshold 0.7 --embeddings --no-report", {"threshold": 0.7, "embeddings": True, "report": False}),
        ("--format tsv,jsonl --min-length 9", {"formats": (Format.TSV, Format.JSONL), "min_length": 9}),
        ("--min-fragments 2", {"calls": CallRules(min_fragments=2)}),
        ("--pairs interleaved --verdict-by mean", {"pairs": "interleaved", "verdict_by": "mean"}),
        ("--tokens-per-batch 99", {"tokens_per_batch": 99}),
    ],
)
def test_options_of_predict(options: str, settings: dict[str, object], reads: Path, tmp_path: Path) -> None:
    assert run("plan", reads, tmp_path / "run", *T4, "--precision", "fp32", *options.split()).code == 0
    found = read_plan(tmp_path / "run").settings_on(Settings())
    expected = Settings(**{"precision": "fp32", "tokens_per_batch": found.tokens_per_batch, **settings})  # type: ignore[arg-type]
    assert found == expected


def test_inputs_by_options(reads: Path, tmp_path: Path) -> None:
    other = tmp_path / "deep" / "deeper"
    other.mkdir(parents=True)
    (other / "b.fa").write_text(">b\nACGT\n")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{reads}\n{tmp_path / 'none.fa'}\n{reads}\n")
    words = ("--input", other.parent, "--input-list", listed, "-o", tmp_path / "run", "--recursive")
    ended = run("plan", *words, *T4, "--skip-missing", "--allow-duplicates", "--threads", "1")
    assert ended.code == 0
    paths = [file.path for file in read_plan(tmp_path / "run").files]
    assert paths == [str(other / "b.fa"), str(reads), str(tmp_path / "none.fa"), str(reads)]


def test_another_plan_needs_overwrite(reads: Path, tmp_path: Path) -> None:
    assert run("plan", reads, tmp_path / "run", *T4).code == 0
    refused = run("plan", reads, tmp_path / "run", "--for-device", "L4")
    assert refused.code == 1
    assert refused.err.endswith("Use another directory, or --overwrite\n")
    assert run("plan", reads, tmp_path / "run", "--for-device", "L4", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "name an input and a run directory. For example: virnuc-async plan reads.fq.gz run/"),
        ("run", "name an input before the run directory 'run'"),
        (f"a.fa {__file__}", f"the last name must be the run directory, but '{__file__}' is a file"),
        ("a.fa run --segment-bases 0", "segment bases must be at least 1, not 0"),
        ("a.fa run --threads 0", "threads must be at least 1, not 0"),
        ("a.fa run --reuse-features x", "no such option: --reuse-features"),
        ("- run", "standard input can be read only once"),
        ("a.fa run --for-device T4 --devices cpu", "choose the devices of this machine, or --for-device"),
    ],
)
def test_wrong_usage(arguments: str, message: str) -> None:
    ended = run("plan", *arguments.split())
    assert (ended.code, ended.out) == (64, "")
    assert message in ended.err


def test_a_run_does_not_go_where_a_plan_is(reads: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert run("plan", reads, directory, *T4).code == 0
    for words in ((), ("--overwrite",)):
        ended = predict(reads, directory, *words)
        assert ended.code == 1
        how = f"virnuc-async predict --plan {directory} --shard NUMBER/COUNT"
        assert f"has the plan of a run of many machines (plan.json), which goes on with: {how}" in ended.err
    assert [path.name for path in directory.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interrupted(name: str, code: int, tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from virnuc_async.cli.main import main
sys.stderr = sys.stdout
from virnuc_async.log import logger
is_begun = lambda record: "reading: 0 of" in record["message"]
logger.add(lambda _: os.kill(os.getpid(), signal.{name}), filter=is_begun)
print(main(["plan", {str(tmp_path / "a.fa")!r}, {str(tmp_path / "run")!r}, "--for-device", "T4"]))
"""
    (tmp_path / "a.fa").write_text(">a\n" + "ACGT" * 5_000_000)
    *_, stopping, ended, found = python(script).splitlines()
    assert (stopping, ended, found) == ("Stopping ...", "Interrupted: nothing was written.", str(code))
    assert not (tmp_path / "run").exists()


def test_status(reads: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    missing = run("status", directory)
    assert (missing.code, missing.out) == (1, "")
    assert "there is no such directory. Plan the run first" in missing.err
    assert run("plan", reads, directory, *T4, "--segment-bases", "1000").code == 0
    assert run("status", directory) == (
        0,
        f"{directory}: 60 records, 0.0 Mb in 6 segments\n"
        f"No shard has begun. Next: virnuc-async predict --plan {directory} --shard NUMBER/COUNT\n",
        "",
    )
    for number in (1, 4):
        shard = directory / SHARDS / f"0000{number}-of-00006"
        shard.mkdir(parents=True)
        facts = {"state": "failed", "share": 0.25, "message": "no\n\x1b[31mroom", "orfs": {"done": 7}}
        (shard / "progress.json").write_text(json.dumps({**facts, "process": {"host": "n\x07", "pid": 8}}))
    ended = run("status", directory)
    assert (ended.code, ended.err) == (0, "")
    _, counts, header, first, second, to_do = ended.out.splitlines()
    assert counts == "6 shards: 2 failed, 4 missing; 8.3% done"
    assert header.split() == ["shard", "state", "done", "ORFs/s", "process", "what"]
    assert re.split(r"  +", first) == ["1", "failed", "25%", "no \\x1b[31mroom"]
    assert re.split(r"  +", second)[0] == "4"
    command = f"virnuc-async predict --plan {directory} --shard NUMBER/6"
    assert to_do == f"To be run: 0-5, each with: {command}"
    value = json.loads(run("status", directory, "--json").out)
    validate("status", value)
    assert [shard["state"] for shard in value["divisions"][0]["shards"]] == [
        *("missing", "failed", "missing", "missing", "failed", "missing"),
    ]


def test_status_of_a_run_that_is_done(reads: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert run("plan", reads, directory, "--devices", "cpu", "--segment-bases", "5000").code == 0
    for number in (0, 1):
        done = run("predict", "--plan", directory, "--shard", f"{number}/2", "--devices", "cpu")
        assert done.code == 0
    _, counts, following = run("status", directory).out.splitlines()
    assert counts == "2 shards: 2 done; 100% done"
    assert following == f"All are done. Next: virnuc-async merge {directory}"
    assert run("merge", directory).code == 0
    assert run("status", directory).out.splitlines()[2] == f"Merged: the tables are in {directory}"


def test_status_of_many_shards_is_short(reads: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert run("plan", reads, directory, *T4, "--segment-bases", "100").code == 0
    for number in range(60):
        (directory / SHARDS / f"{number:05}-of-00060").mkdir(parents=True)
    lines = run("status", directory).out.splitlines()
    assert len(lines) == 45
    assert lines[-2] == "... and 20 more: --json has all of them"


def test_both_in_processes_of_their_own(reads: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "virnuc_async"]
    for words in (["plan", str(reads), "run", *T4], ["status", "run"]):
        done = subprocess.run(
            [*command, *words], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"run: 60 records")


def test_status_imports_no_torch(reads: Path, tmp_path: Path) -> None:
    assert run("plan", reads, tmp_path / "run", *T4).code == 0
    script = f"""
import sys
from virnuc_async.cli.main import main
main(["status", {str(tmp_path / "run")!r}])
print("torch" in sys.modules)
"""
    assert python(script).endswith("\nFalse\n")


def test_kinds_of_devices(reads: Path, tmp_path: Path) -> None:
    kinds = run("devices", "--kinds").out.splitlines()
    assert kinds[-1].startswith("CPU (")
    ways = (["--for-device", kinds[-1]], ["--for-device", "cpu"], ["--devices", "cpu"])
    for number, words in enumerate(ways):
        directory = tmp_path / str(number)
        assert run("plan", reads, directory, *words).code == 0
        plan = read_plan(directory)
        assert (plan.devices, plan.precision, plan.tokens_per_batch) == (kinds[-1], "fp32", 2048)
