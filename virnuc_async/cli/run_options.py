"""The options of a run, which ``predict`` and ``plan`` share, and the settings that they make."""

import os
from argparse import Namespace
from functools import partial
from typing import Any

from virnuc_async.errors import UnreadableInput, UsageError
from virnuc_async.fileio import read_lines
from virnuc_async.settings import CallRules, Pairing, RegionRules, Settings, expand_home, user_path

from .options import (
    add_call_rules,
    add_listing_options,
    add_model_options,
    add_pairs_option,
    add_region_rules,
    add_table_options,
    add_verdict_options,
    add_viral_options,
    fields_from,
    region_rules_from,
    settings_from,
    viral_fasta_from,
)
from .parser import path_text

_LARGEST_LIST = 1 << 28  # bytes: millions of names


def add_input_options(parser: Any, directory: str, what: str) -> None:
    """Add the inputs, how they are listed and paired, and *what* is called *directory*, the last name."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar=f"INPUT ... {directory}",
        help=f"inputs (files, directories, URLs), then the {what} directory",
    )
    parser.add_argument(
        "--input",
        action="append",
        type=partial(path_text, what="an input"),
        default=[],
        metavar="FILE",
        help="an input; can be repeated",
    )
    add_listing_options(parser)
    parser.add_argument(
        "--skip-missing",
        action="store_true",
        help="go on without inputs that cannot be read, and list them in failed_files.txt; without it, "
        "nothing is begun",
    )
    parser.add_argument(
        "--input-list", type=path_text, metavar="FILE", help="a file with one input per line, in UTF-8"
    )
    parser.add_argument(
        "--output-dir",
        "-o",
        type=path_text,
        metavar="DIR",
        help=f"the {what} directory; then all other names are inputs",
    )
    add_pairs_option(parser)


def add_result_options(parser: Any) -> Any:
    """Add the model, the verdicts and all files of a run; return the group of the model."""
    model = parser.add_argument_group("model")
    add_model_options(model)
    add_verdict_options(model)
    _add_file_options(model)
    add_table_options(parser.add_argument_group("tables"))
    _add_calls(parser.add_argument_group("calls"))
    add_viral_options(parser.add_argument_group("viral sequences"))
    _add_regions(parser.add_argument_group("regions"))
    return model


def _add_file_options(group: Any) -> None:
    group.add_argument("--embeddings", action="store_true", help="also write merged_features.pt")
    group.add_argument(
        "--no-report",
        dest="report",
        action="store_false",
        help="write neither report.html nor the files for MultiQC; 'report' makes them afterwards",
    )
    group.add_argument(
        "--no-calibration",
        dest="calibrated",
        action="store_false",
        help="omit p_virus_calibrated and q from contigs.tsv, even if the model has a calibration",
    )


def _add_calls(group: Any) -> None:
    group.add_argument(
        "--calls",
        action="store_true",
        help="also write contig_calls.tsv: a call and a tier for each contig; implied by the options below, "
        "and possible afterwards with the command calls",
    )
    add_call_rules(group)


def _add_regions(group: Any) -> None:
    group.add_argument(
        "--regions",
        action="store_true",
        help="also write regions.bed and regions.gff3: viral stretches of long contigs, such as prophages; "
        "implied by the options below",
    )
    add_region_rules(group)


def run_settings(options: Namespace, **others: Any) -> Settings:
    """Return the settings of a run that *options* and *others* name."""
    rules, region_rules = fields_from(CallRules, options), region_rules_from(options)
    return settings_from(
        options,
        calls=rules if options.calls or rules != CallRules() else None,
        viral_fasta=viral_fasta_from(options),
        regions=region_rules if options.regions or region_rules != RegionRules() else None,
        embeddings=options.embeddings,
        report=options.report,
        calibrated=options.calibrated,
        verdict_by=options.verdict_by,
        fpr=options.fpr,
        pairs=Pairing(options.pairs),
        min_length=options.min_length,
        formats=options.formats,
        layout=options.layout,
        skip_missing=options.skip_missing,
        recursive=options.recursive,
        allow_duplicates=options.allow_duplicates,
        **others,
    )


def inputs_and_directory(options: Namespace, what: str, example: str) -> tuple[list[str], str]:
    """
    Return the inputs that *options* name, and the directory, which is *what*: an output, or a run.

    Raises:
        UsageError: there are none; *example* is a command that names them
        UnreadableInput: their list cannot be read
    """
    names, directory, called = list(options.names), options.output_dir, what.partition(" ")[2]
    if directory is None:
        if not names:
            raise UsageError(f"name an input and {what} directory. For example: {example}")
        directory = user_path(names.pop(), f"the {called} directory")
    names = [user_path(name, "an input") for name in names]
    inputs = [*options.input, *names, *_read_list(options.input_list)]
    if not inputs and options.input_list:
        raise UsageError(f"the input list {options.input_list!r} is empty")
    if not inputs:
        raise UsageError(f"name an input before the {called} directory {directory!r}")
    from virnuc_async.sequences.listing import check_names

    check_names(inputs)
    if os.path.isfile(directory):
        raise UsageError(f"the last name must be the {called} directory, but {directory!r} is a file")
    return inputs, directory


def _read_list(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = [(number, os.fsdecode(line.strip())) for number, line in read_lines(path, _LARGEST_LIST)]
    except (OSError, ValueError) as error:
        raise UnreadableInput(path, getattr(error, "strerror", None) or str(error)) from error
    if lines and lines[0][1].startswith((">", "@")) and not os.path.lexists(lines[0][1]):
        raise UsageError(f"{path!r} has sequences, not names of files: it is an input, not an --input-list")
    return [expand_home(name, f"line {number:,} of {path}") for number, name in lines]
