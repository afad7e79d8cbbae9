"""What a store knows of its run as a whole: values by their keys, each checked when it is read."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from virnuc_async.sequences.inputs import KINDS
from virnuc_async.sequences.segments import InputSpan
from virnuc_async.settings import Precision

from .database import Database
from .device_history import HISTORY, is_history
from .rows import InvalidRow, MetaRow
from .totals import Totals

ENDING = ("finished", "written", "saved features")  # what is only known of a run that is finished
IDENTITY_COPY = "identity again"
_FILE_LISTS = ("inputs", "reused features")  # of an identity


def get_meta(database: Database, key: str) -> Any:
    """Return what was stored under *key*, or None; raises DamagedStore."""
    value = read_meta(database).get(key)
    return value and decode_meta(database, value)


def read_meta(database: Database) -> dict[str, MetaRow]:
    """Return all rows by their keys; raises DamagedStore."""
    rows = [*database.decoded(MetaRow.decode, "SELECT * FROM run")]
    found = {row.key: row for row in rows}
    if len(found) < len(rows):
        raise database.damage("a value is there twice")
    return found


def decode_meta(database: Database, row: MetaRow) -> Any:
    """Return the value of *row*; raises DamagedStore if it makes no sense."""
    try:
        return load_meta(row)
    except InvalidRow as error:
        raise database.damage(str(error)) from error


def load_meta(row: MetaRow) -> Any:
    """Return the value of *row*; raises InvalidRow if it makes no sense."""
    value = row.load()
    makes_sense = _CHECKS.get(row.key)
    if makes_sense and not makes_sense(value):
        raise InvalidRow(f"the {row.key} of the run makes no sense")
    return value


def set_meta(database: Database, values: Mapping[str, Any]) -> None:
    """Store each of *values*, anything that JSON can hold, under its key; within a transaction."""
    # Without its identity a run is lost: there are two rows of it.
    copies = {IDENTITY_COPY: values["identity"]} if "identity" in values else {}
    values = {**values, **copies}
    remove_meta(database, values)
    for key, value in values.items():
        row = MetaRow(key, json.dumps(value)).encode()
        database.execute("INSERT INTO run VALUES (?, ?, ?)", *row)


def remove_meta(database: Database, keys: Iterable[str]) -> None:
    """Remove what is stored under *keys*; within a transaction."""
    for key in keys:
        database.execute("DELETE FROM run WHERE key = ?", key)


def _is_identity(value: Any) -> bool:
    if type(value) is not dict:
        return False
    lists = (value.get(key, []) for key in _FILE_LISTS)
    return (
        all(type(files) is list and all(map(_is_file, files)) for files in lists)
        and value.get("precision", Precision.FP32) in map(str, Precision)
        and _is_span(value.get("span"))
        and (type(budget := value.get("tokens per batch", 1)) is int and budget > 0)
    )


def _is_span(value: Any) -> bool:
    try:
        return value is None or bool(InputSpan.from_json(value))
    except (TypeError, ValueError):
        return False


def _is_file(value: Any) -> bool:
    return type(value) is list and bool(value) and type(value[0]) is str


def _is_batch_key(value: Any) -> bool:
    return type(value) is list and list(map(type, value)) == [int, int, str] and not value[2].strip("01")


def _is_list_of_text(value: Any) -> bool:
    return type(value) is list and all(type(item) is str for item in value)


def _are_totals(value: Any) -> bool:
    return bool(Totals.from_json(value))


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "identity": _is_identity,
    IDENTITY_COPY: _is_identity,
    "paths": _is_list_of_text,
    "finished": _are_totals,
    "dropped": lambda value: type(value) is list and all(map(_is_batch_key, value)),
    "saved features": lambda value: type(value) is list and list(map(type, value)) == [int, int, str],
    "written": lambda value: type(value) is dict,
    "kinds": lambda value: type(value) is list and all(kind is None or kind in KINDS for kind in value),
    HISTORY: is_history,
}
