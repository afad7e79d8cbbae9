"""``shard.json``: that a shard of a run is finished, and what ``merge`` need not read of its store."""

import io
import json
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np

from virnuc_async.fileio import Directory
from virnuc_async.runs.output_directory import SHARD_FILE
from virnuc_async.runs.rows import InvalidRow
from virnuc_async.runs.totals import Totals

from .columns import Chunks
from .overview import Overview
from .samples import COUNTED, Tally
from .written import ModelFacts

_MOST_BYTES = 1 << 30  # a shard may have a million inputs
_FORMAT = 1
SECONDS = ("total", "load", "model")
_TYPES = {"plan": str, "command": str, "version": str, "host": str, "width": int, "reproducible": bool}


class RowFile(NamedTuple):
    """A file with the rows of a shard, as it was written."""

    bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class ShardFile:
    """What is known of a finished shard."""

    plan: str  # digest
    shard: tuple[int, int]  # its number, and of how many
    command: str  # line
    model: ModelFacts
    width: int  # numbers of an embedding
    version: str  # of this program
    totals: Totals  # of its store
    verdicts: dict[str, int]  # of its records that are in tables
    tally: Tally  # what is in each of its inputs
    failures: dict[int, int]  # by the numbers of inputs
    devices: list[dict[str, Any]]  # as summaries have them
    host: str  # of its last session, as all that follows
    seconds: dict[str, float]
    versions: dict[str, str]
    reproducible: bool
    files: dict[str, RowFile]  # by their names

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        tally = [[file, *counts.tolist()] for file, counts in self.tally.items()]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {
            "format": _FORMAT,
            "model": self.model.to_json(),
            "totals": self.totals.to_json(),
            "tally": tally,
            "failures": list(map(list, self.failures.items())),
            "files": {name: file._asdict() for name, file in self.files.items()},
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """
        Return what :meth:`to_json` gave.

        Raises:
            ValueError: it makes no sense
        """
        try:
            if value["format"] != _FORMAT:
                raise ValueError("it is of another version")
            number, of = map(int, value["shard"])
            tally = {int(file): np.array(counts, np.int64) for file, *counts in value["tally"]}
            if any(len(counts) != len(COUNTED) for counts in tally.values()):
                raise ValueError("the counts of an input are missing")
            if not all(type(value[name]) is kind for name, kind in _TYPES.items()):
                raise ValueError("a value is of another type")
            changed: dict[str, Any] = {
                "verdicts": {str(name): int(count) for name, count in value["verdicts"].items()},
                "devices": [dict(device) for device in value["devices"]],
                "seconds": {name: float(value["seconds"][name]) for name in SECONDS},
                "versions": {name: str(value["versions"][name]) for name in ("python", "torch")},
                "shard": (number, of),
                "model": ModelFacts.from_json(value["model"]),
                "totals": Totals.from_json(value["totals"]),
                "tally": tally,
                "failures": {int(file): int(count) for file, count in value["failures"]},
                "files": {str(name): RowFile(**file) for name, file in value["files"].items()},
            }
            return cls(**{field.name: value[field.name] for field in fields(cls)} | changed)
        except (AttributeError, KeyError, TypeError, InvalidRow, OverflowError) as error:
            raise ValueError("it makes no sense") from error

    def write(self, directory: Directory) -> None:
        """Write it into *directory*, at once or not at all; raises OSError."""
        with directory.atomic_write(SHARD_FILE) as file:
            file.write(json.dumps(self.to_json(), indent=2).encode() + b"\n")


def overview_chunks(overview: Overview) -> Chunks:
    """Yield ``overview.npz``: what a report shows of the shard."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **overview.to_arrays())
    yield file.getvalue()


def add_saved_overview(overview: Overview, content: bytes) -> None:
    """Add to *overview* what :func:`overview_chunks` gave."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        overview.add_arrays(dict(arrays))


def read_shard_file(directory: Directory) -> ShardFile | None:
    """
    Return what *directory* knows of its shard, if that is finished.

    Raises:
        ValueError: the file makes no sense
        OSError: it cannot be read
    """
    if directory.stat(SHARD_FILE) is None:
        return None
    try:
        value = json.loads(directory.read_bounded(SHARD_FILE, _MOST_BYTES))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return ShardFile.from_json(value)
