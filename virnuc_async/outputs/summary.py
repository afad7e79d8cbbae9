"""The facts of a run: ``summary.json``."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from .columns import Chunks


@dataclass(frozen=True, slots=True)
class Summary:
    """The facts of a run, as ``summary.json`` holds them."""

    version: str
    command: str
    settings: dict[str, Any]
    bundle: dict[str, str]
    inputs: list[dict[str, Any]]
    counts: dict[str, int]
    devices: list[dict[str, Any]]
    seconds: dict[str, float]
    reproducible: bool
    finished: bool

    def as_dict(self) -> dict[str, Any]:
        """Give plain values that JSON can hold."""
        return asdict(self)


def summary_text(summary: Summary) -> Chunks:
    """Yield ``summary.json``."""
    yield json.dumps(summary.as_dict(), indent=2).encode() + b"\n"
