"""
A store and a model of it, taken through the same steps by hypothesis: they never differ.

Steps are added windows and batches, crashes at any statement, the files that a power cut leaves,
damage and repair, overwriting, and reopening.
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


class PowerCut(BaseException):
    """The power fails."""


class FragileConnection(sqlite3.Connection):
    """A connection that fails before a statement, after *left* more; *on_cut* is called first."""

    left: int | None = None
    on_cut: Callable[[], object]

    def execute(self, *args: Any) -> sqlite3.Cursor:
        if self.left == 0:
            self.left = None
            self.on_cut()
            raise PowerCut
        if self.left is not None:
            self.left -= 1
        return super().execute(*args)


@dataclass
class Expected:
    """The model: what the store must contain."""

    identity: dict[str, Any]
    windows: dict[int, Window] = field(default_factory=dict)
    batches: dict[tuple[int, int, str], ScoredBatch] = field(default_factory=dict)

    def scores(self) -> list[tuple[int, float, float]]:
        found = []
        for scored in self.batches.values():
            rows = zip(scored.batch.orfs.tolist(), scored.probabilities.tolist(), strict=True)
            found += [(orf, *pair) for row, (orf, pair) in enumerate(rows) if row not in scored.failures]
        return sorted(found)

    def contigs(self) -> list[ContigRow]:
        return [row for number in sorted(self.windows) for row in self.windows[number].contigs]

    def failures(self) -> list[str]:
        files = [(file.number, -1, str(file.failure.reason)) for file in self._ended() if file.failure]
        orfs = [
            (self._file_of(scored.batch, row), int(scored.batch.orfs[row]), message)
            for scored in self.batches.values()
            for row, (_, message) in scored.failures.items()
        ]
        return [message for *_, message in sorted(files + orfs)]

    def _ended(self) -> Iterator[FileRow]:
        for window in self.windows.values():
            yield from window.files

    def _file_of(self, batch: Batch, row: int) -> int:
        contig = int(batch.origins[row, 0])
        return next(one.file for one in self.contigs() if one.number == contig)


class Machine(RuleBasedStateMachine):
    """Takes one store through its states, over several simulated processes."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = TemporaryDirectory(prefix="virnuc-")
        self.cuts = 0
        self.out = Path(self._directory.name) / "0"
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(sqlite3, "connect", _connect)

    @initialize()
    def begin(self) -> None:
        self.expected = Expected({"inputs": [[path, 1] for path in _PATHS], "model": "m"})
        self.store = Store(self.out)
        self.store.bind_run(self.expected.identity, _PATHS)

    def teardown(self) -> None:
        self.store.close()
        self._patch.undo()
        self._directory.cleanup()

    @rule(orfs=_ROWS, ends=st.booleans(), breaks=st.booleans())
    def add_window(self, orfs: list[int], ends: bool, breaks: bool) -> None:
        window = self._window(orfs, ends, breaks)
        self.store.add_window(window)
        self.expected.windows[window.number] = window

    @precondition(lambda self: self._missing_batches())
    @rule(data=st.data(), in_half=st.booleans(), fails=st.booleans())
    def add_batch(self, data: st.DataObject, in_half: bool, fails: bool) -> None:
        scored = self._scored(data.draw(st.sampled_from(self._missing_batches())), in_half, fails)
        self.store.add_batch(scored)
        self._record(scored)

    @precondition(lambda self: self._missing_batches())
    @rule(data=st.data(), statements=st.integers(0, 4), fails=st.booleans())
    def cut_while_a_batch_is_added(self, data: st.DataObject, statements: int, fails: bool) -> None:
        scored = self._scored(data.draw(st.sampled_from(self._missing_batches())), in_half=False, fails=fails)
        with self._power_cut(statements):
            self.store.add_batch(scored)
            self._record(scored)

    @rule(orfs=_ROWS, statements=st.integers(0, 4), breaks=st.booleans())
    def cut_while_a_window_is_added(self, orfs: list[int], statements: int, breaks: bool) -> None:
        window = self._window(orfs, True, breaks)
        with self._power_cut(statements):
            self.store.add_window(window)
            self.expected.windows[window.number] = window

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.out)
        self.store.bind_run(self.expected.identity, _PATHS)

    @rule()
    def overwrite(self) -> None:
        self.store.close()
        self.store = Store(self.out, overwrite=True)
        assert self.store.get_meta("identity") is None
        self.expected = Expected(self.expected.identity)
        self.store.bind_run(self.expected.identity, _PATHS)

    @rule(key=st.sampled_from(["model", "more"]))
    def ask_for_another_run(self, key: str) -> None:
        with pytest.raises(RunMismatchError):
            self.store.bind_run({**self.expected.identity, key: "other"}, _PATHS)

    @rule()
    def open_while_locked(self) -> None:
        with pytest.raises(DirectoryLockedError):
            Store(self.out)
        with pytest.raises(DirectoryLockedError):
            Store(self.out, overwrite=True)

    @rule()
    def repair_an_undamaged_store(self) -> None:
        self.store.close()
        self.store = Store(self.out, repair=True)
        assert self.store.recovered == (len(self.expected.windows), len(self.expected.batches), True)

    @precondition(lambda self: self.expected.batches)
    @rule(data=st.data())
    def damage_a_batch_and_repair(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.expected.batches)))
        self.store.close()
        with closing(sqlite3.connect(self.out / STORE)) as db, db:
            db.execute(
                "UPDATE batches SET checksum = checksum + 1 WHERE (window, number, part) = (?, ?, ?)", key
            )
        self.store = Store(self.out, repair=True)
        del self.expected.batches[key]

    @invariant()
    def it_contains_what_was_added_and_nothing_else(self) -> None:
        blocks = list(self.store.reader.blocks())
        scores = [row for block in blocks for row in block.scores[["orf", "others", "virus"]].tolist()]
        assert scores == self.expected.scores()
        contigs = [(row.number, row.length, row.file, row.fragments) for row in self.expected.contigs()]
        assert [row for block in blocks for row in block.contigs.tolist()] == contigs
        assert b"".join(block.ids for block in blocks) == b"".join(
            b"%s\n" % c.id for c in self.expected.contigs()
        )
        messages = [failure.message for failure in self.store.reader.failures()]
        for message, ending in zip(messages, self.expected.failures(), strict=True):
            assert message.endswith(ending)
        assert self.store.reader.totals().batches == len(self.expected.batches)
        for number, window in self.expected.windows.items():
            parts = {key[1:] for key in self.expected.batches if key[0] == number}
            assert self.store.finished_parts(number) == parts
            stored = self.store.reader.window(number)
            assert stored is not None
            assert stored.digest == window.digest

    def _window(self, orfs: list[int], ends: bool, breaks: bool) -> Window:
        number = len(self.expected.windows)
        first = sum(len(window.origins) for window in self.expected.windows.values())
        contig = len(self.expected.contigs())
        origins = [(contig + at, 1, frame) for at, count in enumerate(orfs) for frame in range(count)]
        tokens = Ragged(np.full(3 * len(origins), 5, np.int32), np.full(len(origins), 3))
        ends = ends and not any(window.files for window in self.expected.windows.values())  # once
        failure = BrokenInput(_PATHS[0], contig, "snap") if breaks else None
        return Window(
            number=number,
            first=first,
            contigs=tuple(ContigRow(contig + n, 0, b"c%d" % (contig + n), 9, 1) for n in range(len(orfs))),
            files=(FileRow(0, _PATHS[0], contig, failure),) if ends else (),
            origins=np.array(origins, np.int64).reshape(-1, 3),
            digest=b"%15d of %13d" % (number, self.cuts),
            nucleotides=tokens,
            residues=tokens,
        )

    def _missing_batches(self) -> list[Batch]:
        """Return the batches of which nothing has been added."""
        added = {key[:2] for key in self.expected.batches}
        batches = [batch for window in self.expected.windows.values() for batch in window.batches(9)]
        return [batch for batch in batches if (batch.window, batch.number) not in added]

    def _scored(self, batch: Batch, in_half: bool, fails: bool) -> ScoredBatch:
        if in_half and len(batch) > 1:
            batch, _ = batch.halves()
        virus = ((batch.orfs % 89) / 89).astype(np.float32)
        failures = {0: (Stage.PROTEIN, "no")} if fails else {}
        return ScoredBatch(batch, "cpu:0", 0.5, np.stack((1 - virus, virus), 1), None, failures)

    def _record(self, scored: ScoredBatch) -> None:
        self.expected.batches[scored.batch.window, scored.batch.number, scored.batch.split_path] = scored

    @contextmanager
    def _power_cut(self, statements: int) -> Iterator[None]:
        """Continue with what is on the disk at that instant, like a later process."""
        db = self.store._database.connection
        assert isinstance(db, FragileConnection)
        self.cuts += 1
        copy = Path(self._directory.name) / str(self.cuts)
        db.left, db.on_cut = statements, partial(shutil.copytree, self.out, copy)
        with suppress(PowerCut):
            yield
        if db.left is not None:  # the cut comes after the last statement
            db.left = None
            db.on_cut()
        self.store.close()
        make_stale(copy)
        self.out = copy
        self.store = Store(copy)
        assert self.store.lock.previous_owner is not None


_sqlite_connect = sqlite3.connect


def _connect(*args: Any, **options: Any) -> sqlite3.Connection:
    return _sqlite_connect(*args, factory=FragileConnection, **options)


Machine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStates = Machine.TestCase
TestStates.pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
