"""What a store knows of the files that were made of it: by which options, and as what they were left."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple, Self

from virnuc_async.errors import UsageError
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.calibration import Calibration, read
from virnuc_async.models.contig_score import NO_PENALTY
from virnuc_async.runs.store import Store
from virnuc_async.settings import whole

from .options import OutputOptions

_KEY = "written"  # in the store


class ModelFacts(NamedTuple):
    """What tables need to know of the model."""

    length: int  # bases that contigs were cut into
    calibration: Calibration | None
    penalty: float = NO_PENALTY  # of log_odds, for each fragment
    name: str = ""

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Return the facts of *bundle*."""
        return cls(bundle.length, bundle.calibration, bundle.penalty, bundle.name)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` gave; raises ValueError, KeyError or TypeError if it makes no sense."""
        calibration = value["calibration"]
        length, penalty = whole(1)("length", value["length"]), float(value["penalty"])
        return cls(length, calibration and read(calibration), penalty, str(value["name"]))

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return self._asdict() | {"calibration": self.calibration and self.calibration.as_dict()}


class Written(NamedTuple):
    """The files of a run that was written to its end."""

    options: OutputOptions
    paths: str  # digest of the paths of the inputs, which tables have in them
    files: dict[str, Any]  # facts by their names
    model: ModelFacts | None = None  # None: of an earlier version
    flagged: list[int] | None = None  # inputs whose flags say that neighbouring reads are mates

    @classmethod
    def of(cls, store: Store) -> Self | None:
        """Return what *store* knows; None if not all of its files have been written, as far as it knows."""
        value = store.get_meta(_KEY)
        try:
            # Earlier versions described the rules of calls among the settings, and kept them beside these.
            options = value.get("options") or value["settings"] | {"calls": value.get("calls")}
            model = value.get("model")
            facts = model and ModelFacts.from_json(model)
            made_by = OutputOptions.from_json(options)
            return cls(made_by, value["paths"], value["files"], facts, value.get("flagged"))
        except (UsageError, AttributeError, KeyError, TypeError, ValueError):
            return None

    def keep(self, store: Store) -> None:
        """Make this what *store* knows."""
        value = self._asdict() | {"options": self.options.to_json()}
        store.set_meta(_KEY, value | {"model": self.model and self.model.to_json()})


def paths_digest(paths: Iterable[str]) -> str:
    """Return a hash of the *paths* of inputs."""
    return sha256("\0".join(paths).encode("utf-8", "surrogateescape")).hexdigest()
