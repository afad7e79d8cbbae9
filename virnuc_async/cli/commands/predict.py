"""``predict``: which sequences are viral."""

import os
from argparse import Namespace
from functools import partial
from typing import Any

from virnuc_async.cli.console import note, run_log
from virnuc_async.cli.earlier_options import (
    add_earlier_options,
    apply_earlier_options,
    describe_without_effect,
)
from virnuc_async.cli.environment import prepare_torch
from virnuc_async.cli.exit_codes import DONE, INCOMPLETE
from virnuc_async.cli.options import (
    add_call_rules,
    add_device_options,
    add_listing_options,
    add_model_options,
    add_pairs_option,
    add_region_rules,
    add_table_options,
    add_verbosity_options,
    add_verdict_options,
    add_viral_options,
    fields_from,
    region_rules_from,
    settings_from,
    viral_fasta_from,
)
from virnuc_async.cli.parser import PROGRAM, add_command, path, path_text, seconds
from virnuc_async.cli.signals import INTERRUPTED, run_interruptibly
from virnuc_async.errors import UnreadableInput, UsageError
from virnuc_async.fileio import read_lines
from virnuc_async.settings import CallRules, Pairing, RegionRules, expand_home, user_path

_EXAMPLE = f"{PROGRAM} predict contigs.fa out/"
_LARGEST_LIST = 1 << 28  # bytes: millions of names
_EXAMPLES = """\
examples:
  python -m virnuc_async predict contigs.fa out/
  python -m virnuc_async predict reads_R1.fq.gz reads_R2.fq.gz out/ --threshold 0.8
  python -m virnuc_async predict interleaved.fq.gz out/ --pairs interleaved
  python -m virnuc_async predict --input-list samples.txt --output-dir out/ --quiet
  zcat reads.fq.gz | python -m virnuc_async predict - out/ --devices cpu,cpu
  python -m virnuc_async predict contigs.fa out/ --reuse-features old_run/ --model virnucpro-500

Inputs are FASTA or FASTQ files, plain or compressed (gz, bz2, xz, zst), BAM, CRAM or SAM, directories
of them, or - for standard input. The last name is the output directory.

exit codes:
  0         done
  1         failed
  2         done, but some inputs failed: see failed_files.txt
  64        wrong usage
  130, 143  interrupted; the same command resumes (143 also after SIGUSR1, SIGUSR2 and --max-seconds)
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "predict", "predict which sequences are viral", _EXAMPLES)
    parser.usage = "%(prog)s INPUT [INPUT ...] OUT_DIR [options]"
    _add_file_options(parser)
    model = parser.add_argument_group("model")
    add_model_options(model)
    add_verdict_options(model)
    _add_output_options(model)
    add_table_options(parser.add_argument_group("tables"))
    _add_calls(parser.add_argument_group("calls"))
    add_viral_options(parser.add_argument_group("viral sequences"))
    _add_regions(parser.add_argument_group("regions"))
    add_device_options(parser.add_argument_group("devices"))
    add_verbosity_options(parser)
    add_earlier_options(parser)
    parser.set_defaults(run=run, interrupted=INTERRUPTED, prints_result=False)


def _add_file_options(parser: Any) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="INPUT ... OUT_DIR", help="inputs, then the output directory"
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
        help="the output directory; then all other names are inputs",
    )
    add_pairs_option(parser)
    parser.add_argument(
        "--max-seconds",
        type=seconds,
        metavar="N",
        help="stop after this time, as SIGTERM does: before a job's limit does; the same command resumes",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--overwrite", action="store_true", help="discard an existing run in OUT_DIR and start over"
    )
    existing.add_argument(
        "--repair",
        action="store_true",
        help="recover intact batches from a damaged run.sqlite3 and recompute the rest",
    )


def _add_output_options(group: Any) -> None:
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
    group.add_argument(
        "--reuse-features",
        type=path,
        metavar="DIR",
        help="reuse embeddings of the same sequences from the *_DNABERT_S.pt, *_ESM.pt and *_merged.pt that "
        "VirNucPro wrote anywhere in DIR, and compute only the missing ones",
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


def run(options: Namespace) -> int:
    """Predict, and return whether every input could be used."""
    apply_earlier_options(options)
    inputs, out_dir = _inputs_and_output(options)
    rules, region_rules = fields_from(CallRules, options), region_rules_from(options)
    settings = settings_from(
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
        reuse_features=options.reuse_features,
        repair=options.repair,
    )
    prepare_torch(options)
    with run_log(options, may_draw=not options.no_progress):
        note(describe_without_effect(options))
        summary = run_interruptibly(inputs, out_dir, settings, options.max_seconds)
    return INCOMPLETE if summary.counts["failures"] else DONE


def _inputs_and_output(options: Namespace) -> tuple[list[str], str]:
    names, out_dir = list(options.names), options.output_dir
    if out_dir is None:
        if not names:
            raise UsageError(f"name an input and an output directory. For example: {_EXAMPLE}")
        out_dir = user_path(names.pop(), "the output directory")
    names = [user_path(name, "an input") for name in names]
    inputs = [*options.input, *names, *_read_list(options.input_list)]
    if not inputs and options.input_list:
        raise UsageError(f"the input list {options.input_list!r} is empty")
    if not inputs:
        raise UsageError(f"name an input before the output directory {out_dir!r}")
    from virnuc_async.sequences.listing import check_names

    check_names(inputs)
    if os.path.isfile(out_dir):
        raise UsageError(f"the last name must be the output directory, but {out_dir!r} is a file")
    return inputs, out_dir


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
