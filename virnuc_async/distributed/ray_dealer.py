"""
Deals the shards of a run to the actors of a Ray cluster, until each is done or set aside.

An actor whose process ends may be started again by Ray, on the same node; whether it is, or whether its node
is gone, only shows later. Until then it is lost, with its shard. A node that is gone takes its actors with
it, and a new one gets actors.
"""

import pickle
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from threading import Event
from typing import Any

from virnuc_async.errors import ClusterError
from virnuc_async.log import PROGRESS, logger
from virnuc_async.runs.progress import DeviceStage

from .cluster_progress import ClusterCounts, WorkerProgress
from .dealing import Dealing, Ending, Limits, Task
from .plan import Shard
from .ray_cluster import ActorDead, ActorLost, CallFailed, Node, RayCluster, Slot
from .ray_worker import Answer, ShardWork


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for what, in seconds."""

    answers: float = 0.5  # at most, before anything else is looked at
    shown: float = 0.5  # between two lines of progress
    nodes: float = 2.0  # between two looks at which there are
    progress: float = 1.0  # between two questions how far a worker is; more, if there are many
    place: float = 30.0  # for a worker that waits for its place, before another is started elsewhere
    reopening: float = 1.0  # before a worker whose process has ended is called again
    silence: float = 180.0  # after which a worker that does not answer is taken for dead
    no_worker: float = 300.0  # without any that may do a shard
    stopping: float = 60.0  # for the batches that are running


class _State(StrEnum):
    OPENING = "opening"
    FREE = "free"
    WORKING = "working"
    LOST = "lost"  # its process has ended; with or without a shard
    SHUT_OUT = "shut out"


@dataclass(slots=True)
class _Worker:
    """An actor, and what it is asked."""

    slot: Slot
    actor: Any
    progress: WorkerProgress
    state: _State = _State.OPENING
    since: float = 0.0  # when it came into this state
    task: Task | None = None
    call: Any = None  # to open, or to do the task
    called: float = 0.0
    question: Any = None  # how far it is
    heard: float = 0.0  # when it answered the last, or was given its task
    reason: str = ""  # why it is lost, or shut out

    @property
    def name(self) -> str:
        """What it is known by."""
        return self.slot.name

    @property
    def label(self) -> str:
        """What people call it."""
        return self.progress.label

    def become(self, state: _State, now: float) -> None:
        """Be in another *state*."""
        if state is not self.state:
            self.state, self.since = state, now
        self.progress.stage = {_State.WORKING: DeviceStage.SCORING, _State.OPENING: DeviceStage.LOADING}.get(
            state, DeviceStage.STOPPED
        )

    def open(self, now: float) -> None:
        """Ask it whether it can work."""
        self.call, self.called = self.actor.open.remote(), now

    def do(self, task: Task, now: float) -> None:
        """Ask it to do a shard."""
        self.become(_State.WORKING, now)
        self.task, self.progress.shard = task, task.shard
        self.call, self.called, self.heard = self.actor.do.remote(task), now, now

    def ask_progress(self, now: float) -> None:
        """Ask it how far it is."""
        self.question, self.called = self.actor.progress.remote(), now


class RayDealer:
    """
    Deals *work* on the shards of *counts* to actors, in the slots that *find_slots* finds on each node.

    There are no more workers than shards. :meth:`run` blocks its thread; ``last_seen`` is a time at which it
    did not. ``last_answer`` is that of the shard that was done last.
    """

    def __init__(
        self,
        cluster: RayCluster,
        find_slots: Callable[[Node], Iterable[Slot]],
        work: ShardWork,
        counts: ClusterCounts,
        patience: Patience | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.counts = counts
        self.dealing = Dealing(counts.shards, limits)
        self.last_seen = self._hopeful = time.monotonic()
        self.last_answer: Answer | None = None
        self._cluster = cluster
        self._find_slots = find_slots
        self._work = pickle.dumps(work)
        self._patience = patience or Patience()
        self._workers: dict[str, _Worker] = {}
        self._next_look = self._next_show = 0.0

    def run(self, stop: Event) -> dict[Shard, str]:
        """
        Deal until all shards are done or set aside, or *stop* is set; return those set aside, with reasons.

        Raises:
            ClusterError: for some time no worker can do a shard
        """
        try:
            while not self.dealing.is_over and not stop.is_set():
                self._step()
        finally:
            self._end_workers()
            self.counts.refresh()
        return self.dealing.set_aside

    def _step(self) -> None:
        now = self.last_seen = time.monotonic()
        if now >= self._next_look:
            self._look_at_nodes(now)
        for worker in self._workers.values():
            self._ask(worker, now)
        self._check_hope(now)
        self._collect()
        self._show()

    def _show(self) -> None:
        """Log the progress, as often as a run of one machine does."""
        now = time.monotonic()
        if now >= self._next_show:
            self._next_show = now + self._patience.shown
            self.counts.status = self.counts.stage_of_first or self._status()
            self.counts.refresh(now)
            logger.bind(counts=self.counts).log(PROGRESS, "{}", self.counts.line(now))

    def _status(self) -> str:
        is_opening = any(worker.state is _State.OPENING for worker in self._workers.values())
        return "starting workers" if is_opening else "waiting for workers"

    def _check_hope(self, now: float) -> None:
        """Raise ClusterError if there was no worker for too long; one that waits for its place is hope."""
        states = {worker.state for worker in self._workers.values()}
        if states & {_State.FREE, _State.WORKING, _State.OPENING}:
            self._hopeful = now
        elif now - self._hopeful >= self._patience.no_worker:
            reasons = {f"{worker.label}: {worker.reason}" for worker in self._workers.values()}
            raise ClusterError(self._cluster.address, "; ".join(sorted(reasons)) or "no node can do a shard")

    # Nodes come and go

    def _look_at_nodes(self, now: float) -> None:
        self._next_look = now + self._patience.nodes
        nodes = {node.id: node for node in self._cluster.nodes()}
        for worker in [one for one in self._workers.values() if one.slot.node.id not in nodes]:
            self._lose_node_of(worker, now)
        for slot in (slot for node in nodes.values() for slot in self._find_slots(node)):
            if slot.name not in self._workers and self._has_room(now):
                progress = WorkerProgress(slot.node.id, self._free_label(slot), slot.node.host)
                worker = _Worker(slot, self._cluster.start(slot, self._work), progress, since=now)
                self._workers[slot.name], self.counts.workers[slot.name] = worker, progress
                worker.open(now)

    def _has_room(self, now: float) -> bool:
        """Whether there are fewer workers than shards; one that has waited for its place does not count."""
        count = sum(
            worker.state is not _State.OPENING or now - worker.since < self._patience.place
            for worker in self._workers.values()
            if worker.state is not _State.SHUT_OUT
        )
        return count < self.dealing.total

    def _free_label(self, slot: Slot) -> str:
        label, taken = slot.label, {worker.label for worker in self._workers.values()}
        return label if label not in taken else f"{label} of node {slot.node.id[:6]}"

    def _lose_node_of(self, worker: _Worker, now: float) -> None:
        logger.warning("{}: its node is gone{}", worker.label, _with_shard(worker.task))
        self._end_task(worker, Ending.NODE_LOST, "its node was lost", now)
        self.dealing.leave(worker.name)
        del self._workers[worker.name], self.counts.workers[worker.name]

    # What workers are asked

    def _ask(self, worker: _Worker, now: float) -> None:
        patience = self._patience
        if worker.state is _State.FREE and (task := self.dealing.take(worker.name, now)) is not None:
            worker.do(task, now)
        elif worker.state is _State.WORKING and worker.question is None:
            if now - worker.called >= max(patience.progress, len(self._workers) / 100):
                worker.ask_progress(now)
        elif worker.state is _State.WORKING and now - worker.heard >= patience.silence:
            logger.warning("{} has not answered for {:.0f} s: it is ended", worker.label, patience.silence)
            worker.heard = now
            self._cluster.restart(worker.actor)
        elif worker.state is _State.LOST:
            if worker.call is None and now - worker.called >= patience.reopening:
                worker.open(now)
            if now - worker.since >= patience.silence:
                self._end_task(worker, Ending.DIED, worker.reason, now)

    # What they answer

    def _collect(self) -> None:
        calls = {one.call: one for one in self._workers.values() if one.call is not None}
        questions = {one.question: one for one in self._workers.values() if one.question is not None}
        if not calls and not questions:
            time.sleep(self._patience.answers)
            return
        for ended in self._cluster.wait([*calls, *questions], self._patience.answers):
            worker = questions.get(ended) or calls[ended]
            # What was asked of a worker that has been lost since then is of no interest.
            if self._workers.get(worker.name) is not worker:
                continue
            if ended == worker.question:
                self._take_progress(worker)
            elif ended == worker.call:
                self._take_answer(worker, time.monotonic())

    def _take_progress(self, worker: _Worker) -> None:
        question, worker.question = worker.question, None
        with suppress(ActorLost, ActorDead, CallFailed):  # as the call that it works on
            worker.progress.current = self._cluster.answer(question) or worker.progress.current
            worker.heard = time.monotonic()

    def _take_answer(self, worker: _Worker, now: float) -> None:
        call, worker.call = worker.call, None
        try:
            answer = self._cluster.answer(call)
        except ActorLost as error:
            self._lose(worker, str(error), now)
        except ActorDead as error:
            self._replace(worker, str(error), now)
        except CallFailed as error:
            if worker.state is _State.WORKING:
                self._finish(worker, Answer(Ending.FAILED, str(error)), now)
            else:
                self._shut_out(worker, str(error), now)
        else:
            if worker.state is _State.WORKING:
                self._finish(worker, answer, now)
            elif answer:
                self._shut_out(worker, answer, now)
            else:
                self._welcome(worker, now)

    def _welcome(self, worker: _Worker, now: float) -> None:
        """Count a worker as free that is open; if it was lost before, it died with its shard."""
        self._end_task(worker, Ending.DIED, worker.reason, now)
        if worker.name in self.dealing.shut_out:
            self._shut_out(worker, self.dealing.shut_out[worker.name], now)
        else:
            self.dealing.add(worker.name, worker.slot.node.id)
            worker.become(_State.FREE, now)

    def _lose(self, worker: _Worker, reason: str, now: float) -> None:
        """Note that the process of *worker* has ended; it is opened again, where Ray starts it again."""
        if worker.state is not _State.LOST:
            logger.warning("{}: {}{}", worker.label, reason, _with_shard(worker.task))
            worker.reason = reason
            self.dealing.leave(worker.name)
        worker.become(_State.LOST, now)
        worker.called, worker.question = now, None

    def _replace(self, worker: _Worker, reason: str, now: float) -> None:
        """Start another actor in the place of a dead one, unless it was never open, or its node is gone."""
        self._look_at_nodes(now)
        if self._workers.get(worker.name) is not worker:
            return
        if worker.state is _State.WORKING:
            self._lose(worker, reason, now)
            worker.actor = self._cluster.start(worker.slot, self._work)
        else:
            self._shut_out(worker, reason, now)

    def _shut_out(self, worker: _Worker, reason: str, now: float) -> None:
        """Free the place of *worker*, which gets no more shards."""
        self._end_task(worker, Ending.DIED, worker.reason, now)
        logger.warning("{} gets no shards: {}", worker.label, reason)
        worker.reason = reason
        worker.become(_State.SHUT_OUT, now)
        self.dealing.leave(worker.name)
        self._cluster.end(worker.actor)

    def _finish(self, worker: _Worker, answer: Answer, now: float) -> None:
        """Note how *worker* has ended with its shard."""
        worker.progress.current = answer.progress or worker.progress.current
        self.last_answer = answer if answer.ending is Ending.DONE else self.last_answer
        self._end_task(worker, answer.ending, answer.reason, now)
        if worker.name in self.dealing.shut_out:
            self._shut_out(worker, self.dealing.shut_out[worker.name], now)
        elif answer.is_unusable:
            self.dealing.leave(worker.name)
            self._cluster.restart(worker.actor)
            worker.become(_State.OPENING, now)
            worker.open(now)
        else:
            worker.become(_State.FREE, now)

    def _end_task(self, worker: _Worker, ending: Ending, reason: str, now: float) -> None:
        """Note how the shard of *worker* has ended, if it has one."""
        if worker.task is None:
            return
        shard, current, worker.task = worker.task.shard, worker.progress.current, None
        self.dealing.ended(worker.name, ending, reason, now)
        worker.progress.end_shard()
        if ending is Ending.DONE:
            self.counts.end_shard(shard, current.orfs if current is not None else 0)
        elif shard in self.dealing.set_aside:
            logger.error("shard {} is set aside: {}", shard, self.dealing.set_aside[shard])
        elif ending is not Ending.STOPPED:
            logger.warning("shard {} on {}: {}; it is tried again", shard, worker.label, reason)

    def _end_workers(self) -> None:
        """Let every worker end with its batches and free its device, for some time; then end the actors."""
        alive = [one for one in self._workers.values() if one.state in (_State.FREE, _State.WORKING)]
        waiting = [worker.actor.stop.remote() for worker in alive]
        end = time.monotonic() + self._patience.stopping
        while waiting and (left := end - time.monotonic()) > 0:
            self.last_seen = time.monotonic()
            ended = set(self._cluster.wait(waiting, min(left, self._patience.answers)))
            waiting = [call for call in waiting if call not in ended]
        for worker in self._workers.values():
            self._cluster.end(worker.actor)


def _with_shard(task: Task | None) -> str:
    return "" if task is None else f", with shard {task.shard}"
