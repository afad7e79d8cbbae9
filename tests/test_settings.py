"""The settings of a run: defaults, valid values and messages for invalid ones."""

from dataclasses import FrozenInstanceError, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from virnuc_async import settings
from virnuc_async.errors import UsageError
from virnuc_async.learning import options
from virnuc_async.learning.options import Balance, EvaluationOptions, LeakPolicy, Optimizer, Recipe, Split
from virnuc_async.settings import Compile, Format, Pairing, Precision, Settings


def test_defaults() -> None:
    assert {field.name: getattr(Settings(), field.name) for field in fields(Settings)} == {
        "model": "tiny-500",
        "cache_dir": None,
        "devices": (),
        "gpus": (),
        "precision": Precision.AUTO,
        "compile": None,
        "tokens_per_batch": None,
        "threads": None,
        "threshold": 0.5,
        "verdict_by": None,
        "fpr": None,
        "embeddings": False,
        "report": True,
        "calibrated": True,
        "calls": None,
        "regions": None,
        "viral_fasta": None,
        "temporary_dir": None,
        "pairs": Pairing.AUTO,
        "formats": (Format.TSV,),
        "min_length": 0,
        "layout": None,
        "reuse_features": None,
        "skip_missing": False,
        "recursive": False,
        "allow_duplicates": False,
        "overwrite": False,
        "repair": False,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"devices": ("cpu",), "gpus": (0,)}, "choose devices or gpus, not both"),
        ({"overwrite": True, "repair": True}, "choose overwrite or repair, not both"),
        ({"tokens_per_batch": 0}, "tokens per batch must be at least 1, not 0"),
        ({"tokens_per_batch": -5}, "tokens per batch must be at least 1, not -5"),
        ({"threshold": -0.01}, "the threshold must be a number from 0 to 1, not -0.01"),
        ({"threshold": 1.01}, "the threshold must be a number from 0 to 1, not 1.01"),
        ({"threshold": float("nan")}, "the threshold must be a number from 0 to 1, not nan"),
        ({"threshold": float("inf")}, "the threshold must be a number from 0 to 1, not inf"),
        ({"gpus": (1, 0, 1)}, "a GPU is listed twice"),
        ({"min_length": -1}, "min length must be at least 0, not -1"),
        ({"fpr": 0}, "the fpr must be a number between 0 and 1, not 0"),
        ({"fpr": 1.0}, "the fpr must be a number between 0 and 1, not 1.0"),
        ({"fpr": "0.01"}, "the fpr must be a number, not '0.01'"),
        ({"fpr": 0.01, "threshold": 0.7}, "choose a threshold or a false positive rate, not both"),
        (
            {"fpr": 0.01, "verdict_by": "fraction"},
            "a false positive rate is one of verdicts by mean or log_odds, not by fraction",
        ),
        ({"verdict_by": "q"}, "verdict by must be one of fraction, mean, log_odds, not 'q'"),
    ],
)
def test_invalid_values_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings(**wrong)
    assert str(caught.value) == caught.value.reason == message
    with pytest.raises(UsageError):
        replace(Settings(), **wrong)


PRECISIONS = "precision must be one of auto, fp32, bf16, fp16, fp8, not"
PAIRS = "pairs must be one of auto, interleaved, off, not"


class Bytes(PathLike[bytes]):
    def __fspath__(self) -> bytes:
        return b"x"

    def __repr__(self) -> str:
        return "Bytes()"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": ""}, "model has an empty name"),
        ({"model": None}, "model must be a path, not None"),
        ({"model": b"tiny-500"}, "model must be a path, not b'tiny-500'"),
        ({"model": Bytes()}, "model must be a path, not Bytes()"),
        ({"model": "a\0b"}, "model must be a path, not 'a\\x00b': no name has a zero byte"),
        ({"model": "\ud800"}, "model must be a path, not '\\ud800': no name has half a character"),
        ({"cache_dir": ""}, "cache dir has an empty name"),
        ({"cache_dir": 3}, "cache dir must be a path, not 3"),
        ({"reuse_features": True}, "reuse features must be a path, not True"),
        ({"devices": 0}, "devices must be names such as 'cuda:0' or 'cpu', not 0"),
        ({"devices": b"cpu"}, "devices must be names such as 'cuda:0' or 'cpu', not b'cpu'"),
        ({"devices": ("cpu", None)}, "devices must be a text, not None"),
        ({"gpus": "0"}, "gpus must be numbers such as 0 or (0, 2), not '0'"),
        ({"gpus": ("0",)}, "gpus must be a whole number, not '0'"),
        ({"gpus": True}, "gpus must be a whole number, not True"),
        ({"gpus": 1.0}, "gpus must be numbers such as 0 or (0, 2), not 1.0"),
        ({"precision": "bf61"}, f"{PRECISIONS} 'bf61'"),
        ({"precision": "bf166"}, f"{PRECISIONS} 'bf166'. Did you mean bf16?"),
        ({"precision": None}, f"{PRECISIONS} None"),
        ({"precision": 16}, f"{PRECISIONS} 16"),
        ({"compile": "no"}, "compile must be one of auto, on, off, not 'no'"),
        ({"compile": False}, "compile must be one of auto, on, off, not False"),
        ({"pairs": "nonsense"}, f"{PAIRS} 'nonsense'"),
        ({"pairs": Precision.BF16}, f"{PAIRS} <Precision.BF16: 'bf16'>"),
        ({"tokens_per_batch": "auto"}, "tokens per batch must be a whole number, not 'auto'"),
        ({"tokens_per_batch": 2048.0}, "tokens per batch must be a whole number, not 2048.0"),
        ({"tokens_per_batch": True}, "tokens per batch must be a whole number, not True"),
        ({"min_length": 2.5}, "min length must be a whole number, not 2.5"),
        ({"threshold": "0.5"}, "the threshold must be a number, not '0.5'"),
        ({"threshold": None}, "the threshold must be a number, not None"),
        ({"threshold": True}, "the threshold must be a number, not True"),
        ({"threshold": 0.5j}, "the threshold must be a number, not 0.5j"),
        *(
            ({name: value}, f"{name} must be True or False, not {value!r}")
            for name in ("embeddings", "calibrated", "overwrite", "repair")
            for value in (1, "yes", None)
        ),
    ],
    ids=str,
)
def test_values_of_other_types_are_refused(wrong: dict[str, Any], message: str) -> None:
    test_invalid_values_are_refused(wrong, message)


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"devices": "cpu"}, {"devices": ("cpu",)}),
        ({"devices": ["cpu", "cpu"]}, {"devices": ("cpu", "cpu")}),
        ({"devices": {"cpu": 1}.keys()}, {"devices": ("cpu",)}),
        ({"gpus": 0}, {"gpus": (0,)}),
        ({"gpus": np.int64(2)}, {"gpus": (2,)}),
        ({"gpus": [1, 0]}, {"gpus": (1, 0)}),
        ({"precision": "bf16"}, {"precision": Precision.BF16}),
        ({"compile": "on"}, {"compile": Compile.ON}),
        ({"compile": Compile.AUTO}, {"compile": Compile.AUTO}),
        ({"pairs": "off"}, {"pairs": Pairing.OFF}),
        ({"tokens_per_batch": np.int32(7)}, {"tokens_per_batch": 7}),
        ({"threshold": np.float64(0.25)}, {"threshold": 0.25}),
        ({"cache_dir": "c"}, {"cache_dir": Path("c")}),
        ({"reuse_features": "r"}, {"reuse_features": Path("r")}),
        ({"model": Path("m")}, {"model": Path("m")}),
        ({"model": "~/m"}, {"model": "/home/me/m"}),
        ({"model": Path("~/m")}, {"model": Path("/home/me/m")}),
        ({"cache_dir": Path("~")}, {"cache_dir": Path("/home/me")}),
        ({"reuse_features": "~/r"}, {"reuse_features": Path("/home/me/r")}),
    ],
    ids=str,
)
def test_what_is_held_of_a_value(
    given: dict[str, Any], held: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    made = Settings(**given)
    found = {name: getattr(made, name) for name in held}
    assert found == held
    assert [type(value) for value in found.values()] == [type(value) for value in held.values()]
    assert hash(made) == hash(Settings(**held))


@pytest.mark.parametrize(
    ("options", "checks"),
    [
        (Settings, settings._CHECKS),
        (Recipe, options._RECIPE_CHECKS),
        (Split, options._SPLIT_CHECKS),
        (EvaluationOptions, options._EVALUATION_CHECKS),
    ],
)
def test_every_field_is_checked(options: Any, checks: dict[str, Any]) -> None:
    assert {field.name for field in fields(options)} == set(checks)
    assert replace(options()) == options()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(rate="0.1"), "the rate must be a number, not '0.1'"),  # type: ignore[arg-type]
        (lambda: Recipe(rate=float("nan")), "the rate must be a finite number above 0, not nan"),
        (lambda: Recipe(epochs=2.5), "epochs must be a whole number, not 2.5"),  # type: ignore[arg-type]
        (lambda: Recipe(seed=True), "the seed must be a whole number, not True"),
        (
            lambda: Recipe(optimizer="adam"),  # type: ignore[arg-type]
            "optimizer must be one of sgd, adamw, not 'adam'. Did you mean adamw?",
        ),
        (lambda: Split(validation="0.1"), "validation must be a number, not '0.1'"),  # type: ignore[arg-type]
        (
            lambda: Split(test=float("nan")),
            "validation and test must be fractions above 0 whose sum is below 1, not 0.1 and nan",
        ),
        (lambda: Split(by_fragment=1), "by fragment must be True or False, not 1"),  # type: ignore[arg-type]
        (
            lambda: EvaluationOptions(lengths="150"),  # type: ignore[arg-type]
            "lengths must be numbers of bases such as 500 or (150, 500), not '150'",
        ),
        (lambda: EvaluationOptions(lengths=(0,)), "lengths must be different numbers of bases, not [0]"),
    ],
)
def test_options_of_training_and_evaluation(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert caught.value.reason == message


def test_texts_become_members_and_one_length_may_stand_alone() -> None:
    recipe = Recipe(optimizer="adamw", balance="group")  # type: ignore[arg-type]
    assert (recipe.optimizer, recipe.balance) == (Optimizer.ADAMW, Balance.GROUP)
    assert Split(leakage="keep").leakage is LeakPolicy.KEEP  # type: ignore[arg-type]
    assert EvaluationOptions(lengths=150).lengths == (150,)  # type: ignore[arg-type]
    assert EvaluationOptions(lengths=[150, 300]).lengths == (150, 300)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "right",
    [
        {"threshold": 0},
        {"threshold": 1},
        {"tokens_per_batch": 1},
        {"gpus": (2, 0)},
        {"devices": ("cpu", "cpu")},
    ],
)
def test_ends_of_ranges_are_valid(right: dict[str, Any]) -> None:
    assert replace(Settings(), **right) == Settings(**right)


def test_settings_are_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().threshold = 0.7  # type: ignore[misc]


def test_precisions_are_strings() -> None:
    assert [str(precision) for precision in Precision] == ["auto", "fp32", "bf16", "fp16", "fp8"]
    assert Precision("bf16") is Precision.BF16
