"""
The Nextflow module: its files agree, and its script, made by Groovy, runs the program.

Nextflow itself, where it runs, runs the commands of the README.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_files import (
    EXAMPLE,
    OPTIONS,
    PATH,
    PLANNED,
    RECIPES,
    SHARDS,
    Note,
    Shell,
    Tables,
    commands,
    compute_in_segments,
    read_tables,
)
from running import log, wait_until

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(180)]
NEXTFLOW = RECIPES / "nextflow"
MODULES = NEXTFLOW / "modules" / "local" / "virnuc_async"
NAMES = ("predict", "plan", "shard", "merge")
MAINS = ("main.nf", "shards.nf", "subworkflows/local/virnuc_async_shards/main.nf")
PROCESS = Path(__file__).with_name("nextflow_process.groovy")
PARSED = """
import json, sys
from reftrace import ConfigFile, Module
config = ConfigFile.from_file(sys.argv[1])
modules = list(map(Module.from_file, sys.argv[2:]))
processes = [each for one in modules for each in one.processes]
print(json.dumps({
    "labels": {each.name: [label.value for label in each.labels] for each in processes},
    "included": [[item.name for each in one.includes for item in each.items] for one in modules],
    "params": [sorted(each.name for each in one.params) for one in modules],
    "config_error": str(config.error or ""),
    "configured": [each.name for scope in config.config_file.process_scopes for each in scope.named_scopes],
}))
"""


def evaluate(
    name: str, sequences: str, runs: Path | None = None, seconds: int | None = None, **values: Any
) -> dict[str, Any]:
    """Return the process of a module as Groovy evaluates it, for a sample s1 and a limit of *seconds*."""
    groovy, java = shutil.which("groovy", path=PATH), shutil.which("java", path=PATH)
    if groovy is None or java is None:
        pytest.skip("needs groovy and java")
    args = {"plan": f"--for-device cpu {PLANNED}", "predict": " ".join((*OPTIONS, "--calls"))}
    ext = {"args": args.get(name), "runs": str(runs) if runs else None}
    task = {"process": f"ONE:VIRNUC_ASYNC_{name.upper()}", "cpus": 2, "seconds": seconds, "ext": ext}
    inputs = {"meta": {"id": "s1"}, "sequences": sequences, "model": [], "done": []}
    if name != "plan":  # whose output has this name
        inputs["plan"] = "s1.plan.json"
    inputs |= {"number": 0, "shards": SHARDS, "moduleDir": "here", "task": task}
    words = [groovy, str(PROCESS), str(MODULES / name / "main.nf"), json.dumps(inputs | values)]
    environment = os.environ | {"JAVA_HOME": str(Path(java).resolve().parents[1])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def attempt(shell: Shell, number: int, contigs: Path) -> Path:
    """Return a new work directory with the input, as Nextflow makes one for each attempt."""
    work = shell.directory / f"attempt{number}"
    (work / "sequences").mkdir(parents=True)
    (work / "sequences" / "contigs.fa").symlink_to(contigs)
    return work


def test_the_files_agree(shell: Shell, tool: Callable[[str], str], note: Note) -> None:
    python = Path(tool("miniwdl")).parent / "python"
    (shell.directory / "parse.py").write_text(PARSED)
    paths = [*(NEXTFLOW / name for name in MAINS), *(MODULES / name / "main.nf" for name in NAMES)]
    words = " ".join(map(str, (NEXTFLOW / "nextflow.config", *paths)))
    parsed = json.loads(shell.run(f"{python} parse.py {words}"))
    of_shards = [f"VIRNUC_ASYNC_{name.upper()}" for name in NAMES[1:]]
    assert parsed == {
        "labels": {
            "VIRNUC_ASYNC_PREDICT": ["process_medium", "process_gpu"],
            "VIRNUC_ASYNC_PLAN": ["process_medium"],
            "VIRNUC_ASYNC_SHARD": ["process_medium", "process_gpu"],
            "VIRNUC_ASYNC_MERGE": ["process_medium"],
        },
        "included": [["VIRNUC_ASYNC_PREDICT"], ["VIRNUC_ASYNC_SHARDS"], of_shards, [], [], [], []],
        "params": [["input", "model"], ["input", "model", "shards"], [], [], [], [], []],
        "config_error": "",
        "configured": [
            "VIRNUC_ASYNC_PREDICT",
            "VIRNUC_ASYNC_(PLAN|SHARD|MERGE)",
            "VIRNUC_ASYNC_PLAN",
            "VIRNUC_ASYNC_MERGE",
        ],
    }
    for name in NAMES:
        environment = yaml.safe_load((MODULES / name / "environment.yml").read_text())
        assert [each.split("=")[0] for each in environment["dependencies"]] == ["bioconda::virnuc-async"]
    note("Nextflow: the modules, the workflows and the configuration parsed by RefTrace")


@pytest.mark.parametrize("name", NAMES)
def test_the_module_declares_what_meta_yml_says(name: str, note: Note) -> None:
    process = evaluate(name, "in.fa")
    meta = yaml.safe_load((MODULES / name / "meta.yml").read_text())
    assert meta["name"] == process["name"].lower()
    declared = [", ".join(name for each in group for name in each) for group in meta["input"]]
    assert [each["text"].replace("val ", "").replace("path ", "") for each in process["input"]] == declared
    assert [each["emit"] for each in process["output"]] == list(meta["output"])
    assert process["when"]
    assert process["directives"]["conda"] == ["here/environment.yml"]
    note("Nextflow: the process compiled and evaluated by Groovy; meta.yml says the same")


def test_an_attempt_that_ends_is_resumed_by_the_next(
    shell: Shell, contigs: Path, undisturbed: Tables, note: Note
) -> None:
    runs = shell.directory / "runs"
    script = evaluate("predict", "sequences/contigs.fa", runs, seconds=3600)["script"]
    assert " --max-seconds 3300 " in script
    first, second = (attempt(shell, number, contigs) for number in (1, 2))
    with shell.start(f"cd {first}; set -o pipefail; {script}") as process:
        wait_until(lambda: " batch 0.3 " in log(runs / "s1"), process)
        os.kill(json.loads((runs / "s1" / "run.lock").read_text())["pid"], signal.SIGTERM)
        assert process.stdout
        process.stdout.read()
        assert process.wait() == 143
    assert "resuming after" in shell.run(f"cd {second}; {script}")
    assert read_tables(second / "s1", "sequences/contigs.fa") == undisturbed
    note("Nextflow: the script that Groovy makes, ended in the middle and tried again, byte-identical")


def test_every_output_is_written(shell: Shell, contigs: Path) -> None:
    process = evaluate("predict", "sequences/contigs.fa")
    assert "--max-seconds" not in process["script"]
    for number, section in enumerate(("script", "stub"), 1):
        work = attempt(shell, number, contigs)
        shell.run(f"cd {work}; {process[section]}")
        for output in process["output"]:
            if "optional" not in output:
                assert (work / output["text"].split("path ")[1]).exists(), (section, output)
        versions = yaml.safe_load((work / "versions.yml").read_text())
        assert list(versions) == ["ONE:VIRNUC_ASYNC_PREDICT"]
        assert versions["ONE:VIRNUC_ASYNC_PREDICT"]["virnuc-async"].count(".") == 2


def test_a_shard_that_is_killed_is_resumed_by_the_next_attempt(
    shell: Shell, contigs: Path, in_segments: Tables, note: Note
) -> None:
    compute_in_segments(shell)
    runs, numbers = shell.directory / "runs", count()

    def script(name: str, **values: int) -> str:
        work = attempt(shell, next(numbers), contigs)
        return (
            f"cd {work}; set -o pipefail; {evaluate(name, 'sequences/contigs.fa', runs, **values)['script']}"
        )

    shell.run(script("plan"))
    shard = runs / "s1" / "shards" / "00000-of-00003"
    with shell.start(script("shard", number=0, seconds=3600)) as process:
        wait_until(lambda: " batch 0.3 " in log(shard), process)
        os.kill(json.loads((shard / "run.lock").read_text())["pid"], signal.SIGKILL)
        assert process.stdout
        process.stdout.read()
        assert process.wait() == 137
    for number in range(SHARDS):
        printed = shell.run(script("shard", number=number, seconds=3600))
        assert ("resuming after" in printed) is (number == 0)
    shell.run(script("merge"))
    (results,) = shell.directory.glob("attempt*/s1")
    assert read_tables(results, contigs) == in_segments
    note("Nextflow: plan, a shard killed and tried again, merge, byte-identical to one machine")


def test_nextflow_runs_the_commands_of_the_readme(shell: Shell, note: Note) -> None:
    nextflow = shutil.which("nextflow", path=PATH)
    if nextflow is None or subprocess.run([nextflow, "-version"], capture_output=True).returncode:
        pytest.skip("needs Nextflow")
    shutil.copytree(NEXTFLOW, shell.directory, dirs_exist_ok=True)
    shutil.copy(EXAMPLE, shell.directory)
    path = shell.directory / "results" / "metagenome" / "contigs.tsv"
    sharded = commands("Nextflow", 1).strip()
    for command in (commands("Nextflow"), f"{sharded} --device cpu --runs $PWD/of_shards"):
        shell.run(command, CUDA_VISIBLE_DEVICES="")
        assert path.read_text().count("\n") == 61
        path.unlink()
    note("Nextflow: the commands of the README, by Nextflow itself")
