"""``train``: a new classifier from labelled sequences."""

import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from virnuc_async.cli.parser import add_command, fraction, new_directory, path
from virnuc_async.cli.signals import INTERRUPTED, run_interruptibly, sigterm_interrupts
from virnuc_async.learning.options import Balance, EvaluationOptions, LeakPolicy, Optimizer, Recipe, Split

if TYPE_CHECKING:
    from virnuc_async.models.bundle import Bundle

_EXAMPLES = """\
examples:
  python -m virnuc_async train --viral viruses.fa --nonviral bacteria.fa human.fa --output my-model/
  python -m virnuc_async train --viral v/ --nonviral n/ --clusters clusters.tsv --balance group \\
      --model virnucpro-500 --output my-model/ --optimizer adamw --rate 0.001
  python -m virnuc_async predict contigs.fa out/ --model my-model/

A table of clusters or groups has two columns, separated by a tab: a record or its genome, and its
cluster or group. Without a table, genome= and group= in the headers are used. docs/how-to/training.md
describes how to split the data and how to read the metrics. The same command resumes.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "train", "train a classifier on labelled sequences", _EXAMPLES)
    add_data_options(parser.add_argument_group("data"), "a new directory for the model", new_directory)
    parser.add_argument(
        "--work",
        type=path,
        metavar="DIR",
        help="where features and epochs are kept for resuming (default: OUTPUT.work, next to --output)",
    )
    add_model_options(parser.add_argument_group("model"))
    _add_split_options(parser.add_argument_group("split"))
    _add_recipe_options(parser.add_argument_group("recipe (the defaults are the published ones)"))
    add_resamples_option(parser)
    add_device_options(parser.add_argument_group("devices"))
    add_verbosity_options(parser)
    parser.set_defaults(run=run, interrupted=INTERRUPTED, prints_result=False)


def _add_split_options(group: Any) -> None:
    split = Split()
    add_field(group, split, "validation", fraction, "fraction that decides when training stops")
    add_field(group, split, "test", fraction, "fraction that the metrics are computed on")
    group.add_argument(
        "--leakage",
        choices=[choice.value for choice in LeakPolicy],
        default=split.leakage.value,
        help="leave out held-out records that share 31-mers with training records, refuse to train, or keep "
        f"them (default: {split.leakage})",
    )
    add_field(group, split, "leakage_share", fraction, "fraction of a record's 31-mers that may be shared")
    group.add_argument(
        "--split-by-fragment",
        action="store_true",
        help="split fragments at random, as published; the metrics are optimistic",
    )


def _add_recipe_options(group: Any) -> None:
    recipe = Recipe()
    for name, choices, what in (
        ("optimizer", Optimizer, "optimizer"),
        ("balance", Balance, "what has equal weight: nothing, the classes, or the groups"),
    ):
        default = getattr(recipe, name).value
        values = [choice.value for choice in choices]
        group.add_argument(f"--{name}", choices=values, default=default, help=f"{what} (default: {default})")
    add_field(group, recipe, "rate", float, "learning rate")
    add_field(group, recipe, "momentum", float, "momentum of SGD, first beta of AdamW")
    add_field(group, recipe, "weight_decay", float, "weight decay")
    add_field(group, recipe, "step", int, "epochs between two reductions of the learning rate")
    add_field(group, recipe, "decay", float, "factor of each reduction")
    add_field(group, recipe, "epochs", int, "maximum number of epochs")
    add_field(group, recipe, "patience", int, "epochs without a lower validation loss before training stops")
    add_field(group, recipe, "batch", int, "ORFs per batch")
    add_field(group, recipe, "hidden", int, "width of the hidden layer")
    add_field(group, recipe, "dropout", float, "fraction of the hidden layer that is dropped")
    add_field(group, recipe, "seed", int, "seed of the split and of the training")
    group.add_argument(
        "--augment",
        action="store_true",
        help="train on subsequences at random places of both strands, not on the fragments of each record",
    )


def run(options: Namespace) -> int:
    """Train a classifier, and print its metrics on the test set."""
    split = fields_from(Split, options, by_fragment=options.split_by_fragment)
    recipe, measuring = fields_from(Recipe, options), fields_from(EvaluationOptions, options, lengths=())
    settings = settings_from(options)
    output: Path = options.output
    with run_log(options), sigterm_interrupts():
        data = label_files_from(options)
        prepare_torch(options)
        from virnuc_async.learning.training import Task, train

        task = Task(
            data=data,
            output=output,
            work=options.work or output.with_name(f"{output.name}.work"),
            settings=settings,
            split=split,
            recipe=recipe,
            augment=options.augment,
            evaluation=measuring,
            command=shlex.join(command_line()),
        )
        bundle, report = train(task, run_interruptibly)
    _print_report(bundle, report)
    return DONE


def _print_report(bundle: "Bundle", report: dict[str, Any]) -> None:
    from virnuc_async.learning.reports import group_rows, metric_rows

    print_table(metric_rows({"test set": report["test"]}))
    print_table(group_rows(report["test"]))
    print(f"{bundle.name} is in {bundle.directory}. Use it with --model {bundle.directory}")
