"""``plan``: what the shards of a run on many machines must agree on."""

import shlex
import time
from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING, Any

from virnuc_async.cli.console import run_log
from virnuc_async.cli.environment import prepare_torch
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.options import add_device_choice, add_tokens_option, add_verbosity_options
from virnuc_async.cli.parser import PROGRAM, add_command
from virnuc_async.cli.run_options import (
    add_input_options,
    add_result_options,
    inputs_and_directory,
    run_settings,
)
from virnuc_async.cli.signals import run_until_stopped
from virnuc_async.text import is_url, plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from virnuc_async.distributed.plan import RunPlan
    from virnuc_async.distributed.scanning import PlanProgress

_EXAMPLE = f"{PROGRAM} plan reads.fq.gz run/ --for-device H200"
_MOST_SHARDS = 1000  # that are proposed: schedulers take so many tasks of an array
_LEAST_LEFT = 10.0  # seconds of work that are worth saying
_EXAMPLES = """\
examples:
  python -m virnuc_async plan contigs.fa run/
  python -m virnuc_async plan reads_R1.fq.gz reads_R2.fq.gz run/ --model virnucpro-500 --for-device H200
  python -m virnuc_async plan --input-list samples.txt --output-dir run/ --for-device A100-80GB --threads 8

Every input is read once, and plan.json is written into RUN_DIR: what the files hold, where shards begin in
them, and the model, the precision and the size of batches of all shards. Then, on any machines that see
RUN_DIR and the inputs:

  virnuc-async predict --plan run/ --shard 0/100        and so on to 99/100, in any order
  virnuc-async status run/
  virnuc-async merge run/

The tables are those of one machine, byte for byte, however many shards there are.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "plan", "plan a run that many machines share", _EXAMPLES)
    parser.usage = "%(prog)s INPUT [INPUT ...] RUN_DIR [options]"
    add_input_options(parser, "RUN_DIR", "run")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace another plan in RUN_DIR, if no shard of it has begun",
    )
    add_result_options(parser)
    _add_device_options(parser.add_argument_group("devices"))
    _add_reading_options(parser.add_argument_group("reading"))
    add_verbosity_options(parser)
    parser.set_defaults(run=run, compile=None)


def _add_device_options(group: Any) -> None:
    group.add_argument(
        "--for-device",
        metavar="DEVICE",
        help="the kind of device of all shards: cpu (as this machine's), a card such as H200, A100-80GB, L4 "
        "or T4, or a kind as 'devices --kinds' prints it (default: that of this machine's devices)",
    )
    add_device_choice(group)
    add_tokens_option(group)


def _add_reading_options(group: Any) -> None:
    from virnuc_async.sequences.segments import SEGMENT_BASES

    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="files that are read at the same time (default: as many as this process may use processors)",
    )
    group.add_argument(
        "--segment-bases",
        type=int,
        default=SEGMENT_BASES,
        metavar="N",
        help="the least bases of a segment, of which a shard has at least one; tables of runs with other "
        f"segments differ in last digits (default: {SEGMENT_BASES})",
    )


def run(options: Namespace) -> int:
    """Write the plan, and print what it is and what comes next."""
    inputs, directory = inputs_and_directory(options, "a run", _EXAMPLE)
    settings = run_settings(options)
    prepare_torch(options)
    from virnuc_async.distributed.planning import make_plan

    with run_log(options):
        work = partial(
            make_plan,
            inputs,
            directory,
            settings,
            for_device=options.for_device,
            segment_bases=options.segment_bases,
            on_progress=_shown(),
        )
        plan = run_until_stopped(work, stopping="Stopping ...")
    print("\n".join(_result(plan, directory)))
    return DONE


def _shown() -> "Callable[[PlanProgress], None]":
    """Return a function that shows how far a plan is, as a run shows it."""
    from virnuc_async.log import PROGRESS, duration, logger
    from virnuc_async.runs.progress import Counts

    class Reading(Counts):
        """How far the inputs are read."""

        def kept(self) -> str:
            """Return what is kept if it ends now."""
            return "nothing was written"

    counts, started = Reading(), time.monotonic()

    def show(progress: "PlanProgress") -> None:
        share = progress.bytes_done / progress.bytes if progress.bytes else 1.0
        files = f"{progress.files_done:,} of {plural(progress.files, 'file')}"
        left = (time.monotonic() - started) * (1 - share) / share if share else 0.0
        ahead = f", {duration(left)} left" if left > _LEAST_LEFT else ""
        counts.status = f"reading: {files}, {share:.0%} of {progress.bytes / 1e9:,.2f} GB{ahead}"
        logger.bind(counts=counts).log(PROGRESS, "{}", counts.status)

    return show


def _result(plan: "RunPlan", directory: str) -> list[str]:
    """Return what a plan is, and what to do next, in lines."""
    broken = sum(file.failure is not None for file in plan.files)
    count, run = min(len(plan.segments), _MOST_SHARDS), shlex.quote(directory)
    files = plural(len(plan.files), "file") + (f", {broken:,} of them not to the end" if broken else "")
    segments = plural(len(plan.segments), "segment")
    each, shard, fewer = "", "0/1", ""
    if count > 1:
        each, shard = f", for each NUMBER from 0 to {count - 1} in any order", f"NUMBER/{count}"
        fewer = " (fewer shards are fine)"
    return [
        f"Planned: {plural(plan.records, 'record')}, {plan.bases / 1e6:,.1f} Mb, of {files}; {segments}",
        f"Devices: {plan.devices}, {plan.precision.upper()}, {plan.tokens_per_batch:,} tokens per batch",
        f"Next{each}: {PROGRAM} predict --plan {run} --shard {shard}{fewer}",
        f"Then: {PROGRAM} merge {run}{' OUT/' if is_url(directory) else ''}",
    ]
