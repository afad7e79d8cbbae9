"""Pages: that nothing in them is taken for anything but text, and what their policy allows."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnuc_async.outputs.charts import count_scale, length_scale, linear_scale, short_number
from virnuc_async.outputs.html import embedded_json, shortened, visible

HOSTILE = "</script><!-- \u2028 <img onerror=x> ' \" & \u202e \x00"


@given(st.recursive(st.none() | st.text() | st.floats(allow_nan=False) | st.just(HOSTILE), st.lists))
def test_embedded_json_is_read_back_and_ends_no_script(value: object) -> None:
    text = str(embedded_json(value))
    assert json.loads(text) == value
    assert text.isascii()
    assert not re.search("[<>&]", text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a contig, æ 病毒", "a contig, æ 病毒"),
        (b"\xff\xc3\xa6", r"\xffæ"),
        ("\udcff", r"\xff"),
        ("a\tb\nc\x1b[31m", r"a\tb\nc\x1b[31m"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\u2028\U000e0041", r"\u2028\U000e0041"),
    ],
)
def test_what_cannot_be_seen_is_escaped(text: str | bytes, shown: str) -> None:
    assert visible(text) == shown


def test_long_texts_are_shortened() -> None:
    assert [shortened("abc", most) for most in (2, 3)] == ["ab…", "abc"]


def test_axes_have_round_ticks() -> None:
    assert [text for _, text in linear_scale("", 0, 42).ticks] == ["0", "20", "40", "60"]
    assert [text for _, text in linear_scale("", 0, 0).ticks] == ["0", "1"]
    assert [text for _, text in count_scale("", [0, 3, 50_000]).ticks] == [
        "1",
        "10",
        "100",
        "1k",
        "10k",
        "100k",
    ]
    assert [text for _, text in count_scale("", [0, 0]).ticks] == ["0", "0.25", "0.5", "0.75", "1"]
    assert not count_scale("", [40, 80]).is_log
    assert [text for _, text in length_scale("", 150, 40_000).ticks] == [
        "200",
        "500",
        "1k",
        "2k",
        "5k",
        "10k",
        "20k",
    ]
    assert [short_number(value) for value in (0.5, 1500, 2e6, 3e9)] == ["0.5", "1.5k", "2M", "3G"]


@pytest.mark.parametrize(
    "scale", [linear_scale("", 0, 40), count_scale("", [1, 1000]), length_scale("", 10, 99)]
)
def test_values_are_within_the_axis(scale: object) -> None:
    places = [scale.place(value) for value in (scale.low, scale.high, -5, 0, 1e9)]  # type: ignore[attr-defined]
    assert places[:2] == [0, 1]
    assert all(0 <= place <= 1 for place in places)
