"""The settings of a run: defaults, valid values and messages for invalid ones."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from virnuc_async.errors import UsageError
from virnuc_async.settings import Compile, Pairing, Precision, Settings


def test_defaults() -> None:
    assert {field.name: getattr(Settings(), field.name) for field in fields(Settings)} == {
        "model": "tiny-500",
        "cache_dir": None,
        "devices": (),
        "gpus": (),
        "precision": Precision.AUTO,
        "compile": Compile.AUTO,
        "tokens_per_batch": None,
        "threshold": 0.5,
        "embeddings": False,
        "calibrated": True,
        "pairs": Pairing.AUTO,
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
    ],
)
def test_invalid_values_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings(**wrong)
    assert str(caught.value) == caught.value.reason == message
    with pytest.raises(UsageError):
        replace(Settings(), **wrong)


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
    assert [str(precision) for precision in Precision] == ["auto", "fp32", "bf16"]
    assert Precision("bf16") is Precision.BF16
