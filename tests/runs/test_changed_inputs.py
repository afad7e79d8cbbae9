"""Inputs that are corrected or added to: what comes before the first difference is kept."""

import random
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from itertools import count as numbers
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
import torch
from fakes import Rules, fake_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from running import log, summary
from support import TABLES

from virnuc_async.errors import CannotWrite, NoDevicesLeft, NoRecords, RunMismatchError, UnreadableInput
from virnuc_async.log import PROGRESS, logger
from virnuc_async.models.bundle import Bundle
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.runs.progress import Counts
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, Window, form_windows
from virnuc_async.settings import Settings

WINDOW, BUDGET = 12, 700
MORE_TABLES = (*TABLES, "failed_files.txt", "pairs.tsv")
Batches = set[tuple[int, int]]  # window and number


def fasta(*numbers: int) -> bytes:
    """Records of various lengths without a stop in any frame, the same for a number each time."""
    return b"".join(b">r%d\n%b\n" % (number, _bases(number)) for number in numbers)


def _bases(number: int) -> bytes:
    return bytes(random.Random(number).choices(b"ACG", k=30 + 37 * number % 400))


@dataclass
class Bench:
    """Runs the pipeline on files in *directory*."""

    directory: Path
    bundle: Bundle
    devices: int = 1
    settings: Settings = field(default_factory=lambda: Settings(tokens_per_batch=BUDGET))

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def write(self, **files: bytes) -> None:
        for name, content in files.items():
            (self.directory / f"{name}.fa").write_bytes(content)

    def plan(self, names: Iterable[str]) -> Plan:
        paths = tuple(name if name == "-" else self.path(f"{name}.fa") for name in names)
        return Plan(paths, self.settings, self.bundle, fake_devices(self.devices), WINDOW)

    async def run(self, names: Iterable[str], out: str = "out", rules: Rules | None = None) -> Batches:
        """Return what was scored."""
        rules = rules or Rules()
        await execute(self.plan(names), self.directory / out, rules.scorer)
        return batches_of(rules)

    async def break_off(self, names: Iterable[str], after: int) -> Batches:
        """Run until each device has scored *after* batches; return what was."""
        rules = Rules(lost={f"fake:{number}": after for number in range(self.devices)})
        with suppress(NoDevicesLeft):
            await self.run(names, rules=rules)
        return batches_of(rules)

    def windows(self, names: Iterable[str]) -> list[Window]:
        tokenizer = OrfTokenizer(self.bundle.tokenizer())
        plan = self.plan(names)
        return list(form_windows(plan.paths, read_contigs, Cut(self.bundle.length, WINDOW), tokenizer))

    def files(self, out: str) -> dict[str, bytes]:
        paths = (self.directory / out / name for name in MORE_TABLES)
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    async def assert_same_as_fresh(self, names: Iterable[str]) -> Batches:
        """Check that every file is that of a fresh run; return the batches of that."""
        rmtree(self.directory / "fresh", ignore_errors=True)
        every = await self.run(names, "fresh")
        assert self.files("out") == self.files("fresh")
        found, fresh = summary(self.directory / "out"), summary(self.directory / "fresh")
        for key in ("counts", "inputs", "reproducible", "finished"):
            assert found[key] == fresh[key], key
        return every


def batches_of(rules: Rules) -> Batches:
    found = [(batch.window, batch.number) for _, batch in rules.seen]
    assert len(set(found)) == len(found)
    return set(found)


@pytest.fixture
def runs(tmp_path: Path, bundle: Bundle) -> Bench:
    return Bench(tmp_path, bundle)


def first_difference(old: list[Window], new: list[Window]) -> int:
    same = (a.digest == b.digest for a, b in zip(old, new, strict=False))
    return next((number for number, is_same in enumerate(same) if not is_same), min(len(old), len(new)))


async def check_edit(runs: Bench, before: list[str], edit: Callable[[], object], after: list[str]) -> int:
    """Run, edit, and run again; return the number of windows that were kept of the finished run."""
    old = runs.windows(before)
    await runs.run(before)
    edit()
    kept = first_difference(old, runs.windows(after))
    scored = await runs.run(after)
    every = await runs.assert_same_as_fresh(after)
    assert scored == {batch for batch in every if batch[0] >= kept}
    facts = summary(runs.directory / "out")["session"]
    assert (facts["batches"], facts["batches_before"]) == (len(scored), len(every) - len(scored))
    return kept


A, B, C = fasta(*range(11)), fasta(*range(20, 25)), fasta(*range(40, 45))


async def test_an_input_that_is_added_costs_only_itself(runs: Bench, count: int) -> None:
    runs.devices = count
    runs.write(a=A, b=B)
    kept = await check_edit(runs, ["a"], lambda: None, ["a", "b"])
    assert kept == len(runs.windows(["a"])) - 1 > 3
    text = log(runs.directory / "out")
    added = f"inputs: {runs.path('b.fa')} was added. Every window before the first difference is kept"
    assert text.count(added) == 1
    facts = summary(runs.directory / "out")["session"]
    assert f"({facts['orfs']} ORFs scored now in " in text.splitlines()[-1]
    assert f" s, {facts['orfs_before']} before, of " in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("before", "after"),
    [("ab", "a"), ("abc", "ac"), ("ab", "cab"), ("abc", "acb"), ("ac", "abc"), ("ab", "axb"), ("ax", "abx")],
)
async def test_inputs_in_other_places(before: str, after: str, runs: Bench) -> None:
    runs.devices = 3
    runs.write(a=A, b=B, c=C)  # and there is no x
    await check_edit(runs, list(before), lambda: None, list(after))


async def test_a_missing_input_that_appears(runs: Bench) -> None:
    runs.write(a=A)
    kept = await check_edit(runs, ["a", "b"], lambda: runs.write(b=B), ["a", "b"])
    assert kept > 3
    assert f"inputs: {runs.path('b.fa')} can be read now. " in log(runs.directory / "out")


async def test_only_the_reason_of_a_failure_differs(runs: Bench) -> None:
    """Every record is as before, so that nothing is scored again."""
    runs.write(a=A)
    (runs.directory / "b.fa").mkdir()
    done = await runs.break_off(["a", "b"], 2)
    (runs.directory / "b.fa").rmdir()
    scored = await runs.run(["a", "b"])
    assert done | scored == await runs.assert_same_as_fresh(["a", "b"])
    assert not done & scored
    assert b"b.fa|Input|No such file" in runs.files("out")["failed_files.txt"]


async def test_a_record_in_the_middle_is_corrected(runs: Bench) -> None:
    runs.write(a=A, b=B)
    corrected = A.replace(b">r8\n", b">s8\n")
    assert await check_edit(runs, ["a", "b"], lambda: runs.write(a=corrected), ["a", "b"]) > 3


async def test_an_empty_input_that_is_filled(runs: Bench) -> None:
    """There is nothing to lose."""
    runs.write(a=b">none\nTAATTAATTAATTAA\n")
    assert await check_edit(runs, ["a"], lambda: runs.write(a=A), ["a"]) == 0


async def test_a_run_that_was_interrupted_and_corrected_twice(runs: Bench, count: int) -> None:
    runs.devices = count
    runs.write(a=A, b=B, c=C)
    first = await runs.break_off(["a", "b"], 2)
    second = await runs.break_off(["a", "c"], 1)
    third = await runs.run(["a", "c", "b"])
    every = await runs.assert_same_as_fresh(["a", "c", "b"])
    assert third <= every
    assert len(first) + len(second) + len(third) >= len(every)


async def test_interrupted_before_the_first_difference_nothing_is_lost(runs: Bench) -> None:
    runs.write(a=A, b=B)
    await runs.run(["a"])

    def read(path: str) -> Iterator[Contig]:
        raise UnreadableInput(path, "gone")

    with pytest.raises(NoRecords):  # the very first read fails
        await execute(runs.plan(["a", "b"]), runs.directory / "out", Rules().scorer, read=read)
    assert not await runs.run(["a"])
    await runs.assert_same_as_fresh(["a"])


async def test_pairs_of_more_files(runs: Bench) -> None:
    mates = ["x_R1", "x_R2", "y_R1", "y_R2"]
    runs.write(**dict.fromkeys(mates, fasta(*range(6))))
    await check_edit(runs, mates[:2], lambda: None, mates)
    assert runs.files("out")["pairs.tsv"].count(b"\n") == 1 + 2 * 6


async def test_reused_embeddings_are_counted_over_all_inputs(runs: Bench) -> None:
    runs.write(a=A, b=B)
    runs.settings = replace(runs.settings, embeddings=True)
    await runs.run(["a", "b"], "old")
    runs.settings = replace(runs.settings, embeddings=False, reuse_features=runs.directory / "old")
    await check_edit(runs, ["a"], lambda: None, ["a", "b"])
    counts = summary(runs.directory / "out")["counts"]
    assert counts["orfs_reused"] == counts["orfs"]


async def test_progress_counts_what_is_kept(runs: Bench) -> None:
    runs.write(a=A, b=B)
    await runs.run(["a"])
    seen: list[Counts] = []
    sink = logger.add(lambda line: seen.append(line.record["extra"].get("counts")), level=PROGRESS)
    await runs.run(["a", "b"])
    logger.remove(sink)
    counts = next(filter(None, seen))
    assert counts.is_all_done
    assert counts.done.orfs == counts.read == summary(runs.directory / "out")["counts"]["orfs"]
    assert sum(device.orfs for device in counts.devices.values()) == counts.read - counts.before.orfs
    assert 0 < counts.before.orfs < counts.read
    assert counts.files_done == counts.files == 2


@pytest.mark.parametrize("interrupted", [False, True])
async def test_embeddings_of_what_is_kept(interrupted: bool, runs: Bench) -> None:
    """They are in the file of all by then, and nowhere else."""
    runs.write(a=A, b=B)
    runs.settings = replace(runs.settings, embeddings=True)
    first = await runs.run(["a"])
    scored = await runs.break_off(["a", "b"], 1) if interrupted else set()
    scored |= await runs.run(["a", "b"])
    every = await runs.assert_same_as_fresh(["a", "b"])
    assert len(scored) < len(every) < len(first) + len(scored) + 2
    assert_same_embeddings(runs)
    assert len(await runs.run(["a"])) < 3  # fewer inputs again
    await runs.assert_same_as_fresh(["a"])
    assert_same_embeddings(runs)


async def test_embeddings_that_are_not_asked_for_again(runs: Bench) -> None:
    runs.write(a=A, b=B)
    runs.settings = replace(runs.settings, embeddings=True)
    await runs.run(["a"])
    runs.settings = replace(runs.settings, embeddings=False)
    await runs.run(["a", "b"])
    assert not (runs.directory / "out" / "merged_features.pt").exists()
    runs.settings = replace(runs.settings, embeddings=True)
    assert not await runs.run(["a", "b"])
    await runs.run(["a", "b"], "fresh")
    assert_same_embeddings(runs)


def assert_same_embeddings(runs: Bench) -> None:
    files = (runs.directory / out / "merged_features.pt" for out in ("out", "fresh"))
    found, fresh = (torch.load(file, weights_only=True) for file in files)
    assert found["ids"] == fresh["ids"]
    assert found["data"].equal(fresh["data"])


# What is another run


async def assert_refused(runs: Bench, names: list[str], said: str) -> None:
    before = runs.files("out")
    store = (runs.directory / "out" / "run.sqlite3").read_bytes()
    with pytest.raises(RunMismatchError, match=said):
        await runs.run(names)
    assert runs.files("out") == before
    assert (runs.directory / "out" / "run.sqlite3").read_bytes() == store


async def test_inputs_with_nothing_in_common(runs: Bench) -> None:
    runs.write(a=A, b=B)
    await runs.run(["a"])
    await assert_refused(runs, ["b"], "inputs: .*b.fa was added, .*a.fa was removed")


async def test_another_content_under_the_same_name(runs: Bench) -> None:
    runs.write(a=A)
    await runs.run(["a"])
    runs.write(a=B)
    await assert_refused(runs, ["a"], "inputs: .*a.fa has changed")


async def test_an_input_that_is_gone_may_come_back(runs: Bench) -> None:
    runs.write(a=A, b=B)
    await runs.run(["a", "b"])
    (runs.directory / "b.fa").unlink()
    await assert_refused(runs, ["a", "b"], "inputs: .*b.fa cannot be read now")
    runs.write(b=B)
    assert not await runs.run(["a", "b"])


async def test_other_settings_are_still_another_run(runs: Bench) -> None:
    runs.write(a=A, b=B)
    await runs.run(["a"])
    runs.settings = Settings(tokens_per_batch=BUDGET + 1)
    await assert_refused(runs, ["a", "b"], "inputs: .*b.fa was added; tokens per batch: 700 -> 701")


# A crash


class FailingConnection(sqlite3.Connection):
    """A connection that fails at one of the statements that write, for good."""

    left = 0  # statements until then

    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        if query.startswith(("INSERT", "REPLACE", "DELETE", "UPDATE", "COMMIT")):
            FailingConnection.left -= 1
            if FailingConnection.left <= 0:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL  # type: ignore[misc]
                raise error
        return super().execute(query, *values)


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("goes_back", [False, True])
async def test_at_any_statement_the_store_is_of_the_old_inputs_or_of_the_new(
    goes_back: bool, step: int, runs: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command finds either, whichever inputs it names."""
    runs.write(a=fasta(*range(5)), b=fasta(5, 6))
    await runs.run(["a"], "finished")
    every = await runs.run(["a", "b"], "fresh")
    connect, out, statements = sqlite3.connect, runs.directory / "out", 1 - step
    is_full = True
    while is_full:
        statements, is_full = statements + step, False
        rmtree(out, ignore_errors=True)
        copytree(runs.directory / "finished", out)
        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", partial(connect, factory=FailingConnection))
            FailingConnection.left = statements
            try:
                await runs.run(["a", "b"])
            except CannotWrite:
                is_full = True
        names = ["a"] if goes_back else ["a", "b"]
        scored = await runs.run(names)
        assert runs.files("out") == runs.files("finished" if goes_back else "fresh")
        assert scored <= {batch for batch in every if batch[0] >= len(runs.windows(["a"])) - 1}
    assert statements > 8


# Standard input


async def pipe(runs: Bench, text: bytes, rules: Rules | None = None) -> Batches:
    rules = rules or Rules()
    read = partial(read_contigs, stdin=BytesIO(text))
    await execute(runs.plan(["-"]), runs.directory / "out", rules.scorer, read=read)
    return batches_of(rules)


@pytest.mark.parametrize("text", [A + B, A[: len(A) // 2], A.replace(b">r8\n", b">s8\n")])
async def test_a_stream_that_differs_later(text: bytes, runs: Bench) -> None:
    with pytest.raises(NoDevicesLeft):
        await pipe(runs, A, Rules(lost={"fake:0": 4}))
    scored = await pipe(runs, text)
    read = partial(read_contigs, stdin=BytesIO(text))
    fresh = Rules()
    await execute(runs.plan(["-"]), runs.directory / "fresh", fresh.scorer, read=read)
    assert runs.files("out") == runs.files("fresh")
    assert 0 < len(scored) < len(fresh.seen)


async def test_another_stream(runs: Bench) -> None:
    with pytest.raises(NoDevicesLeft):
        await pipe(runs, A, Rules(lost={"fake:0": 4}))
    with pytest.raises(RunMismatchError, match="the sequences have changed"):
        await pipe(runs, B)
    await pipe(runs, A)
    assert b"r10" in runs.files("out")["contigs.tsv"]


@pytest.mark.parametrize("text", [B, A + B, A[: len(A) // 2], b""])
async def test_another_stream_for_a_finished_run(text: bytes, runs: Bench) -> None:
    await pipe(runs, A)
    before = runs.files("out")
    with pytest.raises(RunMismatchError, match="the sequences have changed"):
        await pipe(runs, text)
    assert runs.files("out") == before
    assert await pipe(runs, A) == set()
    assert runs.files("out") == before


# Any edits of any inputs

NAMES = "abcdef"


@dataclass
class Inputs:
    """Files by their names, as lists of numbers of records; those without are missing."""

    names: list[str]
    content: dict[str, list[int]]

    def write(self, runs: Bench) -> None:
        for name in NAMES:
            path = runs.directory / f"{name}.fa"
            path.unlink(missing_ok=True)
            if name in self.content:
                path.write_bytes(fasta(*self.content[name]))

    def contents(self) -> set[tuple[int, ...]]:
        return {tuple(self.content[name]) for name in self.names if name in self.content}


def edit(inputs: Inputs, rng: random.Random, fresh: Iterable[int]) -> Inputs:
    """Return *inputs* after one edit of a user."""
    names, content = list(inputs.names), {name: list(found) for name, found in inputs.content.items()}
    there = [name for name in names if name in content]
    unused = [name for name in NAMES if name not in names]
    what = rng.choice(["add", "remove", "correct", "change", "append", "appear"])
    records = [next(iter(fresh)) for _ in range(rng.randrange(1, 9))]
    if what == "add" and unused:
        name = rng.choice(unused)
        names.insert(rng.randrange(len(names) + 1), name)
        content.setdefault(name, records)
    elif what == "remove" and len(names) > 1:
        names.remove(rng.choice(names))
    elif what == "correct" and unused:
        name = rng.choice(unused)
        names[rng.randrange(len(names))] = name
        content.setdefault(name, records)
    elif what == "change" and there:
        found = content[rng.choice(there)]
        found[rng.randrange(len(found))] = records[0]
    elif what == "append" and there:
        content[rng.choice(there)] += records
    elif what == "appear" and set(names) - content.keys():
        content[rng.choice(sorted(set(names) - content.keys()))] = records
    return Inputs(names, content)


async def check_edits(bundle: Bundle, directory: Path, seed: int) -> None:
    rng, fresh = random.Random(seed), numbers(1000 * seed)
    runs = Bench(directory, bundle, rng.choice([1, 3]))
    names = rng.sample(NAMES, rng.randrange(1, 5))
    there = [name for name in names if rng.random() < 0.8] or names[:1]
    old = Inputs(names, {name: [next(fresh) for _ in range(rng.randrange(1, 15))] for name in there})
    old.write(runs)
    before = runs.windows(old.names)
    done = await runs.break_off(old.names, rng.choice([0, 1, 3, 1000]))
    new = old
    for _ in range(rng.randrange(1, 4)):
        new = edit(new, rng, fresh)
    new.write(runs)
    if not new.contents():
        return
    kept = first_difference(before, runs.windows(new.names))
    shared = bool(old.contents() & new.contents())
    if not (shared or set(old.names) & set(new.names)) or (kept == 0 and not shared and old != new):
        with pytest.raises(RunMismatchError):
            await runs.run(new.names)
        return
    again = await runs.break_off(new.names, rng.choice([0, 1, 1000]))
    last = await runs.run(new.names)
    assert not again & last
    every = await runs.assert_same_as_fresh(new.names)
    assert again | last == every - {batch for batch in done if batch[0] < kept}


@settings(max_examples=8)
@given(seed=st.integers(0, 1 << 20))
def test_whatever_is_edited_the_tables_are_those_of_a_fresh_run(bundle: Bundle, seed: int) -> None:
    with TemporaryDirectory() as directory:
        anyio.run(check_edits, bundle, Path(directory), seed)


@pytest.mark.slow
@settings(max_examples=1500)
@given(seed=st.integers(0, 1 << 30))
def test_whatever_is_edited_many_times(bundle: Bundle, seed: int) -> None:
    with TemporaryDirectory() as directory:
        anyio.run(check_edits, bundle, Path(directory), seed)
