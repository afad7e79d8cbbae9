"""Where a run of many machines is: in a directory, or behind a URL with a directory that stands for it."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from virnuc_async.errors import ForeignDirectoryError
from virnuc_async.fileio import list_names, writing_to
from virnuc_async.runs.output_directory import PLAN, SHARD_FILE, STORE, require_claimable
from virnuc_async.runs.progress_file import NAME as PROGRESS_FILE
from virnuc_async.text import is_url

from .plan import SHARDS, RunPlan, read_plan, write_plan
from .storage import RemoteRun

_AT_ONCE = 32  # shards


class RunPlace:
    """
    The place *name* of a run, a path or a URL in an object store.

    Raises, from the constructor:
        UsageError: the URL names no place for a run
    """

    def __init__(self, name: str, temporary_dir: Path | None = None) -> None:
        self._remote = RemoteRun(name, temporary_dir) if is_url(name) else None
        self.name = self._remote.url if self._remote else name

    def __str__(self) -> str:
        return self.name

    @cached_property
    def directory(self) -> Path:
        """The directory of the run, or for a URL one on this machine, in which the run can be planned."""
        return self._remote.workplace("planning") if self._remote else Path(self.name)

    def require_claimable(self) -> None:
        """
        Check that there is a plan, or nothing that the run would write.

        Raises:
            ForeignDirectoryError: there is
            CannotWrite: the directory cannot be read
        """
        if self._remote or (self.directory / PLAN).exists():
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
        if self._remote:
            fetched = self._remote.fetch_plan()
            return fetched and fetched.plan
        return read_plan(self.directory) if (self.directory / PLAN).exists() else None

    def write_plan(self, plan: RunPlan, overwrite: bool) -> bool:
        """
        Write *plan*; return false if another machine did in an object store, and not *overwrite*.

        Raises:
            CannotWrite: the disk or the store refuses
        """
        if self._remote is None:
            write_plan(plan, self.directory)
            return True
        with TemporaryDirectory(dir=self.directory) as directory:
            write_plan(plan, Path(directory))
            return self._remote.publish_plan(Path(directory), overwrite)

    def begun_shards(self) -> list[str]:
        """Return the names of the shards that have begun."""
        if self._remote:
            return self._remote.shards()
        return list_names(self.directory / SHARDS, lambda _: True)

    @contextmanager
    def seen(self) -> Iterator[tuple[RunPlan, Path]]:
        """
        Yield the plan, and a directory with what shows how far each shard is; that of the run, or a copy.

        Raises:
            NoPlan: there is no plan, or it cannot be read
            ShardsMissing: what is published of a shard cannot be read
        """
        if self._remote is None:
            yield read_plan(self.directory), self.directory
            return
        plan = self._remote.require_plan().plan
        with TemporaryDirectory(dir=self._remote.workplace("status")) as name:
            with ThreadPoolExecutor(_AT_ONCE, "status") as threads:
                list(threads.map(partial(_copy_signs, self._remote, Path(name)), self._remote.shards()))
            yield plan, Path(name)


def _copy_signs(run: RemoteRun, directory: Path, shard: str) -> None:
    """Copy into *directory* what shows how far *shard* is: what is published, or the signs of its worker."""
    found = run.published(shard)
    if found is not None:
        run.fetch(found, directory, (SHARD_FILE, PROGRESS_FILE))
        return
    place = directory / SHARDS / shard
    place.mkdir(parents=True)
    for name, (content, written) in run.signs(shard).items():
        (place / name).write_bytes(content)
        os.utime(place / name, (written, written))
