"""``predict``: which sequences are viral."""

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
from virnuc_async.cli.options import add_device_options, add_verbosity_options
from virnuc_async.cli.parser import PROGRAM, CommandParser, add_command, path, seconds
from virnuc_async.cli.ray_options import add_ray_options, check_ray_options, run_on_cluster
from virnuc_async.cli.run_options import (
    add_input_options,
    add_result_options,
    inputs_and_directory,
    run_settings,
)
from virnuc_async.cli.shard_options import add_shard_options, run_planned
from virnuc_async.cli.signals import INTERRUPTED, run_interruptibly

_EXAMPLE = f"{PROGRAM} predict contigs.fa out/"
_EXAMPLES = """\
examples:
  python -m virnuc_async predict contigs.fa out/
  python -m virnuc_async predict reads_R1.fq.gz reads_R2.fq.gz out/ --threshold 0.8
  python -m virnuc_async predict interleaved.fq.gz out/ --pairs interleaved
  python -m virnuc_async predict --input-list samples.txt --output-dir out/ --quiet
  zcat reads.fq.gz | python -m virnuc_async predict - out/ --devices cpu,cpu
  python -m virnuc_async predict contigs.fa out/ --reuse-features old_run/ --model virnucpro-500
  python -m virnuc_async predict --plan run/ --shard 3/100
  python -m virnuc_async predict reads.fq.gz out/ --model virnucpro-500 --ray auto

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
    add_input_options(parser, "OUT_DIR", "output")
    _add_session_options(parser)
    add_result_options(parser).add_argument(
        "--reuse-features",
        type=path,
        metavar="DIR",
        help="reuse embeddings of the same sequences from the *_DNABERT_S.pt, *_ESM.pt and *_merged.pt that "
        "VirNucPro wrote anywhere in DIR, and compute only the missing ones",
    )
    add_device_options(parser.add_argument_group("devices"))
    add_shard_options(parser.add_argument_group("shards"))
    add_ray_options(parser.add_argument_group("clusters"))
    add_verbosity_options(parser)
    add_earlier_options(parser)
    parser.set_defaults(run=partial(run, parser), interrupted=INTERRUPTED, prints_result=False)


def _add_session_options(parser: Any) -> None:
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


def run(parser: CommandParser, options: Namespace) -> int:
    """Predict, and return whether every input could be used."""
    apply_earlier_options(options)
    if options.plan is not None or options.shard is not None:
        return run_planned(parser, options)
    check_ray_options(options)
    inputs, out_dir = inputs_and_directory(options, "an output", _EXAMPLE)
    settings = run_settings(options, reuse_features=options.reuse_features, repair=options.repair)
    prepare_torch(options)
    with run_log(options, may_draw=not options.no_progress):
        note(describe_without_effect(options))
        if options.ray is not None:
            summary = run_on_cluster(options, inputs, out_dir, settings)
        else:
            summary = run_interruptibly(inputs, out_dir, settings, options.max_seconds)
    return INCOMPLETE if summary.counts["failures"] else DONE
