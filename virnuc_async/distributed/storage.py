"""
Runs in object stores: the plan and the finished shards of a run, which workers on any machines share.

A worker keeps its store on a disk of its own, since a database needs one, and publishes the shard when it is
finished: its files below a name that only this attempt has, and at last ``published.json``, which names the
attempt and is created only if there is none. However many workers finish a shard, one of them is taken; the
others delete what they wrote. Whoever reads follows ``published.json``, and checks sizes and checksums.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple, Self
from uuid import uuid4

from virnuc_async.errors import CannotWrite, NoPlan, ShardsMissing, UsageError
from virnuc_async.fileio import create_new, fsync_and_rename, sha256, writing_to
from virnuc_async.runs.lock import LOCK
from virnuc_async.sequences.object_stores import (
    PATIENCE,
    Patience,
    locate,
    open_store,
    translated_errors,
    wait_for,
)
from virnuc_async.sequences.remote import RemoteFile

from .plan import PLAN, SHARDS, RunPlan, Shard, read_plan

PUBLISHED: Final = "published.json"
_FORMAT = 1
_MOST_BYTES = 1 << 20  # of published.json
_LARGEST_PLAN = 1 << 28  # bytes
_PART_BYTES, _MOST_PARTS = 8 << 20, 9000  # of an upload: stores take 10,000 parts
_FILES_AT_ONCE = 4
_BLOCK = 1 << 20
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
        where = locate(f"{url.rstrip('/')}/")
        if where.is_web:
            raise UsageError(f"{url}: a run is in an object store or a directory, not on a web server")
        self.url = f"{where.root}/{where.key}".rstrip("/")
        self._prefix = where.key.strip("/")
        self._store, self._patience = open_store(where.root, patience), patience
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
            content = self._read(PLAN, _LARGEST_PLAN)
        except FileNotFoundError as error:
            how = f"virnuc-async plan INPUT ... {self.url}"
            raise NoPlan(self.url, f"contains no {PLAN}. Plan the run first: {how}") from error
        except (OSError, ValueError) as error:
            raise NoPlan(self.url, _reason(error)) from error
        before = self._known_plan()
        with writing_to(self.directory):
            _write(self.directory / PLAN, content)
        try:
            plan = read_plan(self.directory)
        except NoPlan as error:
            raise NoPlan(self.url, error.reason.replace(str(self.directory), self.url)) from error
        if before != plan:
            shutil.rmtree(self.directory / SHARDS, ignore_errors=True)
        return plan

    def publish_plan(self, overwrite: bool = False) -> bool:
        """
        Copy the plan from the directory to the run; false if there is one already and not *overwrite*.

        Raises:
            CannotWrite: the store refuses
        """
        return self._put(PLAN, (self.directory / PLAN).read_bytes(), None if overwrite else "create")

    def shards(self) -> list[str]:
        """
        Return the names of the shards that workers have begun to publish, sorted.

        Raises:
            NoPlan: they cannot be listed
        """
        obstore = import_module("obstore")
        prefix = self._key(SHARDS)

        async def ask() -> list[str]:
            found = await obstore.list_with_delimiter_async(self._store, prefix)
            return sorted(name.rstrip("/").rpartition("/")[2] for name in found["common_prefixes"])

        try:
            with translated_errors(self.url):
                return list(filter(_SHARD.fullmatch, wait_for(ask())))
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
            found = Published.from_json(self._read(name, _MOST_BYTES))
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
        paths = sorted(path for path in directory.iterdir() if _is_result(path))
        try:
            with ThreadPoolExecutor(_FILES_AT_ONCE, "publish") as threads:
                files = list(threads.map(partial(self._upload, f"{SHARDS}/{shard}/{attempt}"), paths))
            names = [path.name for path in paths]
            content = Published(plan, shard, attempt, dict(zip(names, files, strict=True))).to_json()
            if self._put(f"{SHARDS}/{shard}/{PUBLISHED}", content, "create"):
                return True
            # It may be ours: the answer to an attempt at it was lost, and it was made again.
            found = self.published(shard)
            if found is not None and found.attempt == attempt:
                return True
        except CannotWrite:
            self._delete(shard, attempt, [path.name for path in paths])
            raise
        self._delete(shard, attempt, [path.name for path in paths])
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

    def _open(self, name: str) -> io.BufferedReader:
        return io.BufferedReader(RemoteFile(f"{self.url}/{name}", self._patience), RemoteFile.BUFFER_BYTES)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _read(self, name: str, most: int) -> bytes:
        with self._open(name) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it has more than {most:,} bytes")
        return content

    def _put(self, name: str, content: bytes, mode: str | None) -> bool:
        """Write an object; false if it is there and *mode* is create."""
        obstore = import_module("obstore")

        async def put() -> bool:
            try:
                await obstore.put_async(self._store, self._key(name), content, mode=mode)
            except obstore.exceptions.AlreadyExistsError:
                return False
            return True

        with self._writing(name):
            return wait_for(put())

    def _upload(self, prefix: str, path: Path) -> StoredFile:
        obstore = import_module("obstore")
        key, size = self._key(f"{prefix}/{path.name}"), path.stat().st_size

        async def put() -> None:
            part = max(_PART_BYTES, size // _MOST_PARTS + 1)
            await obstore.put_async(self._store, key, path, chunk_size=part)

        checksum = sha256(path)
        with self._writing(f"{prefix}/{path.name}"):
            wait_for(put())
        return StoredFile(size, checksum)

    def _download(self, found: Published, directory: Path, item: tuple[str, StoredFile]) -> None:
        name, file = item
        path = directory / name
        if path.is_file() and path.stat().st_size == file.bytes and sha256(path) == file.sha256:
            return
        partial_path = path.with_name(f".{name}.partial")
        source = f"{SHARDS}/{found.shard}/{found.attempt}/{name}"
        digest, size = hashlib.sha256(), 0
        with writing_to(path), create_new(partial_path) as target:
            for block in self._blocks(source):
                target.write(block)
                digest.update(block)
                size += len(block)
        if (size, digest.hexdigest()) != (file.bytes, file.sha256):
            partial_path.unlink()
            raise ShardsMissing(self.url, [f"{source} is not what was published: run the shard again"])
        with writing_to(path):
            fsync_and_rename(partial_path, path)

    def _blocks(self, name: str) -> Iterator[bytes]:
        try:
            with self._open(name) as file:
                while block := file.read1(_BLOCK):
                    yield block
        except OSError as error:
            raise ShardsMissing(self.url, [f"{name}: {_reason(error)}"]) from error

    def _delete(self, shard: str, attempt: str, names: list[str]) -> None:
        obstore = import_module("obstore")
        keys = [self._key(f"{SHARDS}/{shard}/{attempt}/{name}") for name in names]

        async def delete() -> None:
            for key in keys:
                try:
                    await obstore.delete_async(self._store, key)
                except (obstore.exceptions.BaseError, FileNotFoundError):
                    continue  # it is in nobody's way

        wait_for(delete())

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            with translated_errors(self.url):
                yield
        except OSError as error:
            raise CannotWrite(f"{self.url}/{name}", _reason(error)) from error


def _is_result(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.name != LOCK and bool(_NAME.fullmatch(path.name))


def _write(path: Path, content: bytes) -> None:
    partial_path = path.with_name(f".{path.name}.partial")
    with create_new(partial_path) as file:
        file.write(content)
    fsync_and_rename(partial_path, path)


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
