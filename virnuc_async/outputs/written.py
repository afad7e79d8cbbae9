"""What a store knows of the files that were made of it: by which options, and as what they were left."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, NamedTuple, Self

from virnuc_async.errors import UsageError
from virnuc_async.runs.store import Store

from .options import OutputOptions

_KEY = "written"  # in the store


class Written(NamedTuple):
    """The files of a run that was written to its end."""

    options: OutputOptions
    paths: str  # digest of the paths of the inputs, which tables have in them
    files: dict[str, Any]  # facts by their names

    @classmethod
    def of(cls, store: Store) -> Self | None:
        """Return what *store* knows; None if not all of its files have been written, as far as it knows."""
        value = store.get_meta(_KEY)
        try:
            # Earlier versions described the rules of calls among the settings, and kept them beside these.
            options = value.get("options") or value["settings"] | {"calls": value.get("calls")}
            return cls(OutputOptions.from_json(options), value["paths"], value["files"])
        except (UsageError, AttributeError, KeyError, TypeError):
            return None

    def keep(self, store: Store) -> None:
        """Make this what *store* knows."""
        value = {"options": self.options.to_json(), "paths": self.paths, "files": self.files}
        store.set_meta(_KEY, value)


def paths_digest(paths: Iterable[str]) -> str:
    """Return a hash of the *paths* of inputs."""
    return sha256("\0".join(paths).encode("utf-8", "surrogateescape")).hexdigest()
