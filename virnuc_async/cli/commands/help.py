"""``help``: the help of a command."""

from argparse import Namespace
from functools import partial
from typing import Any

from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.parser import CommandParser, add_command

_EXAMPLES = """\
examples:
  python -m virnuc_async help
  python -m virnuc_async help predict
  python -m virnuc_async help models verify
"""


def add_parser(commands: Any, described: CommandParser) -> None:
    """Add the command, which prints the help of *described* or of a command of it."""
    parser = add_command(commands, "help", "show the help of a command", _EXAMPLES)
    parser.add_argument("topic", nargs="*", metavar="COMMAND", help="such as: predict, or: models verify")
    parser.set_defaults(run=partial(run, described))


def run(described: CommandParser, options: Namespace) -> int:
    """Print the help of the command that *options* name."""
    for name in options.topic:
        described = described.command(name)
    described.print_help()
    return DONE
