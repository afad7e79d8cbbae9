"""Errors of output directories."""

from collections.abc import Sequence

from .base import _PathError


class OutputError(_PathError):
    """The output directory at *path* cannot be used for this run."""


class ForeignDirectoryError(OutputError):
    """The directory contains third-party files, or is not a directory."""


class NoRun(OutputError):
    """The directory contains no finished run."""


class RunMismatchError(OutputError):
    """The directory contains a run with other inputs, models or settings: *differences*."""

    def __init__(
        self, path: str, differences: Sequence[str], hint: str = "Use another directory, or --overwrite"
    ) -> None:
        super().__init__(path, f"contains a different run: {'; '.join(differences)}. {hint}")
        self.differences, self.hint = tuple(differences), hint


class NoPlan(OutputError):
    """The directory contains no plan of a run, or one that cannot be read."""


class PlanMismatch(OutputError):
    """A shard, or what it would run on, is not as the plan of the run says: *differences*."""

    def __init__(self, path: str, differences: Sequence[str]) -> None:
        super().__init__(path, f"is not as planned: {'; '.join(differences)}")
        self.differences = tuple(differences)


class ShardsMissing(OutputError):
    """Shards of a run are not finished, or not once: *problems* names them."""

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        super().__init__(path, f"cannot be merged: {'; '.join(problems)}")
        self.problems = tuple(problems)


class DirectoryLockedError(OutputError):
    """Another process is using the directory."""


class LockHeldRemotely(DirectoryLockedError):
    """The *owner* of the lock is on another machine or in another container, and may be dead."""

    def __init__(self, path: str, owner: object) -> None:
        super().__init__(path, f"is locked by {owner}, which cannot be checked from this machine")
        self.owner = owner


class DamagedStore(OutputError):
    """The store of the directory is damaged; *reason* says what can be recovered, and how."""


class CannotWrite(OutputError):
    """The operating system refused to write; the disk may be full."""
