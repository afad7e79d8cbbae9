"""Exit code 64: wrong usage, and suggestions of what was meant."""

import re

import pytest
from running import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict", "name an input and an output directory"),
        ("predict out", "name an input before the output directory 'out'"),
        ("predict --output-dir out", "name an input before the output directory 'out'"),
        (
            f"predict a.fa {__file__}",
            f"the last name must be the output directory, but '{__file__}' is a file",
        ),
        (
            f"predict a.fa --output-dir {__file__}",
            f"the last name must be the output directory, but '{__file__}' is a file",
        ),
        ("predict a.fa out --no-such 1", "no such option: --no-such"),
        ("predict a.fa out -x", "no such option: -x"),
        ("predict a.fa out --quiet --verbose", "argument --verbose: not allowed with argument --quiet"),
        ("predict a.fa out --threshold 1.01", "the threshold must be a number from 0 to 1, not 1.01"),
        ("predict a.fa out --threshold -0.1", "the threshold must be a number from 0 to 1, not -0.1"),
        ("predict a.fa out --threshold nan", "the threshold must be a number from 0 to 1, not nan"),
        (
            "predict a.fa out --threshold half",
            "argument --threshold: expected a number from 0 to 1, not 'half'",
        ),
        ("predict a.fa out --tokens-per-batch 0", "tokens per batch must be at least 1, not 0"),
        ("predict a.fa out --tokens-per-batch 2k", "expected a number of tokens, or auto, not '2k'"),
        ("predict a.fa out --gpus 0,x", "argument --gpus: expected GPU numbers such as 0,2, not '0,x'"),
        ("predict a.fa out --gpus 1,1", "a GPU is listed twice"),
        ("predict a.fa out --gpus 0 --devices cpu", "choose devices or gpus, not both"),
        ("predict a.fa out --devices ,", "expected names such as cuda:0,cuda:1 or cpu, not ','"),
        (
            "predict a.fa out --precision half",
            "argument --precision: invalid choice: 'half'. Choices: auto, fp32, bf16, fp16, fp8",
        ),
        ("predict a.fa out --model", "argument --model: expected one argument"),
        ("predikt a.fa out", "no such command: 'predikt'. Did you mean predict?"),
        ("models import", "the following arguments are required: --protein"),
        ("devices all", "unrecognized arguments: all"),
    ],
)
def test_wrong_usage(arguments: str, message: str) -> None:
    ended = run(*arguments.split())
    assert (ended.code, ended.out) == (64, "")
    assert ended.err.startswith("virnuc-async: ")
    assert message in ended.err
    if "argument" in message or "such option" in message:
        assert re.search(r"\nTry 'virnuc-async.* --help'\.\n$", ended.err)


def test_wrong_usage_names_the_help_of_the_command() -> None:
    assert run("predict", "a", "b", "--no-such").err.endswith("Try 'virnuc-async predict --help'.\n")


TRAIN = "train --viral a.fa --nonviral b.fa --output out"
EVALUATE = "evaluate --viral a.fa --nonviral b.fa --output out"
COMMANDS = (
    "Commands: predict, tables, report, calls, label-reads, train, evaluate, calibrate, plan, status, "
    "merge, models, devices, completion, help"
)
ACTIONS = "Actions: list, info, download, verify, import, help"


@pytest.mark.parametrize(
    ("arguments", "message", "helped"),
    [
        ("predikt a.fa out", f"no such command: 'predikt'. Did you mean predict? {COMMANDS}", ""),
        ("pred a.fa out", f"no such command: 'pred'. Did you mean predict? {COMMANDS}", ""),
        ("Predict a.fa out", f"no such command: 'Predict'. Did you mean predict? {COMMANDS}", ""),
        ("contigs.fa out", f"no such command: 'contigs.fa'. {COMMANDS}", ""),
        ("models verfy x", f"no such action: 'verfy'. Did you mean verify? {ACTIONS}", " models"),
        ("models delete x", f"no such action: 'delete'. {ACTIONS}", " models"),
        (
            "predict a.fa out --treshold 0.7",
            "no such option: --treshold. Did you mean --threshold?",
            " predict",
        ),
        (
            "predict a.fa out --treshold=0.7 --qiet",
            "no such option: --treshold, --qiet. Did you mean --threshold? Did you mean --quiet?",
            " predict",
        ),
        (
            "devices --gpus 0",
            "no such option: --gpus. Options: --help, --version, --model, --cache-dir, --kinds",
            " devices",
        ),
        ("--verison", "no such option: --verison. Did you mean --version?", ""),
        (f"{TRAIN} --leaks drop", "no such option: --leaks. It is called --leakage now.", " train"),
        (
            f"{TRAIN} --leak-share 0.1",
            "no such option: --leak-share. It is called --leakage-share now.",
            " train",
        ),
        (
            f"{TRAIN} --random-stretches",
            "no such option: --random-stretches. It is called --augment now.",
            " train",
        ),
        (
            f"{EVALUATE} --stretches 3",
            "no such option: --stretches. It is called --subsequences now.",
            " evaluate",
        ),
        (
            "predict a.fa out --precision fp3",
            "argument --precision: invalid choice: 'fp3'. Did you mean fp32? "
            "Choices: auto, fp32, bf16, fp16, fp8",
            " predict",
        ),
        (
            "predict a.fa out --precision int8",
            "argument --precision: invalid choice: 'int8'. Choices: auto, fp32, bf16, fp16, fp8",
            " predict",
        ),
        (
            f"{TRAIN} --balance groups",
            "argument --balance: invalid choice: 'groups'. Did you mean group? Choices: none, class, group",
            " train",
        ),
        (
            f"{EVALUATE} --lengths 150;500",
            "argument --lengths: expected lengths such as 150,500, not '150;500'",
            " evaluate",
        ),
    ],
)
def test_what_was_meant(arguments: str, message: str, helped: str) -> None:
    ended = run(*arguments.split())
    assert (ended.code, ended.out) == (64, "")
    assert ended.err == f"virnuc-async: {message}\nTry 'virnuc-async{helped} --help'.\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "no command was given. For example: virnuc-async predict contigs.fa out/"),
        ("models", "no action was given. For example: virnuc-async models list"),
    ],
)
def test_without_a_command_the_help_is_shown(command: str, message: str) -> None:
    shown = run("help", *command.split()).out
    assert run(*command.split()) == (64, "", f"{shown}\nvirnuc-async: {message}\n")


def test_predict_without_names() -> None:
    message = "name an input and an output directory. For example: virnuc-async predict contigs.fa out/"
    assert run("predict") == (64, "", f"virnuc-async: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--shards 3",
            "--shards is the number of shards on a Ray cluster: name that, as in "
            "virnuc-async predict reads.fq.gz out/ --ray auto --shards 3",
        ),
        ("--ray auto --shards 0", "--shards must be at least 1, not 0"),
    ],
)
def test_shards_of_a_cluster(arguments: str, message: str) -> None:
    assert run("predict", "a.fa", "out", *arguments.split()) == (64, "", f"virnuc-async: {message}\n")
