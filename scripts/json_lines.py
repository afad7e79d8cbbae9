"""Results that are written as they are found, by measurements that may be killed or run out of time."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The exit code of a measurement that left something out: EX_TEMPFAIL, which neither Python nor pytest uses.
TIME_IS_UP = 75


class Lines:
    """
    Rows of a measurement, each written as a line of JSON as soon as it is known.

    A measurement that is killed leaves the lines that it wrote. One whose time is used up begins nothing
    new: it asks :attr:`is_time_up`, and names what it left out with :meth:`not_reached`.
    """

    def __init__(self, path: Path | None, until: float | None = None) -> None:
        self._path, self._until = path, until
        self.left_out: list[str] = []
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append *row*."""
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    @property
    def is_time_up(self) -> bool:
        """Whether the time by which the measurement must end, in seconds since 1970, is over."""
        return self._until is not None and time.time() >= self._until

    def not_reached(self, *what: str) -> None:
        """Record what there was no time for."""
        self.left_out += what
        self.write({"not reached": list(what)})
