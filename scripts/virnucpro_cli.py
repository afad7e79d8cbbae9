#!/usr/bin/env python3
"""
VirNucPro's container command: ``virnucpro_cli.py INPUT OUT.tsv --expected-length 300|500``.

OUT.tsv is ``prediction_results.txt``; beside it, OUT_highestscore.csv has the highest scores of fragments.
In both each record has a name of its own: of those with one name, as mates have in BAM, the second is name_1,
the third name_2. The run, with all its other tables, is kept in OUT.tsv.run, and the same command resumes it.
"""

import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from virnuc_async.cli.console import note, run_log
from virnuc_async.cli.earlier_options import (
    LENGTHS,
    add_options_without_effect,
    describe_without_effect,
    require_length,
)
from virnuc_async.cli.environment import cache_from, prepare_torch, temporary_dir
from virnuc_async.cli.exit_codes import DONE, INCOMPLETE
from virnuc_async.cli.main import run as run_process
from virnuc_async.cli.parser import CommandParser, numbers, path_text
from virnuc_async.cli.signals import INTERRUPTED, run_interruptibly
from virnuc_async.errors import BundleError, OutputError, RunMismatchError, UnknownBundle, UsageError
from virnuc_async.outputs.summary import Summary
from virnuc_async.outputs.unique_tables import write_unique_tables
from virnuc_async.settings import Settings

MODEL = "VIRNUC_ASYNC_MODEL"


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("virnucpro_cli.py", description="Predict which sequences are viral.")
    add = parser.add_argument
    add("input", type=path_text, metavar="INPUT", help="BAM, FASTA or FASTQ, plain or packed")
    add("output", type=path_text, metavar="OUT.tsv", help="the table of ORFs; the run is kept in OUT.tsv.run")
    add("--expected-length", type=int, choices=LENGTHS, help="fragments of the model (default: 500)")
    add("--model", type=path_text, metavar="NAME|DIR", help=f"default: ${MODEL}, else virnucpro-LENGTH")
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--use-gpu", action="store_true", help="fail if there is no GPU")
    devices.add_argument("--no-gpu", action="store_true", help="use the CPU")
    add("--gpus", type=numbers("GPU numbers", "0,1"), default=(), metavar="0,1", help="use these GPUs")
    add("--esm-batch-size", type=int, metavar="N", help="residue tokens per batch (default: by the memory)")
    add("--threads", type=int, metavar="N", help="threads of the CPU (default: all that may be used)")
    add("--resume", action="store_true", help="do not replace OUT.tsv.run if it is another run")
    add("--verbose", action="store_true", help="print more, such as a line for each batch")
    add_options_without_effect(parser)
    parser.set_defaults(run=run, interrupted=INTERRUPTED, prints_result=False, quiet=False, cache_dir=None)
    return parser


def run(options: Namespace) -> int:
    """Predict, write both tables, and return whether every input could be used."""
    out = Path(options.output)
    if out.is_dir():
        raise UsageError(f"OUT.tsv must be a file, but {options.output!r} is a directory")
    settings = _settings(options)
    directory = out.with_name(f"{out.name}.run")
    prepare_torch(options)
    with run_log(options):
        note(describe_without_effect(options))
        summary = _predict(options, directory, settings)
    write_unique_tables(directory, out, settings.temporary_dir)
    return INCOMPLETE if summary.counts["failures"] else DONE


def _settings(options: Namespace) -> Settings:
    if options.no_gpu and options.gpus:
        raise UsageError("choose --no-gpu or --gpus, not both")
    cache, length = cache_from(options), options.expected_length
    model = options.model or os.environ.get(MODEL)
    if not model:
        length = length or LENGTHS[0]
        model = f"virnucpro-{length}"
    try:
        require_length(model, cache, length, "--expected-length")
    except UnknownBundle as error:
        raise BundleError(
            f"{error}\nOr name a model with --model or the environment variable {MODEL}"
        ) from error
    return Settings(
        model=model,
        cache_dir=cache,
        devices=("cpu",) if options.no_gpu else ("cuda",) if options.use_gpu and not options.gpus else (),
        gpus=options.gpus,
        threads=options.threads,
        tokens_per_batch=options.esm_batch_size,
        temporary_dir=temporary_dir(),
    )


def _predict(options: Namespace, directory: Path, settings: Settings) -> Summary:
    """Resume the run in *directory*, or replace it if it is another one and --resume was not given."""
    try:
        return run_interruptibly([options.input], directory, settings)
    except RunMismatchError as error:
        differences = "; ".join(error.differences)
        if options.resume:
            reason = f"contains a different run: {differences}. Without --resume it is replaced"
            raise OutputError(str(directory), reason) from None
    note(f"{directory} contains a different run ({differences}), which is replaced")
    return run_interruptibly([options.input], directory, replace(settings, overwrite=True))


if __name__ == "__main__":
    run_process(make_parser)
