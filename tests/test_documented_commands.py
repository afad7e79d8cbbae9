"""Every command in the documents is one that the program takes: its options exist, and have such values."""

import re
import shlex
from argparse import SUPPRESS
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from virnuc_async.cli.commands.completion import parsers
from virnuc_async.cli.main import _parser
from virnuc_async.errors import UsageError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_COMMANDS = (
    "predict|tables|report|calls|label-reads|train|evaluate|calibrate|models|devices|completion|help|"
    "plan|status|merge"
)
_PROGRAM = re.compile(rf"(?<!['\w-])(?:python -m virnuc_async|virnuc-async)\s+((?:{_COMMANDS})\b.*)")
_PLACEHOLDERS = re.compile(r"\$\([^)]*\)|\$\{?\w+\}?|\.\.\.")
_OPTIONAL = re.compile(r"\[[^\]]*\]")


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words behind the program's name in each command of the code blocks of *page*."""
    for block in re.findall(r"^ *```(?:sh|bash|console)?\n(.*?)^ *```", page.read_text("utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if found := _PROGRAM.search(line):
                yield list(_words(_PLACEHOLDERS.sub("x", _OPTIONAL.sub("", found[1]))))


def _words(line: str) -> Iterator[str]:
    """Yield the words of *line* up to a comment, a pipe or a redirection."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for word in lexer:
        if set(word) <= set("();<>|&"):
            return
        yield word


ALL = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=lambda part: part.name if isinstance(part, Path) else "")
def test_the_program_takes_it(page: Path, words: list[str]) -> None:
    try:
        _parser().parse_args(words)
    except UsageError as error:
        pytest.fail(f"{page.relative_to(ROOT)}: {shlex.join(words)}: {error}")


def test_every_option_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8")
    actions = [action for parser in parsers(_parser()) for action in parser._actions]
    names = [
        [name for name in one.option_strings if name[:2] == "--"] for one in actions if one.help != SUPPRESS
    ]
    assert not [options for options in names if options and not any(name in text for name in options)]


def test_the_commands_are_found() -> None:
    assert len(ALL) > 80
