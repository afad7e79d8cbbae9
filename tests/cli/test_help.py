"""Help and version: on every command, fast, with examples that work."""

import re
from pathlib import Path

import pytest
from running import python, run

from virnuc_async import __version__

ACTIONS = [f"models {action}" for action in ("list", "info", "download", "verify", "import", "help")]
MAKING = ["predict", "tables", "report", "calls", "label-reads", "train", "evaluate", "calibrate"]
COMMANDS = ["", *MAKING, "plan", "status", "merge", "models", *ACTIONS, "devices", "help"]


def test_version_and_help() -> None:
    assert run("--version") == (0, f"virnuc-async {__version__}\n", "")
    for command in COMMANDS:
        ended = run(*command.split(), "--help")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("usage: virnuc-async")
        assert f"\n  python -m virnuc_async {command}" in ended.out.partition("examples:\n")[2].join(
            ["\n", ""]
        )
    assert "usage: virnuc-async predict INPUT [INPUT ...] OUT_DIR [options]\n" in run("predict", "--help").out
    assert "interrupted; the same command resumes" in run("predict", "--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_version_with_every_command(command: str) -> None:
    version = (0, f"virnuc-async {__version__}\n", "")
    assert run(*command.split(), "--version") == run("--version", *command.split()) == version


@pytest.mark.parametrize("command", COMMANDS)
def test_help_command_prints_what_the_option_prints(command: str) -> None:
    words = command.split()
    expected = run(*words, "--help")
    assert run("help", *words) == run(*words, "-h") == expected
    assert f"usage: virnuc-async {command}".rstrip() in expected.out
    if words[:1] == ["models"]:
        assert run("models", "help", *words[1:]) == expected


def test_version_and_help_behind_other_arguments() -> None:
    assert run("predict", "a.fa", "out", "--version").out == f"virnuc-async {__version__}\n"
    assert run("models", "download", "virnucpro-500", "--help") == run("help", "models", "download")


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        (
            "predikt",
            "no such command: 'predikt'. Did you mean predict? "
            "Commands: predict, tables, report, calls, label-reads, train, evaluate, calibrate, plan, "
            "status, merge, models, devices, completion, help\n"
            "Try 'virnuc-async --help'.",
        ),
        (
            "models verfy",
            "no such action: 'verfy'. Did you mean verify? "
            "Actions: list, info, download, verify, import, help\n"
            "Try 'virnuc-async models --help'.",
        ),
        (
            "predict fast",
            "'virnuc-async predict' has no commands of its own, so there is no help on 'fast'",
        ),
    ],
)
def test_help_on_what_does_not_exist(topic: str, message: str) -> None:
    assert run("help", *topic.split()) == (64, "", f"virnuc-async: {message}\n")


def test_help_is_fast() -> None:
    script = """
import sys, time
import virnuc_async.cli.main
try:
    virnuc_async.cli.main.main(["--help"])
except SystemExit:
    print("seconds:", time.process_time())
"""
    assert float(python(script).rpartition("seconds: ")[2]) < 0.3


def test_help_imports_nothing_heavy() -> None:
    script = """
import sys
import virnuc_async.cli.main
helps = [[], ["predict"], ["models", "import"], ["train"], ["evaluate"], ["help"]]
wrong = [[], ["predict"], ["train"], ["models"], ["help"]]
for words in *([*words, "--help"] for words in helps), *wrong, ["--version"]:
    sys.stdout = sys.stderr = open("/dev/null", "w")
    try:
        virnuc_async.cli.main.main(words)
    except SystemExit:
        pass
sys.stdout = sys.__stdout__
print(*{"torch", "numpy", "rich", "loguru", "anyio", "tokenizers", "safetensors"} & sys.modules.keys())
"""
    assert python(script) == "\n"


def test_examples_of_predict_are_valid(good: Path) -> None:
    text = run("--help").out + run("predict", "--help").out
    lines = re.findall(r"python -m virnuc_async (predict .*)", text)
    assert len(lines) > 5
    for line in lines:
        said = "with --plan, the plan decides on --threshold" if "--plan" in line else "the threshold"
        assert run(*line.split(), "--threshold", "2").err.startswith(f"virnuc-async: {said}") or (
            "samples.txt" in line
        )


def test_examples_of_training_are_valid() -> None:
    text = "".join(run(*words, "--help").out for words in ((), ("train",), ("evaluate",)))
    lines = re.findall(r"python -m virnuc_async ((?:train|evaluate) .*)", text.replace("\\\n", ""))
    assert len(lines) == 6
    for line in lines:
        assert run(*line.split(), "--threshold", "2").err.startswith("virnuc-async: the threshold")
