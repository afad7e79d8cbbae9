"""The scripts for Slurm: clean by shellcheck, and run with the environment and commands of a fake Slurm."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_files import EXAMPLE, OPTIONS, RECIPES, TABLES, Note, Shell, commands, read_tables
from running import log, wait_until

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(120)]
SCRIPTS = RECIPES / "slurm"
# As Slurm does it, the scripts are run from a copy elsewhere.
SBATCH = r"""
tasks=("")
while [[ $1 == -* ]]; do
    [[ $1 == --array=* ]] && mapfile -t tasks < <(seq 1 "$(sed 's/--array=1-//; s/%.*//' <<< "$1")")
    shift
done
spool=$(mktemp -d)
cp "$1" "$spool/slurm_script"
shift
export SLURM_JOB_ID=77 SLURM_SUBMIT_DIR=$PWD SLURM_CPUS_PER_TASK=2
if [[ -z ${tasks[0]} ]]; then exec bash "$spool/slurm_script" "$@"; fi
for SLURM_ARRAY_TASK_ID in "${tasks[@]}"; do
    export SLURM_ARRAY_TASK_ID
    bash "$spool/slurm_script" "$@"
done
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


def end_in_the_middle(slurm: Shell, command: str, out: Path, number: signal.Signals) -> tuple[int, str]:
    """Run *command*, send a signal to its batch script after some batches; return its code and output."""
    with slurm.start(f"exec {command}") as process:
        wait_until(lambda: " batch 0.3 " in log(out), process)
        process.send_signal(number)
        assert process.stdout
        printed = process.stdout.read()
        return process.wait(), printed


@pytest.mark.parametrize("name", ["one-gpu.sbatch", "array.sbatch"])
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
    slurm: Shell, contigs: Path, undisturbed: dict[str, bytes], note: Note
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
