"""``models info``: what a model is, and whether its files are intact."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from virnuc_async.cli.environment import cache_from
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.options import add_installed_model
from virnuc_async.cli.parser import add_command

if TYPE_CHECKING:
    from virnuc_async.models.bundle import Bundle

_EXAMPLES = """\
examples:
  python -m virnuc_async models info tiny-500
  python -m virnuc_async models info my-model/
"""


def add_parser(actions: Any) -> None:
    """Add the action."""
    parser = add_command(actions, "info", "describe a model and check its files", _EXAMPLES)
    add_installed_model(parser)
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Check the files of a model, and describe it."""
    from virnuc_async.models.bundle import find

    bundle = find(options.name, cache_from(options))
    bundle.check()
    for name, fact in _facts(bundle).items():
        print(f"{name:24}{fact}")
    if bundle.notice:
        print(bundle.notice)
    return DONE


def _facts(bundle: "Bundle") -> dict[str, object]:
    from virnuc_async.models.bundle import REFERENCE
    from virnuc_async.models.reference import reference_of

    protein, nucleotide = bundle.shapes.protein, bundle.shapes.nucleotide
    classifier = bundle.shapes.classifier
    return {
        "name": bundle.name,
        "directory": bundle.directory,
        "fingerprint": bundle.fingerprint,
        "fragments": f"{bundle.length} bp",
        "protein": f"ESM-2, {protein.layers} layers of {protein.width}",
        "nucleotide": f"DNABERT-S, {nucleotide.layers} layers of {nucleotide.width}",
        "classifier": f"{classifier.inputs} -> {classifier.hidden} -> 2",
        "licence": bundle.licence or "not stated",
        "reference": reference_of(bundle).source if REFERENCE in bundle.checksums else "none",
        "penalty of log_odds": f"{bundle.penalty:g} for each fragment",
        "calibration": _format_calibration(bundle),
        **{f"origin of {part}": place for part, place in bundle.origin.items()},
        **{name: f"sha256 {checksum}, checked" for name, checksum in bundle.checksums.items()},
    }


def _format_calibration(bundle: "Bundle") -> str:
    found = bundle.calibration
    if found is None:
        return "none"
    threshold = f"false positive rate {found.fpr:g} at mean_p_virus >= {found.threshold:.6g}"
    if of_log_odds := found.log_odds:
        threshold += f", log_odds >= {of_log_odds.thresholds.at(found.fpr).threshold:.10g}"
    return f"{found.method} ({found.fingerprint}); {threshold}"
