"""Text for people: plurals, suggestions and control characters."""

import pytest

from virnuc_async.text import did_you_mean, escape_control_chars, is_printable, plural


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 records"), (1, "1 record"), (2, "2 records"), (4096, "4,096 records")]
)
def test_plural(number: int, text: str) -> None:
    assert plural(number, "record") == text


def test_plural_with_another_ending() -> None:
    assert [plural(number, "batch", "es") for number in (1, 2)] == ["1 batch", "2 batches"]


@pytest.mark.parametrize(
    ("word", "question"),
    [
        ("predikt", " Did you mean predict?"),
        ("PREDICT", " Did you mean predict?"),
        ("pre", " Did you mean predict?"),
        ("model-50", " Did you mean Model-500 or Model-300?"),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_did_you_mean(word: str, question: str) -> None:
    assert did_you_mean(word, iter(["predict", "train", "Model-300", "Model-500"])) == question


@pytest.mark.parametrize("text", ["", "tiny-500", "Modèle 5"])
def test_printable(text: str) -> None:
    assert is_printable(text)


@pytest.mark.parametrize("value", ["a\nb", "a\tb", "\x1b[2J", "\u202e", "\udcff", None, 5, b"bytes"])
def test_not_printable(value: object) -> None:
    assert not is_printable(value)


def test_control_characters_are_escaped() -> None:
    assert escape_control_chars("a\x1b[2J\x7f\x9b\n\tb") == "a\\x1b[2J\\x7f\\x9b\n\tb"
