"""``status``: how far the shards of a run on many machines are."""

import json
import shlex
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from virnuc_async.cli.console import print_table
from virnuc_async.cli.environment import temporary_dir
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.parser import PROGRAM, add_command, path_text
from virnuc_async.text import escape_control_chars, is_url, plural

if TYPE_CHECKING:
    from virnuc_async.distributed.status import ShardsStatus, ShardStatus

_HEADER = ("shard", "state", "done", "ORFs/s", "process", "what")
_MOST_ROWS = 40  # of single shards
_MOST_LETTERS = 120  # of why one failed
_EXAMPLES = """\
examples:
  python -m virnuc_async status run/
  python -m virnuc_async status run/ --json

Reads what shards write into RUN_DIR while they run; it opens no store, and disturbs no shard.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "status", "show how far the shards of a run are", _EXAMPLES)
    parser.add_argument(
        "run_dir", type=path_text, metavar="RUN_DIR", help="the directory or the URL of a plan"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every shard")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print which shards are done, running, stopped, failed and missing, and what to do next."""
    from virnuc_async.distributed.status import read_status

    status = read_status(options.run_dir, temporary_dir())
    if options.json:
        print(json.dumps(status.as_dict(), indent=2))
        return DONE
    plan, directory = status.plan, shlex.quote(options.run_dir)
    what = f"{plural(plan.records, 'record')}, {plan.bases / 1e6:,.1f} Mb"
    print(escape_control_chars(f"{directory}: {what} in {plural(len(plan.segments), 'segment')}"))
    if not status.divisions:
        print(f"No shard has begun. Next: {PROGRAM} predict --plan {directory} --shard NUMBER/COUNT")
    for division in status.divisions:
        _print_division(division, directory, status.is_merged)
    return DONE


def _print_division(division: "ShardsStatus", directory: str, is_merged: bool) -> None:
    from virnuc_async.distributed.status import ShardState as State
    from virnuc_async.distributed.status import ranges

    share = f"{division.share:.1%}".replace(".0%", "%")
    counts = ", ".join(f"{count:,} {state}" for state, count in division.counts.items() if count)
    print(f"{plural(division.of, 'shard')}: {counts}; {share} done")
    shown = (State.FAILED, State.STOPPED, State.RUNNING)
    rows = [_row(shard) for state in shown for shard in division.shards if shard.state is state]
    if rows:
        print_table([_HEADER, *rows[:_MOST_ROWS]])
    if len(rows) > _MOST_ROWS:
        print(f"... and {len(rows) - _MOST_ROWS:,} more: --json has all of them")
    if left := division.numbers(State.STOPPED, State.FAILED, State.MISSING):
        command = f"{PROGRAM} predict --plan {directory} --shard NUMBER/{division.of}"
        print(f"To be run: {ranges(left)}, each with: {command}")
    elif is_merged:
        print(f"Merged: the tables are in {directory}")
    elif not division.numbers(State.RUNNING):
        print(f"All are done. Next: {PROGRAM} merge {directory}{' OUT/' if is_url(directory) else ''}")


def _row(shard: "ShardStatus") -> tuple[str, ...]:
    speed = f"{shard.orfs_per_second:,.0f}" if shard.orfs_per_second else ""
    process = f"{shard.pid} on {shard.host}" if shard.pid and shard.host else ""
    what = " ".join((shard.message or "").split())
    what = what if len(what) <= _MOST_LETTERS else f"{what[:_MOST_LETTERS]} ..."
    return (str(shard.number), str(shard.state), f"{shard.share:.0%}", speed, process, what)
