"""The lines of ``failed_files.txt``."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnuc_async.errors import Stage
from virnuc_async.runs.failure import Failure, failure_line


@pytest.mark.parametrize(
    ("path", "message", "line"),
    [
        ("a.fa", "gone", "a.fa|Input|gone\n"),
        ("a|b.fa", "saw '|'", "a\\|b.fa|Input|saw '\\|'\n"),
        ("a\\b", "c\\|d", "a\\\\b|Input|c\\\\\\|d\n"),
        ("a\nb", "c\r\nd\re", "a\\nb|Input|c\\nd\\ne\n"),
        ("caf\u00e9\udcff", "\t", "caf\u00e9\udcff|Input|\t\n"),
    ],
)
def test_failure_line(path: str, message: str, line: str) -> None:
    assert failure_line(Failure(path, Stage.INPUT, message)) == line


@given(st.text(), st.sampled_from(list(Stage)), st.text())
def test_failure_line_can_be_parsed(path: str, stage: Stage, message: str) -> None:
    line = failure_line(Failure(path, stage, message))
    assert line.count("\n") == 1
    assert "\r" not in line
    fields, field, escaped = [], "", False
    for letter in line[:-1]:
        if escaped:
            field += {"n": "\n"}.get(letter, letter)
            escaped = False
        elif letter == "|":
            fields.append(field)
            field = ""
        elif letter == "\\":
            escaped = True
        else:
            field += letter
    assert not escaped
    ends = [text.replace("\r\n", "\n").replace("\r", "\n") for text in (path, stage, message)]
    assert [*fields, field] == ends
