"""
A store and a model of it, led through the same steps by hypothesis: they never differ.

Steps are windows and batches that are kept, crashes at any statement, files that are copied as a
power cut would leave them, damage and repair, overwriting, and reopening.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import make_stale

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import BrokenInput, DirectoryLockedError, RunMismatchError, Stage
from virnuc_async.runs.output_directory import STORE
from virnuc_async.runs.store import Store
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.sequences.windows import ContigRow, FileRow, Window

_PATHS = ("/data/a.fa", "/data/b|c.fa")
_ROWS = st.lists(st.integers(0, 3), max_size=5)  # ORFs of each record of a window


class Cut(BaseException):
    """The power has gone."""


class Fragile(sqlite3.Connection):
    """A connection that is struck, and cut, before the statement that *left* counts down to."""

    left: int | None = None
    strike: Callable[[], object]

    def execute(self, *args: Any) -> sqlite3.Cursor:
        if self.left == 0:
            self.left = None
            self.strike()
            raise Cut
        if self.left is not None:
            self.left -= 1
        return super().execute(*args)


@dataclass
class Known:
    """What the store must hold."""

    identity: dict[str, Any]
    windows: dict[int, Window] = field(default_factory=dict)
    batches: dict[tuple[int, int, str], ScoredBatch] = field(default_factory=dict)

    def scores(self) -> list[tuple[int, float, float]]:
        found = []
        for done in self.batches.values():
            rows = zip(done.batch.orfs.tolist(), done.probabilities.tolist(), strict=True)
            found += [(orf, *pair) for row, (orf, pair) in enumerate(rows) if row not in done.failures]
        return sorted(found)

    def contigs(self) -> list[ContigRow]:
        return [row for number in sorted(self.windows) for row in self.windows[number].contigs]

    def failures(self) -> list[str]:
        files = [(file.number, -1, str(file.failure.reason)) for file in self._ended() if file.failure]
        orfs = [
            (self._file_of(done.batch, row), int(done.batch.orfs[row]), message)
            for done in self.batches.values()
            for row, (_, message) in done.failures.items()
        ]
        return [message for *_, message in sorted(files + orfs)]

    def _ended(self) -> Iterator[FileRow]:
        for window in self.windows.values():
            yield from window.files

    def _file_of(self, batch: Batch, row: int) -> int:
        contig = int(batch.origins[row, 0])
        return next(one.file for one in self.contigs() if one.number == contig)


class Machine(RuleBasedStateMachine):
    """Runs one store through its lives."""

    def __init__(self) -> None:
        super().__init__()
        self._place = TemporaryDirectory(prefix="virnuc-")
        self.lives = 0
        self.out = Path(self._place.name) / "0"
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(sqlite3, "connect", _connect)

    @initialize()
    def begin(self) -> None:
        self.known = Known({"inputs": [[path, 1] for path in _PATHS], "model": "m"})
        self.store = Store(self.out)
        self.store.bind_run(self.known.identity, _PATHS)

    def teardown(self) -> None:
        self.store.close()
        self._patch.undo()
        self._place.cleanup()

    @rule(orfs=_ROWS, ends=st.booleans(), breaks=st.booleans())
    def keep_window(self, orfs: list[int], ends: bool, breaks: bool) -> None:
        window = self._window(orfs, ends, breaks)
        self.store.add_window(window)
        self.known.windows[window.number] = window

    @precondition(lambda self: self._waiting())
    @rule(data=st.data(), halve=st.booleans(), fails=st.booleans())
    def keep_batch(self, data: st.DataObject, halve: bool, fails: bool) -> None:
        done = self._scored(data.draw(st.sampled_from(self._waiting())), halve, fails)
        self.store.add_batch(done)
        self._keep(done)

    @precondition(lambda self: self._waiting())
    @rule(data=st.data(), statements=st.integers(0, 4), fails=st.booleans())
    def cut_while_a_batch_is_kept(self, data: st.DataObject, statements: int, fails: bool) -> None:
        done = self._scored(data.draw(st.sampled_from(self._waiting())), halve=False, fails=fails)
        with self._power_cut(statements):
            self.store.add_batch(done)
            self._keep(done)

    @rule(orfs=_ROWS, statements=st.integers(0, 4), breaks=st.booleans())
    def cut_while_a_window_is_kept(self, orfs: list[int], statements: int, breaks: bool) -> None:
        window = self._window(orfs, True, breaks)
        with self._power_cut(statements):
            self.store.add_window(window)
            self.known.windows[window.number] = window

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.out)
        self.store.bind_run(self.known.identity, _PATHS)

    @rule()
    def overwrite(self) -> None:
        self.store.close()
        self.store = Store(self.out, overwrite=True)
        assert self.store.get_meta("identity") is None
        self.known = Known(self.known.identity)
        self.store.bind_run(self.known.identity, _PATHS)

    @rule(key=st.sampled_from(["model", "more"]))
    def ask_for_another_run(self, key: str) -> None:
        with pytest.raises(RunMismatchError):
            self.store.bind_run({**self.known.identity, key: "other"}, _PATHS)

    @rule()
    def come_second(self) -> None:
        with pytest.raises(DirectoryLockedError):
            Store(self.out)
        with pytest.raises(DirectoryLockedError):
            Store(self.out, overwrite=True)

    @rule()
    def repair_what_is_sound(self) -> None:
        self.store.close()
        self.store = Store(self.out, repair=True)
        assert self.store.recovered == (len(self.known.windows), len(self.known.batches))

    @precondition(lambda self: self.known.batches)
    @rule(data=st.data())
    def damage_a_batch_and_repair(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.known.batches)))
        self.store.close()
        with closing(sqlite3.connect(self.out / STORE)) as db, db:
            db.execute(
                "UPDATE batches SET checksum = checksum + 1 WHERE (window, number, part) = (?, ?, ?)", key
            )
        self.store = Store(self.out, repair=True)
        del self.known.batches[key]

    @invariant()
    def it_holds_what_was_kept_and_nothing_else(self) -> None:
        blocks = list(self.store.reader.blocks())
        scores = [row for block in blocks for row in block.scores[["orf", "others", "virus"]].tolist()]
        assert scores == self.known.scores()
        wanted = [(row.number, row.length, row.file, row.fragments) for row in self.known.contigs()]
        assert [row for block in blocks for row in block.contigs.tolist()] == wanted
        assert b"".join(block.ids for block in blocks) == b"".join(
            b"%s\n" % c.id for c in self.known.contigs()
        )
        messages = [failure.message for failure in self.store.reader.failures()]
        for message, ending in zip(messages, self.known.failures(), strict=True):
            assert message.endswith(ending)
        assert self.store.reader.count("batches") == len(self.known.batches)
        for number, window in self.known.windows.items():
            parts = {key[1:] for key in self.known.batches if key[0] == number}
            assert self.store.finished_parts(number) == parts
            assert self.store.window(number) == window.digest

    def _window(self, orfs: list[int], ends: bool, breaks: bool) -> Window:
        number = len(self.known.windows)
        first = sum(len(window.origins) for window in self.known.windows.values())
        contig = len(self.known.contigs())
        places = [(contig + at, 1, frame) for at, count in enumerate(orfs) for frame in range(count)]
        tokens = Ragged(np.full(3 * len(places), 5, np.int32), np.full(len(places), 3))
        ends = ends and not any(window.files for window in self.known.windows.values())  # once
        failure = BrokenInput(_PATHS[0], contig, "snap") if breaks else None
        return Window(
            number=number,
            first=first,
            contigs=tuple(ContigRow(contig + n, 0, b"c%d" % (contig + n), 9, 1) for n in range(len(orfs))),
            files=(FileRow(0, _PATHS[0], contig, failure),) if ends else (),
            origins=np.array(places, np.int64).reshape(-1, 3),
            digest=b"%d of %d" % (number, self.lives),
            nucleotides=tokens,
            residues=tokens,
        )

    def _waiting(self) -> list[Batch]:
        """Give the batches of which nothing is kept yet."""
        begun = {key[:2] for key in self.known.batches}
        every = [batch for window in self.known.windows.values() for batch in window.batches(9)]
        return [batch for batch in every if (batch.window, batch.number) not in begun]

    def _scored(self, batch: Batch, halve: bool, fails: bool) -> ScoredBatch:
        if halve and len(batch) > 1:
            batch, _ = batch.halves()
        virus = ((batch.orfs % 89) / 89).astype(np.float32)
        failures = {0: (Stage.PROTEIN, "no")} if fails else {}
        return ScoredBatch(batch, "cpu:0", 0.5, np.stack((1 - virus, virus), 1), None, failures)

    def _keep(self, done: ScoredBatch) -> None:
        self.known.batches[done.batch.window, done.batch.number, done.batch.split_path] = done

    @contextmanager
    def _power_cut(self, statements: int) -> Iterator[None]:
        """Go on with what is on the disk at that instant, as a process of tomorrow would."""
        db = self.store._database.connection
        assert isinstance(db, Fragile)
        self.lives += 1
        then = Path(self._place.name) / str(self.lives)
        db.left, db.strike = statements, partial(shutil.copytree, self.out, then)
        with suppress(Cut):
            yield
        if db.left is not None:  # it comes after the last statement
            db.left = None
            db.strike()
        self.store.close()
        make_stale(then)
        self.out = then
        self.store = Store(then)
        assert self.store.lock.previous_owner is not None


_plain = sqlite3.connect


def _connect(*args: Any, **options: Any) -> sqlite3.Connection:
    return _plain(*args, factory=Fragile, **options)


Machine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStates = Machine.TestCase
TestStates.pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
