"""``evaluate``: how well a model performs on labelled sequences."""

import shlex
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from virnuc_async.cli.console import print_table, run_log
from virnuc_async.cli.environment import command_line, prepare_torch
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.options import (
    add_data_options,
    add_device_options,
    add_field,
    add_model_options,
    add_resamples_option,
    add_verbosity_options,
    fields_from,
    label_files_from,
    settings_from,
)
from virnuc_async.cli.parser import add_command, numbers
from virnuc_async.cli.signals import INTERRUPTED, run_interruptibly, sigterm_interrupts
from virnuc_async.learning.options import EvaluationOptions

_EXAMPLES = """\
examples:
  python -m virnuc_async evaluate --viral viruses.fa --nonviral others.fa --output evaluation/
  python -m virnuc_async evaluate --viral viruses.fa --nonviral others.fa --output evaluation/ \\
      --model my-model/ --clusters clusters.tsv --groups groups.tsv --lengths 150,500 --subsequences 3

evaluation/evaluation.html is a report to read, evaluation/evaluation.json has the same metrics for
programs. docs/explanation/metrics.md describes each metric. The same command resumes.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "evaluate", "evaluate a model on labelled sequences", _EXAMPLES)
    add_data_options(parser.add_argument_group("data"), "the output directory")
    defaults = EvaluationOptions()
    parser.add_argument(
        "--lengths",
        type=numbers("lengths", "150,500"),
        default=defaults.lengths,
        metavar="BP,BP",
        help="also evaluate subsequences of these lengths, cut from the records "
        f"(default: {','.join(map(str, defaults.lengths))})",
    )
    add_field(parser, defaults, "subsequences", int, "subsequences of each length from each record")
    add_field(parser, defaults, "seed", int, "seed of the subsequences and the intervals")
    add_resamples_option(parser)
    add_model_options(parser.add_argument_group("model"))
    add_device_options(parser.add_argument_group("devices"))
    add_verbosity_options(parser)
    parser.set_defaults(run=run, interrupted=INTERRUPTED, prints_result=False)


def run(options: Namespace) -> int:
    """Evaluate a model, and print its metrics."""
    measuring, settings = fields_from(EvaluationOptions, options), settings_from(options)
    command = shlex.join(command_line())
    with run_log(options), sigterm_interrupts():
        data = label_files_from(options)
        prepare_torch(options)
        from virnuc_async.learning.evaluation import evaluate

        report = evaluate(data, options.output, settings, measuring, run_interruptibly, command)
    _print_report(report["at"])
    return DONE


def _print_report(at: Mapping[str, Any]) -> None:
    from virnuc_async.learning.reports import group_rows, metric_rows

    print_table(metric_rows(at))
    for place, levels in at.items():
        print(f"\n{place}")
        print_table(group_rows(levels))
