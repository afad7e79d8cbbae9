"""The Snakemake workflow, run for real: a retry and a new call go on where the run was."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_files import (
    EXAMPLE,
    OPTIONS,
    PLANNED,
    RECIPES,
    SHARDS,
    TABLES,
    Note,
    Shell,
    Tables,
    commands,
    compute_in_segments,
    read_tables,
)
from running import log, wait_until

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(180)]
CALL = "exec snakemake --cores 1 --rerun-incomplete --printshellcmds"
SHARDED = f"{CALL} --snakefile shards.smk"


@pytest.fixture
def workflow(shell: Shell, tool: Callable[[str], str], contigs: Path) -> Shell:
    """A shell in a copy of the workflow, with one sample and options of the tests."""
    tool("snakemake")
    shutil.copytree(RECIPES / "snakemake", shell.directory, dirs_exist_ok=True)
    (shell.directory / "contigs.fa").symlink_to(contigs)
    configure(shell, runtime=360, margin=300)
    return shell


def configure(shell: Shell, runtime: int, margin: int) -> None:
    """Write config.yaml, in JSON."""
    config = {"samples": {"a": "contigs.fa"}, "options": " ".join(OPTIONS), "gpus": 0, "shards": SHARDS}
    (shell.directory / "config.yaml").write_text(json.dumps(config | {"runtime": runtime, "margin": margin}))


def kill_in_the_middle(
    shell: Shell, kill: Callable[[int], None], call: str = CALL, run: str = "runs/a"
) -> tuple[int, str]:
    """Start Snakemake, kill something after some batches of *run*; return its code and what it prints."""
    with shell.start(call) as process:
        wait_until(lambda: " batch 0.3 " in log(shell.directory / run), process)
        kill(process.pid)
        assert process.stdout
        printed = process.stdout.read()
        return process.wait(), printed


def test_a_job_that_is_killed_is_retried_and_resumes(
    workflow: Shell, undisturbed: Tables, note: Note
) -> None:
    run = workflow.directory / "runs" / "a"

    def kill(_: int) -> None:
        os.kill(json.loads((run / "run.lock").read_text())["pid"], signal.SIGKILL)

    code, printed = kill_in_the_middle(workflow, kill)
    assert code == 0, printed
    assert "Trying to restart job" in printed
    assert_resumed(workflow, undisturbed)
    note("Snakemake: the program killed, the job retried by Snakemake, byte-identical")


def test_a_workflow_that_is_killed_resumes_with_the_next_call(
    workflow: Shell, undisturbed: Tables, note: Note
) -> None:
    code, _ = kill_in_the_middle(workflow, lambda pid: os.killpg(pid, signal.SIGKILL))
    assert code == -signal.SIGKILL
    assert not [name for name in TABLES if (workflow.directory / "results" / "a" / name).exists()]
    workflow.run("snakemake --unlock")
    workflow.run(CALL)
    assert_resumed(workflow, undisturbed)
    assert "Nothing to be done" in workflow.run(CALL)
    note("Snakemake: everything killed, snakemake called again, byte-identical")


def assert_resumed(workflow: Shell, undisturbed: Tables) -> None:
    session = json.loads((workflow.directory / "runs" / "a" / "summary.json").read_bytes())["session"]
    assert session["orfs_before"] > 0
    assert session["orfs"] > 0
    assert "resuming after" in (workflow.directory / "logs" / "virnuc_async" / "a.log").read_text()
    assert read_tables(workflow.directory / "results" / "a", "contigs.fa") == undisturbed


def test_the_run_ends_before_the_limit_of_the_job(workflow: Shell) -> None:
    configure(workflow, runtime=90, margin=200)
    assert " --max-seconds 5200 " in workflow.run(f"{CALL} --dry-run")
    assert " --max-seconds 6400 " in workflow.run(
        f"{CALL} --dry-run --set-resources virnuc_async:runtime=110"
    )


def test_the_commands_of_the_readme(workflow: Shell, note: Note) -> None:
    assert "Congratulations" in workflow.run("snakemake --lint 2>&1")
    shutil.copy(RECIPES / "snakemake" / "config.yaml", workflow.directory)
    shutil.copy(EXAMPLE, workflow.directory)
    workflow.run(commands("Snakemake"))
    table = (workflow.directory / "results" / "metagenome" / "contigs.tsv").read_text()
    assert table.count("\n") == 61
    note("Snakemake: snakemake --lint; the commands of the README, run for real")


@pytest.fixture
def sharded(workflow: Shell) -> Shell:
    """A shell in a copy of the workflow, that computes in short segments."""
    compute_in_segments(workflow)
    path = workflow.directory / "config.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"options": PLANNED.removeprefix("--calls ")}))
    return workflow


def assert_shard_resumed(sharded: Shell, in_segments: Tables, shard: int) -> None:
    place = sharded.directory / "runs" / "a" / "shards"
    assert "resuming after" in (place / f"{shard:05}-of-00003" / "run.log").read_text()
    assert read_tables(sharded.directory / "results" / "a", "contigs.fa") == in_segments


def test_a_shard_that_is_killed_is_retried_and_resumes(
    sharded: Shell, in_segments: Tables, note: Note
) -> None:
    name = "runs/a/shards/00000-of-00003"

    def kill(_: int) -> None:
        lock = json.loads((sharded.directory / name / "run.lock").read_text())
        os.kill(lock["pid"], signal.SIGKILL)

    code, printed = kill_in_the_middle(sharded, kill, SHARDED, name)
    assert code == 0, printed
    assert "Trying to restart job" in printed
    assert_shard_resumed(sharded, in_segments, 0)
    assert "Nothing to be done" in sharded.run(SHARDED)
    note("Snakemake, shards.smk: a shard killed, retried by Snakemake, byte-identical to one machine")


def test_a_workflow_of_shards_that_is_killed_resumes_with_the_next_call(
    sharded: Shell, in_segments: Tables, note: Note
) -> None:
    name = "runs/a/shards/00000-of-00003"
    code, _ = kill_in_the_middle(sharded, lambda pid: os.killpg(pid, signal.SIGKILL), SHARDED, name)
    assert code == -signal.SIGKILL
    assert sorted(os.listdir(sharded.directory / "runs" / "a" / "done")) == ["plan"]
    sharded.run("snakemake --snakefile shards.smk --unlock")
    printed = sharded.run(SHARDED)
    assert "virnuc-async plan" not in printed  # once for all
    assert_shard_resumed(sharded, in_segments, 0)
    note("Snakemake, shards.smk: everything killed, snakemake called again, byte-identical to one machine")


def test_the_commands_for_shards(sharded: Shell, note: Note) -> None:
    assert "Congratulations" in sharded.run("snakemake --snakefile shards.smk --lint 2>&1")
    config = (RECIPES / "snakemake" / "config.yaml").read_text().replace("shards: 16", "shards: 2")
    (sharded.directory / "config.yaml").write_text(config.replace("gpus: 1", "gpus: 0"))
    shutil.copy(EXAMPLE, sharded.directory)
    sharded.run(commands("Snakemake", 1))
    table = (sharded.directory / "results" / "metagenome" / "contigs.tsv").read_text()
    assert table.count("\n") == 61
    note("Snakemake, shards.smk: snakemake --lint; the commands of the README, run for real")
