"""Which worker does which shard: every shard is done once or named, whatever dies."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnuc_async.distributed.dealing import Dealing, Ending, Limits, Task
from virnuc_async.distributed.plan import Shard

DONE, LOCKED, FAILED, DIED, NODE_LOST, STOPPED = Ending


def shards(count: int) -> list[Shard]:
    return [Shard(number, count) for number in range(count)]


def dealing(count: int, *workers: str, limits: Limits | None = None) -> Dealing:
    """Return the dealing of so many shards to *workers*, each a name whose first letter is its node."""
    made = Dealing(shards(count), limits)
    for worker in workers:
        made.add(worker, worker[0])
    return made


def test_free_workers_take_shards_in_order_until_all_are_done() -> None:
    table = dealing(3, "a1", "b1")
    assert [table.take("a1", 0), table.take("b1", 0)] == [Task(Shard(n, 3), False) for n in (0, 1)]
    assert table.ended("b1", DONE, "", 1).shard == Shard(1, 3)
    assert table.take("b1", 1) == Task(Shard(2, 3), False)
    assert not table.is_over
    assert repr(table) == "<Dealing [1 of 3 done, 2 running, 0 set aside]>"
    table.ended("a1", DONE, "", 2)
    assert table.take("a1", 2) is None
    table.ended("b1", DONE, "", 3)
    assert (table.is_over, table.done, table.set_aside) == (True, 3, {})


def test_a_shard_that_failed_waits_and_goes_to_another_node() -> None:
    table = dealing(1, "a1", "b1")
    table.take("a1", 0)
    table.ended("a1", FAILED, "no such file", 10)
    assert table.take("b1", 14.9) is None
    assert table.take("a1", 15) is None  # there is another node
    assert table.take("b1", 15) == Task(Shard(0, 1), False)


def test_a_shard_that_failed_everywhere_may_fail_anywhere_again() -> None:
    table = dealing(1, "a1", "b1")
    for worker, now in (("a1", 0), ("b1", 10)):
        assert table.take(worker, now)
        table.ended(worker, FAILED, "no such file", now)
    assert table.take("a1", 20)
    table.ended("a1", FAILED, "still no such file", 20)
    assert table.is_over
    assert table.set_aside == {Shard(0, 1): "failed 3 times; the last: still no such file"}


def test_another_node_that_is_away_or_shut_out_is_not_waited_for() -> None:
    table = dealing(1, "a1", "b1", "c1")
    table.take("a1", 0)
    table.ended("a1", FAILED, "why", 0)
    table.leave("b1")
    assert table.take("a1", 5) is None
    table.shut("c1", "another version")
    assert table.take("a1", 5)
    assert table.shut_out == {"c1": "another version"}


def test_a_shard_that_ends_three_workers_is_set_aside_and_the_others_finish() -> None:
    table, now = dealing(4, "a1"), 0.0
    deaths, done = 0, []
    while not table.is_over:
        task, now = table.take("a1", now), now + 1
        if task is None:
            continue
        if task.shard.number == 1:
            deaths += 1
            table.ended("a1", DIED, "killed by signal 11", now)
            table.leave("a1")
            table.add("a1", "a")
        else:
            done.append(table.ended("a1", DONE, "", now).shard.number)
    assert (deaths, done) == (3, [0, 2, 3])
    assert table.set_aside == {Shard(1, 4): "3 workers died with it; the last: killed by signal 11"}


def test_a_lost_node_is_not_the_fault_of_its_shards() -> None:
    table = dealing(1)
    for number in range(9):
        worker = f"{number}"
        table.add(worker, worker)
        assert table.take(worker, number) == Task(Shard(0, 1), False)  # at once
        table.ended(worker, NODE_LOST, "", number)
        table.leave(worker)
    assert table.is_stuck
    assert not table.set_aside
    table.add("9", "9")
    table.take("9", 9)
    table.ended("9", NODE_LOST, "", 9)
    assert table.set_aside == {Shard(0, 1): "10 nodes were lost with it"}


def test_locked_shards_come_after_all_others_and_then_are_waited_for() -> None:
    table = dealing(3, "a1")
    table.take("a1", 0)
    table.ended("a1", LOCKED, "process 7 is writing there", 0)
    assert table.take("a1", 100) == Task(Shard(1, 3), False)
    table.ended("a1", FAILED, "why", 100)
    assert table.take("a1", 200) == Task(Shard(2, 3), False)
    table.ended("a1", DONE, "", 200)
    assert table.take("a1", 200) == Task(Shard(1, 3), False)
    table.ended("a1", DONE, "", 200)
    assert table.take("a1", 200) == Task(Shard(0, 3), True)


def test_a_lock_is_tried_at_longer_and_longer_intervals_and_not_for_ever() -> None:
    table, tries = dealing(1, "a1"), []
    for now in range(2000):
        if table.take("a1", now):
            tries.append(now)
            table.ended("a1", LOCKED, "process 7 is writing there", now)
    assert tries[:6] == [0, 5, 15, 35, 75, 135]
    assert tries[-1] - tries[-2] == 60
    assert tries[-1] >= 1800
    assert table.set_aside == {Shard(0, 1): "process 7 is writing there"}


def test_a_worker_that_misses_five_shards_in_a_row_gets_no_more() -> None:
    table = dealing(20, "a1", "b1")
    for number in range(5):
        task = table.take("a1", number)
        assert task is not None
        table.ended("a1", FAILED, "read-only", number)
    assert table.take("a1", 100) is None
    assert table.shut_out == {"a1": "5 shards in a row ended early on it; the last: read-only"}
    assert not table.is_stuck
    assert table.take("b1", 100) == Task(Shard(5, 20), False)


def test_one_shard_that_is_done_clears_a_worker() -> None:
    table = dealing(20, "a1")
    for number in range(8):
        assert table.take("a1", number)
        table.ended("a1", DONE if number == 4 else FAILED, "why", number)
    assert not table.shut_out


@dataclass
class FakeCluster:
    """Nodes with workers, and what has happened to each shard."""

    table: Dealing
    choose: "Choose"
    now: float = 0.0
    made: int = 0
    workers: dict[str, str] = field(default_factory=dict)  # and their nodes
    running: dict[str, Shard] = field(default_factory=dict)
    endings: dict[Shard, Counter[Ending]] = field(default_factory=dict)

    def add_node(self) -> None:
        self.made += 1
        for number in range(self.choose(3) + 1):
            self.workers[name := f"{self.made}.{number}"] = str(self.made)
            self.table.add(name, str(self.made))

    def end(self, worker: str, ending: Ending) -> None:
        shard = self.running.pop(worker)
        assert self.table.ended(worker, ending, "why", self.now).shard == shard
        self.endings.setdefault(shard, Counter())[ending] += 1

    def lose_node(self, node: str) -> None:
        for worker in [name for name, of in self.workers.items() if of == node]:
            if worker in self.running:
                self.end(worker, NODE_LOST)
            self.table.leave(worker)
            del self.workers[worker]

    def deal(self) -> None:
        for worker in self.workers:
            if worker not in self.running and (task := self.table.take(worker, self.now)):
                assert task.shard not in self.running.values(), "two workers have it"
                assert self.endings.get(task.shard, Counter())[DONE] == 0, "it was done"
                self.running[worker] = task.shard

    def step(self) -> None:
        """Let time pass, and something happen to a worker or a node."""
        self.now += self.choose(30)
        self.deal()
        event = self.choose(8)
        if event == 0 and len(set(self.workers.values())) < 4:
            self.add_node()
        elif event == 1 and self.workers:
            self.lose_node([*self.workers.values()][self.choose(len(self.workers))])
        elif self.running:
            worker = [*self.running][self.choose(len(self.running))]
            endings = (DONE, DONE, DONE, LOCKED, FAILED, DIED, STOPPED)
            ending = endings[self.choose(len(endings))]
            self.end(worker, ending)
            if ending is DIED:
                self.table.leave(worker)
                if self.choose(4):
                    self.table.add(worker, self.workers[worker])
                else:
                    del self.workers[worker]


class Choose:
    """Numbers below a limit, from a list that Hypothesis shrinks; its end says 0 or the choice of a limit."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def __call__(self, below: int) -> int:
        return self._numbers.pop() % below if self._numbers else 0


@given(count=st.integers(0, 12), numbers=st.lists(st.integers(0, 1 << 16), max_size=300))
def test_every_shard_is_done_once_or_named_whatever_dies(count: int, numbers: list[int]) -> None:
    limits = Limits()
    table = Dealing(shards(count), limits)
    cluster = FakeCluster(table, Choose(numbers))
    cluster.add_node()
    while numbers:
        cluster.step()
    # From now on nothing goes wrong any more.
    for _ in range(10 * count + 10):
        if table.is_stuck:
            cluster.add_node()
        cluster.now += limits.longest_pause
        cluster.deal()
        for worker in list(cluster.running):
            cluster.end(worker, DONE)
    assert table.is_over
    done = {shard for shard, endings in cluster.endings.items() if endings[DONE]}
    assert all(cluster.endings[shard][DONE] == 1 for shard in done)
    assert done | set(table.set_aside) == set(shards(count))
    assert not done & set(table.set_aside)
    assert table.done == len(done)
    for shard in table.set_aside:
        endings = cluster.endings[shard]
        assert endings[DIED] == 3 or endings[FAILED] == 3 or endings[NODE_LOST] == 10 or endings[LOCKED]
    for shard in done:
        assert cluster.endings[shard][DIED] < 3
        assert cluster.endings[shard][FAILED] < 3


def test_it_takes_a_worker_that_is_known_and_free() -> None:
    table = dealing(2, "a1")
    table.take("a1", 0)
    with pytest.raises(AssertionError, match="it has a shard"):
        table.take("a1", 0)
