"""
Runs in object stores: the plan and the finished shards of a run, which workers on any machines share.

A worker keeps its store on a disk of its own, since a database needs one, and publishes the shard when it is
finished: its files below a name that only this attempt has, and at last ``published.json``, which names the
attempt and is created only if there is none. However many workers finish a shard, one of them is taken; the
others delete what they wrote. Whoever reads follows ``published.json``, and checks sizes and checksums.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final, NamedTuple, Self
from uuid import uuid4

from virnuc_async.errors import CannotWrite, NoPlan, ShardsMissing
from virnuc_async.fileio import atomic_write, create_new, fsync_and_rename, sha256, writing_to
from virnuc_async.runs.lock import LOCK
from virnuc_async.sequences.object_stores import PATIENCE, Patience

from .objects import Objects
from .plan import PLAN, SHARDS, RunPlan, Shard, read_plan

PUBLISHED: Final = "published.json"
_FORMAT = 1
_MOST_BYTES = 1 << 20  # of published.json
_LARGEST_PLAN = 1 << 28  # bytes
_FILES_AT_ONCE = 4
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")  # of a file: no path, and not hidden
_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_SHARD = re.compile(r"\d{5}-of-\d{5}")


class StoredFile(NamedTuple):
    """A file of a published shard."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Published:
    """What ``published.json`` says of a shard."""

    plan: str  # digest
    shard: str  # name
    attempt: str  # that was the first to finish
    files: dict[str, StoredFile]  # by their names

    def to_json(self) -> bytes:
        """Return the content of the file."""
        files = {name: file._asdict() for name, file in self.files.items()}
        return json.dumps(asdict(self) | {"format": _FORMAT, "files": files}, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """
        Return what the untrusted *content* says.

        Raises:
            ValueError: it makes no sense, or has names that are none of files in a directory
        """
        try:
            value = json.loads(content)
            if value["format"] != _FORMAT:
                raise ValueError("it is of another version")
            files = {
                name: StoredFile(int(file["bytes"]), str(file["sha256"]))
                for name, file in value["files"].items()
            }
            found = cls(str(value["plan"]), str(value["shard"]), str(value["attempt"]), files)
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError("it makes no sense") from error
        if not (_ATTEMPT.fullmatch(found.attempt) and all(map(_NAME.fullmatch, found.files))):
            raise ValueError("it has names that are not those of a shard's files")
        return found


class RemoteRun:
    """
    The run at *url*, and a directory of this machine, below *temporary_dir*, that stands for it.

    That has the same name whenever this user has to do with this run on this machine, so that a worker that
    comes again resumes.

    Raises:
        UsageError: *url* names no place for a run
    """

    def __init__(self, url: str, temporary_dir: Path | None = None, patience: Patience = PATIENCE) -> None:
        self._objects = Objects(url, patience)
        self.url = self._objects.url
        self._scratch = Path(tempfile.gettempdir()) if temporary_dir is None else temporary_dir

    def __repr__(self) -> str:
        return f"<RemoteRun {self.url}>"

    @cached_property
    def directory(self) -> Path:
        """
        The directory on this machine that stands for the run.

        Raises:
            CannotWrite: it cannot be made, or belongs to somebody else
        """
        name = f"virnuc-async-{os.getuid()}-{hashlib.sha256(self.url.encode()).hexdigest()[:16]}"
        path = self._scratch / name
        with writing_to(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Whoever made it can write there what would be published.
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                raise CannotWrite(str(path), "belongs to another user. Choose another --temporary-dir")
        return path

    def fetch_plan(self) -> RunPlan:
        """
        Copy the plan of the run into the directory, and return it.

        Raises:
            NoPlan: there is none, or it cannot be read
            CannotWrite: the disk is full
        """
        try:
            content = self._objects.read(PLAN, _LARGEST_PLAN)
        except FileNotFoundError as error:
            how = f"virnuc-async plan INPUT ... {self.url}"
            raise NoPlan(self.url, f"contains no {PLAN}. Plan the run first: {how}") from error
        except (OSError, ValueError) as error:
            raise NoPlan(self.url, _reason(error)) from error
        before = self._known_plan()
        with writing_to(self.directory), atomic_write(self.directory / PLAN) as file:
            file.write(content)
        try:
            plan = read_plan(self.directory)
        except NoPlan as error:
            raise NoPlan(self.url, error.reason.replace(str(self.directory), self.url)) from error
        if before != plan:
            shutil.rmtree(self.directory / SHARDS, ignore_errors=True)
        return plan

    def find_plan(self) -> RunPlan | None:
        """
        Do what :meth:`fetch_plan` does if there is a plan, else return None.

        Raises:
            NoPlan: it cannot be read
            CannotWrite: the disk is full
        """
        try:
            return self.fetch_plan()
        except NoPlan as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def publish_plan(self, overwrite: bool = False) -> bool:
        """
        Copy the plan from the directory to the run; false if there is one already and not *overwrite*.

        Raises:
            CannotWrite: the store refuses
        """
        content = (self.directory / PLAN).read_bytes()
        if not overwrite:
            return self._objects.create(PLAN, content)
        self._objects.write(PLAN, content)
        return True

    def shards(self) -> list[str]:
        """
        Return the names of the shards that workers have begun to publish, sorted.

        Raises:
            NoPlan: they cannot be listed
        """
        try:
            return list(filter(_SHARD.fullmatch, self._objects.directories(SHARDS)))
        except OSError as error:
            raise NoPlan(self.url, _reason(error)) from error

    def published(self, shard: str) -> Published | None:
        """
        Return what is published of *shard*, by its name; None if nothing is.

        Raises:
            ShardsMissing: that cannot be read, or makes no sense
        """
        name = f"{SHARDS}/{shard}/{PUBLISHED}"
        try:
            found = Published.from_json(self._objects.read(name, _MOST_BYTES))
            if found.shard != shard:
                raise ValueError(f"it is of shard {found.shard}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ShardsMissing(self.url, [f"{name}: {_reason(error)}"]) from error
        return found

    def publish(self, shard: str, plan: str) -> bool:
        """
        Publish the finished *shard* of the plan with this digest; false if another worker was first.

        Raises:
            CannotWrite: the store refuses
        """
        attempt = uuid4().hex
        directory = self.directory / SHARDS / shard
        paths = {path.name: path for path in sorted(directory.iterdir()) if _is_result(path)}
        names = {name: f"{SHARDS}/{shard}/{attempt}/{name}" for name in paths}
        try:
            with ThreadPoolExecutor(_FILES_AT_ONCE, "publish") as threads:
                uploaded = list(threads.map(self._upload, names.values(), paths.values()))
        except CannotWrite:
            self._objects.delete(names.values())
            raise
        content = Published(plan, shard, attempt, dict(zip(paths, uploaded, strict=True))).to_json()
        # If this fails, it may be there nevertheless: what it names stays.
        if self._objects.create(f"{SHARDS}/{shard}/{PUBLISHED}", content):
            return True
        # Another worker was first, or the answer to our own request was lost and it was made again.
        found = self.published(shard)
        if found is not None and found.attempt == attempt:
            return True
        self._objects.delete(names.values())
        return False

    def fetch(self, found: Published, names: Iterable[str] | None = None) -> Path:
        """
        Copy the files of a published shard, or those of *names*, into the directory; return where they are.

        Those that are there already are not copied again.

        Raises:
            ShardsMissing: one is missing, or not what was published
            CannotWrite: the disk is full
        """
        directory = self.directory / SHARDS / found.shard
        with writing_to(directory):
            directory.mkdir(parents=True, exist_ok=True)
        wanted = found.files if names is None else {name: found.files[name] for name in names}
        with ThreadPoolExecutor(_FILES_AT_ONCE, "fetch") as threads:
            list(threads.map(partial(self._download, found, directory), wanted.items()))
        return directory

    def forget(self, shard: str) -> None:
        """Remove what this machine has of *shard*."""
        shutil.rmtree(self.directory / SHARDS / shard, ignore_errors=True)

    def _known_plan(self) -> RunPlan | None:
        try:
            return read_plan(self.directory)
        except NoPlan:
            return None

    def _upload(self, name: str, path: Path) -> StoredFile:
        found = StoredFile(path.stat().st_size, sha256(path))
        self._objects.upload(name, path)
        return found

    def _download(self, found: Published, directory: Path, item: tuple[str, StoredFile]) -> None:
        name, file = item
        path = directory / name
        if path.is_file() and path.stat().st_size == file.bytes and sha256(path) == file.sha256:
            return
        incomplete = path.with_name(f".{name}.partial")
        source = f"{SHARDS}/{found.shard}/{found.attempt}/{name}"
        digest, size = hashlib.sha256(), 0
        with writing_to(path), create_new(incomplete) as target:
            for block in self._blocks(source):
                target.write(block)
                digest.update(block)
                size += len(block)
        if (size, digest.hexdigest()) != (file.bytes, file.sha256):
            incomplete.unlink()
            raise ShardsMissing(self.url, [f"{source} is not what was published: run the shard again"])
        with writing_to(path):
            fsync_and_rename(incomplete, path)

    def _blocks(self, name: str) -> Iterator[bytes]:
        try:
            yield from self._objects.blocks(name)
        except OSError as error:
            raise ShardsMissing(self.url, [f"{name}: {_reason(error)}"]) from error


def _is_result(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.name != LOCK and bool(_NAME.fullmatch(path.name))


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def missing_shards(run: RemoteRun, plan: RunPlan, published: dict[str, Published]) -> list[str]:
    """Return a text for each shard of the run that is not published."""
    counts = {int(name[-5:]) for name in published}
    if len(counts) != 1:
        return ["no shard of it is published" if not counts else "there are several sets of shards"]
    (count,) = counts
    shards = (Shard(number, count) for number, part in enumerate(plan.divide(count)) if part)
    return [f"shard {shard}: not published" for shard in shards if shard.name not in published]
