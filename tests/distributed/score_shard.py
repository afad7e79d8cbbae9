"""Scores a shard, RUN N/COUNT, slowly, on a device that tells how a batch was packed."""

import sys
from dataclasses import dataclass
from pathlib import Path

import anyio
from batch_scorer import BatchRules, BatchScorer

from virnuc_async import Settings
from virnuc_async.distributed.plan import Shard
from virnuc_async.distributed.shard import run_shard
from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Scores
from virnuc_async.models.bundle import Bundle
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision

_SECONDS = 0.02  # for a batch


class SlowScorer(BatchScorer):
    """Takes its time."""

    async def score(self, batch: Batch) -> Scores:
        await anyio.sleep(_SECONDS)
        return await super().score(batch)


@dataclass
class SlowRules(BatchRules):
    """Rules of such devices."""

    def scorer(self, device: Device, bundle: Bundle, precision: Precision, embeddings: bool) -> SlowScorer:
        return SlowScorer(device.name, self, bundle.shapes.classifier.inputs if embeddings else None)


async def main(run: str, shard: str) -> None:
    settings = Settings(devices=("cpu",))
    print("begun", flush=True)
    await run_shard(Path(run), Shard.parse(shard), settings, make_scorer=SlowRules().scorer)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
