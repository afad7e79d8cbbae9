"""Where a run of many machines is: in a directory, or behind a URL with a directory that stands for it."""

from functools import cached_property
from pathlib import Path

from virnuc_async.errors import ForeignDirectoryError
from virnuc_async.fileio import list_names, writing_to
from virnuc_async.runs.output_directory import PLAN, STORE, require_claimable
from virnuc_async.text import is_url

from .plan import SHARDS, RunPlan, read_plan, write_plan
from .storage import RemoteRun


class RunPlace:
    """
    The place *name* of a run, a path or a URL in an object store.

    Raises, from the constructor:
        UsageError: the URL names no place for a run
    """

    def __init__(self, name: str, temporary_dir: Path | None = None) -> None:
        self.remote = RemoteRun(name, temporary_dir) if is_url(name) else None
        self.name = self.remote.url if self.remote else name

    def __str__(self) -> str:
        return self.name

    @cached_property
    def directory(self) -> Path:
        """The directory of the run on this machine."""
        return self.remote.directory if self.remote else Path(self.name)

    def require_claimable(self) -> None:
        """
        Check that there is a plan, or nothing that the run would write.

        Raises:
            ForeignDirectoryError: there is
            CannotWrite: the directory cannot be read
        """
        if self.remote or (self.directory / PLAN).exists():
            return
        with writing_to(self.directory):
            if (self.directory / STORE).exists():
                reason = f"has a run of one machine ({STORE}). Plan into another directory"
                raise ForeignDirectoryError(self.name, reason)
            require_claimable(self.directory)

    def find_plan(self) -> RunPlan | None:
        """
        Return the plan, if there is one.

        Raises:
            NoPlan: it cannot be read
        """
        if self.remote:
            return self.remote.find_plan()
        return read_plan(self.directory) if (self.directory / PLAN).exists() else None

    def read_plan(self) -> RunPlan:
        """
        Return the plan.

        Raises:
            NoPlan: there is none, or it cannot be read
        """
        return self.remote.fetch_plan() if self.remote else read_plan(self.directory)

    def write_plan(self, plan: RunPlan, overwrite: bool) -> bool:
        """
        Write *plan*; return false if another machine did in an object store, and not *overwrite*.

        Raises:
            CannotWrite: the disk or the store refuses
        """
        write_plan(plan, self.directory)
        return self.remote is None or self.remote.publish_plan(overwrite)

    def begun_shards(self) -> list[str]:
        """Return the names of the shards that have begun; in an object store, that are published."""
        if self.remote:
            return self.remote.shards()
        return list_names(self.directory / SHARDS, lambda _: True)
