"""``merge``: the tables of a run whose shards are finished."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from virnuc_async.cli.console import run_log, status_lines
from virnuc_async.cli.environment import command_line, temporary_dir
from virnuc_async.cli.exit_codes import DONE, INCOMPLETE
from virnuc_async.cli.options import add_verbosity_options
from virnuc_async.cli.parser import add_command, path, path_text
from virnuc_async.cli.signals import sigterm_interrupts

_EXAMPLES = """\
examples:
  python -m virnuc_async merge RUN/
  python -m virnuc_async merge RUN/ out/
  python -m virnuc_async merge s3://bucket/run/ out/

Writes the files that 'predict' writes on one machine, byte for byte, when all shards of the plan in RUN/ are
finished: else it names those that are not, and writes nothing. The shards are only read. If an input failed,
the exit code is 2, as that of 'predict'.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "merge", "write the tables of a run of which all shards are done", _EXAMPLES
    )
    parser.add_argument(
        "run_dir", type=path_text, metavar="RUN", help="the directory or URL with the plan and its shards"
    )
    parser.add_argument(
        "out_dir",
        nargs="?",
        type=path,
        metavar="OUT",
        help="where the tables are written; those of an earlier merge are replaced (default: RUN)",
    )
    add_verbosity_options(parser)
    parser.set_defaults(
        run=run, interrupted="Interrupted. The same command begins again.", prints_result=False
    )


def run(options: Namespace) -> int:
    """Merge, and return whether every input could be used."""
    from virnuc_async.distributed.remote_merge import merge_run

    status = status_lines(options.quiet, at_once=False)
    with run_log(options, may_draw=False), sigterm_interrupts(), status as report_status:
        summary = merge_run(
            options.run_dir,
            options.out_dir,
            before_each=_changes_of(report_status),
            command=command_line(),
            temporary_dir=temporary_dir(),
        )
    return INCOMPLETE if summary.counts["failures"] else DONE


def _changes_of(report_status: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that reports a status when it is another one than before."""
    last = ""

    def tell(status: str) -> None:
        nonlocal last
        if status != last:
            last = status
            report_status(status)

    return tell
