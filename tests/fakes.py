"""Devices that follow a rule instead of computing, for everything that is about who waits for whom."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import numpy as np

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Scores
from virnuc_async.errors import DeviceLost, DeviceOutOfMemory, Stage
from virnuc_async.models.bundle import Bundle
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision


def p_virus(tokens: Iterable[int]) -> np.float32:
    """The fakes' score of an ORF: a function of its residues alone."""
    return np.float32(sum(tokens) % 97 / 97)


@dataclass
class Rules:
    """What goes wrong, and when; shared by the fake devices of a run, which it can be asked about."""

    room: int | None = None  # tokens that fit on a device
    proves: bool = False  # whether a device finds out at the start what has no room
    lost: dict[str, int] = field(default_factory=dict)  # device -> batches that it lives for
    strange: int | None = None  # an ORF of this many tokens gets no finite score
    recomputed: int | None = None  # an ORF of this many tokens is computed again in FP32
    pause_after: int | None = None  # batches, in all; then every device waits for `go_on`
    go_on: anyio.Event = field(default_factory=anyio.Event)
    paused: anyio.Event = field(default_factory=anyio.Event)
    load_seconds: float = 0.0  # that a device takes to be loaded
    warning: str | None = None  # of every device, once it is loaded
    similarity: float = 1.0  # of known embeddings to those that a device would give
    depth: int = 2  # batches that a device takes at once
    seen: list[tuple[str, Batch]] = field(default_factory=list)  # what was scored, by whom
    proofs: list[tuple[str, int]] = field(default_factory=list)  # what was tried at the start, by whom
    open: set[str] = field(default_factory=set)

    def scorer(self, device: Device, bundle: Bundle, precision: Precision, embeddings: bool) -> "FakeScorer":
        return FakeScorer(device.name, self, bundle.shapes.classifier.inputs if embeddings else None)


class FakeScorer:
    """Scores an ORF by the sum of its residue tokens."""

    def __init__(self, name: str, rules: Rules, width: int | None) -> None:
        self.name = name
        self._rules = rules
        self._width = width
        self._done = 0
        self.depth = rules.depth
        self._turn = anyio.Lock()

    def peak_memory(self) -> int:
        return 0

    async def load(self) -> str | None:
        self._rules.open.add(self.name)
        await anyio.sleep(self._rules.load_seconds)
        if self._rules.lost.get(self.name) == -1:
            raise DeviceLost(self.name, "it fell off the bus while loading")
        return self._rules.warning

    async def warm_up(self, tokens: int) -> None:
        rules = self._rules
        rules.proofs.append((self.name, tokens))
        if rules.room is not None and rules.proves and tokens > rules.room:
            raise DeviceOutOfMemory(self.name, tokens, Stage.PROTEIN)

    async def close(self) -> None:
        self._rules.open.discard(self.name)

    async def score(self, batch: Batch) -> Scores:
        # One after another; what has begun is finished, also when cancelled.
        async with self._turn:
            with anyio.CancelScope(shield=True):
                return await self._scored(batch)

    async def _scored(self, batch: Batch) -> Scores:
        rules = self._rules
        if rules.pause_after is not None and len(rules.seen) >= rules.pause_after:
            rules.paused.set()
            await rules.go_on.wait()
        await anyio.lowlevel.checkpoint()
        if rules.lost.get(self.name) == self._done:
            raise DeviceLost(self.name, "it fell off the bus")
        if rules.room is not None and batch.tokens > rules.room:
            raise DeviceOutOfMemory(self.name, batch.tokens, Stage.PROTEIN)
        self._done += 1
        rules.seen.append((self.name, batch))
        return self._scores(batch)

    def _scores(self, batch: Batch) -> Scores:
        ends = np.cumsum(batch.residues.lengths)
        orfs = np.split(batch.residues.ids, ends[:-1])
        virus = np.array([p_virus(orf) for orf in orfs], dtype=np.float32)
        faults = np.where(batch.residues.lengths == self._rules.strange, 2, 0)
        return Scores(
            batch=batch,
            probabilities=np.stack([np.float32(1) - virus, virus], 1),
            stage_codes=faults,
            embeddings=None if self._width is None else np.tile(virus[:, None], self._width),
            seconds=0.5,
            similarity=np.full((len(batch.known.compared), 2), self._rules.similarity, np.float32),
            recomputed=int((batch.residues.lengths == self._rules.recomputed).sum()),
        )


def fake_devices(count: int) -> tuple[Device, ...]:
    """Devices for FakeScorers; their names are all that matters."""
    return tuple(Device(f"fake:{number}", "fake", 1 << 30) for number in range(count))
