"""``report``: the report of a finished run, made again."""

from argparse import Namespace
from typing import Any

from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.parser import add_command, path

_EXAMPLES = """\
examples:
  python -m virnuc_async report out/

Writes report.html and the files for MultiQC into the output directory of a finished run, from its run.sqlite3
and summary.json: with another version of the program, or after 'predict --no-report'. Its tables stay as they
are; 'tables' makes all of it with other settings.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "report", "make the report of a finished run again", _EXAMPLES)
    parser.add_argument("out_dir", type=path, metavar="OUT_DIR", help="the output directory of a run")
    parser.set_defaults(run=run, prints_result=False)


def run(options: Namespace) -> int:
    """Write the report, and print where it is."""
    from virnuc_async.outputs.report import REPORT
    from virnuc_async.outputs.written_again import write_report

    write_report(options.out_dir)
    print(options.out_dir / REPORT)
    return DONE
