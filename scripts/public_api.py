"""
The signatures of the public API, one line each: ``python scripts/public_api.py`` prints them as JSON.

``tests/data/public_api.json`` has those of the last release. Write it anew when there is another one.
"""

import inspect
import json
import re
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import virnuc_async


def signatures() -> dict[str, str]:
    """Return the signature of every public name, and of the public methods and fields of its class."""
    found: dict[str, str] = {}
    for name in sorted(set(virnuc_async.__all__) - {"__version__", "logger"}):
        if not name.startswith("_"):
            found |= _described(name, getattr(virnuc_async, name))
    # Where a class is defined is no part of what it is called.
    return {name: re.sub(r"\bvirnuc_async(\.\w+)*\.", "", text) for name, text in found.items()}


def _described(name: str, thing: Any) -> dict[str, str]:
    if not inspect.isclass(thing):
        return {name: str(inspect.signature(thing))}
    if issubclass(thing, Enum):
        return {name: ", ".join(f"{member.name}={member.value!r}" for member in thing)}
    bases = ", ".join(base.__name__ for base in thing.__bases__ if base is not object)
    found = {name: f"({bases}){_init(thing)}"}
    if is_dataclass(thing):
        found |= {
            f"{name}.{one.name}": _text(one.type) for one in fields(thing) if not one.name.startswith("_")
        }
    for member, value in vars(thing).items():
        if member.startswith("_") or f"{name}.{member}" in found:
            continue
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(value):
            found[f"{name}.{member}"] = str(inspect.signature(value))
        elif isinstance(value, property) and value.fget is not None:
            found[f"{name}.{member}"] = str(inspect.signature(value.fget))
    return found


def _init(thing: type) -> str:
    return str(inspect.signature(thing.__init__)) if "__init__" in vars(thing) else ""


def _text(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


if __name__ == "__main__":
    print(json.dumps(signatures(), indent=1))
