"""Shards on Ray, with its own clusters of several nodes: these are killed, added, and slow."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from fake_work import FakeWork
from ray_nodes import ENVIRONMENT, Nodes, until

from virnuc_async.distributed.cluster_progress import ClusterCounts
from virnuc_async.distributed.dealing import Limits
from virnuc_async.distributed.plan import Shard
from virnuc_async.distributed.ray_cluster import connect, slots
from virnuc_async.distributed.ray_dealer import Patience, RayDealer
from virnuc_async.errors import ClusterError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

pytest.importorskip("ray", reason="the extra [ray] is not installed")
IMPATIENT = Patience(answers=0.1, nodes=0.5, progress=0.2, silence=15, no_worker=10, stopping=10)


class Dealt(Nodes):
    """A cluster, and the shards that are dealt to it, as files of *place*."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place
        self.stop = Event()

    def deal(self, count: int, seconds: float = 0.0) -> dict[Shard, str]:
        """Deal so many shards, each of so many seconds; return those that are set aside."""
        shards = [Shard(number, count) for number in range(count)]
        self.counts = ClusterCounts(dict.fromkeys(shards, 100))
        with connect(self.address, ENVIRONMENT) as cluster:
            work = FakeWork(self.place, seconds)
            find = partial(slots, wants_gpus=False, cpu_workers=0, threads=1)
            limits = Limits(first_pause=0.5)
            return RayDealer(cluster, find, work, self.counts, IMPATIENT, limits).run(self.stop)

    def done(self) -> set[int]:
        return {int(path.name.split("-")[1]) for path in self.place.glob("done-*")}

    def begun(self) -> Counter[int]:
        lines = (self.place / "begun").read_text().splitlines() if (self.place / "begun").exists() else ()
        return Counter(int(line.split()[0]) for line in lines)

    def workers(self) -> set[int]:
        return {int(line.split()[1]) for line in (self.place / "begun").read_text().splitlines()}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Dealt]:
    made = Dealt(tmp_path)
    yield made
    made.shutdown()


def test_every_shard_is_done_once_by_workers_that_stay(nodes: Dealt) -> None:
    nodes.add()
    nodes.add()
    assert nodes.deal(8, seconds=0.3) == {}
    assert nodes.done() == set(range(8))
    assert nodes.begun() == Counter(range(8))
    assert len(nodes.workers()) == 2
    closed = {int(path.name.split("-")[1]) for path in nodes.place.glob("closed-*")}
    assert closed == nodes.workers()
    assert (nodes.counts.shards_done, nodes.counts.share, round(nodes.counts.done.orfs)) == (8, 1.0, 80)
    assert not [worker for worker in nodes.workers() if os.path.exists(f"/proc/{worker}")]


def test_a_shard_that_kills_three_workers_is_set_aside_and_the_others_finish(nodes: Dealt) -> None:
    nodes.add()
    (nodes.place / "kill-1").touch()
    assert nodes.deal(4) == {Shard(1, 4): "3 workers died with it; the last: its process ended"}
    assert nodes.done() == {0, 2, 3}
    assert nodes.begun() == Counter({0: 1, 1: 3, 2: 1, 3: 1})


def test_errors_and_bugs_are_tried_again_and_then_named(nodes: Dealt) -> None:
    nodes.add()
    (nodes.place / "fail-0").touch()
    (nodes.place / "bug-2").touch()
    assert nodes.deal(3) == {
        Shard(0, 3): "failed 3 times; the last: 0.fa: stale file handle",
        Shard(2, 3): "failed 3 times; the last: KeyError: 2",
    }
    assert nodes.done() == {1}
    assert len(nodes.workers()) == 1  # the worker was none the worse for it


def test_a_worker_whose_device_is_lost_is_started_anew(nodes: Dealt) -> None:
    nodes.add()
    (nodes.place / "unusable-0").touch()
    assert nodes.deal(2) == {}
    assert (nodes.done(), nodes.begun()) == ({0, 1}, Counter({0: 2, 1: 1}))
    assert len(nodes.workers()) == 2


def test_shards_of_a_node_that_is_killed_go_to_one_that_is_added(nodes: Dealt) -> None:
    first = nodes.add()
    found: list[Any] = []
    thread = Thread(target=lambda: found.append(nodes.deal(6, seconds=1.0)))
    thread.start()
    until(lambda: len(nodes.done()) == 2)
    nodes.kill(first)
    nodes.add()
    nodes.add()
    thread.join()
    assert found == [{}]
    assert nodes.done() == set(range(6))
    assert sum(nodes.begun().values()) <= 7


def test_a_slow_worker_gets_fewer_shards_and_a_silent_one_is_ended(nodes: Dealt) -> None:
    nodes.add()
    nodes.add()
    (nodes.place / "stop-0").touch()
    thread = Thread(target=lambda: nodes.deal(6, seconds=0.2))
    thread.start()
    until(lambda: nodes.done() == {1, 2, 3, 4, 5})
    lines = [line.split() for line in (nodes.place / "begun").read_text().splitlines()]
    (slow,) = [int(worker) for number, worker, _ in lines if number == "0"]
    os.kill(slow, signal.SIGSTOP)
    (nodes.place / "stop-0").unlink()
    thread.join()
    assert nodes.done() == set(range(6))
    assert not os.path.exists(f"/proc/{slow}")


def test_a_held_lock_is_left_for_later_and_then_waited_for(nodes: Dealt) -> None:
    nodes.add()
    (nodes.place / "lock-0").write_text(str(os.getpid()))
    assert nodes.deal(3) == {}
    order = [int(line.split()[0]) for line in (nodes.place / "begun").read_text().splitlines()]
    assert order == [0, 1, 2, 0]


def test_nodes_of_another_version_get_no_shard_and_are_named_in_the_end(nodes: Dealt) -> None:
    nodes.add()
    (nodes.place / "unfit").touch()
    with pytest.raises(ClusterError, match=r" cpu: .* is not as planned: version: 1 -> 2"):
        nodes.deal(2)
    assert nodes.begun() == Counter()


def test_when_it_is_stopped_it_ends_with_the_shards_that_run(nodes: Dealt) -> None:
    nodes.add()
    thread = Thread(target=lambda: nodes.deal(3, seconds=60))
    thread.start()
    until(lambda: nodes.begun() == Counter([0]))
    begun = time.monotonic()
    nodes.stop.set()
    thread.join()
    assert time.monotonic() - begun < 10
    assert (nodes.done(), nodes.begun()) == (set(), Counter([0]))
    assert list(nodes.place.glob("closed-*"))
