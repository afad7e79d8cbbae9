"""How far many workers are, in the words of one machine."""

from dataclasses import replace

from fake_work import progress

from virnuc_async.distributed.cluster_progress import ClusterCounts, WorkerProgress
from virnuc_async.distributed.plan import Shard
from virnuc_async.runs.progress import DeviceStage, device_facts

SHARDS = [Shard(number, 4) for number in range(4)]


def counts(*workers: WorkerProgress) -> ClusterCounts:
    """Return the counts of four shards, of 100, 200, 300 and 400 bases, at 10 s."""
    made = ClusterCounts({shard: 100 * (shard.number + 1) for shard in SHARDS}, started=0.0)
    made.workers = {str(number): worker for number, worker in enumerate(workers)}
    made.refresh(10.0)
    return made


def worker(shard: Shard | None, share: float = 0.0, node: str = "n1", label: str = "") -> WorkerProgress:
    """Return a worker with so much of its shard done, whose ten ORFs are scored at 5 a second."""
    stage = DeviceStage.SCORING if shard else DeviceStage.LOADING
    current = progress(share) if shard else None
    return WorkerProgress(node, label or f"{node} gpu {share}", node, stage, shard, current)


def test_a_shard_counts_by_its_bases() -> None:
    made = counts(worker(SHARDS[1], 0.5), worker(SHARDS[3], 0.25))
    assert made.share == (100 + 100) / 1000
    assert made.amount() == "7 of about 35 ORFs"
    assert made.files_text() == "0 of 4 shards"
    made.end_shard(SHARDS[0], 10)
    made.refresh(20.0)
    assert made.share == 0.3
    assert made.done.orfs == 17
    assert made.seconds_left(20.0) == 0.7 / (0.1 / 10)
    assert made.kept() == "17 ORFs are kept (30% of the work)"


def test_the_share_never_falls_when_a_worker_is_lost() -> None:
    lost = worker(SHARDS[3], 0.5)
    made = counts(lost)
    lost.end_shard()
    made.refresh(11.0)
    assert (made.share, made.done.orfs) == (0.2, 0)
    assert lost.orfs == 5


def test_before_anything_is_scored_it_says_what_happens() -> None:
    reading = worker(SHARDS[0])
    assert reading.current is not None
    reading.current = replace(reading.current, stage="checking the model's files")
    made = counts(worker(None), reading)
    made.status = made.stage_of_first
    assert (made.state, made.is_scoring, made.total()) == ("loading", False, None)
    assert made.line(12.0) == "checking the model's files (12 s)"


def test_when_all_is_done_it_is_all_read() -> None:
    made = counts()
    for shard in SHARDS:
        assert not made.is_all_done
        made.end_shard(shard, 10)
    made.refresh(20.0)
    assert (made.state, made.share, made.is_all_read, made.read) == ("writing", 1.0, True, 40)
    assert made.amount() == "40 of 40 ORFs"


def test_each_of_a_few_workers_has_a_line() -> None:
    made = counts(worker(SHARDS[1], 0.5), worker(SHARDS[2], 1.0), worker(None))
    assert {name: device_facts(made, row, 10.0) for name, row in made.devices.items()} == {
        "n1 gpu 0.5": ["33%", "5 ORFs/s", "50 tokens/s"],
        "n1 gpu 1.0": ["67%", "5 ORFs/s", "50 tokens/s"],
        "n1 gpu 0.0": ["loading"],
    }


def test_many_workers_are_shown_by_their_nodes_and_more_together() -> None:
    by_node = [worker(SHARDS[0], 1.0, f"n{number // 8}", str(number)) for number in range(24)]
    made = counts(*by_node)
    assert [*made.devices] == ["n0, 8 workers", "n1, 8 workers", "n2, 8 workers"]
    assert made.devices["n1, 8 workers"].orfs == 80
    assert device_facts(made, made.devices["n1, 8 workers"], 0.0) == ["33%", "40 ORFs/s", "400 tokens/s"]
    made = counts(*(worker(SHARDS[0], 1.0, f"n{number}", str(number)) for number in range(100)))
    assert [*made.devices] == ["100 workers on 100 nodes"]
