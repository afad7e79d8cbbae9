"""What is distributed says the same everywhere: the package, the containers and the recipe for conda."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT

from virnuc_async import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
DEFINITION = (ROOT / "containers" / "virnuc-async.def").read_text("utf-8")
INSTALL = ROOT / "containers" / "install.sh"
DEVELOPMENT = {
    "all",
    "dev",
    "fuzz",
    "recipes",
    "test",
}  # extras that are not for users, and the one of all others


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


def test_the_extra_of_everything_has_all_that_users_may_want() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    (names,) = re.findall(r"virnuc-async\[(.+)\]", everything)
    assert set(names.split(",")) == set(extras) - DEVELOPMENT


def test_messages_name_extras_that_exist() -> None:
    users = set(PROJECT["optional-dependencies"]) - DEVELOPMENT
    texts = [path.read_text("utf-8") for path in (ROOT / "virnuc_async").rglob("*.py")]
    named = {name for text in texts for name in re.findall(r"virnuc-async\[(\w+)\]", text)}
    assert named == users, "each extra is named by the message without it, and no other"
