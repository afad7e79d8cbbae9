"""
Batches in, scored batches out, over any number of devices.

The engine knows no store, no directory and no file. It splits batches that do not fit, gives the
batches of a lost device to the others, and leaves nothing running behind. One task feeds the queue and
one for each device takes from it; all are owned by the task group of :meth:`Engine.score`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio import CancelScope
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from virnuc_async.errors import DeviceLost, NoDevicesLeft, leaves
from virnuc_async.log import logger
from virnuc_async.sequences.batches import Batch

from .batch_queue import BatchQueue
from .devices import Device
from .events import EngineEvents
from .worker import BatchScorer, ScoredBatch, Worker

if TYPE_CHECKING:
    from loguru import Logger

_MAX_LOST = 3  # devices: after so many, the fault is not the devices'

MakeScorer = Callable[[Device], BatchScorer]


class Engine:
    """
    Scores batches on *devices*; *max_tokens* is the largest batch to expect.

    Each device is loaded by :meth:`score`, at the same time as the others, and begins to work as soon
    as it is ready.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        make_scorer: MakeScorer,
        max_tokens: int,
        events: EngineEvents | None = None,
        log: "Logger" = logger,
    ) -> None:
        self._devices = tuple(devices)
        self._make_scorer = make_scorer
        self._max_tokens = max_tokens
        self._events = events or EngineEvents()
        self._log = log
        self._lost: list[DeviceLost] = []
        self._warnings: set[str] = set()

    def __repr__(self) -> str:
        return f"<Engine [{len(self._devices)} devices, {len(self._lost)} lost]>"

    @asynccontextmanager
    async def score(
        self, batches: AsyncGenerator[Batch, None]
    ) -> AsyncIterator[MemoryObjectReceiveStream[ScoredBatch]]:
        """
        Open a stream of the scored *batches*, in the order in which devices finish them.

        The body of this context is shielded: when the caller is cancelled, no further batch is begun, the
        stream yields those that the devices had begun, and ends. The caller must be a task of its own in
        a task group: a native asyncio cancellation does not respect shields.

        Raises:
            NoDevicesLeft: every device, or three of them, were lost
            BadBundle: the model's files are damaged
            what *batches* raises
        """
        queue = BatchQueue(2 * len(self._devices))
        send, receive = anyio.create_memory_object_stream[ScoredBatch](2 * len(self._devices))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_feed, batches, queue, name="feed")
            for device in self._devices:
                tasks.start_soon(self._run_device, device, queue, send.clone(), name=f"run {device.name}")
            send.close()
            async with receive:
                with CancelScope(shield=True):
                    yield receive
            # Nothing is left to do, unless the caller has enough.
            tasks.cancel_scope.cancel()

    async def _run_device(
        self, device: Device, queue: BatchQueue, send: MemoryObjectSendStream[ScoredBatch]
    ) -> None:
        """Let one device score batches until there are none, or until it is lost."""
        # The stream is closed whatever happens: the receiver waits for that.
        async with send:
            worker = Worker(self._make_scorer(device), self._max_tokens, self._log)
            try:
                self._warn_once(await worker.load())
                await worker.warm_up()
                self._events.device_ready(worker.name)
                async with anyio.create_task_group() as slots:
                    for _ in range(worker.depth):
                        slots.start_soon(worker.run, queue, send, name=f"score on {worker.name}")
            # Not except*: before Python 3.11.4, what is raised in it arrives in a group.
            except (DeviceLost, BaseExceptionGroup) as error:
                if isinstance(error, BaseExceptionGroup) and error.split(DeviceLost)[1]:
                    raise  # something else has failed, too, and ends the run
                self._drop_device(next(leaves(error)))
            finally:
                self._events.device_closed(worker.name, await worker.close())

    def _drop_device(self, error: BaseException) -> None:
        assert isinstance(error, DeviceLost)
        # Its frames would keep the tensors of the batch alive.
        self._lost.append(error.with_traceback(None))
        self._log.error("{}; the other devices take over its batches", error)
        if len(self._lost) in (_MAX_LOST, len(self._devices)):
            raise NoDevicesLeft(self._lost)

    def _warn_once(self, warning: str | None) -> None:
        """Log a warning for the first device alone that it holds for."""
        if warning and warning not in self._warnings:
            self._log.warning("{}", warning)
            self._warnings.add(warning)


async def _feed(batches: AsyncGenerator[Batch, None], queue: BatchQueue) -> None:
    async with aclosing(batches):
        async for batch in batches:
            await queue.put(batch)
    await queue.close()
