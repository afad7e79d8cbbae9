"""``completion``: a script with which a shell completes commands, options and files."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from functools import partial
from typing import Any

from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.parser import CommandParser, add_command, new_directory, path, path_text
from virnuc_async.errors import UsageError

_EXAMPLES = """\
examples:
  virnuc-async completion bash > ~/.local/share/bash-completion/completions/virnuc-async
  virnuc-async completion zsh > ~/.zfunc/_virnuc-async    # a directory of $fpath

The next shell completes what follows virnuc-async. Needs: pip install 'virnuc-async[completion]'
"""


def add_parser(commands: Any, described: CommandParser) -> None:
    """Add the command, which prints a script for the options of *described* and its commands."""
    purpose = "print a script with which a shell completes this program's options"
    parser = add_command(commands, "completion", purpose, _EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help="bash or zsh")
    parser.set_defaults(run=partial(run, described))


def run(described: CommandParser, options: Namespace) -> int:
    """Print the script for the shell that *options* name."""
    try:
        import shtab
    except ImportError:
        raise UsageError("shtab is not installed: pip install 'virnuc-async[completion]'") from None
    for parser in parsers(described):
        for action in parser._actions:
            if action.dest == "names" or _is_of_a_file(action.type):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(described, options.shell))
    return DONE


def _is_of_a_file(kind: object) -> bool:
    return (kind.func if isinstance(kind, partial) else kind) in (path, path_text, new_directory)


def parsers(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """Yield *parser* and those of its commands, at any depth."""
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for inner in action.choices.values():
                yield from parsers(inner)
