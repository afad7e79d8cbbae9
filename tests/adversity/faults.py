"""What a seed decides: the input, the sizes of windows and batches, and the faults of each session."""

import gzip
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import anyio
from fakes import FakeScorer, Rules
from support import fasta
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Scores
from virnuc_async.errors import BadBundle, DeviceLost, DeviceOutOfMemory
from virnuc_async.fileio import sha256
from virnuc_async.models.bundle import Bundle
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape, Shapes
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision

from .simulated import Loop

LENGTH = 60  # bases of a fragment
MAX_ORF_TOKENS = 22  # tokens of an ORF
_MAX_FAULTY_SESSIONS = 4  # the session after them finishes the run

_STEPS_PER_JOB = 8  # of a thread, about

# The ways to stop a session, and the last step, statement, write or batch at which each may happen.
STOPS = {
    "none": 0,
    "cancel task": 600,
    "cancel scope": 600,
    "kill": 600,
    "kill in store": 100,
    "store full": 30,
    "files full": 14,
    "bad bundle": 0,
    "bug": 3,
}


class Bug(Exception):
    """An unexpected error of the program itself."""


@dataclass
class FaultPlan(Rules):
    """The faults of one device in one session."""

    max_tokens: int | None = None  # of an ORF: a longer one fits on no device, in any session
    max_delay: float = 0.0  # virtual seconds that each call takes at most
    is_lost_in_warm_up: bool = False
    finds_bad_bundle: bool = False  # when it is loaded
    bug_at: int | None = None  # number of a batch
    rng: random.Random = field(default_factory=random.Random)
    lost_devices: set[str] = field(default_factory=set)
    failed_devices: list[str] = field(default_factory=list)  # with a damaged bundle, or by a bug

    def scorer(self, device: Device, bundle: Bundle, precision: Precision, embeddings: bool) -> FakeScorer:
        self.open.add(device.name)
        return FaultyScorer(device.name, self, bundle.shapes.classifier.inputs if embeddings else None)


class FaultyScorer(FakeScorer):
    """A fake device that follows a fault plan."""

    _rules: FaultPlan

    async def load(self) -> str | None:
        await self._delay()
        if self._rules.finds_bad_bundle:
            self._rules.failed_devices.append(self.name)
            raise BadBundle("the bundle", "a file is missing")
        with self._recording_loss():
            return await super().load()

    async def warm_up(self, tokens: int) -> None:
        await self._delay()
        if self._rules.is_lost_in_warm_up:
            self._rules.lost_devices.add(self.name)
            raise DeviceLost(self.name, "it fell off the bus during warm-up")
        if self._rules.room == 0 and tokens == 1:
            self._rules.lost_devices.add(self.name)
        await super().warm_up(tokens)

    async def close(self) -> None:
        await self._delay()
        await super().close()

    async def _scored(self, batch: Batch) -> Scores:
        await self._delay()
        if self._rules.bug_at == self._done:
            self._rules.failed_devices.append(self.name)
            raise Bug
        max_tokens = self._rules.max_tokens
        if max_tokens is not None and batch.residues.lengths.max() > max_tokens:
            raise DeviceOutOfMemory(self.name, batch.tokens)
        with self._recording_loss():
            return await super()._scored(batch)

    async def _delay(self) -> None:
        await anyio.sleep(self._rules.rng.random() * self._rules.max_delay)

    @contextmanager
    def _recording_loss(self) -> Iterator[None]:
        try:
            yield
        except DeviceLost:
            self._rules.lost_devices.add(self.name)
            raise


@dataclass(frozen=True)
class FailingOrfs:
    """The ORFs that fail on every device: those of *strange* tokens, and those of more than *max_tokens*."""

    strange: int | None = None
    max_tokens: int | None = None


# The inputs have ORFs of nearly every length; most have one of the longest.
FAILING_ORFS = (
    FailingOrfs(),
    FailingOrfs(strange=20),
    FailingOrfs(max_tokens=MAX_ORF_TOKENS - 1),
    FailingOrfs(strange=MAX_ORF_TOKENS, max_tokens=MAX_ORF_TOKENS - 3),
)


@dataclass(frozen=True)
class Source:
    """Input paths, and the content of standard input if that is one of them."""

    paths: tuple[str, ...]
    piped: bytes | None = None

    def stdin(self) -> BytesIO | None:
        return None if self.piped is None else BytesIO(self.piped)


@dataclass(frozen=True)
class Session:
    """One call of the command, and its faults."""

    stop: str  # of STOPS
    at: int
    clock: str  # attribute of the loop that counts up to *at*, for cancellation and kills
    disk_stays_full: bool  # or is full for one write
    order: str  # of Loop.ORDERS
    max_thread_delay: float  # virtual seconds
    sets_budget: bool  # or takes the one in the store
    fault_plans: tuple[FaultPlan, ...]  # one for each device
    rng: random.Random  # decides the order
    seen: list[tuple[str, Batch]] = field(default_factory=list)  # these four are shared with the plans
    open: set[str] = field(default_factory=set)
    lost_devices: set[str] = field(default_factory=set)
    failed_devices: list[str] = field(default_factory=list)

    @property
    def limit(self) -> int:
        """The number of lost devices that ends a session."""
        return min(3, len(self.fault_plans))

    def __str__(self) -> str:
        devices = [f"{plan.lost or ''} {plan.room} {plan.depth}" for plan in self.fault_plans]
        stop = f"{self.stop} at {self.at} ({self.clock})"
        return f"{stop}, {self.order}, {self.max_thread_delay} s, devices: {devices}"


class World:
    """Everything that *seed* decides; two worlds with one seed are equal."""

    def __init__(self, seed: int, sources: Sequence[Source]) -> None:
        self._rng = rng = random.Random(f"world {seed}")
        self.source = rng.choice(sources)
        self.window = rng.choice((1, 3, 5, 8, 1000))
        self.budget = rng.choice((1, 30, 60, 100, 1000))
        self.faults = rng.choice(FAILING_ORFS)
        self.embeddings = rng.random() < 0.1
        self.reruns_when_finished = rng.random() < 0.2
        # A generator of its own keeps the other decisions of each seed as they were.
        self.reuses_features = random.Random(f"features {seed}").random() < 0.2
        self.faulty_sessions = rng.randint(0, _MAX_FAULTY_SESSIONS)

    def session(self, number: int) -> Session:
        """Return the next session; *number* counts from 0."""
        rng, is_faulty = self._rng, number < self.faulty_sessions
        stop = rng.choice([*STOPS]) if is_faulty else "none"
        at = 1 + int(STOPS[stop] * rng.random() ** 1.5)
        clock = rng.choice(("steps", "jobs_started"))
        if clock == "jobs_started" and stop in ("cancel task", "cancel scope", "kill"):
            at = 1 + at // _STEPS_PER_JOB
        fault_plans = [self._fault_plan(f"fake:{device}", is_faulty) for device in range(rng.randint(1, 4))]
        if stop in ("bad bundle", "bug"):
            fault_plans[0] = replace(
                fault_plans[0], finds_bad_bundle=stop == "bad bundle", bug_at=at if stop == "bug" else None
            )
        session = Session(
            stop=stop,
            at=at,
            clock=clock,
            disk_stays_full=rng.random() < 0.5,
            order=rng.choice(Loop.ORDERS),
            max_thread_delay=rng.choice((0.0, 0.005, 0.05)),
            sets_budget=number == 0 or rng.random() < 0.5,
            fault_plans=tuple(fault_plans) if is_faulty else _keep_enough_devices(fault_plans),
            rng=random.Random(rng.random()),
        )
        for plan in session.fault_plans:
            plan.seen, plan.open = session.seen, session.open
            plan.lost_devices, plan.failed_devices = session.lost_devices, session.failed_devices
        return session

    def _fault_plan(self, name: str, is_faulty: bool) -> FaultPlan:
        rng = self._rng
        plan = FaultPlan(
            room=rng.choice((None, None, MAX_ORF_TOKENS, 2 * MAX_ORF_TOKENS, 3 * MAX_ORF_TOKENS)),
            proves=rng.random() < 0.5,
            strange=self.faults.strange,
            max_tokens=self.faults.max_tokens,
            depth=rng.randint(1, 2),
            max_delay=rng.choice((0.0, 0.02, 0.1)),
            rng=random.Random(rng.random()),
        )
        if rng.random() < (0.4 if is_faulty else 0.2):
            how = rng.choice(("lost", "lost", "lost", "lost in warm-up", "no memory"))
            plan.lost = {name: rng.choice((-1, 0, 1, 2, 5))} if how == "lost" else {}
            plan.is_lost_in_warm_up = how == "lost in warm-up"
            if how == "no memory":
                plan.room, plan.proves = 0, True
        return plan


def _keep_enough_devices(fault_plans: Sequence[FaultPlan]) -> tuple[FaultPlan, ...]:
    """Return *fault_plans* in which the last devices are not lost, so that the session can finish."""
    spared = min(3, len(fault_plans)) - 1
    return (
        *fault_plans[:spared],
        *(replace(plan, lost={}, is_lost_in_warm_up=False, room=None) for plan in fault_plans[spared:]),
    )


def make_bundle(directory: Path) -> Bundle:
    """Write a bundle that has only a tokenizer: no network is ever loaded."""
    directory.mkdir()
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "G": 3, "C": 4}, "[UNK]"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.save(str(directory / "tokenizer.json"))
    shapes = Shapes(ProteinShape(1, 2, 1), NucleotideShape(1, 2, 1, 2, 5), ClassifierShape(4, 2))
    checksums = {"tokenizer.json": sha256(directory / "tokenizer.json")}
    return Bundle(directory, "simulated", LENGTH, shapes, checksums, {})


def make_sources(directory: Path) -> list[Source]:
    """Write inputs of several kinds with about ten ORFs each, the same every time."""
    directory.mkdir()
    rng = random.Random("sources")
    short = fasta(_reads(rng, 4, 5, LENGTH))
    long = fasta([("long", _letters(rng, 100, "ACG")), *_reads(rng, 1, 30, 70)])
    closed = fasta([*_reads(rng, 4, 0, 7), *_reads(rng, 2, 60, 90), *_reads(rng, 4, 0, 3)])
    texts = {"short.fa": short, "long.fa": long, "closed.fa": closed, "none.fa": ">a\n>b\nTAATTAATTAATTAA\n"}
    for name, text in texts.items():
        (directory / name).write_text(text)
    single_files = [Source((str(directory / name),)) for name in texts]
    return [*single_files, _mixed(directory, rng), Source(("-",), short.encode())]


def _mixed(directory: Path, rng: random.Random) -> Source:
    """Write files of which some are broken or unreadable; ids repeat."""
    reads = b"".join(
        b"@\xff%b\n%b\n+\n%b\n" % (n, s, b"I" * len(s)) for n, s in _encoded(_reads(rng, 2, 10, 60))
    )
    (directory / "a.fq.gz").write_bytes(gzip.compress(reads))
    (directory / "b.fq").write_bytes(reads[: len(reads) // 2])
    (directory / "c|d.fa").write_bytes(b"")
    (directory / "e.txt").write_bytes(b"Dear reviewer,\n")
    (directory / "f.fa").write_text(fasta(_reads(rng, 1, 30, 60)))
    names = ("missing.fa", "a.fq.gz", "b.fq", "c|d.fa", "e.txt", "f.fa", "f.fa")
    return Source(tuple(str(directory / name) for name in names))


def _encoded(reads: Iterable[tuple[str, str]]) -> Iterator[tuple[bytes, bytes]]:
    return ((name.encode(), letters.encode()) for name, letters in reads)


def _reads(rng: random.Random, count: int, shortest: int, longest: int) -> list[tuple[str, str]]:
    return [(f"read{n}", _letters(rng, rng.randint(shortest, longest), "ACGT")) for n in range(count)]


def _letters(rng: random.Random, count: int, alphabet: str) -> str:
    return "".join(rng.choices(alphabet, k=count))
