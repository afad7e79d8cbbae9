"""The scorer: a model that is loaded once and scores the records of many callers."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from anyio import to_thread

from virnuc_async.errors import ScorerBusy, ScorerClosed, UsageError
from virnuc_async.models.bundle import find
from virnuc_async.pipeline import MakeScorer, require_asyncio
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.windows import WINDOW_ORFS
from virnuc_async.settings import Settings, number, whole

from .predictions import Prediction, Predictions
from .records import Records, check_records
from .session import ScorerSession, prepare

# What has no meaning without a directory.
_OF_RUNS = (
    *("embeddings", "calls", "regions", "formats", "min_length"),
    *("reuse_features", "overwrite", "repair", "skip_missing", "recursive"),
)


@dataclass(frozen=True, slots=True)
class ScorerProgress:
    """What a scorer has done since it was opened, and what waits."""

    orfs: int  # scored
    waiting: int  # ORFs that are not
    requests: int  # that wait for a result
    devices: tuple[str, ...]  # that are loaded and not lost


class Scorer:
    """
    Scores records for many callers with a model that is loaded once.

    ::

        async with Scorer(Settings(model="tiny-500")) as scorer:
            predictions = await scorer.score([("read 1", "ACGT...")])
            async for prediction in scorer.stream("contigs.fa"):
                print(prediction.contig, prediction.verdict)

    It has the devices of its settings, writes nothing, and survives a lost device as a run does. Calls may
    be made by any number of tasks of the event loop in which it was entered. Small requests share batches:
    one waits at most *max_wait* seconds for others. Callers wait while *max_waiting* ORFs are waiting.
    *on_progress* is called in the event loop after each batch.

    A request gets the scores of a run with the same batches: all of it if it fills batches of its own or is
    alone, else within the tolerance of the precision.

    Raises, when it is entered:
        UsageError: a setting has no meaning without an output directory, or the loop is not asyncio's
        UnknownBundle, BadBundle, NoThreshold: the model
        UnknownDevice, MixedDevices, UnsuitablePrecision, NoDevicesLeft: the devices
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        max_wait: float = 0.010,
        max_waiting: int = 16 * WINDOW_ORFS,
        on_progress: Callable[[ScorerProgress], None] | None = None,
    ) -> None:
        self._settings = Settings() if settings is None else settings
        _check(self._settings, max_wait, max_waiting)
        self._max_wait, self._max_waiting = max_wait, max_waiting
        self._on_progress = on_progress
        self._plan: Plan | None = None
        self._make_scorer: MakeScorer | None = None
        self._session: ScorerSession | None = None

    @classmethod
    def of(cls, plan: Plan, make_scorer: MakeScorer, **options: Any) -> Self:
        """Return a scorer with the model and the devices of *plan*, and what *make_scorer* makes for each."""
        scorer = cls(plan.settings, **options)
        scorer._plan, scorer._make_scorer = plan, make_scorer
        return scorer

    def __repr__(self) -> str:
        state = f"{self.waiting:,} ORFs waiting" if self.is_open else "not open"
        return f"<Scorer {self._settings.model} [{state}]>"

    @property
    def is_open(self) -> bool:
        """Whether it can score: it was entered, is not left, and has devices."""
        return self._session is not None and self._session.failure is None

    @property
    def waiting(self) -> int:
        """How many ORFs are waiting to be scored, and records to be translated."""
        return self._session.waiting if self._session else 0

    @property
    def is_busy(self) -> bool:
        """Whether callers have to wait before anything of theirs is read."""
        return self.waiting >= self._max_waiting

    async def open(self) -> None:
        """
        Load the model; where ``async with`` does not fit, as in a notebook. :meth:`close` frees the devices.

        Raises:
            UsageError: it is open already, or the loop is not asyncio's
            UnknownBundle, BadBundle: the model
            UnknownDevice, MixedDevices, UnsuitablePrecision, NoDevicesLeft: the devices
        """
        require_asyncio()
        if self._session is not None:
            raise UsageError("this scorer is open already: make another one")
        plan = await to_thread.run_sync(_make_plan, self._settings) if self._plan is None else self._plan
        prepared = await to_thread.run_sync(prepare, plan, abandon_on_cancel=True)
        session = ScorerSession(plan, *prepared, self._max_wait)
        session.on_progress = self._report
        await session.start(self._make_scorer)
        self._session = session

    async def close(self) -> None:
        """Let the devices finish what they have begun, and free them; callers that wait get ScorerClosed."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def score(self, records: Records, *, wait: bool = True) -> Predictions:
        """
        Return the predictions of *records*, in their order.

        *records* is a path, or an iterable, asynchronous or not, of (id, sequence) pairs, records of
        Biopython or dnaio, and paths. Without *wait*, nothing is begun while too much is waiting.

        Raises:
            BadRecord: a record is not DNA
            InputError: a file cannot be read to its end
            UsageError: something is no record
            ScorerBusy: too much is waiting, and *wait* is False
            NoDevicesLeft: too many devices failed
            ScorerClosed: the scorer is not open, or is closed before all is scored
        """
        async with aclosing(self.stream(records, wait=wait)) as found:
            return Predictions([prediction async for prediction in found])

    async def stream(self, records: Records, *, wait: bool = True) -> AsyncGenerator[Prediction, None]:
        """
        Yield the predictions of *records*, in their order, as soon as they are known; memory is bounded.

        Breaking off, or cancelling the caller, drops what is not scored yet and leaves other callers alone.

        Raises:
            what :meth:`score` raises, behind the predictions of the records before
        """
        check_records(records)
        if self._session is None:
            raise ScorerClosed
        if self.is_busy and not wait:
            raise ScorerBusy(self.waiting)
        async with aclosing(self._session.score(records, self._max_waiting)) as found:
            async for predictions in found:
                for prediction in predictions:
                    yield prediction

    def _report(self, orfs: int, requests: int, devices: tuple[str, ...]) -> None:
        if self._on_progress is not None:
            self._on_progress(ScorerProgress(orfs, self.waiting, requests, devices))


def _check(settings: object, max_wait: object, max_waiting: object) -> None:
    if not isinstance(settings, Settings):
        raise UsageError(f"settings must be Settings, not {settings!r}")
    defaults = Settings()
    for name in _OF_RUNS:
        if getattr(settings, name) != getattr(defaults, name):
            raise UsageError(f"{name.replace('_', ' ')} has no meaning for a scorer, which has no directory")
    number("a number of seconds", lambda value: 0 <= value < float("inf"))("max wait", max_wait)
    whole(1)("max waiting", max_waiting)


def _make_plan(settings: Settings) -> Plan:
    plan = Plan((), settings, find(settings.model, settings.cache_dir))
    _ = plan.verdict_rule  # the model may not have the threshold
    return plan
