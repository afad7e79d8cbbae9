"""The options of ``predict`` for a Ray cluster, and the run there."""

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnuc_async.errors import UsageError
from virnuc_async.settings import Settings

from .environment import command_line, prepare_ray
from .parser import PROGRAM
from .signals import run_until_stopped

if TYPE_CHECKING:
    from virnuc_async.outputs.summary import Summary


def add_ray_options(group: Any) -> None:
    """Add --ray and --shards."""
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="score on the devices of a Ray cluster, in shards: local (Ray on this machine alone), auto (the "
        "cluster of this machine, or of RAY_ADDRESS), HOST:PORT or ray://HOST:PORT. All nodes must see the "
        "inputs and OUT_DIR under the same paths. Needs: pip install 'virnuc-async[ray]'",
    )
    group.add_argument(
        "--shards",
        type=int,
        metavar="N",
        help="with --ray: the number of shards (default: one for each segment of 64 million bases; of gzip "
        "that is not in blocks, two for each worker, and at least 16)",
    )


def check_ray_options(options: Namespace) -> None:
    """Check that the options of a cluster are given together; raise UsageError if not."""
    if options.shards is None:
        return
    if options.ray is None:
        example = f"{PROGRAM} predict reads.fq.gz out/ --ray auto --shards {options.shards}"
        raise UsageError(f"--shards is the number of shards on a Ray cluster: name that, as in {example}")
    if options.shards < 1:
        raise UsageError(f"--shards must be at least 1, not {options.shards}")


def run_on_cluster(options: Namespace, inputs: Sequence[str], out_dir: str, settings: Settings) -> "Summary":
    """Predict on the cluster that *options* name."""
    environment = prepare_ray(options.ray)
    from virnuc_async.distributed.ray_runner import OnRay, run_on_ray

    on = OnRay(options.ray, options.shards, environment=environment)
    work = partial(run_on_ray, inputs, Path(out_dir), settings, on, command_line())
    # Ray prints about its processes what the log says in words of ours.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return run_until_stopped(work, options.max_seconds)
