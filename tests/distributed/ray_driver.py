"""The process of a run on a Ray cluster, to be killed: OUT_DIR ADDRESS SEGMENT_BASES INPUT."""

import asyncio
import sys
from pathlib import Path

from ray_nodes import ENVIRONMENT

from virnuc_async.distributed.ray_runner import OnRay, run_on_ray
from virnuc_async.settings import Settings

if __name__ == "__main__":
    out, address, segment, source = sys.argv[1:]
    on = OnRay(address, segment_bases=int(segment), environment=ENVIRONMENT)
    asyncio.run(run_on_ray([source], Path(out), Settings(devices=("cpu",)), on))
