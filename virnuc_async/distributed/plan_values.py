"""
What the values of a plan may be: it is read from a file that others can write to.

Each check returns its value. If it is no such, it raises ValueError or UsageError with what messages call it.
"""

import os
from typing import Any

from virnuc_async.sequences.inputs import KINDS
from virnuc_async.sequences.segments import SeekPoint
from virnuc_async.settings import Precision, flag
from virnuc_async.text import is_printable

_MOST = (1 << 62) - 1  # of any number
_LEVELS = ("INFO", "WARNING")  # of lines of a log


def line(label: str, value: Any) -> str:
    """Return *value*, a text for one line."""
    if not value or not is_printable(value):
        raise ValueError(f"{label} is {value!r:.99}")
    return value


def text(label: str, value: Any) -> str:
    """Return *value*, any text."""
    if type(value) is not str:
        raise ValueError(f"{label} is {value!r:.99}")
    return value


def number(label: str, value: Any) -> int:
    """Return *value*, a count."""
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"{label} is {value!r:.99}")
    return value


def path(label: str, value: Any) -> str:
    """Return *value*, a whole path, or a URL."""
    if type(value) is not str or not (os.path.isabs(value) or "://" in value):
        raise ValueError(f"{label} is {value!r:.99}")
    return value


def name(label: str, value: Any) -> str:
    """Return *value*, the path of a file as somebody has named it."""
    if type(value) is not str or not value or "\0" in value:
        raise ValueError(f"{label} is {value!r:.99}")
    return value


def fingerprint(label: str, value: Any) -> list[int | str]:
    """Return *value*, what the content of a file is known by."""
    if type(value) is not list or not all(type(part) in (int, str) for part in value):
        raise ValueError(f"{label} is {value!r:.99}")
    return value


def kind(label: str, value: Any) -> str:
    """Return *value*, a kind of records."""
    if value not in KINDS:
        raise ValueError(f"{label} is {value!r:.99}")
    return str(value)


def precision(label: str, value: Any) -> str:
    """Return *value*, a precision that was decided."""
    if value not in tuple(Precision) or value == Precision.AUTO:
        raise ValueError(f"{label} is {value!r:.99}")
    return str(value)


def seek(label: str, value: Any) -> SeekPoint:
    """Return *value*, where a record begins."""
    if type(value) is not list or len(value) != len(SeekPoint._fields):
        raise ValueError(f"{label} is {value!r:.99}")
    record, offset, skip, first_line = (number(label, part) for part in value[:-1])
    return SeekPoint(record, offset, skip, first_line, flag(label, value[-1]))


def notice(label: str, value: Any) -> list[str]:
    """Return *value*, the level and the text of a line of a log."""
    if type(value) is not list or len(value) != 2 or value[0] not in _LEVELS:
        raise ValueError(f"{label} is {value!r:.99}")
    return [value[0], text(label, value[1])]
