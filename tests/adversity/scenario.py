"""Runs what a seed decides, session after session, until the run is finished, and checks every session."""

import asyncio
import json
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
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
from support import REPORTS, TABLES, make_stale

from virnuc_async.errors import BadBundle, CannotWrite, NoDevicesLeft
from virnuc_async.outputs.summary import Summary
from virnuc_async.pipeline import execute
from virnuc_async.runs.blocks import SCORE
from virnuc_async.runs.output_directory import STORE
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.segments import SEGMENT_BASES
from virnuc_async.settings import Settings

from .faults import Bug, FailingOrfs, FaultPlan, Session, Source, World, make_bundle, make_sources
from .simulated import Disk, Loop, no_space, no_space_in_store, without_threads

_SMALL_SEGMENT = 1_000  # bases: of a few records, and of one
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
def open_workspace() -> Iterator["Workspace"]:
    """Yield a workspace for scenarios, in memory if possible."""
    with TemporaryDirectory(prefix="virnuc-", dir=_MEMORY if _MEMORY.is_dir() else None) as path:
        yield Workspace(Path(path))


class Workspace:
    """A directory with the inputs, and the results of undisturbed runs of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bundle = make_bundle(directory / "bundle")
        self.sources = make_sources(directory / "inputs")
        self.reference = cache(self.calm_run)
        self.another_run = cache(self._another_run)
        self.features = cache(self._features)

    def plan(self, source: Source, settings: Settings, devices: int, window: int) -> Plan:
        segment = _SMALL_SEGMENT if window % 2 else SEGMENT_BASES
        return Plan(source.paths, settings, self.bundle, fake_devices(devices), window, segment=segment)

    def calm_run(self, source: Source, faults: FailingOrfs, keep: str = "") -> "Results":
        """
        Return the results without faults: with threads, and in one batch unless an ORF fits nowhere.

        The directory is kept if it has a name.
        """
        out = self.directory / (keep or "reference")
        plan = self.plan(source, Settings(tokens_per_batch=10_000, embeddings=True), 1, 1000)
        scoring = FaultPlan(strange=faults.strange, max_tokens=faults.max_tokens)
        run = partial(execute, plan, out, scoring.scorer, read=partial(read_contigs, stdin=source.stdin()))
        results = Results.read(out, anyio.run(run))
        if not keep:
            shutil.rmtree(out)
        return results

    def _another_run(self) -> Path:
        """Return the directory of a finished run."""
        self.calm_run(self.sources[1], FailingOrfs(), "another")
        return self.directory / "another"

    def _features(self, source: Source) -> Path:
        """Write the features of some ORFs with unique ids, like an earlier run; return their directory."""
        ids, numbers = self.reference(source, FailingOrfs()).features or ([], b"")
        rows = np.frombuffer(numbers, np.float32).reshape(len(ids), self.bundle.shapes.classifier.inputs)
        chosen = [row for row, id in enumerate(ids) if ids.count(id) == 1 and row % 3]
        directory = self.directory / f"features {len(list(self.directory.iterdir()))}"
        directory.mkdir()
        found = {"ids": [ids[row] for row in chosen], "data": torch.from_numpy(rows[chosen])}
        torch.save(found, directory / "before_merged.pt")
        return directory


@dataclass(frozen=True)
class Results:
    """The results that must be the same, whatever happened during the run."""

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
        """Check that *found* is the same."""
        assert found.tables == self.tables, "the tables differ"
        assert found.failed == self.failed, f"failed are {found.failed}, not {self.failed}"
        assert found.features in (None, self.features), "the embeddings differ"
        assert found.inputs == self.inputs, f"inputs are {found.inputs}, not {self.inputs}"
        batches = {"batches": found.counts["batches"]}  # depends on the budget
        assert found.counts == self.counts | batches, f"counts are {found.counts}, not {self.counts}"


def _failed_lines(out: Path) -> list[str]:
    """Return the lines of failed_files.txt, without the name of the device that an ORF did not fit on."""
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
class Stored:
    """The content of a store."""

    scored: frozenset[int] = frozenset()  # ORFs
    failed: frozenset[int] = frozenset()
    batches: tuple[tuple[str, str, int, int], ...] = ()  # part, device, ORFs, tokens

    @property
    def orfs(self) -> frozenset[int]:
        return self.scored | self.failed

    @classmethod
    def read(cls, out: Path) -> "Stored":
        """Read the store, or a copy of it if it has a journal: only the run may roll that back."""
        store, journal = out / STORE, out / f"{STORE}-journal"
        if not store.exists():
            return cls()
        if journal.exists():
            store, journal = (shutil.copy(path, out.parent) for path in (store, journal))
        with closing(sqlite3.connect(store)) as db:
            return cls._of(db)

    @classmethod
    def _of(cls, db: sqlite3.Connection) -> "Stored":
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not db.execute("SELECT 1 FROM sqlite_master").fetchall():
            return cls()
        blobs = [blob for (blob,) in db.execute("SELECT scores FROM batches")]
        scored = np.frombuffer(b"".join(blobs), SCORE)["orf"].tolist()
        failures = [json.loads(text) for (text,) in db.execute("SELECT failures FROM batches")]
        failed = [orf for of_batch in failures for orf, *_ in of_batch]
        assert len({*scored, *failed}) == len(scored) + len(failed), "an ORF is in the store twice"
        query = "SELECT part, device, orfs, tokens FROM batches"
        return cls(frozenset(scored), frozenset(failed), tuple(db.execute(query)))


class SessionRun:
    """A session that runs in *out*; if it is killed, the next one resumes in *copy*."""

    def __init__(self, session: Session, plan: Plan, out: Path, copy: Path) -> None:
        self.session, self.plan, self.out, self.copy = session, plan, out, copy
        self.summary: Summary | None = None
        self.summary_before = _summary_text(out)
        self.stopped = self.killed = False
        self.loop = Loop(session.rng, session.order, session.max_thread_delay)
        self.loop.after_step = self._after_step
        interrupt = {"kill in store": self._kill, "store full": no_space_in_store, "files full": no_space}
        watched = {"kill in store": "statement", "store full": "write", "files full": "file"}
        kind = session.stop
        self.disk = Disk(
            watched.get(kind, ""), session.at, session.disk_stays_full, interrupt.get(kind, self._kill)
        )

    def run(self, source: Source) -> BaseException | None:
        """Run the session; return the error that it ended with, if any."""
        with without_threads(self.disk):
            task = self.loop.run(self._main(source), "main")
        return asyncio.CancelledError() if task.cancelled() else task.exception()

    async def _main(self, source: Source) -> None:
        with anyio.CancelScope() as self.scope:
            names = [device.name for device in self.plan.devices]
            fault_plans = dict(zip(names, self.session.fault_plans, strict=True))
            self.summary = await execute(
                self.plan,
                self.out,
                lambda device, *others: fault_plans[device.name].scorer(device, *others),
                read=partial(read_contigs, stdin=source.stdin()),
            )

    def _after_step(self) -> None:
        main, stop = self.loop.tasks[0], self.session.stop
        if self.killed and not self.stopped:
            # The rest of the killed session runs to its end in the old directory, and is not checked.
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
        """Copy what is on the disk at this instant."""
        if not self.killed:
            self.killed = True
            self.seen = [*self.session.seen]
            if self.out.exists():
                shutil.copytree(self.out, self.copy)
                make_stale(self.copy)


@contextmanager
def replayable(directory: Path, seed: int, history: Sequence[str]) -> Iterator[None]:
    """Make *directory* for the scenario of *seed*, and remove it; an error gets what to replay as notes."""
    directory.mkdir()
    try:
        yield
    except BaseException as error:
        for line in (f"SIMULATION_SEED={seed} runs this again:", *history):
            error.add_note(line)
        raise
    finally:
        shutil.rmtree(directory)


class Scenario:
    """All sessions of one seed."""

    def __init__(self, workspace: Workspace, seed: int) -> None:
        self.workspace, self.seed = workspace, seed
        self.world = World(seed, workspace.sources)
        self.directory = workspace.directory / f"seed {seed}"
        self.reference = workspace.reference(self.world.source, self.world.faults)
        self.history: list[str] = []
        self.stored = Stored()
        self.steps = 0
        self.endings: Counter[str] = Counter()  # sessions, by planned stop and actual ending
        self._trace = sha256()

    def run(self) -> str:
        """Run all sessions; return a digest of everything that happened."""
        with replayable(self.directory, self.seed, self.history):
            self._run()
        return self._trace.hexdigest()

    def _run(self) -> None:
        out, finished = self.directory / "0", False
        for number in count():
            session = self.world.session(number)
            run = SessionRun(session, self._plan(session), out, self.directory / f"{number + 1}")
            is_again, finished = finished, self._run_session(run)
            assert not (is_again and session.seen), "a finished run scores ORFs again"
            if is_again or finished and not self.world.reruns_when_finished:
                return
            out = run.copy if run.killed else out

    def _plan(self, session: Session) -> Plan:
        # The budget is in the store as soon as there is a batch.
        budget = self.world.budget if session.sets_budget or not self.stored.batches else None
        features = self.workspace.features(self.world.source) if self.world.reuses_features else None
        settings = Settings(
            tokens_per_batch=budget, embeddings=self.world.embeddings, reuse_features=features
        )
        return self.workspace.plan(self.world.source, settings, len(session.fault_plans), self.world.window)

    def _run_session(self, run: SessionRun) -> bool:
        """Run a session and check it; return whether it finished the run."""
        self.history.append(str(run.session))
        try:
            error = run.run(self.world.source)
        finally:
            self.history += [f"  ... {' '.join(run.loop.trace[-60:])}", *run.loop.pending_tasks()]
            self._trace.update("\n".join(run.loop.trace).encode())
            self.steps += run.loop.steps
        end = "killed" if run.killed else type(error).__name__ if error else str(run.summary and "finished")
        self.endings[f"{run.session.stop}: {end}"] += 1
        self.history.append(f"  {run.loop.steps} steps, {dict(run.disk.seen)}: {error!r}")
        assert not [*run.loop.pending_tasks()], "a task has not ended"
        assert not run.loop.unhandled, f"unhandled errors: {run.loop.unhandled}"
        assert not run.session.open, f"not closed: {run.session.open}"
        self._check_store(run)
        if run.killed:
            return False
        left = run.loop.jobs_left
        assert not left, f"ended while a thread is still running {', '.join(left)}"
        self._check_ending(run, error)
        if run.summary is None:
            self._check_unfinished(run)
            return False
        self._check_results(run.out, run.summary, run.disk.has_interrupted)
        return True

    def _check_store(self, run: SessionRun) -> None:
        """Check that what was scored is stored, and is not scored again."""
        out, seen = (run.copy, run.seen) if run.killed else (run.out, run.session.seen)
        before, after = self.stored, Stored.read(out)
        scored = [orf for _, batch in seen for orf in batch.orfs.tolist()]
        assert len({*scored}) == len(scored), "an ORF is scored twice in a session"
        assert not before.orfs & {*scored}, "a stored ORF is scored again"
        assert before.orfs <= after.orfs, "a stored ORF is gone"
        assert after.scored - before.scored <= {*scored}, "a stored ORF was never scored"
        if not (run.killed or run.disk.has_interrupted):
            assert {*scored} <= after.orfs, "a scored ORF is not stored"
        for name, table in self.reference.tables.items():
            assert not (out / name).exists() or (out / name).read_bytes() == table, f"{name} is wrong"
        self.stored = after
        for device, batch in seen:
            self._trace.update(f"{device} {batch.name}".encode())

    def _check_ending(self, run: SessionRun, error: BaseException | None) -> None:
        """Check that the session ended as its faults require."""
        session, stop = run.session, run.session.stop
        is_stopped = run.stopped or run.disk.has_interrupted or bool(session.failed_devices)
        if isinstance(error, NoDevicesLeft):
            assert {lost.device for lost in error.lost} <= session.lost_devices
            assert len(error.lost) >= session.limit, "there are devices left"
        elif error is not None:
            assert isinstance(error, _FAILURES.get(stop, ())), f"ended with {error!r}"
            assert is_stopped, f"ended with {error!r} too early"
        elif run.summary is None:
            assert stop == "cancel scope"
        else:
            assert len(session.lost_devices) < session.limit, "there were no devices left"
            # A scope that is cancelled at the very end stops nothing; nor does a disk that is full for a
            # moment, when the history of the devices is written, or one that is when the report is.
            is_full = stop in ("store full", "files full") and not session.disk_stays_full
            lacks_report = stop == "files full" and not all((run.out / name).exists() for name in REPORTS)
            is_harmless = stop == "cancel scope" or is_full or lacks_report
            assert is_harmless or not is_stopped, "was not stopped"

    def _check_unfinished(self, run: SessionRun) -> None:
        """Check that the summary of an unfinished session counts exactly what is stored."""
        text = _summary_text(run.out)
        # A session that ends very early leaves the summary of an earlier one.
        if text == run.summary_before:
            return
        summary = json.loads(text)
        counts, stored = summary["counts"], self.stored
        assert ("orfs_reused" in counts) <= self.world.reuses_features
        counts.pop("orfs_reused", None)
        found = counts["orfs"], counts["batches"]
        assert found == (len(stored.scored), len(stored.batches)), f"the summary counts {found}"
        assert not summary["finished"] or all((run.out / name).exists() for name in TABLES), (
            "finished without tables"
        )
        expected = self.reference.counts | {"batches": counts["batches"]}
        assert not summary["finished"] or counts == expected, counts

    def _check_results(self, out: Path, summary: Summary, was_full: bool) -> None:
        """
        Check that a finished run has the reference results, and that its summary is right.

        Where the disk *was_full* for a moment, there may be no report.
        """
        self.reference.check(Results.read(out, summary))
        assert json.loads((out / "summary.json").read_text()) == summary.as_dict()
        batches = self.stored.batches
        parts = [part for part, *_ in batches]
        assert (summary.finished, summary.reproducible) == (True, not any(parts))
        assert summary.counts["batches"] == len(parts)
        totals: dict[str, list[int]] = {}
        for _, device, orfs, tokens in batches:
            total = totals.setdefault(device, [0, 0, 0])
            totals[device] = [total[0] + 1, total[1] + orfs, total[2] + tokens]
        counted = {one["name"]: [one["batches"], one["orfs"], one["tokens"]] for one in summary.devices}
        assert counted == totals, f"the devices did {totals}, not {counted}"
        expected = {*TABLES, *REPORTS, "summary.json", "progress.json", "run.log", STORE}
        expected |= {"samples.tsv"} if len(summary.inputs) > 1 else set()
        expected |= {_FAILED} if self.reference.failed else set()
        expected |= {_FEATURES} if self.world.embeddings else set()
        found = {path.name: path for path in out.iterdir()}
        # A kill may leave a journal that is no longer valid; SQLite removes it with its next one.
        if journal := found.pop(f"{STORE}-journal", None):
            assert not any(journal.read_bytes()[:8]), "a hot journal"
        expected -= {name for name in REPORTS if was_full and name not in found}
        assert found.keys() == expected, f"unexpected or missing files: {sorted(found.keys() ^ expected)}"
