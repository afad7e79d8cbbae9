"""``help``: the help of a command."""

from argparse import Namespace
from functools import partial
from typing import Any

from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.parser import PROGRAM, CommandParser, add_command


def add_parser(commands: Any, described: CommandParser, *topics: str) -> None:
    """Add the command, which prints the help of *described* or of a command of it, such as *topics*."""
    usage = described.prog.replace(PROGRAM, "python -m virnuc_async", 1)
    examples = "".join(f"  {usage} help {topic}".rstrip() + "\n" for topic in ("", *topics))
    parser = add_command(commands, "help", "show the help of a command", f"examples:\n{examples}")
    such_as = ", or: ".join(topics)
    parser.add_argument("topic", nargs="*", metavar="COMMAND", help=f"such as: {such_as}")
    parser.set_defaults(run=partial(run, described))


def run(described: CommandParser, options: Namespace) -> int:
    """Print the help of the command that *options* name."""
    for name in options.topic:
        described = described.command(name)
    described.print_help()
    return DONE
