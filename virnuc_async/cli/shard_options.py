"""``predict --plan RUN/ --shard 3/100``: one part of a run that many machines share."""

import os
from argparse import Namespace
from functools import partial
from typing import TYPE_CHECKING, Any

from virnuc_async.errors import UsageError
from virnuc_async.settings import Settings

from .console import note, run_log
from .earlier_options import apply_earlier_options, describe_without_effect
from .environment import command_line, prepare_torch
from .exit_codes import DONE
from .options import settings_from
from .parser import PROGRAM, CommandParser, path_text
from .signals import run_until_stopped

if TYPE_CHECKING:
    from virnuc_async.distributed.plan import Shard
    from virnuc_async.outputs.shard_rows import ShardSummary

# What is of one machine, or one session: all other options are decided by the plan.
_OF_SESSION = frozenset(
    {
        *("plan", "shard", "devices", "gpus", "threads", "compile", "cache_dir", "temporary_dir"),
        *("max_seconds", "overwrite", "repair", "quiet", "verbose", "no_progress"),
        *("run", "interrupted", "prints_result", "command"),
    }
)
_NAMES = {"report": "--no-report", "calibrated": "--no-calibration", "names": "INPUT or OUT_DIR"}


def add_shard_options(group: Any) -> None:
    """Add the options of a shard."""
    group.add_argument(
        "--plan",
        type=path_text,
        metavar="RUN",
        help="the directory or URL of a run that 'plan' has planned: score one shard of it, there",
    )
    group.add_argument(
        "--shard",
        metavar="N/COUNT",
        help="which shard, counted from 0, such as 3/100; auto/100: by the number of this task of an array, "
        "which Slurm, AWS Batch or Kubernetes has set",
    )


def run_planned(parser: CommandParser, options: Namespace) -> int:
    """Score a shard; inputs that failed are no failure of it, since schedulers would repeat it."""
    _require_shard(options)
    _require_undecided(parser, options)
    from virnuc_async.distributed.plan import Shard

    shard = Shard.parse(options.shard, os.environ)
    settings = settings_from(options, repair=options.repair)
    prepare_torch(options)
    with run_log(options, may_draw=not options.no_progress):
        note(describe_without_effect(options))
        run_until_stopped(partial(_score, options.plan, shard, settings), options.max_seconds)
    return DONE


async def _score(run: str, shard: "Shard", settings: Settings) -> "ShardSummary":
    from virnuc_async.distributed.remote_shard import score_shard

    return await score_shard(run, shard, settings, command=command_line())


def _require_shard(options: Namespace) -> None:
    example = f"For example: {PROGRAM} predict --plan run/ --shard 3/100"
    if options.plan is None:
        raise UsageError(f"--shard is one of a run that was planned: name that with --plan. {example}")
    if options.shard is None:
        raise UsageError(f"which shard of {options.plan}? {example}")


def _require_undecided(parser: CommandParser, options: Namespace) -> None:
    """Check that no option is given that all shards must agree on."""
    defaults = parser.parse_args([])
    apply_earlier_options(defaults)
    values = vars(options).items()
    given = [name for name, value in values if name not in _OF_SESSION and value != getattr(defaults, name)]
    if given:
        names = ", ".join(_NAMES.get(name, f"--{name.replace('_', '-')}") for name in given)
        raise UsageError(f"with --plan, the plan decides on {names}: leave it out, or plan the run with it")
