"""Plays what a seed decides, session after session, until the run is finished, and sees that all is well."""

import asyncio
import json
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import numpy as np
import torch
from fakes import fake_devices
from support import TABLES, make_stale

from virnuc_async.errors import BadBundle, CannotWrite, NoDevicesLeft
from virnuc_async.outputs.summary import Summary
from virnuc_async.pipeline import execute
from virnuc_async.runs.blocks import SCORE
from virnuc_async.runs.output_directory import STORE
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.settings import Settings

from .faults import Bug, FaultPlan, Faults, Session, Source, World, make_bundle, make_sources
from .simulated import Disk, Loop, no_space, no_space_in_store, no_threads

_MEMORY = Path("/dev/shm")
_FAILED, _FEATURES = "failed_files.txt", "merged_features.pt"
_FAILURES = {
    "cancel task": asyncio.CancelledError,
    "store full": CannotWrite,
    "files full": CannotWrite,
    "bad bundle": BadBundle,
    "bug": Bug,
}


@contextmanager
def workplace() -> Iterator["Workplace"]:
    """Give a place for trials, in memory where that can be."""
    with TemporaryDirectory(prefix="virnuc-", dir=_MEMORY if _MEMORY.is_dir() else None) as path:
        yield Workplace(Path(path))


class Workplace:
    """Inputs, what a calm run makes of them, and room for trials."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bundle = make_bundle(directory / "bundle")
        self.sources = make_sources(directory / "inputs")
        self.calm = cache(self._calm)
        self.features = cache(self._features)

    def plan(self, source: Source, settings: Settings, devices: int, window: int) -> Plan:
        return Plan(source.paths, settings, self.bundle, fake_devices(devices), window)

    def _calm(self, source: Source, faults: Faults) -> "Results":
        """Run undisturbed, with threads, all in one batch but for what fits nowhere."""
        out = self.directory / "calm"
        plan = self.plan(source, Settings(tokens_per_batch=10_000, embeddings=True), 1, 1000)
        fate = FaultPlan(strange=faults.strange, ceiling=faults.ceiling)
        run = partial(execute, plan, out, fate.scorer, read=partial(read_contigs, stdin=source.stdin()))
        results = Results.read(out, anyio.run(run))
        shutil.rmtree(out)
        return results

    def _features(self, source: Source) -> Path:
        """Leave the features of some ORFs, as of a run before; of those whose ids are unique."""
        ids, numbers = self.calm(source, Faults()).features or ([], b"")
        rows = np.frombuffer(numbers, np.float32).reshape(len(ids), self.bundle.shapes.classifier.inputs)
        some = [row for row, id in enumerate(ids) if ids.count(id) == 1 and row % 3]
        directory = self.directory / f"features {len(list(self.directory.iterdir()))}"
        directory.mkdir()
        found = {"ids": [ids[row] for row in some], "data": torch.from_numpy(rows[some])}
        torch.save(found, directory / "before_merged.pt")
        return directory


@dataclass(frozen=True)
class Results:
    """What must be the same, whatever happened on the way."""

    tables: dict[str, bytes]
    failed: list[str]
    features: tuple[list[str], bytes] | None
    counts: dict[str, int]
    inputs: list[dict[str, Any]]

    @classmethod
    def read(cls, out: Path, summary: Summary) -> "Results":
        tables = {name: (out / name).read_bytes() for name in TABLES}
        counts = {name: count for name, count in summary.counts.items() if name != "orfs_reused"}
        return cls(tables, _failed_lines(out), _features(out), counts, summary.inputs)

    def check(self, found: "Results") -> None:
        """See that *found* is the same."""
        assert found.tables == self.tables, "other tables"
        assert found.failed == self.failed, f"failed are {found.failed}, not {self.failed}"
        assert found.features in (None, self.features), "other embeddings"
        assert found.inputs == self.inputs, f"inputs are {found.inputs}, not {self.inputs}"
        batches = {"batches": found.counts["batches"]}  # as many as the budget makes
        assert found.counts == self.counts | batches, f"counts are {found.counts}, not {self.counts}"


def _failed_lines(out: Path) -> list[str]:
    """Give the lines of failed_files.txt, without the name of the device that an ORF did not fit on."""
    path = out / _FAILED
    return (
        re.sub(r"fake:\d", "a device", path.read_text("utf-8", "surrogateescape")).splitlines()
        if path.exists()
        else []
    )


def _summary_text(out: Path) -> str:
    path = out / "summary.json"
    return path.read_text("utf-8") if path.exists() else ""


def _features(out: Path) -> tuple[list[str], bytes] | None:
    if not (out / _FEATURES).exists():
        return None
    features = torch.load(out / _FEATURES, weights_only=True)
    return features["ids"], features["data"].numpy().tobytes()


@dataclass(frozen=True)
class Kept:
    """What a store holds."""

    scored: frozenset[int] = frozenset()  # ORFs
    failed: frozenset[int] = frozenset()
    batches: tuple[tuple[str, str, int, int], ...] = ()  # part, device, ORFs, tokens

    @property
    def orfs(self) -> frozenset[int]:
        return self.scored | self.failed

    @classmethod
    def read(cls, out: Path) -> "Kept":
        """Look into the store; where a kill left it, into a copy: to repair it is for the run to do."""
        store, journal = out / STORE, out / f"{STORE}-journal"
        if not store.exists():
            return cls()
        if journal.exists():
            store, journal = (shutil.copy(path, out.parent) for path in (store, journal))
        with closing(sqlite3.connect(store)) as db:
            return cls._of(db)

    @classmethod
    def _of(cls, db: sqlite3.Connection) -> "Kept":
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not db.execute("SELECT 1 FROM sqlite_master").fetchall():
            return cls()
        blobs = [blob for (blob,) in db.execute("SELECT scores FROM batches")]
        scored = np.frombuffer(b"".join(blobs), SCORE)["orf"].tolist()
        failed = [orf for (orf,) in db.execute("SELECT orf FROM failures WHERE orf IS NOT NULL")]
        assert len({*scored, *failed}) == len(scored) + len(failed), "an ORF is in the store twice"
        query = "SELECT part, device, orfs, tokens FROM batches"
        return cls(frozenset(scored), frozenset(failed), tuple(db.execute(query)))


class Act:
    """A session as it is played in *out*; if it is killed, the next one goes on in *then*."""

    def __init__(self, session: Session, plan: Plan, out: Path, then: Path) -> None:
        self.session, self.plan, self.out, self.then = session, plan, out, then
        self.summary: Summary | None = None
        self.summary_before = _summary_text(out)
        self.stopped = self.killed = False
        self.loop = Loop(session.rng, session.order, session.slowness)
        self.loop.after_step = self._after_step
        strike = {"kill in store": self._kill, "store full": no_space_in_store, "files full": no_space}
        watched = {"kill in store": "statement", "store full": "write", "files full": "file"}
        kind = session.stop
        self.disk = Disk(watched.get(kind, ""), session.at, session.lasts, strike.get(kind, self._kill))

    def play(self, source: Source) -> BaseException | None:
        """Give what it ended with, if it did not get to its end."""
        with no_threads(self.disk):
            task = self.loop.run(self._main(source), "main")
        return asyncio.CancelledError() if task.cancelled() else task.exception()

    async def _main(self, source: Source) -> None:
        with anyio.CancelScope() as self.scope:
            names = [device.name for device in self.plan.devices]
            fates = dict(zip(names, self.session.fates, strict=True))
            self.summary = await execute(
                self.plan,
                self.out,
                lambda device, *others: fates[device.name].scorer(device, *others),
                read=partial(read_contigs, stdin=source.stdin()),
            )

    def _after_step(self) -> None:
        main, stop = self.loop.tasks[0], self.session.stop
        if self.killed and not self.stopped:
            # What is left of it goes on elsewhere, to its end, and is not looked at.
            self.stopped = main.cancel()
        elif getattr(self.loop, self.session.clock) == self.session.at and not (self.stopped or main.done()):
            if stop == "kill":
                self._kill()
            elif stop == "cancel task":
                self.stopped = main.cancel()
            elif stop == "cancel scope":
                self.stopped = True
                self.scope.cancel()

    def _kill(self) -> None:
        """Keep what is on the disk at this instant."""
        if not self.killed:
            self.killed = True
            self.seen = [*self.session.seen]
            if self.out.exists():
                shutil.copytree(self.out, self.then)
                make_stale(self.then)


class Trial:
    """All sessions of a seed."""

    def __init__(self, place: Workplace, seed: int) -> None:
        self.place, self.seed = place, seed
        self.world = World(seed, place.sources)
        self.home = place.directory / f"seed {seed}"
        self.calm = place.calm(self.world.source, self.world.faults)
        self.story: list[str] = []
        self.kept = Kept()
        self.steps = 0
        self.endings: Counter[str] = Counter()  # sessions, by what was to stop them and what did
        self._trace = sha256()

    def run(self) -> str:
        """Play it to its end; give a digest of all that happened on the way."""
        self.home.mkdir()
        try:
            self._run()
        except BaseException as error:
            error.add_note(f"SIMULATION_SEED={self.seed} plays this again:")
            for line in self.story:
                error.add_note(line)
            raise
        finally:
            shutil.rmtree(self.home)
        return self._trace.hexdigest()

    def _run(self) -> None:
        out, finished = self.home / "0", False
        for number in count():
            session = self.world.session(number)
            act = Act(session, self._plan(session), out, self.home / f"{number + 1}")
            is_again, finished = finished, self._play(act)
            assert not (is_again and session.seen), "what was finished is scored again"
            if is_again or finished and not self.world.is_asked_again:
                return
            out = act.then if act.killed else out

    def _plan(self, session: Session) -> Plan:
        # The store knows the budget once it knows the run.
        budget = self.world.budget if session.says_budget or not self.kept.batches else None
        old = self.place.features(self.world.source) if self.world.reuses else None
        settings = Settings(tokens_per_batch=budget, embeddings=self.world.embeddings, reuse_features=old)
        return self.place.plan(self.world.source, settings, len(session.fates), self.world.window)

    def _play(self, act: Act) -> bool:
        """Play a session; say whether it finished the run."""
        self.story.append(str(act.session))
        try:
            error = act.play(self.world.source)
        finally:
            self.story += [f"  ... {' '.join(act.loop.trace[-60:])}", *act.loop.waiting()]
            self._trace.update("\n".join(act.loop.trace).encode())
            self.steps += act.loop.steps
        end = "killed" if act.killed else type(error).__name__ if error else str(act.summary and "finished")
        self.endings[f"{act.session.stop}: {end}"] += 1
        self.story.append(f"  {act.loop.steps} steps, {dict(act.disk.seen)}: {error!r}")
        assert not [*act.loop.waiting()], "a task is left behind"
        assert not act.loop.complaints, f"the loop complains: {act.loop.complaints}"
        assert not act.session.open, f"not closed: {act.session.open}"
        self._check_work(act)
        if act.killed:
            return False
        left = act.loop.left_at_work
        assert not left, f"ended while a thread is still at {', '.join(left)}"
        self._check_end(act, error)
        if act.summary is None:
            self._check_unfinished(act)
            return False
        self._check_results(act.out, act.summary)
        return True

    def _check_work(self, act: Act) -> None:
        """See that what is done is kept and not done again."""
        out, seen = (act.then, act.seen) if act.killed else (act.out, act.session.seen)
        before, after = self.kept, Kept.read(out)
        scored = [orf for _, batch in seen for orf in batch.orfs.tolist()]
        assert len({*scored}) == len(scored), "an ORF is scored twice in a session"
        assert not before.orfs & {*scored}, "what was kept is scored again"
        assert before.orfs <= after.orfs, "what was kept is gone"
        assert after.scored - before.scored <= {*scored}, "a score comes from nowhere"
        if not (act.killed or act.disk.has_struck):
            assert {*scored} <= after.orfs, "what was scored is not kept"
        for name, table in self.calm.tables.items():
            assert not (out / name).exists() or (out / name).read_bytes() == table, f"a false {name}"
        self.kept = after
        for device, batch in seen:
            self._trace.update(f"{device} {batch.name}".encode())

    def _check_end(self, act: Act, error: BaseException | None) -> None:
        """See that the session ended as what happened in it says."""
        session, stop = act.session, act.session.stop
        has_happened = act.stopped or act.disk.has_struck or bool(session.broken)
        if isinstance(error, NoDevicesLeft):
            assert {lost.device for lost in error.lost} <= session.gone
            assert len(error.lost) >= session.limit, "there are devices left"
        elif error is not None:
            assert isinstance(error, _FAILURES.get(stop, ())), f"ended with {error!r}"
            assert has_happened, f"ended with {error!r} too early"
        elif act.summary is None:
            assert stop == "cancel scope"
        else:
            assert len(session.gone) < session.limit, "there were no devices left"
            # A scope that is cancelled when all is done has nothing left to end.
            assert stop == "cancel scope" or not has_happened, "went on in spite of it"

    def _check_unfinished(self, act: Act) -> None:
        """See that the summary that is left says what is kept, and no more."""
        text = _summary_text(act.out)
        # One that ends before it begins leaves that of an earlier session.
        if text == act.summary_before:
            return
        said = json.loads(text)
        counts, kept = said["counts"], self.kept
        assert ("orfs_reused" in counts) <= self.world.reuses
        counts.pop("orfs_reused", None)
        found = counts["orfs"], counts["batches"]
        assert found == (len(kept.scored), len(kept.batches)), f"{found} are said to be done"
        assert not said["finished"] or all((act.out / name).exists() for name in TABLES), (
            "finished without tables"
        )
        assert not said["finished"] or counts == self.calm.counts | {"batches": counts["batches"]}, counts

    def _check_results(self, out: Path, summary: Summary) -> None:
        """See that a finished run is what a calm one is, and says what was done."""
        self.calm.check(Results.read(out, summary))
        assert json.loads((out / "summary.json").read_text()) == summary.as_dict()
        batches = self.kept.batches
        parts = [part for part, *_ in batches]
        assert (summary.finished, summary.reproducible) == (True, not any(parts))
        assert summary.counts["batches"] == len(parts)
        work: dict[str, list[int]] = {}
        for _, device, orfs, tokens in batches:
            total = work.setdefault(device, [0, 0, 0])
            work[device] = [total[0] + 1, total[1] + orfs, total[2] + tokens]
        said = {one["name"]: [one["batches"], one["orfs"], one["tokens"]] for one in summary.devices}
        assert said == work, f"the devices did {work}, not {said}"
        wanted = {*TABLES, "summary.json", "run.log", STORE}
        wanted |= {_FAILED} if self.calm.failed else set()
        wanted |= {_FEATURES} if self.world.embeddings else set()
        found = {path.name: path for path in out.iterdir()}
        # What a kill leaves of a journal that was done with: SQLite takes it away with its next own.
        if journal := found.pop(f"{STORE}-journal", None):
            assert not any(journal.read_bytes()[:8]), "a journal that is hot"
        assert found.keys() == wanted, f"other files: {sorted(found.keys() ^ wanted)}"
