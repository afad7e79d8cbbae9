"""
A Ray cluster, as little of it as is needed: nodes, actors that stay on theirs, and calls that are waited for.

Nothing here waits without a limit. A call to an actor that is dead may never be answered, so the answer of a
call is only ever waited for together with others, for a time.
"""

import logging
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from virnuc_async._version import __version__
from virnuc_async.engine.cpu_limits import usable_processors
from virnuc_async.errors import ClusterError, UsageError

from .ray_worker import ShardWorker

LOCAL, AUTO = "local", "auto"
_CLIENT = "ray://"
_CONNECT_SECONDS = 10.0

# The node of a cluster on this machine has an address that other machines cannot reach; Ray takes the usual
# one of the loopback for one of its own to look up.
_LOOPBACK = "127.0.0.2"
_OBJECTS = 80 << 20  # bytes: Ray's least; only words and numbers are sent
_LONGEST_PATH = 30  # of a directory in which Ray makes sockets: the system has a limit of 107 for these
_SHORT_PATH = Path("/tmp")
_EXTRA = "--ray needs Ray: pip install 'virnuc-async[ray]'"
_CALLS_AT_ONCE = 8  # of one actor: it does a shard, and is asked how far it is


class Node(NamedTuple):
    """A machine of the cluster that is alive."""

    id: str
    host: str
    cpus: int
    gpus: int


class Slot(NamedTuple):
    """The place of one actor: a GPU, or so many cores of a node."""

    node: Node
    number: int
    cpus: int
    gpus: int

    @property
    def name(self) -> str:
        """A name that no other has."""
        return f"{self.node.id}/{self.number}"

    @property
    def label(self) -> str:
        """A name for people, by the host."""
        kind = "gpu" if self.gpus else "cpu"
        return (
            f"{self.node.host} {kind} {self.number}"
            if self.gpus or self.number
            else f"{self.node.host} {kind}"
        )


class ActorLost(Exception):
    """A call has no answer, since the process of its actor has ended; Ray starts that again if it can."""


class ActorDead(Exception):
    """A call has no answer, and its actor will give none: Ray does not start it, or not again."""


class CallFailed(Exception):
    """A call ended with an error that is none of ours: a bug."""


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A cluster that this process is connected to; made by :func:`connect`."""

    address: str
    ray: Any  # the module

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive."""
        return [
            Node(
                node["NodeID"],
                node["NodeManagerHostname"],
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get("GPU", 0)),
            )
            for node in self.ray.nodes()
            if node["Alive"]
        ]

    def start(self, slot: Slot, work: bytes) -> Any:
        """Return an actor in *slot*, which Ray starts, and starts again when its process ends."""
        affinity = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        made = self.ray.remote(ShardWorker).options(
            num_cpus=slot.cpus,
            num_gpus=slot.gpus,
            max_restarts=-1,
            max_task_retries=0,  # a shard is tried again on any actor, not on this one
            max_concurrency=_CALLS_AT_ONCE,
            scheduling_strategy=affinity(slot.node.id, soft=False),
        )
        return made.remote(__version__, work)

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        """Wait until one of *calls* has ended, at most so many *seconds*; return those that have."""
        if not self.ray.wait(list(calls), num_returns=1, timeout=seconds)[0]:
            return []
        ended: list[Any] = self.ray.wait(list(calls), num_returns=len(calls), timeout=0)[0]
        return ended

    def answer(self, call: Any) -> Any:
        """
        Return the answer of a *call* that has ended.

        Raises:
            ActorLost, ActorDead, CallFailed: there is none
        """
        errors = self.ray.exceptions
        try:
            return self.ray.get(call)
        except errors.RayTaskError as error:
            raise CallFailed(_last_line(error)) from error
        except (errors.ActorDiedError, errors.ActorUnschedulableError) as error:
            raise ActorDead(_last_line(error)) from error
        except errors.OutOfMemoryError as error:
            raise ActorLost("Ray ended its process, since the memory of its node was nearly full") from error
        except errors.RayError as error:
            raise ActorLost("its process ended") from error

    def restart(self, actor: Any) -> None:
        """End the process of *actor*, and let Ray start it again."""
        self.ray.kill(actor, no_restart=False)

    def end(self, actor: Any) -> None:
        """End *actor*."""
        self.ray.kill(actor, no_restart=True)


@contextmanager
def connect(
    address: str, environment: Mapping[str, str], scratch: Path | None = None
) -> Iterator[RayCluster]:
    """
    Connect to the cluster at *address*, or make one of this machine alone that ends with the body.

    *environment* is set for the processes of its actors; a cluster of this machine keeps its files in
    *scratch*, by default in the directory for temporary files.

    Raises:
        UsageError: Ray is not installed
        ClusterError: there is no cluster, or it cannot be used
    """
    ray = require_ray()
    with ExitStack() as stack:
        options: dict[str, Any] = {"address": address}
        _require_reachable(address)
        if address == LOCAL:
            place = stack.enter_context(_temporary_directory(scratch))
            options |= {
                "num_cpus": usable_processors(),
                "include_dashboard": False,
                "object_store_memory": _OBJECTS,
                "_node_ip_address": _LOOPBACK,
                "_temp_dir": place,
            }
        stack.callback(ray.shutdown)
        try:
            ray.init(
                **options,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                runtime_env={"env_vars": dict(environment)},
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ClusterError(address, _last_line(error)) from error
        yield RayCluster(address, ray)


def slots(node: Node, wants_gpus: bool, cpu_workers: int, threads: int | None) -> list[Slot]:
    """
    Return the places of actors on *node*: its GPUs, or *cpu_workers* that share its cores.

    With *threads*, as many of so many cores as there is room for, unless their number is given.
    """
    if wants_gpus:
        return [Slot(node, number, 0, 1) for number in range(node.gpus)]
    if not node.cpus:
        return []
    count = cpu_workers or (max(1, node.cpus // threads) if threads else 1)
    each = min(threads or node.cpus, max(1, node.cpus // count))
    return [Slot(node, number, each, 0) for number in range(min(count, node.cpus))]


def _require_reachable(address: str) -> None:
    """Check that somebody listens at *address*: Ray would try for minutes, and then end this process."""
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    if not (host and port.isascii() and port.isdigit()):
        raise ClusterError(address, f"is no address: {LOCAL}, {AUTO}, HOST:PORT or {_CLIENT}HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(address, f"cannot be reached: {error}") from error


def require_ray() -> Any:
    """Return the module ray; raise UsageError if it is not installed."""
    try:
        return import_module("ray")
    except ImportError:
        raise UsageError(_EXTRA) from None


@contextmanager
def _temporary_directory(scratch: Path | None) -> Iterator[str]:
    """Make a directory with a path that is short enough for Ray's sockets."""
    place = scratch or Path(tempfile.gettempdir())
    place = place if len(str(place)) <= _LONGEST_PATH else _SHORT_PATH
    with tempfile.TemporaryDirectory(prefix="virnuc-ray-", dir=place, ignore_cleanup_errors=True) as made:
        yield made


def _last_line(error: Exception) -> str:
    """Return what *error* says in the end, which is where a traceback in it has its reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
