"""The scripts for Slurm: clean by shellcheck, and run with the environment and commands of a fake Slurm."""

import json
import signal
import time
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
    few_shards,
    read_tables,
)
from running import log, wait_until

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(180)]
SCRIPTS = RECIPES / "slurm"
# As Slurm does it, the scripts are run from a copy elsewhere; jobs/ID has the exit code of each job.
SBATCH = r"""
tasks=("") parsable= needed=
while [[ $1 == -* ]]; do
    case $1 in
        --array=*) mapfile -t tasks < <(sed 's/--array=//; s/%.*//; s/-/ /' <<< "$1" | xargs -n 2 seq) ;;
        --parsable) parsable=1 ;;
        --dependency=afterok:*) needed=${1##*:} ;;
    esac
    shift
done
spool=$(mktemp -d)
cp "$1" "$spool/slurm_script"
shift
mkdir -p jobs
export SLURM_JOB_ID=77 SLURM_SUBMIT_DIR=$PWD SLURM_CPUS_PER_TASK=2
run() { bash "$spool/slurm_script" "$@"; }
id=$(($(find jobs -type f | wc -l) + 100)) code=0
[[ -z $parsable ]] || echo "$id"
if [[ -n $needed && $(cat "jobs/$needed") != 0 ]]; then
    echo "DependencyNeverSatisfied" >&2
    echo 1 > "jobs/$id"
elif [[ -n $parsable ]]; then
    for SLURM_ARRAY_TASK_ID in "${tasks[@]}"; do
        export SLURM_ARRAY_TASK_ID
        run "$@" >> "jobs-$id.log" 2>&1 || code=$?
    done
    echo "$code" > "jobs/$id"
elif [[ -z ${tasks[0]} ]]; then
    exec bash "$spool/slurm_script" "$@"
else
    for SLURM_ARRAY_TASK_ID in "${tasks[@]}"; do
        export SLURM_ARRAY_TASK_ID
        run "$@"
    done
fi
"""


@pytest.fixture
def slurm(shell: Shell) -> Shell:
    """A shell with a fake Slurm, which keeps what it was asked for in requeued.txt and steps.txt."""
    for script in SCRIPTS.iterdir():
        (shell.directory / script.name).write_bytes(script.read_bytes())
    shell.add("sbatch", SBATCH)
    shell.add("srun", 'echo "$*" >> steps.txt; while [[ $1 == -* ]]; do shift; done; exec "$@"')
    shell.add("squeue", "[[ $* == *77* ]] && cat state.txt")
    shell.add("scontrol", 'echo "$*" >> requeued.txt')
    (shell.directory / "state.txt").write_text("RUNNING\n")
    return shell


def requeued(slurm: Shell) -> str:
    path = slurm.directory / "requeued.txt"
    return path.read_text() if path.exists() else ""


def end_in_the_middle(
    slurm: Shell, command: str, out: Path, number: signal.Signals, **variables: str
) -> tuple[int, str]:
    """Run *command*, send a signal to its batch script after some batches; return its code and output."""
    with slurm.start(f"exec {command}", **variables) as process:
        wait_until(lambda: " batch 0.3 " in log(out), process)
        process.send_signal(number)
        assert process.stdout
        printed = process.stdout.read()
        return process.wait(), printed


@pytest.mark.parametrize("name", ["one-gpu.sbatch", "array.sbatch", "shards.sbatch", "no-gpu.sbatch"])
def test_shellcheck_finds_nothing(name: str, tool: Callable[[str], str], slurm: Shell, note: Note) -> None:
    assert slurm.run(f"{tool('shellcheck')} --norc {name}") == ""
    note(f"Slurm, {name}: shellcheck")


def test_the_commands_of_the_readme(slurm: Shell, note: Note) -> None:
    (slurm.directory / "metagenome.fa.gz").write_bytes(EXAMPLE.read_bytes())
    slurm.run(commands("Slurm"))
    single, first = ((slurm.directory / out / "contigs.tsv").read_text() for out in ("out", "many/1"))
    assert single == first
    assert single.count("\n") == 61
    assert requeued(slurm) == ""
    assert not list(slurm.directory.glob("virnuc-async-*"))  # TMPDIR is gone
    note("Slurm, README: its commands, with a fake sbatch")


def test_a_job_that_slurm_warns_is_requeued_and_resumes(
    slurm: Shell, contigs: Path, undisturbed: Tables, note: Note
) -> None:
    out = slurm.directory / "out"
    command = f"sbatch one-gpu.sbatch {contigs} out {' '.join(OPTIONS)} --calls"
    code, printed = end_in_the_middle(slurm, command, out, signal.SIGUSR1)
    assert code == 0
    assert printed.endswith("The run is not finished: job 77 is requeued\n")
    assert requeued(slurm) == "requeue 77\n"
    assert not (out / TABLES[0]).exists()
    assert "resuming after" in slurm.run(command, SLURM_RESTART_COUNT="1")
    assert read_tables(out, contigs) == undisturbed
    assert requeued(slurm) == "requeue 77\n"  # not again
    note("Slurm, one-gpu.sbatch: ended by SIGUSR1, requeued, byte-identical; fake srun, squeue and scontrol")


def test_a_job_that_is_cancelled_is_not_requeued(slurm: Shell, contigs: Path) -> None:
    (slurm.directory / "state.txt").write_text("CANCELLED\n")
    command = f"sbatch one-gpu.sbatch {contigs} out {' '.join(OPTIONS)}"
    code, _ = end_in_the_middle(slurm, command, slurm.directory / "out", signal.SIGTERM)
    assert (code, requeued(slurm)) == (143, "")


def test_the_run_ends_before_the_limit_of_the_job(slurm: Shell, contigs: Path) -> None:
    soon = str(int(time.time()) + 301)
    command = f"sbatch array.sbatch inputs.txt out {' '.join(OPTIONS)}"
    (slurm.directory / "inputs.txt").write_text(f"none.fa\n{contigs}\n")
    printed = slurm.run(command, SLURM_ARRAY_TASK_ID="2", SLURM_JOB_END_TIME=soon)
    assert requeued(slurm) == "requeue 77\n"
    assert printed.endswith("job 77 is requeued\n")
    steps = (slurm.directory / "steps.txt").read_text()
    assert steps.startswith("--ntasks=1 --cpus-per-task=2 virnuc-async predict --max-seconds 1 ")
    slurm.run(command, code=143, SLURM_ARRAY_TASK_ID="2", SLURM_JOB_END_TIME=soon, MAX_RESTARTS="0")
    later = str(int(time.time()) + 3600)
    slurm.run(command, SLURM_ARRAY_TASK_ID="2", SLURM_JOB_END_TIME=later)
    seconds = int((slurm.directory / "steps.txt").read_text().splitlines()[-1].split()[5])
    assert 3200 < seconds <= 3300
    assert json.loads((slurm.directory / "out" / "2" / "summary.json").read_bytes())["finished"]


def test_exit_codes_of_the_program_are_those_of_the_job(slurm: Shell) -> None:
    assert "none.fa" in slurm.run("sbatch one-gpu.sbatch none.fa out", code=1)
    (slurm.directory / "inputs.txt").write_text("")
    printed = slurm.run("sbatch array.sbatch inputs.txt out", code=64, SLURM_ARRAY_TASK_ID="1")
    assert printed == "inputs.txt has no line 1\n"
    assert slurm.run("bash one-gpu.sbatch in.fa", code=64).startswith("usage: sbatch one-gpu.sbatch INPUT")
    assert requeued(slurm) == ""


def test_the_commands_for_shards(slurm: Shell, contigs: Path, in_segments: Tables, note: Note) -> None:
    compute_in_segments(slurm)
    (slurm.directory / "metagenome.fa.gz").symlink_to(contigs)
    printed = slurm.run(few_shards(commands("Slurm", 1)))
    assert (slurm.directory / "jobs" / "100").read_text() == "0\n", (
        slurm.directory / "jobs-100.log"
    ).read_text()
    assert (slurm.directory / "jobs" / "101").read_text() == "0\n", (
        slurm.directory / "jobs-101.log"
    ).read_text()
    steps = (slurm.directory / "steps.txt").read_text().splitlines()
    assert [step.split()[2:5] for step in steps] == [
        ["virnuc-async", "plan", "metagenome.fa.gz"],
        *[["virnuc-async", "predict", "--plan"]] * SHARDS,
        ["virnuc-async", "merge", "run/"],
    ]
    assert "DependencyNeverSatisfied" not in printed
    assert read_tables(slurm.directory / "results", "metagenome.fa.gz") == in_segments
    assert not list(slurm.directory.glob("virnuc-async-*"))  # TMPDIR is gone
    note("Slurm: plan, an array of shards, merge; byte-identical to one machine, with a fake sbatch")


def test_a_shard_that_slurm_warns_is_requeued_and_resumes(
    slurm: Shell, contigs: Path, in_segments: Tables, note: Note
) -> None:
    compute_in_segments(slurm)
    slurm.run(f"sbatch no-gpu.sbatch plan {contigs} run --for-device cpu {PLANNED}")
    out = slurm.directory / "run" / "shards" / "00000-of-00003"
    command = f"sbatch shards.sbatch run {SHARDS}"
    code, printed = end_in_the_middle(slurm, command, out, signal.SIGUSR1, SLURM_ARRAY_TASK_ID="0")
    assert code == 0
    assert printed.endswith("The run is not finished: job 77 is requeued\n")
    assert requeued(slurm) == "requeue 77\n"
    refused = slurm.run("sbatch no-gpu.sbatch merge run results", code=1)
    assert f"0/{SHARDS}" in refused
    assert not (slurm.directory / "results").exists()
    printed = slurm.run(command.replace("sbatch", f"sbatch --array=0-{SHARDS - 1}", 1))
    assert "resuming after" in printed
    slurm.run("sbatch no-gpu.sbatch merge run results")
    assert read_tables(slurm.directory / "results", contigs) == in_segments
    note("Slurm, shards.sbatch: ended by SIGUSR1, requeued, byte-identical to one machine")


def test_without_a_shard_nothing_is_merged(slurm: Shell, contigs: Path) -> None:
    (slurm.directory / "metagenome.fa.gz").symlink_to(contigs)
    lines = few_shards(commands("Slurm", 1)).replace("shards.sbatch run/", "shards.sbatch elsewhere/")
    assert slurm.run(lines) == "DependencyNeverSatisfied\n"
    assert (slurm.directory / "jobs" / "101").read_text() == "1\n"
    assert not (slurm.directory / "results").exists()


@pytest.mark.parametrize("name", ["shards.sbatch", "no-gpu.sbatch"])
def test_a_script_without_its_arguments_says_how_it_is_used(slurm: Shell, name: str) -> None:
    assert slurm.run(f"bash {name}", code=64).startswith("usage: sbatch ")
