"""
Which worker does which shard: decisions alone, without a cluster.

Every shard ends once: it is done, or it is set aside with a reason, whatever dies on the way. A shard is
tried again on any worker that is free, if there is a choice on another node; others go first.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from virnuc_async.text import plural

from .plan import Shard


class Ending(StrEnum):
    """How a worker ended with a shard."""

    DONE = "done"
    LOCKED = "locked"  # another process holds it, or has died without releasing it
    FAILED = "failed"  # by an error, which it names
    DIED = "died"  # the worker, with the shard in it
    NODE_LOST = "node lost"  # and all workers there
    STOPPED = "stopped"  # because it was asked to


@dataclass(frozen=True, slots=True)
class Limits:
    """After what is given up, and how long is waited."""

    deaths: int = 3  # of workers, by one shard
    failures: int = 3  # of one shard, by errors
    lost_nodes: int = 10  # that had the same shard: nodes are preempted, and that is not its fault
    misses: int = 5  # different shards in a row that one worker has not done: the fault is its own
    first_pause: float = 5.0  # seconds before a shard is tried again; doubled each time
    longest_pause: float = 60.0
    locked: float = 1800.0  # seconds for which one shard is held by another process


class Task(NamedTuple):
    """What a worker is asked to do."""

    shard: Shard
    is_patient: bool  # whether to wait for the lock of a process elsewhere, which takes a minute


@dataclass(slots=True)
class _Trial:
    """A shard that has been begun, and not done."""

    shard: Shard
    reason: str = ""  # of the last time
    deaths: int = 0
    failures: int = 0
    lost_nodes: int = 0
    nodes: set[str] = field(default_factory=set)  # where it failed
    pauses: int = 0
    not_before: float = 0.0
    locked_since: float | None = None


@dataclass(slots=True)
class _Worker:
    node: str
    task: Task | None = None
    missed: set[Shard] = field(default_factory=set)  # since the last that it has done
    is_shut_out: bool = False
    is_away: bool = False

    @property
    def can_work(self) -> bool:
        return not (self.is_shut_out or self.is_away)


class Dealing:
    """
    The *shards* of a run and the workers that do them; times are those of one clock, in seconds.

    ``set_aside`` are the shards that nobody can do, with the reason; ``shut_out`` the workers that do none.
    """

    def __init__(self, shards: Iterable[Shard], limits: Limits | None = None) -> None:
        self.set_aside: dict[Shard, str] = {}
        self.shut_out: dict[str, str] = {}
        self.done = 0
        self._limits = limits or Limits()
        self._fresh = deque(shards)
        self._trials: dict[Shard, _Trial] = {}
        self._workers: dict[str, _Worker] = {}
        self.total = len(self._fresh)

    def __repr__(self) -> str:
        running = sum(worker.task is not None for worker in self._workers.values())
        aside = len(self.set_aside)
        return f"<Dealing [{self.done} of {self.total} done, {running} running, {aside} set aside]>"

    @property
    def is_over(self) -> bool:
        """Whether every shard is done or set aside."""
        return self.done + len(self.set_aside) == self.total

    @property
    def is_stuck(self) -> bool:
        """Whether no worker is left that may do a shard."""
        return not any(worker.can_work for worker in self._workers.values())

    def add(self, worker: str, node: str) -> None:
        """Add a *worker* on *node*, which is free, or one that was away and is back."""
        self._workers.setdefault(worker, _Worker(node)).is_away = False

    def leave(self, worker: str) -> None:
        """Note that a *worker* is away, if it is known; it may come back, and still has to end its shard."""
        if worker in self._workers:
            self._workers[worker].is_away = True

    def shut(self, worker: str, reason: str) -> None:
        """Keep *worker*, which is known, from getting another shard."""
        self._workers[worker].is_shut_out = True
        self.shut_out[worker] = reason

    def take(self, worker: str, now: float) -> Task | None:
        """Return what *worker*, which is free, does next; None: nothing at this time."""
        known = self._workers[worker]
        assert known.task is None, "it has a shard"
        if not known.can_work:
            return None
        known.task = self._next_for(known, now)
        return known.task

    def ended(self, worker: str, ending: Ending, reason: str, now: float) -> Task:
        """Note how *worker* has ended with its shard, and return what that was."""
        known = self._workers[worker]
        task, known.task = known.task, None
        assert task is not None, "it has no shard"
        if ending is Ending.DONE:
            self.done += 1
            self._trials.pop(task.shard, None)
            known.missed.clear()
            return task
        trial = self._trials.setdefault(task.shard, _Trial(task.shard))
        self._note(trial, ending, reason, now)
        if ending in (Ending.FAILED, Ending.DIED):
            trial.nodes.add(known.node)
            self._count_miss(worker, task.shard, reason)
        return task

    def _next_for(self, worker: _Worker, now: float) -> Task | None:
        if self._fresh:
            return Task(self._fresh.popleft(), is_patient=False)
        running = {other.task.shard for other in self._workers.values() if other.task is not None}
        waiting = [
            trial
            for trial in self._trials.values()
            if trial.shard not in running and trial.not_before <= now and self._may_have(worker, trial)
        ]
        # What is locked may be released while the others are done.
        chosen = min(
            waiting, key=lambda trial: (trial.locked_since is not None, trial.not_before), default=None
        )
        return None if chosen is None else Task(chosen.shard, is_patient=chosen.locked_since is not None)

    def _may_have(self, worker: _Worker, trial: _Trial) -> bool:
        """Whether there is no other node on which *trial* has not failed yet."""
        if worker.node not in trial.nodes:
            return True
        return all(other.node in trial.nodes for other in self._workers.values() if other.can_work)

    def _note(self, trial: _Trial, ending: Ending, reason: str, now: float) -> None:
        """Count what has happened to a shard, and set it aside if that is enough."""
        limits, trial.reason = self._limits, reason
        trial.deaths += ending is Ending.DIED
        trial.failures += ending is Ending.FAILED
        trial.lost_nodes += ending is Ending.NODE_LOST
        if ending is not Ending.LOCKED:
            trial.locked_since = None
        elif trial.locked_since is None:
            trial.locked_since = now
        # A node that is lost says nothing of the shard, which need not wait.
        need_not_wait = ending in (Ending.NODE_LOST, Ending.STOPPED)
        pause = 0.0 if need_not_wait else min(limits.first_pause * 2**trial.pauses, limits.longest_pause)
        trial.not_before = now + pause
        trial.pauses += not need_not_wait
        if (why := self._why_given_up(trial, now)) is not None:
            self.set_aside[trial.shard] = why
            del self._trials[trial.shard]

    def _why_given_up(self, trial: _Trial, now: float) -> str | None:
        limits = self._limits
        if trial.deaths >= limits.deaths:
            return f"{plural(trial.deaths, 'worker')} died with it; the last: {trial.reason}"
        if trial.failures >= limits.failures:
            return f"failed {trial.failures} times; the last: {trial.reason}"
        if trial.lost_nodes >= limits.lost_nodes:
            return f"{plural(trial.lost_nodes, 'node')} were lost with it"
        if trial.locked_since is not None and now - trial.locked_since >= limits.locked:
            return trial.reason
        return None

    def _count_miss(self, worker: str, shard: Shard, reason: str) -> None:
        known = self._workers[worker]
        known.missed.add(shard)
        if len(known.missed) >= self._limits.misses:
            missed = plural(len(known.missed), "shard")
            self.shut(worker, f"{missed} in a row ended early on it; the last: {reason}")
