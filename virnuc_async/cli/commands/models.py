"""``models``: the commands for models."""

from typing import Any

from virnuc_async.cli.parser import PROGRAM, add_command

from . import help, models_download, models_import, models_info, models_list, models_verify

_EXAMPLES = """\
examples:
  python -m virnuc_async models list
  python -m virnuc_async models info tiny-500
  python -m virnuc_async models download virnucpro-500
  python -m virnuc_async models verify virnucpro-500
  python -m virnuc_async models import --protein esm2_t36_3B_UR50D.pt --nucleotide DNABERT-S/ \\
      --classifier 500_model.pth --length 500 --name virnucpro-500 --output virnucpro-500/

docs/how-to/models.md describes the published models and how they are verified.
"""


def add_parser(commands: Any) -> None:
    """Add the command and its actions."""
    parser = add_command(commands, "models", "list, download, verify or import models", _EXAMPLES)
    actions = parser.add_commands("action", f"{PROGRAM} models list")
    for action in (models_list, models_info, models_download, models_verify, models_import):
        action.add_parser(actions)
    help.add_parser(actions, parser, "verify")
