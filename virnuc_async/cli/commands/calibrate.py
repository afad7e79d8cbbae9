"""``calibrate``: probabilities instead of scores."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from virnuc_async.cli.console import run_log
from virnuc_async.cli.environment import prepare_torch
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.options import (
    add_data_options,
    add_device_options,
    add_model_options,
    add_verbosity_options,
    label_files_from,
    settings_from,
)
from virnuc_async.cli.parser import add_command, fraction
from virnuc_async.cli.signals import INTERRUPTED, run_interruptibly, sigterm_interrupts

_EXAMPLES = """\
examples:
  python -m virnuc_async calibrate --viral viruses.fa --nonviral others.fa --output scores/ \\
      --model my-model/ --fpr 0.01

Scores and verdicts do not change: contigs.tsv gets two more columns, p_virus_calibrated and q. Use sequences
that the model was not trained on. The same command resumes.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "calibrate", "calibrate the scores of a model to probabilities", _EXAMPLES)
    add_data_options(parser.add_argument_group("data"), "where the scores are kept for resuming")
    parser.add_argument(
        "--method",
        choices=("isotonic", "temperature"),
        default="isotonic",
        help="isotonic: any increasing function, needs about a thousand contigs; temperature: one number "
        "(default: isotonic)",
    )
    parser.add_argument(
        "--fpr",
        type=fraction,
        default=0.01,
        metavar="FRACTION",
        help="report the thresholds for this false positive rate; others can be chosen later (default: 0.01)",
    )
    add_model_options(parser.add_argument_group("model"))
    add_device_options(parser.add_argument_group("devices"))
    add_verbosity_options(parser)
    parser.set_defaults(run=run, interrupted=INTERRUPTED, prints_result=False)


def run(options: Namespace) -> int:
    """Calibrate a model, and print what it gained."""
    settings = settings_from(options)
    with run_log(options), sigterm_interrupts():
        data = label_files_from(options)
        prepare_torch(options)
        from virnuc_async.learning.evaluation import calibrate
        from virnuc_async.models.calibration import Method

        method = Method(options.method)
        found = calibrate(data, options.output, settings, method, options.fpr, run_interruptibly)
    _print_calibration(found, options.model)
    return DONE


def _print_calibration(found: Mapping[str, Any], model: str) -> None:
    from virnuc_async.models.verdict_rule import lowest_rate

    fpr = f"{found['fpr']:g}"
    for column, prefix in (("mean_p_virus", ""), ("log_odds", "log_odds_")):
        errors = f"{found[f'{prefix}ece_before']:.3f} -> {found[f'{prefix}ece_after']:.3f}"
        print(f"{column}: expected calibration error (cross-validated): {errors}")
        print(
            f"{column} >= {found[f'{prefix}threshold']:.10g}: false positive rate at most {fpr}, sensitivity "
            f"{found[f'{prefix}sensitivity_at_threshold']:.3f} "
            f"on these {found['viral']:,} viral and {found['nonviral']:,} non-viral contigs"
        )
    print(f"predict --model {model} adds p_virus_calibrated and q to contigs.tsv")
    lowest = lowest_rate(found["nonviral"])
    if found["fpr"] >= lowest:
        print(f"predict --model {model} --fpr {fpr} calls contigs viral from this threshold of log_odds on")
    print(f"--fpr can be any rate from {lowest:g} on")
