"""What a seed decides: the input, how it is cut, and what goes wrong in one session after the other."""

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
from virnuc_async.models.bundle import Bundle, Shapes
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision

from .simulated import Loop

LENGTH = 60  # bases of a fragment
LONGEST = 22  # tokens of an ORF
_MOST_TROUBLED = 4  # sessions; the next one gets to the end

_STEPS_A_WORK = 8  # of a thread

# How a session may be made to end, and up to which step, statement, write or batch that comes.
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
    """Something that nobody foresaw."""


@dataclass
class FaultPlan(Rules):
    """What goes wrong with one device in one session."""

    ceiling: int | None = None  # tokens: a longer ORF fits on no device, today and tomorrow
    pace: float = 0.0  # virtual seconds that each thing takes it at most
    is_lost_in_proof: bool = False
    is_bad: bool = False  # whether it finds the bundle damaged
    bug_at: int | None = None  # batch
    rng: random.Random = field(default_factory=random.Random)
    gone: set[str] = field(default_factory=set)  # the devices that were lost
    broken: list[str] = field(default_factory=list)  # those that found a damaged bundle, or a bug

    def scorer(self, device: Device, bundle: Bundle, precision: Precision, embeddings: bool) -> FakeScorer:
        self.open.add(device.name)
        return FaultyScorer(device.name, self, bundle.shapes.classifier.inputs if embeddings else None)


class FaultyScorer(FakeScorer):
    """A fake device with a fate."""

    _rules: FaultPlan

    async def load(self) -> str | None:
        await self._take_time()
        if self._rules.is_bad:
            self._rules.broken.append(self.name)
            raise BadBundle("the bundle", "a file is missing")
        with self._noting_loss():
            return await super().load()

    async def warm_up(self, tokens: int) -> None:
        await self._take_time()
        if self._rules.is_lost_in_proof:
            self._rules.gone.add(self.name)
            raise DeviceLost(self.name, "it fell off the bus in its proof")
        if self._rules.room == 0 and tokens == 1:
            self._rules.gone.add(self.name)
        await super().warm_up(tokens)

    async def close(self) -> None:
        await self._take_time()
        await super().close()

    async def _scored(self, batch: Batch) -> Scores:
        await self._take_time()
        if self._rules.bug_at == self._done:
            self._rules.broken.append(self.name)
            raise Bug
        ceiling = self._rules.ceiling
        if ceiling is not None and batch.residues.lengths.max() > ceiling:
            raise DeviceOutOfMemory(self.name, batch.tokens)
        with self._noting_loss():
            return await super()._scored(batch)

    async def _take_time(self) -> None:
        await anyio.sleep(self._rules.rng.random() * self._rules.pace)

    @contextmanager
    def _noting_loss(self) -> Iterator[None]:
        try:
            yield
        except DeviceLost:
            self._rules.gone.add(self.name)
            raise


@dataclass(frozen=True)
class Faults:
    """Which ORFs have no score, whoever tries: those of *strange* tokens and of more than *ceiling*."""

    strange: int | None = None
    ceiling: int | None = None


# There are ORFs of nearly every length, and most are of the last ones.
FAULTS = (
    Faults(),
    Faults(strange=20),
    Faults(ceiling=LONGEST - 1),
    Faults(strange=LONGEST, ceiling=LONGEST - 3),
)


@dataclass(frozen=True)
class Source:
    """Inputs, or what is piped into standard input."""

    paths: tuple[str, ...]
    piped: bytes | None = None

    def stdin(self) -> BytesIO | None:
        return None if self.piped is None else BytesIO(self.piped)


@dataclass(frozen=True)
class Session:
    """One call of the command, and what happens in it."""

    stop: str  # of STOPS
    at: int
    clock: str  # of a loop, that cancels and kills look at
    lasts: bool  # whether a disk stays full
    order: str  # of Loop.ORDERS
    slowness: float  # of threads: virtual seconds at most
    says_budget: bool  # or leaves it to the store
    fates: tuple[FaultPlan, ...]  # of its devices
    rng: random.Random  # that the order is drawn from
    seen: list[tuple[str, Batch]] = field(default_factory=list)  # these are shared by the fates
    open: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)

    @property
    def limit(self) -> int:
        """How many devices may not be lost."""
        return min(3, len(self.fates))

    def __str__(self) -> str:
        devices = [f"{fate.lost or ''} {fate.room} {fate.depth}" for fate in self.fates]
        return f"{self.stop} at {self.at} ({self.clock}), {self.order}, {self.slowness} s, devices: {devices}"


class World:
    """All that *seed* decides; two of one seed are equal in everything."""

    def __init__(self, seed: int, sources: Sequence[Source]) -> None:
        self._rng = rng = random.Random(f"world {seed}")
        self.source = rng.choice(sources)
        self.window = rng.choice((1, 3, 5, 8, 1000))
        self.budget = rng.choice((1, 30, 60, 100, 1000))
        self.faults = rng.choice(FAULTS)
        self.embeddings = rng.random() < 0.1
        self.is_asked_again = rng.random() < 0.2  # when it has been finished
        # Of its own: what a seed decides beside stays as it was.
        self.reuses = random.Random(f"features {seed}").random() < 0.2
        self._troubled = rng.randint(0, _MOST_TROUBLED)

    def session(self, number: int) -> Session:
        """Draw the next one; *number* counts from 0."""
        rng, is_troubled = self._rng, number < self._troubled
        stop = rng.choice([*STOPS]) if is_troubled else "none"
        at = 1 + int(STOPS[stop] * rng.random() ** 1.5)
        clock = rng.choice(("steps", "begun"))
        if clock == "begun" and stop in ("cancel task", "cancel scope", "kill"):
            at = 1 + at // _STEPS_A_WORK
        fates = [self._fate(f"fake:{device}", is_troubled) for device in range(rng.randint(1, 4))]
        if stop in ("bad bundle", "bug"):
            fates[0] = replace(fates[0], is_bad=stop == "bad bundle", bug_at=at if stop == "bug" else None)
        session = Session(
            stop=stop,
            at=at,
            clock=clock,
            lasts=rng.random() < 0.5,
            order=rng.choice(Loop.ORDERS),
            slowness=rng.choice((0.0, 0.005, 0.05)),
            says_budget=number == 0 or rng.random() < 0.5,
            fates=tuple(fates) if is_troubled else _bearable(fates),
            rng=random.Random(rng.random()),
        )
        for fate in session.fates:
            fate.seen, fate.open = session.seen, session.open
            fate.gone, fate.broken = session.gone, session.broken
        return session

    def _fate(self, name: str, is_troubled: bool) -> FaultPlan:
        rng = self._rng
        fate = FaultPlan(
            room=rng.choice((None, None, LONGEST, 2 * LONGEST, 3 * LONGEST)),
            proves=rng.random() < 0.5,
            strange=self.faults.strange,
            ceiling=self.faults.ceiling,
            depth=rng.randint(1, 2),
            pace=rng.choice((0.0, 0.02, 0.1)),
            rng=random.Random(rng.random()),
        )
        if rng.random() < (0.4 if is_troubled else 0.2):
            way = rng.choice(("lost", "lost", "lost", "lost in proof", "no room"))
            fate.lost = {name: rng.choice((-1, 0, 1, 2, 5))} if way == "lost" else {}
            fate.is_lost_in_proof = way == "lost in proof"
            if way == "no room":
                fate.room, fate.proves = 0, True
        return fate


def _bearable(fates: Sequence[FaultPlan]) -> tuple[FaultPlan, ...]:
    """Spare the last devices, if too many would be lost."""
    spared = min(3, len(fates)) - 1
    return (
        *fates[:spared],
        *(replace(fate, lost={}, is_lost_in_proof=False, room=None) for fate in fates[spared:]),
    )


def make_bundle(directory: Path) -> Bundle:
    """Make a bundle of which only the tokenizer is there: no network is ever asked."""
    directory.mkdir()
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "G": 3, "C": 4}, "[UNK]"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.save(str(directory / "tokenizer.json"))
    shapes = Shapes(ProteinShape(1, 2, 1), NucleotideShape(1, 2, 1, 2, 5), ClassifierShape(4, 2))
    checksums = {"tokenizer.json": sha256(directory / "tokenizer.json")}
    return Bundle(directory, "simulated", LENGTH, shapes, checksums, {})


def make_sources(directory: Path) -> list[Source]:
    """Write inputs of several kinds, some ten ORFs each, the same every time."""
    directory.mkdir()
    rng = random.Random("sources")
    short = fasta(_reads(rng, 4, 5, LENGTH))
    long = fasta([("long", _letters(rng, 100, "ACG")), *_reads(rng, 1, 30, 70)])
    shut = fasta([*_reads(rng, 4, 0, 7), *_reads(rng, 2, 60, 90), *_reads(rng, 4, 0, 3)])
    texts = {"short.fa": short, "long.fa": long, "shut.fa": shut, "none.fa": ">a\n>b\nTAATTAATTAATTAA\n"}
    for name, text in texts.items():
        (directory / name).write_text(text)
    alone = [Source((str(directory / name),)) for name in texts]
    return [*alone, _mixed(directory, rng), Source(("-",), short.encode())]


def _mixed(directory: Path, rng: random.Random) -> Source:
    """Write files of which some cannot be read to their end, or at all; ids repeat."""
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


def _reads(rng: random.Random, count: int, least: int, most: int) -> list[tuple[str, str]]:
    return [(f"read{n}", _letters(rng, rng.randint(least, most), "ACGT")) for n in range(count)]


def _letters(rng: random.Random, count: int, alphabet: str) -> str:
    return "".join(rng.choices(alphabet, k=count))
