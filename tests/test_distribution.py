"""What is distributed says the same everywhere: the package, the containers and the recipe for conda."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from release_check import FASTER, NEEDS, OF_NO_COMMAND
from running import ROOT

from virnuc_async import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
DEFINITION = (ROOT / "containers" / "virnuc-async.def").read_text("utf-8")
INSTALL = ROOT / "containers" / "install.sh"
EXTRAS = PROJECT["optional-dependencies"]
# What conda calls packages of PyPI that have another name there.
CONDA_NAMES = {"torch": "pytorch", "duckdb": "python-duckdb", "ray": "ray-core", "zlib-ng": "python-zlib-ng"}


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile with their arguments, continued lines joined."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, arguments = line.partition(" ")
            yield name, arguments.strip()


def pairs(name: str) -> dict[str, str]:
    """Return what all instructions *name* of the Dockerfile set."""
    words = (shlex.split(arguments) for found, arguments in instructions(DOCKERFILE) if found == name)
    return dict(word.split("=", 1) for line in words for word in line if "=" in word)


def sections(text: str) -> dict[str, str]:
    """Return the sections of an Apptainer definition; what stands before them is called ''."""
    names = ["", *re.findall(r"(?m)^%(\w+)", text)]
    return dict(zip(names, re.split(r"(?m)^%\w+.*\n", text), strict=True))


def test_the_definition_has_the_sections_that_apptainer_knows() -> None:
    names = ("", "arguments", "files", "post", "environment", "runscript", "test", "labels", "help")
    assert tuple(sections(DEFINITION)) == names
    header = dict(
        line.split(": ") for line in sections(DEFINITION)[""].splitlines() if re.match(r"\w+:", line)
    )
    assert header == {"Bootstrap": "docker", "From": pairs("ARG")["BASE"]}


def test_both_containers_have_the_same_environment() -> None:
    exports = re.findall(r"export (\w+)=(\S+)", sections(DEFINITION)["environment"])
    # Apptainer hands on the variables of the machine; of these, the user's choice of models stands.
    environment = {name: re.sub(r'"\$\{\w+:-(.*)\}"', r"\1", value) for name, value in exports}
    on_gpus = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}  # --nv of Apptainer
    assert environment == {name: value for name, value in pairs("ENV").items() if name not in on_gpus}


def test_both_containers_have_the_same_labels() -> None:
    lines = sections(DEFINITION)["labels"].split("\n")
    labels = dict(line.split(maxsplit=1) for line in lines if line.strip())
    assert labels == {name: value for name, value in pairs("LABEL").items() if "${" not in value} | {
        "org.opencontainers.image.version": __version__
    }
    assert pairs("ARG")["VERSION"] == __version__


def test_both_containers_copy_the_same_files() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    copied = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    lines = sections(DEFINITION)["files"].split("\n")
    files = {line.split()[0] for line in lines if line.strip()}
    assert files - {"containers"} == copied - {"containers/install.sh"}
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("name", ["install.sh", "post", "environment", "runscript", "test"])
def test_shell_scripts_are_sound(name: str, tmp_path: Path) -> None:
    path = INSTALL
    if name != "install.sh":
        path = tmp_path / name
        path.write_text(re.sub(r"\{\{ (\w+) \}\}", r"$\1", sections(DEFINITION)[name]))
    done = subprocess.run(
        ["shellcheck", "--shell", "sh", "--exclude", "SC2154", path], capture_output=True, text=True
    )
    assert done.stdout == ""


def test_each_step_that_a_container_runs_exists() -> None:
    steps = set(re.findall(r"install\.sh (\w+)", DOCKERFILE + sections(DEFINITION)["post"]))
    assert steps == set(re.findall(r"install_(\w+)\(\)", INSTALL.read_text()))


def test_the_extra_of_everything_has_all_that_commands_need() -> None:
    (everything,) = EXTRAS["all"]
    (names,) = re.findall(r"virnuc-async\[(.+)\]", everything)
    assert set(names.split(",")) == set(EXTRAS) - OF_NO_COMMAND | FASTER


def test_messages_name_extras_that_exist() -> None:
    """Each extra is named by the message of what needs it, which the check of a release provokes."""
    texts = [path.read_text("utf-8") for path in (ROOT / "virnuc_async").rglob("*.py")]
    named = {name for text in texts for name in re.findall(r"virnuc-async\[(\w+)\]", text)}
    assert named == set(EXTRAS) - OF_NO_COMMAND == set(NEEDS)


def recipe() -> dict[str, Any]:
    """Return the recipe for conda, rendered."""
    text = (ROOT / "recipe" / "meta.yaml").read_text("utf-8")
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text)
    rendered = template.render(PYTHON="python", pin_subpackage=lambda name, max_pin: f"{name} {max_pin}")
    return yaml.safe_load(rendered)


def conda_requirement(requirement: str) -> str:
    """Return a requirement of PyPI in conda's words, without its marker."""
    name, version = re.fullmatch(r"([\w.-]+?)([=<>].*)", requirement.split(";")[0].strip()).groups()
    return f"{CONDA_NAMES.get(name, name)} {version}"


def test_the_recipe_requires_what_the_package_requires() -> None:
    users = [line for name in sorted(set(EXTRAS) - OF_NO_COMMAND | FASTER) for line in EXTRAS[name]]
    expected = {conda_requirement(line) for line in (*PROJECT["dependencies"], *users)}
    python = f"python {PROJECT['requires-python']}"
    assert set(recipe()["requirements"]["run"]) == {python, *expected}
    assert {python, "pip"} < set(recipe()["requirements"]["host"])


def test_the_recipe_is_of_this_version_and_command() -> None:
    rendered = recipe()
    assert rendered["package"] == {"name": PROJECT["name"], "version": __version__}
    entries = [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]
    assert rendered["build"]["entry_points"] == entries
    assert rendered["build"]["noarch"] == "python"
    assert rendered["about"]["license"] == PROJECT["license"]
    assert all((ROOT / name).exists() for name in rendered["test"]["source_files"])
