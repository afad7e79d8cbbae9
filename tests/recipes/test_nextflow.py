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
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_files import EXAMPLE, OPTIONS, PATH, RECIPES, Note, Shell, commands, read_tables
from running import log, wait_until

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(180)]
NEXTFLOW = RECIPES / "nextflow"
MODULE = NEXTFLOW / "modules" / "local" / "virnuc_async" / "predict"
PROCESS = Path(__file__).with_name("nextflow_process.groovy")
PARSED = """
import json, sys
from reftrace import ConfigFile, Module
module, main = (Module.from_file(path) for path in sys.argv[1:3])
config = ConfigFile.from_file(sys.argv[3])
process = module.processes[0]
print(json.dumps({
    "name": process.name,
    "labels": [each.value for each in process.labels],
    "included": [item.name for each in main.includes for item in each.items],
    "params": sorted(each.name for each in main.params),
    "config_error": str(config.error or ""),
    "configured": [each.name for scope in config.config_file.process_scopes for each in scope.named_scopes],
}))
"""


def evaluate(sequences: str, runs: Path | None = None, seconds: int | None = None) -> dict[str, Any]:
    """Return the process as Groovy evaluates it, for a sample s1 and a limit of *seconds*."""
    groovy, java = shutil.which("groovy", path=PATH), shutil.which("java", path=PATH)
    if groovy is None or java is None:
        pytest.skip("needs groovy and java")
    ext = {"args": " ".join((*OPTIONS, "--calls")), "runs": str(runs) if runs else None}
    task = {"process": "ONE:VIRNUC_ASYNC_PREDICT", "cpus": 2, "seconds": seconds, "ext": ext}
    values = {"meta": {"id": "s1"}, "sequences": sequences, "model": [], "moduleDir": "here", "task": task}
    words = [groovy, str(PROCESS), str(MODULE / "main.nf"), json.dumps(values)]
    environment = os.environ | {"JAVA_HOME": str(Path(java).resolve().parents[1])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def attempt(shell: Shell, number: int, contigs: Path) -> Path:
    """Return a new work directory with the input, as Nextflow makes one for each attempt."""
    work = shell.directory / f"attempt{number}"
    (work / "sequences").mkdir(parents=True)
    (work / "sequences" / "contigs.fa").symlink_to(contigs)
    return work


def test_the_files_agree(shell: Shell, tool: Callable[[str], str], note: Note) -> None:
    python = Path(tool("miniwdl")).parent / "python"
    (shell.directory / "parse.py").write_text(PARSED)
    paths = (MODULE / "main.nf", NEXTFLOW / "main.nf", NEXTFLOW / "nextflow.config")
    parsed = json.loads(shell.run(f"{python} parse.py {' '.join(map(str, paths))}"))
    assert parsed == {
        "name": "VIRNUC_ASYNC_PREDICT",
        "labels": ["process_medium", "process_gpu"],
        "included": ["VIRNUC_ASYNC_PREDICT"],
        "params": ["input", "model"],
        "config_error": "",
        "configured": ["VIRNUC_ASYNC_PREDICT"],
    }
    environment = yaml.safe_load((MODULE / "environment.yml").read_text())
    assert [each.split("=")[0] for each in environment["dependencies"]] == ["bioconda::virnuc-async"]
    note("Nextflow: the module, the workflow and the configuration parsed by RefTrace")


def test_the_module_declares_what_meta_yml_says(note: Note) -> None:
    process = evaluate("in.fa")
    meta = yaml.safe_load((MODULE / "meta.yml").read_text())
    assert meta["name"] == process["name"].lower()
    declared = [", ".join(name for each in group for name in each) for group in meta["input"]]
    assert [each["text"].replace("val ", "").replace("path ", "") for each in process["input"]] == declared
    assert [each["emit"] for each in process["output"]] == list(meta["output"])
    assert process["when"]
    assert process["directives"]["conda"] == ["here/environment.yml"]
    note("Nextflow: the process compiled and evaluated by Groovy; meta.yml says the same")


def test_an_attempt_that_ends_is_resumed_by_the_next(
    shell: Shell, contigs: Path, undisturbed: dict[str, bytes], note: Note
) -> None:
    runs = shell.directory / "runs"
    script = evaluate("sequences/contigs.fa", runs, seconds=3600)["script"]
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
    process = evaluate("sequences/contigs.fa")
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


def test_nextflow_runs_the_commands_of_the_readme(shell: Shell, note: Note) -> None:
    nextflow = shutil.which("nextflow", path=PATH)
    if nextflow is None or subprocess.run([nextflow, "-version"], capture_output=True).returncode:
        pytest.skip("needs Nextflow")
    shutil.copytree(NEXTFLOW, shell.directory, dirs_exist_ok=True)
    shutil.copy(EXAMPLE, shell.directory)
    shell.run(commands("Nextflow"), CUDA_VISIBLE_DEVICES="")
    table = (shell.directory / "results" / "metagenome" / "contigs.tsv").read_text()
    assert table.count("\n") == 61
    note("Nextflow: the commands of the README, by Nextflow itself")
