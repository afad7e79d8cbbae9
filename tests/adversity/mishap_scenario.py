"""
Runs whose files are moved, changed, damaged and removed, session after session, until they are finished.

After every error the next session does what the message says. Whatever happened: a session ends with the
tables of a calm run of the inputs as they are, or with an error of this program that says what to do; and
in the end, with the tables.
"""

import asyncio
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from virnuc_async.cli.progress_bars import Lines
from virnuc_async.errors import VirnucError
from virnuc_async.log import logger
from virnuc_async.runs.plan import Plan
from virnuc_async.settings import Settings

from .faults import Bug, Session, Source, World
from .mishaps import BETWEEN, DURING, OF_INPUTS, Mishap, Site, directory_is_replaced
from .scenario import Results, SessionRun, Workspace, replayable

_ELSEWHERE = ("another directory", "new or empty directory")
_MUTE = 0.3  # share of the sessions whose messages cannot be written
_MAX_CALM = 6  # sessions without a fault or mishap, within which the run must finish


class FullStream(StringIO):
    """Standard error on a full disk."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


@contextmanager
def failing_messages() -> Iterator[None]:
    """Let everything that a person would see fail to be written."""
    sink = logger.add(Lines(FullStream()), format="{message}\n", catch=False)
    try:
        yield
    finally:
        logger.remove(sink)


class MishapRun(SessionRun):
    """A session under which a mishap happens at a step."""

    def __init__(self, session: Session, plan: Plan, site: Site, number: int, mishap: Mishap | None) -> None:
        super().__init__(session, plan, site.out, site.directory / f"{number + 1}")
        self.site, self.mishap = site, mishap
        self.mishap_at = int(500 * site.rng.random() ** 1.5)
        self.happened: Mishap | None = None

    def _after_step(self) -> None:
        if self.mishap is not None and self.loop.steps == self.mishap_at and not self.killed:
            self.happened = self.mishap
            self.mishap(self.site)
            self.out = self.site.out
        super()._after_step()


class MishapScenario:
    """All sessions of one seed."""

    def __init__(self, workspace: Workspace, seed: int) -> None:
        self.workspace, self.seed = workspace, seed
        self.world = World(seed, workspace.sources)
        self.rng = rng = random.Random(f"mishaps {seed}")
        self.directory = workspace.directory / f"mishaps {seed}"
        self.embeddings = rng.random() < 0.5
        self.mishaps_left = rng.randint(1, 3)
        self.history: list[str] = []
        self.flags: dict[str, bool] = {}  # what the last error asked for
        self._references: dict[tuple[Any, ...], Results] = {}
        self._trace = sha256()

    def run(self) -> str:
        """Run all sessions; return a digest of everything that happened."""
        with replayable(self.directory, self.seed, self.history):
            self._run()
        return self._trace.hexdigest()

    def _run(self) -> None:
        another = self.workspace.another_run()
        site = Site(self.directory, self.directory / "0", self._own_source(), another, self.rng)
        site.history = self.history
        calm = 0
        for number in count():
            mishap = self._next_mishap(site)
            session = self.world.session(number)
            run = MishapRun(session, self._plan(site, session), site, number, mishap)
            site.is_running = True
            is_finished = self._run_session(run)
            site.is_running = False
            for copy in site.in_place:
                assert _content(copy) == _content(another), f"the other run in {copy.name} has changed"
            is_calm = number >= self.world.faulty_sessions and not mishap and not self.mishaps_left
            if is_calm and is_finished:
                assert not [*site.out.glob(".*.partial")], "something half made is left"
                return
            calm += is_calm
            assert calm < _MAX_CALM, "it does not finish"
            site.out = run.copy if run.copy.exists() else site.out

    def _own_source(self) -> Source:
        """Copy the inputs, so that they can be changed."""
        directory = self.directory / "inputs"
        directory.mkdir()
        source = self.world.source
        for path in map(Path, source.paths):
            if path.is_file():
                shutil.copy(path, directory)
        paths = tuple(path if path == "-" else str(directory / Path(path).name) for path in source.paths)
        return Source(paths, source.piped)

    def _next_mishap(self, site: Site) -> Mishap | None:
        """Let something happen now, or return what is to happen during the next session."""
        if not self.mishaps_left or self.rng.random() < 0.3:
            return None
        self.mishaps_left -= 1
        if self.rng.random() < 0.5:
            mishap = self.rng.choice(DURING)
            # If another run gets there first, a command that overwrites does what it says.
            return None if mishap is directory_is_replaced and self.flags else mishap
        self.rng.choice(BETWEEN)(site)
        return None

    def _plan(self, site: Site, session: Session) -> Plan:
        settings = Settings(tokens_per_batch=self.world.budget, embeddings=self.embeddings, **self.flags)
        return self.workspace.plan(site.source, settings, len(session.fault_plans), self.world.window)

    def _run_session(self, run: MishapRun) -> bool:
        """Run a session and check how it ends; return whether it finished the run."""
        self.history.append(f"{run.session}; {self.flags or ''}")
        is_mute = self.rng.random() < _MUTE
        with failing_messages() if is_mute else nullcontext():
            error = run.run(run.site.source)
        run.site.find_run()
        self._trace.update("\n".join(run.loop.trace).encode())
        how = f"{'mute, ' if is_mute else ''}{'killed, ' if run.killed else ''}{run.loop.steps} steps"
        self.history.append(f"  {how}: {error!r}")
        assert not [*run.loop.pending_tasks()], "a task has not ended"
        assert not run.loop.unhandled, f"unhandled errors: {run.loop.unhandled}"
        assert not run.session.open, f"not closed: {run.session.open}"
        self.flags = {}
        if run.killed:
            return False
        if error is not None:
            self._follow(error, run.site)
        if run.summary is None or run.happened in OF_INPUTS:
            return False
        self._reference(run.site.source).check(Results.read(run.site.out, run.summary))
        return True

    def _follow(self, error: BaseException, site: Site) -> None:
        """Check that *error* is one that may happen, and do what it says in the next session."""
        if isinstance(error, (asyncio.CancelledError, Bug)):
            return
        assert isinstance(error, VirnucError), f"ended with {error!r}"
        remedies = [name for name in ("repair", "overwrite") if f"--{name}" in str(error)]
        if remedies:
            self.flags = {self.rng.choice(remedies): True}
        elif any(text in str(error) for text in _ELSEWHERE):
            site.out = site.out.with_name(f"{site.out.name}, another")

    def _reference(self, source: Source) -> Results:
        """Return the results of a calm run of the inputs as they are."""
        content = [Path(path).read_bytes() for path in source.paths if Path(path).is_file()]
        key = (source, *content)
        if key not in self._references:
            self._references[key] = self.workspace.calm_run(source, self.world.faults)
        return self._references[key]


def _content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
