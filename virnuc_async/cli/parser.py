"""The argument parser: messages that suggest what was meant, help and version on every command."""

import sys
from argparse import (
    SUPPRESS,
    Action,
    ArgumentError,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from virnuc_async._version import __version__
from virnuc_async.errors import UsageError
from virnuc_async.settings import local_path, user_path
from virnuc_async.text import did_you_mean

PROGRAM = "virnuc-async"
# Options that earlier versions had by another name, too far from today's to be found as a typo.
_RENAMED = {
    "--leaks": "--leakage",
    "--leak-share": "--leakage-share",
    "--stretches": "--subsequences",
    "--random-stretches": "--augment",
}


class CommandParser(ArgumentParser):
    """A parser of one command, whose errors are UsageErrors and suggest what may have been meant."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": RawDescriptionHelpFormatter, **keywords})
        version = f"{PROGRAM} {__version__}"
        self.add_argument("--version", action="version", version=version, help="show the version and exit")
        self._commands: dict[str, CommandParser] = {}
        self._noun = ""  # what a command of this parser is called

    def add_commands(self, noun: str, example: str) -> Any:
        """Return the group to add commands to; where no *noun* is given, show the help and *example*."""
        group = self.add_subparsers(title=f"{noun}s", metavar=noun.upper())
        self._commands, self._noun = group.choices, noun
        self.set_defaults(run=partial(self._require_command, example))
        return group

    def command(self, name: str) -> "CommandParser":
        """
        Return the parser of the command *name* of this one.

        Raises:
            UsageError: there is none
        """
        if not self._commands:
            raise UsageError(f"{self.prog!r} has no commands of its own, so there is no help on {name!r}")
        if name not in self._commands:
            self.error(self._unknown_command(name))
        return self._commands[name]

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError that ends with the command to get help with."""
        raise UsageError(f"{message}\nTry '{self.prog} --help'.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but refuse unknown options and allow options between names."""
        options, rest = super().parse_known_args(args, namespace)
        if unknown := [word for word in rest if word.startswith("-") and word != "-"]:
            self.error(self._unknown_options(unknown))
        # argparse ends a list of names at the first option behind it.
        if hasattr(options, "names"):
            options.names, rest = options.names + rest, []
        return options, rest

    def _check_value(self, action: Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if action.choices is self._commands:
            self.error(self._unknown_command(value))
        choices = [str(choice) for choice in action.choices]
        hint = did_you_mean(value, choices)
        raise ArgumentError(action, f"invalid choice: {value!r}.{hint} Choices: {', '.join(choices)}")

    def _unknown_command(self, name: str) -> str:
        known = f"{self._noun.capitalize()}s: {', '.join(self._commands)}"
        return f"no such {self._noun}: {name!r}.{did_you_mean(name, self._commands)} {known}"

    def _unknown_options(self, words: Sequence[str]) -> str:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        names = [word.partition("=")[0] for word in words]
        hints = [self._hint(name, known) for name in names]
        shown = [name for name in known if self._option_string_actions[name].help != SUPPRESS]
        found = "".join(hints) or f" Options: {', '.join(shown)}"
        return f"no such option: {', '.join(names)}.{found}"

    @staticmethod
    def _hint(name: str, known: Sequence[str]) -> str:
        if _RENAMED.get(name) in known:
            return f" It is called {_RENAMED[name]} now."
        return did_you_mean(name, known)

    def _require_command(self, example: str, _: Namespace) -> NoReturn:
        self.print_help(sys.stderr)
        print(file=sys.stderr)
        raise UsageError(f"no {self._noun} was given. For example: {example}")


def add_command(commands: Any, name: str, purpose: str, examples: str) -> Any:
    """Add the command *name*, described by *purpose* and *examples*, and return its parser."""
    return commands.add_parser(
        name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.", epilog=examples
    )


# Types of arguments


def path_text(text: str, what: str = "it") -> str:
    """Return the path that *text* names, with ~ expanded; messages call it *what*."""
    try:
        return user_path(text, what)
    except UsageError as error:
        raise ArgumentTypeError(error.reason) from None


def path(text: str) -> Path:
    """Return the path that *text* names, with ~ expanded."""
    try:
        return local_path(text, "it")
    except UsageError as error:
        raise ArgumentTypeError(error.reason) from None


def new_directory(text: str) -> Path:
    """Return the path that *text* names, whose last part is a name."""
    found = path(text)
    if found.name in ("", ".."):
        raise ArgumentTypeError(f"it must be the name of a new directory, not {text!r}")
    return found


def word(text: str) -> str:
    """Return *text*, which is not empty."""
    if not text.strip():
        raise ArgumentTypeError("it is empty")
    return text


def names(text: str) -> tuple[str, ...]:
    """Return the device names that *text* lists."""
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise ArgumentTypeError(f"expected names such as cuda:0,cuda:1 or cpu, not {text!r}")
    return found


def numbers(what: str, example: str) -> Callable[[str], tuple[int, ...]]:
    """Return a function that reads a list of *what*, such as *example*."""

    def read(text: str) -> tuple[int, ...]:
        try:
            return tuple(int(word) for word in text.split(","))
        except ValueError:
            raise ArgumentTypeError(f"expected {what} such as {example}, not {text!r}") from None

    return read


def token_count(text: str) -> int | None:
    """Return a number of tokens, None for auto."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number of tokens, or auto, not {text!r}") from None


def fraction(text: str) -> float:
    """Return a number, whose range is checked by the settings."""
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number from 0 to 1, not {text!r}") from None


def seconds(text: str) -> float:
    """Return a number of seconds above zero."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise ArgumentTypeError(f"expected a number of seconds above 0, not {text!r}")
    return found
