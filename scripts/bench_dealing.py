"""
Measure what dealing a shard takes: shards without work, on a Ray cluster of this machine.

The time of the driver, of the call and of the answer, for each shard: the slope between few and many shards,
so that the start of the workers is not in it.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from measured import facts, installed, save, table

from virnuc_async.distributed.cluster_progress import ClusterCounts
from virnuc_async.distributed.dealing import Ending, Task
from virnuc_async.distributed.plan import Shard
from virnuc_async.distributed.ray_cluster import LOCAL, RayCluster, connect, slots
from virnuc_async.distributed.ray_dealer import RayDealer
from virnuc_async.distributed.ray_worker import Answer, OnProgress


@dataclass
class NoWork:
    """Has done each shard at once."""

    async def open(self) -> None:
        """Do nothing."""

    async def do(self, task: Task, on_progress: OnProgress) -> Answer:
        """Do nothing."""
        return Answer(Ending.DONE)

    async def close(self) -> None:
        """Do nothing."""


def deal(cluster: RayCluster, count: int, workers: int) -> float:
    """Return how long it takes to deal *count* shards to so many workers, from their start on."""
    shards = {Shard(number, count): 1 for number in range(count)}
    find = partial(slots, wants_gpus=False, cpu_workers=workers, threads=None)
    begun = time.perf_counter()
    if set_aside := RayDealer(cluster, find, NoWork(), ClusterCounts(shards)).run(Event()):
        raise SystemExit(f"shards were set aside: {set_aside}")
    return time.perf_counter() - begun


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, nargs=2, default=(50, 3050), help="few and many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    options = parser.parse_args(arguments)
    head, (few, many) = facts(arguments), options.shards
    environment = {"PYTHONPATH": str(Path(__file__).parent)}  # where the workers find this
    rows = []
    with connect(LOCAL, environment) as cluster:
        for _ in range(options.pairs):
            first, second = (deal(cluster, count, options.workers) for count in (few, many))
            slope = (second - first) / (many - few) * 1e3
            rows.append({"few": round(first, 2), "many": round(second, 2), "ms_a_shard": round(slope, 2)})
    print(table(rows))
    if options.output:
        head["versions"]["ray"] = installed("ray")
        save(options.output, {**head, "shards": [few, many], "workers": options.workers, "results": rows})


if __name__ == "__main__":
    from bench_dealing import main as run  # what is pickled is found by its name

    run(sys.argv[1:])
