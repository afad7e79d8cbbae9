"""Replicas that stay loaded from one run to the next."""

from collections.abc import Awaitable, Callable

from virnuc_async.errors import DeviceLost
from virnuc_async.models.bundle import Bundle
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision

from .devices import Device
from .replica import Scores
from .verification import replica_class
from .worker import BatchScorer

MakeReplica = Callable[[Device, Bundle, Precision, bool], BatchScorer]


class KeptReplicas:
    """
    Makes the scorers of runs that follow each other: each device is loaded by the first that uses it.

    What a run closes stays loaded, unless its device is lost; :meth:`close` frees it, and so does a run that
    uses the device with another model.
    """

    def __init__(self, make: MakeReplica | None = None) -> None:
        self._make = make
        self._kept: dict[str, _KeptReplica] = {}  # by the names of their devices
        self._outdated: list[_KeptReplica] = []

    def __call__(self, device: Device, bundle: Bundle, precision: Precision, embeddings: bool) -> BatchScorer:
        """Return a scorer of *device* for one run: the kept one, if it is of the same model."""
        model = (bundle.directory, bundle.fingerprint, precision, embeddings)
        kept = self._kept.get(device.name)
        if kept is None or kept.model != model or kept.is_closed:
            if kept is not None:
                self._outdated.append(kept)
            make = self._make or replica_class(precision)
            kept = _KeptReplica(make(device, bundle, precision, embeddings), model, self.close_outdated)
            self._kept[device.name] = kept
        return kept

    async def close_outdated(self) -> None:
        """Free what the last runs have not used."""
        while self._outdated:
            await self._outdated.pop().free()

    async def close(self) -> None:
        """Free all devices."""
        self._outdated.extend(self._kept.values())
        self._kept.clear()
        await self.close_outdated()


class _KeptReplica:
    """A scorer that is loaded once, and that one run after the other may close."""

    def __init__(self, replica: BatchScorer, model: object, make_room: Callable[[], Awaitable[None]]) -> None:
        self.name = replica.name
        self.depth = replica.depth
        self.model = model
        self.is_closed = False
        self._replica = replica
        self._make_room = make_room
        self._is_usable = False  # it is loaded, and its device works
        self._warning: str | None = None  # of its loading
        self._tokens = 0  # of the largest batch that it is known to have the memory for

    def peak_memory(self) -> int:
        """Return what the replica does."""
        return self._replica.peak_memory()

    async def load(self) -> str | None:
        """Load the model unless it is loaded, and return the warning of that."""
        await self._make_room()
        if not self._is_usable:
            self._warning = await self._replica.load()
            self._is_usable = True
        return self._warning

    async def warm_up(self, tokens: int) -> None:
        """Check that there is memory for *tokens*, unless that is known."""
        if tokens > self._tokens:
            await self._replica.warm_up(tokens)
            self._tokens = tokens

    async def score(self, batch: Batch) -> Scores:
        """Score *batch* as the replica does."""
        try:
            return await self._replica.score(batch)
        except DeviceLost:
            self._is_usable = False
            raise

    async def close(self) -> None:
        """Free the device if it cannot be used; else it stays as it is."""
        if not self._is_usable:
            await self.free()

    async def free(self) -> None:
        """Free the device."""
        self._is_usable, self.is_closed = False, True
        await self._replica.close()
