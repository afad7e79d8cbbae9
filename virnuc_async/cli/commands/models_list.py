"""``models list``: the models that are installed, and those that can be downloaded."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from virnuc_async.cli.console import print_table
from virnuc_async.cli.environment import cache_from
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.options import add_cache_option
from virnuc_async.cli.parser import PROGRAM, add_command
from virnuc_async.errors import BadBundle

_EXAMPLES = """\
examples:
  python -m virnuc_async models list
  python -m virnuc_async models list --cache-dir /data/models
"""


def add_parser(actions: Any) -> None:
    """Add the action."""
    parser = add_command(actions, "list", "list the installed and the published models", _EXAMPLES)
    add_cache_option(parser)
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print a table of the models."""
    from virnuc_async.models.bundle import PUBLISHED, known, why_unseen

    cache = cache_from(options)
    installed = dict(known(cache))
    missing = [name for name in PUBLISHED if name not in installed]
    rows = [("model", "fragments", "directory"), *_installed_rows(installed)]
    print_table(rows + [(name, "-", "not on this machine") for name in missing])
    if missing:
        print("Download published models with: models download NAME (docs/how-to/models.md)")
    if reason := why_unseen(cache):
        print(f"{PROGRAM}: models of this user cannot be listed: {reason}", file=sys.stderr)
    return DONE


def _installed_rows(installed: dict[str, Path]) -> Iterator[tuple[str, str, str]]:
    from virnuc_async.models.bundle import DEFAULT, find

    for name, directory in installed.items():
        try:
            fragments = f"{find(directory).length} bp"
        except BadBundle as error:  # the others can still be used
            fragments = f"not usable: {error.reason}"
        yield (f"{name} (default)" if name == DEFAULT else name, fragments, str(directory))
