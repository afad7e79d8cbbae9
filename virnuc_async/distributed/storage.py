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
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Self
from uuid import uuid4

from virnuc_async.errors import CannotWrite, NoPlan, PlanMismatch, RunMismatchError, ShardsMissing
from virnuc_async.fileio import atomic_write, create_new, fsync_and_rename, sha256, writing_to
from virnuc_async.runs.lock import LOCK
from virnuc_async.sequences.object_stores import PATIENCE, Patience

from .announcing import INTERVAL, MOST_BYTES, SIGNS, announced
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


class Fetched(NamedTuple):
    """The plan of a run, and a directory of this machine that stands for the run, with its ``plan.json``."""

    plan: RunPlan
    directory: Path


class RemoteRun:
    """
    The run at *url*, and directories of this machine for it, below *temporary_dir*.

    These have the same names whenever this user has to do with this run on this machine, so that a worker
    that comes again resumes.

    Raises:
        UsageError: *url* names no place for a run
    """

    def __init__(self, url: str, temporary_dir: Path | None = None, patience: Patience = PATIENCE) -> None:
        self._objects = Objects(url, patience)
        self.url = self._objects.url
        self._scratch = Path(tempfile.gettempdir()) if temporary_dir is None else temporary_dir

    def __repr__(self) -> str:
        return f"<RemoteRun {self.url}>"

    def workplace(self, name: str) -> Path:
        """
        Return the directory of this machine that is called *name* for this run; it is made if it is missing.

        Raises:
            CannotWrite: it cannot be made, or belongs to somebody else
        """
        path = self._scratch / f"virnuc-async-{os.getuid()}-{_short_hash(self.url.encode())}"
        with writing_to(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Whoever made it can write there what would be published.
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                raise CannotWrite(str(path), "belongs to another user. Set TMPDIR to another directory")
            (path / name).mkdir(exist_ok=True)
        return path / name

    def fetch_plan(self) -> Fetched | None:
        """
        Return the plan of the run, if there is one, copied to this machine; each plan has a directory there.

        Raises:
            NoPlan: it cannot be read
            CannotWrite: the disk is full
        """
        try:
            content = self._objects.read(PLAN, _LARGEST_PLAN)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise NoPlan(self.url, _reason(error)) from error
        directory = self.workplace(_short_hash(content))
        with writing_to(directory), atomic_write(directory / PLAN) as file:
            file.write(content)
        with self.named(directory):
            return Fetched(read_plan(directory), directory)

    def require_plan(self) -> Fetched:
        """Return what :meth:`fetch_plan` does; raise NoPlan if there is no plan, too."""
        fetched = self.fetch_plan()
        if fetched is None:
            how = f"virnuc-async plan INPUT ... {self.url}"
            raise NoPlan(self.url, f"contains no {PLAN}. Plan the run first: {how}")
        return fetched

    def publish_plan(self, directory: Path, overwrite: bool = False) -> bool:
        """
        Copy the plan in *directory* to the run; false if there is one already and not *overwrite*.

        Raises:
            CannotWrite: the store refuses
        """
        content = (directory / PLAN).read_bytes()
        if not overwrite:
            return self._objects.create(PLAN, content)
        self._objects.write(PLAN, content)
        return True

    @contextmanager
    def named(self, directory: Path) -> Iterator[None]:
        """Let errors about the run in *directory*, which stands for this one, be about this one."""
        try:
            yield
        except (NoPlan, PlanMismatch, RunMismatchError, ShardsMissing) as error:
            error.path = error.path.replace(str(directory), self.url)
            error.reason = error.reason.replace(str(directory), self.url)
            raise

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

    def publish(self, fetched: Fetched, shard: str) -> bool:
        """
        Publish the finished *shard*, by its name; false if another worker was first.

        Raises:
            CannotWrite: the store refuses
        """
        attempt = uuid4().hex
        directory = fetched.directory / SHARDS / shard
        paths = {path.name: path for path in sorted(directory.iterdir()) if _is_result(path)}
        names = {name: f"{SHARDS}/{shard}/{attempt}/{name}" for name in paths}
        try:
            with ThreadPoolExecutor(_FILES_AT_ONCE, "publish") as threads:
                uploaded = list(threads.map(self._upload, names.values(), paths.values()))
        except CannotWrite:
            self._objects.delete(names.values())
            raise
        files = dict(zip(paths, uploaded, strict=True))
        content = Published(fetched.plan.digest, shard, attempt, files).to_json()
        # If this fails, it may be there nevertheless: what it names stays.
        if self._objects.create(f"{SHARDS}/{shard}/{PUBLISHED}", content):
            return True
        # Another worker was first, or the answer to our own request was lost and it was made again.
        found = self.published(shard)
        if found is not None and found.attempt == attempt:
            return True
        self._objects.delete(names.values())
        return False

    def fetch(self, found: Published, directory: Path, names: Iterable[str] | None = None) -> Path:
        """
        Copy the files of a published shard, or those of *names*, below *directory*; return where they are.

        Those that are there already are not copied again.

        Raises:
            ShardsMissing: one is missing, or not what was published
            CannotWrite: the disk is full
        """
        place = directory / SHARDS / found.shard
        with writing_to(place):
            place.mkdir(parents=True, exist_ok=True)
        wanted = found.files if names is None else {n: found.files[n] for n in names if n in found.files}
        with ThreadPoolExecutor(_FILES_AT_ONCE, "fetch") as threads:
            list(threads.map(partial(self._download, found, place), wanted.items()))
        return place

    def announced(
        self, shard: str, directory: Path, interval: float = INTERVAL
    ) -> AbstractContextManager[None]:
        """Let ``status`` see that *shard* is worked on in *directory*, until the end of the block."""
        return announced(self._objects, f"{SHARDS}/{shard}", directory, interval)

    def signs(self, shard: str) -> dict[str, tuple[bytes, float]]:
        """Return the signs of life of who works on *shard*: their content, and when they were written."""
        found = {}
        for name in SIGNS:
            with suppress(OSError, ValueError):
                found[name] = self._objects.read_dated(f"{SHARDS}/{shard}/{name}", MOST_BYTES)
        return found

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


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _is_result(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.name != LOCK and bool(_NAME.fullmatch(path.name))


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def missing_shards(plan: RunPlan, published: Iterable[str]) -> list[str]:
    """Return a text for each shard that is not among the *published* ones, by their names."""
    names = set(published)
    counts = {int(name[-5:]) for name in names}
    if len(counts) != 1:
        return ["no shard of it is published" if not counts else "there are several sets of shards"]
    (count,) = counts
    shards = (Shard(number, count) for number, part in enumerate(plan.divide(count)) if part)
    return [f"shard {shard}: not published" for shard in shards if shard.name not in names]
