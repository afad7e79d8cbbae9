"""``models import``: a model from published checkpoints."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.parser import add_command, new_directory, path, path_text, word
from virnuc_async.errors import UsageError
from virnuc_async.fileio import remove_leftovers, writing_to

from .models_verify import with_recorded_reference

if TYPE_CHECKING:
    from virnuc_async.models.import_checkpoint import CheckpointPaths
    from virnuc_async.models.reference import Reference

_EXAMPLES = """\
examples:
  python -m virnuc_async models import --protein esm2_t36_3B_UR50D.pt --nucleotide DNABERT-S/ \\
      --classifier 500_model.pth --length 500 --name virnucpro-500 --output virnucpro-500/
  python -m virnuc_async models import --protein esm2_t33_650M_UR50D.pt --nucleotide DNABERT-S/ \\
      --classifier mine.pth --length 500 --name mine --output mine/ --reference record

No code from the files is executed.
"""


def add_parser(actions: Any) -> None:
    """Add the action."""
    parser = add_command(actions, "import", "convert published checkpoints to a model", _EXAMPLES)
    parser.add_argument(
        "--protein",
        type=path,
        required=True,
        metavar="FILE",
        help="ESM-2, in the format of fair-esm or Hugging Face",
    )
    parser.add_argument(
        "--nucleotide",
        type=path,
        required=True,
        metavar="DIR",
        help="DNABERT-S, a directory with the files of Hugging Face",
    )
    parser.add_argument(
        "--classifier", type=path, required=True, metavar="FILE", help="300_model.pth or 500_model.pth"
    )
    parser.add_argument(
        "--length", type=int, required=True, metavar="BP", help="length of the fragments: 300 or 500"
    )
    parser.add_argument("--name", type=word, required=True, help="name of the new model")
    parser.add_argument(
        "--output", type=new_directory, required=True, metavar="DIR", help="a new directory for the model"
    )
    parser.add_argument(
        "--reference",
        type=path_text,
        default="published",
        metavar="FILE|record|none",
        help="what 'models verify' compares with: a reference.json, or with 'record' the scores of this "
        "machine (default: the published scores for the published models, else none)",
    )
    parser.set_defaults(run=run, prints_result=False)


def run(options: Namespace) -> int:
    """Import a model."""
    from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle

    if options.length < 1:
        raise UsageError(f"--length must be a number of bases, such as 300 or 500, not {options.length}")
    parts = CheckpointPaths(options.protein, options.nucleotide, options.classifier)
    reference = _reference(options.reference, parts)
    for line in remove_leftovers(options.output.absolute().parent):
        print(line, file=sys.stderr)
    with writing_to(options.output):
        bundle = import_bundle(parts, options.output, options.name, options.length, reference)
    if options.reference == "record":
        bundle = with_recorded_reference(bundle)
    print(f"{bundle.name} is in {bundle.directory}. Use it with --model {bundle.directory}")
    return DONE


def _reference(choice: str, parts: "CheckpointPaths") -> "Reference | None":
    from virnuc_async.models.published import reference_for
    from virnuc_async.models.reference import read_reference

    if choice == "published":
        return reference_for(parts.classifier)
    return None if choice in ("record", "none") else read_reference(Path(choice))
