"""
Arguments in, exit code out: the only module that prints, reads the environment, or exits.

Everything heavy is imported by the command that needs it, so that ``--help`` answers at once.
"""

import os
import sys
import threading
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM, getsignal, signal
from typing import TYPE_CHECKING, Any, NoReturn

from virnuc_async._version import __version__
from virnuc_async.errors import BadBundle, CannotWrite, UnreadableInput, UsageError, VirnucError
from virnuc_async.settings import (
    Balance,
    Compile,
    EvaluationOptions,
    LeakPolicy,
    Optimizer,
    Pairing,
    Precision,
    Recipe,
    Settings,
    Split,
)
from virnuc_async.text import escape_control_chars

if TYPE_CHECKING:
    from loguru import Record

    from virnuc_async.downloads.fetch import ProgressCallback
    from virnuc_async.engine.verification import VerificationResult
    from virnuc_async.models.bundle import Bundle
    from virnuc_async.models.import_checkpoint import CheckpointPaths
    from virnuc_async.models.published import Mirrors, ModelFiles
    from virnuc_async.models.reference import Reference
    from virnuc_async.outputs.summary import Summary

PROGRAM = "virnuc-async"
DONE, FAILED, INCOMPLETE = 0, 1, 2
_AGAIN_SECONDS = 10.0  # after which what is being done is said again
_INTERRUPTED = "Interrupted. The same command resumes this run."
_LARGEST_LIST = 1 << 28  # bytes: millions of names

_EXAMPLES = """\
examples:
  python -m virnuc_async predict contigs.fa out/
  python -m virnuc_async predict sample1.fq.gz sample2.fa.zst reads/ out/
  zcat reads.fq.gz | python -m virnuc_async predict - out/
  python -m virnuc_async predict contigs.fa out/ --model /data/virnucpro-500 --gpus 0,1
  python -m virnuc_async train --viral viruses.fa --nonviral others.fa --output my-model/
  python -m virnuc_async evaluate --viral viruses.fa --nonviral others.fa --output figures/
  python -m virnuc_async models list
  python -m virnuc_async models download virnucpro-500

The same command resumes a run that was interrupted.
"""
_PREDICT_EXAMPLES = """\
examples:
  python -m virnuc_async predict contigs.fa out/
  python -m virnuc_async predict reads_R1.fq.gz reads_R2.fq.gz out/ --threshold 0.8
  python -m virnuc_async predict interleaved.fq.gz out/ --pairs interleaved
  python -m virnuc_async predict --input-list samples.txt --output-dir out/ --quiet
  zcat reads.fq.gz | python -m virnuc_async predict - out/ --devices cpu,cpu
  python -m virnuc_async predict contigs.fa out/ --reuse-features old_run/ --model virnucpro-500

inputs are FASTA or FASTQ files, plain or compressed (gz, bz2, xz, zst), directories of them, or -
for standard input; the last name is the output directory.

exit codes: 0 done; 1 failed; 2 done, but see failed_files.txt; 64 wrong usage; 130 and 143
interrupted, the same command resumes.
"""
_TRAIN_EXAMPLES = """\
examples:
  python -m virnuc_async train --viral viruses.fa --nonviral bacteria.fa human.fa --output my-model/
  python -m virnuc_async train --viral v/ --nonviral n/ --clusters clusters.tsv --balance group \\
      --model virnucpro-500 --output my-model/ --optimizer adamw --rate 0.001
  python -m virnuc_async predict contigs.fa out/ --model my-model/

clusters and groups are tables of two columns: a record or its genome, a tab, what it belongs to.
Without them, genome= and group= in the headers say so. docs/how-to/training.md says what a split must keep
apart, and what the figures mean. The same command resumes.
"""
_EVALUATE_EXAMPLES = """\
examples:
  python -m virnuc_async evaluate --viral viruses.fa --nonviral others.fa --output figures/
  python -m virnuc_async evaluate --viral viruses.fa --nonviral others.fa --output figures/ \\
      --model my-model/ --clusters clusters.tsv --groups groups.tsv --lengths 150,500 --stretches 3

figures/evaluation.html is for people, figures/evaluation.json for programs. docs/explanation/metrics.md says
what each figure means. The same command resumes.
"""
_CALIBRATE_EXAMPLES = """\
examples:
  python -m virnuc_async calibrate --viral viruses.fa --nonviral others.fa --output scores/ \\
      --model my-model/ --fpr 0.01

Scores and verdicts stay as they are: contigs.tsv has a column more, p_virus_calibrated. The sequences
must be new to the model. The same command resumes.
"""
_MODELS_EXAMPLES = """\
examples:
  python -m virnuc_async models list
  python -m virnuc_async models info tiny-500
  python -m virnuc_async models download virnucpro-500
  python -m virnuc_async models verify virnucpro-500
  python -m virnuc_async models import --protein esm2_t36_3B_UR50D.pt --nucleotide DNABERT-S/ \\
      --classifier 500_model.pth --length 500 --name virnucpro-500 --output virnucpro-500/

docs/how-to/models.md says what the published models are and how they are checked.
"""
_DOWNLOAD_EXAMPLES = """\
examples:
  python -m virnuc_async models download virnucpro-500
  python -m virnuc_async models download virnucpro-500 virnucpro-300 --cache-dir /data/models
  python -m virnuc_async models download virnucpro-500 --to virnucpro-500/
  python -m virnuc_async models download --protein esm2_t33_650M_UR50D --to parts/
  HTTPS_PROXY=http://proxy:3128 python -m virnuc_async models download virnucpro-500

Files are checked before they are used. The same command goes on where it was interrupted. What --to
made works on machines without a network: predict --model DIR. Proxies are those of HTTPS_PROXY,
HTTP_PROXY and NO_PROXY; HF_ENDPOINT names another server in the place of Hugging Face.
"""
_VERIFY_EXAMPLES = """\
examples:
  python -m virnuc_async models verify virnucpro-500
  python -m virnuc_async models verify virnucpro-500 --gpus 0,1 --precision bf16
  python -m virnuc_async models verify my_model/ --record --devices cpu

Computes the few ORFs of the model's reference on every device, in every precision that it has, and
compares. exit codes: 0 right everywhere; 1 not.
"""
_DEVICES_EXAMPLES = """\
examples:
  python -m virnuc_async devices
  python -m virnuc_async predict contigs.fa out/ --devices cuda:0,cuda:1
"""


def run() -> NoReturn:
    """Run the command line of this process and end it."""
    code = main(sys.argv[1:])
    sys.stderr.flush()
    if code > 128:
        # Interrupted while a thread may wait for standard input: nothing wakes it, so it is left.
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run one command; give its exit code. Bugs keep their traceback."""
    try:
        try:
            options = _parser().parse_args(arguments)
            command: Callable[[Namespace], int] = options.command
            return command(options)
        finally:
            sys.stdout.flush()  # a reader that has gone is met here, not while Python exits
    except VirnucError as failure:
        print(f"{PROGRAM}: {escape_control_chars(str(failure))}", file=sys.stderr)
        return failure.exit_code
    except (KeyboardInterrupt, _Interrupted) as end:
        print(_INTERRUPTED, file=sys.stderr)
        return 128 + (end.signal if isinstance(end, _Interrupted) else SIGINT)
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


class _Interrupted(Exception):
    """A run was stopped by *signal*, and can be resumed."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\nTry '{self.prog} --help'.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # argparse ends a list of names at the first option behind it: ours may stand between them.
        options, rest = super().parse_known_args(args, namespace)
        if flags := [word for word in rest if word.startswith("-") and word != "-"]:
            self.error(f"no such option: {', '.join(flags)}")
        if hasattr(options, "names"):
            options.names, rest = options.names + rest, []
        return options, rest


def _parser() -> ArgumentParser:
    parser = _Parser(
        PROGRAM,
        description="Tell viral from non-viral DNA in reads and contigs, as VirNucPro does.",
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_calibrate(commands)
    _add_models(commands)
    devices = _add(commands, "devices", "show which devices a run would use", _DEVICES_EXAMPLES)
    devices.set_defaults(command=_devices)
    return parser


def _add(commands: Any, name: str, purpose: str, examples: str) -> Any:
    """Add the command *name*, with what its ``--help`` says."""
    return commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=examples,
        formatter_class=RawDescriptionHelpFormatter,
    )


def _add_predict(commands: Any) -> None:
    predict = _add(commands, "predict", "predict which sequences are viral", _PREDICT_EXAMPLES)
    predict.usage = "%(prog)s INPUT [INPUT ...] OUT_DIR [options]"
    predict.add_argument(
        "names", nargs="*", metavar="INPUT ... OUT_DIR", help="inputs, then the output directory"
    )
    predict.add_argument(
        "--input", action="append", default=[], metavar="FILE", help="an input; may be repeated"
    )
    predict.add_argument("--input-list", metavar="FILE", help="a file with one input a line")
    predict.add_argument(
        "--output-dir", metavar="DIR", help="the output directory; all names are inputs then"
    )
    predict.add_argument(
        "--pairs",
        choices=[pairing.value for pairing in Pairing],
        default=Pairing.AUTO.value,
        help="which records are mates, and get one verdict in pairs.tsv; auto: those of files named alike "
        "but for R1 and R2 (or 1 and 2), if their ids agree; interleaved: neighbours (default: auto)",
    )
    again = predict.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="start anew where DIR holds another run")
    again.add_argument(
        "--repair", action="store_true", help="keep what is whole of a damaged run.sqlite3, compute the rest"
    )
    model = predict.add_argument_group("model")
    _add_model_options(model)
    _add_feature_options(model)
    _add_device_options(predict.add_argument_group("devices"))
    _add_talk_options(predict)
    predict.set_defaults(command=_predict)


def _add_talk_options(parser: Any) -> None:
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("--verbose", action="store_true", help="say more, every batch too")
    talk.add_argument("--quiet", action="store_true", help="say only what went wrong")


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--model", default="tiny-500", metavar="NAME|DIR", help="see 'models list' (default: tiny-500)"
    )
    _add_cache_option(group)
    group.add_argument(
        "--threshold",
        type=_share,
        default=0.5,
        metavar="SHARE",
        help="share of viral fragments from which on a contig is viral (default: 0.5)",
    )


def _add_feature_options(group: Any) -> None:
    group.add_argument("--embeddings", action="store_true", help="write merged_features.pt too")
    group.add_argument(
        "--no-calibration",
        dest="calibrated",
        action="store_false",
        help="leave p_virus_calibrated out of contigs.tsv, also where the model has a calibration",
    )
    group.add_argument(
        "--reuse-features",
        type=Path,
        metavar="DIR",
        help="take embeddings of the same sequences from the *_DNABERT_S.pt, *_ESM.pt and *_merged.pt "
        "that VirNucPro left anywhere in DIR, and compute only what is missing",
    )


def _add_cache_option(group: Any) -> None:
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where models are kept (default: $VIRNUC_ASYNC_CACHE_DIR, else ~/.cache/virnuc-async)",
    )


def _cache(options: Namespace) -> Path | None:
    """Give the directory that was named, by option or environment; None: the user's own."""
    named = options.cache_dir or os.environ.get("VIRNUC_ASYNC_CACHE_DIR")
    return Path(named).expanduser() if named else None


def _add_device_options(group: Any) -> None:
    _add_device_choice(group)
    group.add_argument(
        "--compile",
        choices=[choice.value for choice in Compile],
        default=Compile.AUTO.value,
        help="kernels for the GPUs, before the first batch; auto: if the input is large (default: auto)",
    )
    group.add_argument(
        "--esm-batch-size",
        type=_tokens,
        default=None,
        metavar="N|auto",
        help="residue tokens per batch (default: auto, by the devices' memory)",
    )


def _add_device_choice(
    group: Any, auto: str = "auto: BF16 where the GPUs have it, else FP32 (default: auto)"
) -> None:
    """Add which devices and in which precision; *auto* says what that is."""
    group.add_argument(
        "--gpus", type=_numbers, default=(), metavar="0,2", help="GPUs by nvidia-smi's numbers"
    )
    group.add_argument(
        "--devices",
        type=_words,
        default=(),
        metavar="LIST",
        help="cuda:0,cuda:1 or cpu or cpu,cpu (default: every GPU, else one cpu)",
    )
    group.add_argument(
        "--precision",
        choices=[precision.value for precision in Precision],
        default=Precision.AUTO.value,
        help=auto,
    )


def _add_train(commands: Any) -> None:
    train = _add(commands, "train", "train a classifier on labelled sequences", _TRAIN_EXAMPLES)
    _add_data_options(train.add_argument_group("data"), "a new directory for the model")
    train.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="where features and epochs are kept, to be resumed (default: beside the output, .work)",
    )
    _add_model_options(train.add_argument_group("model"))
    _add_split_options(train.add_argument_group("split"))
    _add_recipe_options(train.add_argument_group("recipe, as published by default"))
    _add_resample_option(train)
    _add_device_options(train.add_argument_group("devices"))
    _add_talk_options(train)
    train.set_defaults(command=_train)


def _add_evaluate(commands: Any) -> None:
    evaluate = _add(commands, "evaluate", "measure a model on labelled sequences", _EVALUATE_EXAMPLES)
    _add_data_options(evaluate.add_argument_group("data"), "the output directory")
    evaluate.add_argument(
        "--lengths",
        type=_numbers,
        default=EvaluationOptions().lengths,
        metavar="BP,BP",
        help="measure stretches of these lengths, cut from the records, too (default: 150,300,500,1000)",
    )
    _add_setting(evaluate, EvaluationOptions(), "stretches", int, "of each length from each record")
    _add_setting(evaluate, EvaluationOptions(), "seed", int, "of stretches and intervals")
    _add_resample_option(evaluate)
    _add_model_options(evaluate.add_argument_group("model"))
    _add_device_options(evaluate.add_argument_group("devices"))
    _add_talk_options(evaluate)
    evaluate.set_defaults(command=_evaluate)


def _add_calibrate(commands: Any) -> None:
    calibrate = _add(
        commands, "calibrate", "map a model's scores to probabilities that hold", _CALIBRATE_EXAMPLES
    )
    _add_data_options(calibrate.add_argument_group("data"), "where the scores are kept, to be resumed")
    calibrate.add_argument(
        "--method",
        choices=("isotonic", "temperature"),
        default="isotonic",
        help="any rising map, which wants a thousand contigs, or one number (default: isotonic)",
    )
    calibrate.add_argument(
        "--fpr",
        type=_share,
        default=0.01,
        metavar="SHARE",
        help="give the threshold that this share of other contigs reaches (default: 0.01)",
    )
    _add_model_options(calibrate.add_argument_group("model"))
    _add_device_options(calibrate.add_argument_group("devices"))
    _add_talk_options(calibrate)
    calibrate.set_defaults(command=_calibrate)


def _add_data_options(group: Any, output: str) -> None:
    many = {"nargs": "+", "action": "extend", "required": True, "metavar": "FILE"}
    group.add_argument("--viral", help="viral sequences: files or directories", **many)
    group.add_argument("--nonviral", help="other sequences: files or directories", **many)
    group.add_argument(
        "--clusters", type=Path, metavar="TSV", help="what belongs together and is never split"
    )
    group.add_argument("--groups", type=Path, metavar="TSV", help="what is balanced and measured on its own")
    group.add_argument("--output", type=Path, required=True, metavar="DIR", help=output)
    group.add_argument(
        "--overwrite", action="store_true", help="score anew where a directory holds other runs"
    )


def _add_resample_option(parser: Any) -> None:
    _add_setting(parser, EvaluationOptions(), "resamples", int, "of the clusters, for the intervals")


def _add_split_options(group: Any) -> None:
    _add_setting(group, Split(), "validation", _share, "share that says when to stop")
    _add_setting(group, Split(), "test", _share, "share that the figures are of")
    group.add_argument(
        "--leaks",
        choices=[choice.value for choice in LeakPolicy],
        default=Split().leaks.value,
        help="held-out records that share 31-mers with training ones are left out, end the training, or "
        "stay (default: drop)",
    )
    _add_setting(group, Split(), "leak_share", _share, "share of a record's 31-mers that may be shared")
    group.add_argument(
        "--split-by-fragment",
        action="store_true",
        help="split fragments at random, as published: the figures are optimistic",
    )


def _add_recipe_options(group: Any) -> None:
    recipe = Recipe()
    for name, choices in (("optimizer", Optimizer), ("balance", Balance)):
        default = getattr(recipe, name).value
        group.add_argument(
            f"--{name}",
            choices=[choice.value for choice in choices],
            default=default,
            help=f"(default: {default})",
        )
    _add_setting(group, recipe, "rate", float, "learning rate")
    _add_setting(group, recipe, "momentum", float, "of SGD; the first beta of AdamW")
    _add_setting(group, recipe, "weight_decay", float, "of all weights")
    _add_setting(group, recipe, "step", int, "epochs after which the rate falls")
    _add_setting(group, recipe, "decay", float, "what the rate is multiplied by then")
    _add_setting(group, recipe, "epochs", int, "at most")
    _add_setting(group, recipe, "patience", int, "epochs without a lower validation loss before the end")
    _add_setting(group, recipe, "batch", int, "ORFs of a batch")
    _add_setting(group, recipe, "hidden", int, "width of the hidden layer")
    _add_setting(group, recipe, "dropout", float, "share of the hidden layer that is left out")
    _add_setting(group, recipe, "seed", int, "of the split and the training")
    group.add_argument(
        "--random-stretches",
        action="store_true",
        help="learn from random places of both strands, not from records as predictions cut them",
    )


def _add_setting(group: Any, defaults: object, name: str, kind: Callable[[str], Any], what: str) -> None:
    """Add an option for the field *name* of *defaults*."""
    default = getattr(defaults, name)
    group.add_argument(
        f"--{name.replace('_', '-')}",
        type=kind,
        default=default,
        metavar="N" if kind is int else "X",
        help=f"{what} (default: {default})",
    )


def _add_models(commands: Any) -> None:
    models = _add(commands, "models", "list, download, verify or import models", _MODELS_EXAMPLES)
    actions = models.add_subparsers(metavar="ACTION", required=True)
    listing = _add(actions, "list", "list the models of this machine", _MODELS_EXAMPLES)
    _add_cache_option(listing)
    listing.set_defaults(command=_list_models)
    info = _add(actions, "info", "describe one model and check its files", _MODELS_EXAMPLES)
    info.add_argument("name", metavar="NAME|DIR")
    _add_cache_option(info)
    info.set_defaults(command=_model_info)
    _add_download(actions)
    _add_verify(actions)
    take = _add(actions, "import", "make a model of published checkpoints", _MODELS_EXAMPLES)
    take.add_argument(
        "--protein", type=Path, required=True, metavar="FILE", help="ESM-2: fair-esm .pt, or Hugging Face"
    )
    take.add_argument(
        "--nucleotide", type=Path, required=True, metavar="DIR", help="DNABERT-S as on Hugging Face"
    )
    take.add_argument(
        "--classifier", type=Path, required=True, metavar="FILE", help="300_model.pth or 500_model.pth"
    )
    take.add_argument("--length", type=int, required=True, metavar="BP", help="of the fragments: 300 or 500")
    take.add_argument("--name", required=True)
    take.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="a new directory for the model"
    )
    take.add_argument(
        "--reference",
        default="published",
        metavar="FILE|record|none",
        help="what 'models verify' is to compare with: a reference.json, or what this machine gives now "
        "(default: of the published models what they gave, of others none)",
    )
    take.set_defaults(command=_import_model)


def _add_download(actions: Any) -> None:
    get = _add(actions, "download", "get published models", _DOWNLOAD_EXAMPLES)
    get.add_argument("names", nargs="*", metavar="NAME", help="virnucpro-500, virnucpro-300")
    get.add_argument(
        "--protein",
        metavar="ESM2",
        help="instead of a model: this ESM-2 and DNABERT-S as they are, to train a classifier on",
    )
    get.add_argument("--to", type=Path, metavar="DIR", help="a new directory to have it in, to be moved")
    get.add_argument(
        "--mirror",
        metavar="URL",
        help="get files from URL/HOST/PATH instead of https://HOST/PATH (default: $VIRNUC_ASYNC_MIRROR)",
    )
    _add_cache_option(get)
    get.add_argument("--quiet", action="store_true", help="say only what went wrong")
    get.set_defaults(command=_download_models)


def _add_verify(actions: Any) -> None:
    verify = _add(actions, "verify", "see that a model gives here what it should give", _VERIFY_EXAMPLES)
    verify.add_argument("name", metavar="NAME|DIR")
    _add_cache_option(verify)
    _add_device_choice(verify, auto="auto: every one that the device has (default: auto)")
    verify.add_argument(
        "--record",
        action="store_true",
        help="make the model's reference anew, of what a CPU gives here in FP32",
    )
    verify.add_argument("--quiet", action="store_true", help="say only what is wrong")
    verify.set_defaults(command=_verify_model)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise ArgumentTypeError(f"expected names such as cuda:0,cuda:1 or cpu, not {text!r}")
    return words


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"expected GPU numbers such as 0,2, not {text!r}") from None


def _tokens(text: str) -> int | None:
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number of tokens, or auto, not {text!r}") from None


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number from 0 to 1, not {text!r}") from None


def _predict(options: Namespace) -> int:
    inputs, out_dir = _names(options)
    settings = _settings(
        options,
        embeddings=options.embeddings,
        calibrated=options.calibrated,
        pairs=Pairing(options.pairs),
        reuse_features=options.reuse_features,
        repair=options.repair,
    )
    _set_environment(options)
    with _console(options):
        summary = _run(inputs, out_dir, settings)
    return INCOMPLETE if summary.counts["failures"] else DONE


def _train(options: Namespace) -> int:
    recipe, split = _filled(Recipe, options), _filled(Split, options, by_fragment=options.split_by_fragment)
    measuring, settings = _filled(EvaluationOptions, options, lengths=()), _settings(options)
    _set_environment(options)
    from virnuc_async.learning.dataset import label_files
    from virnuc_async.learning.evaluation import figure_rows, group_rows
    from virnuc_async.learning.training import Task, train

    output: Path = options.output
    task = Task(
        data=label_files(options.viral, options.nonviral, options.clusters, options.groups),
        output=output,
        work=options.work or output.with_name(f"{output.absolute().name}.work"),
        settings=settings,
        split=split,
        recipe=recipe,
        stretches=options.random_stretches,
        measuring=measuring,
        command=_command(),
    )
    with _console(options), _terminable():
        bundle, report = train(task, _run)
    _print_table(figure_rows({"test side": report["test"]}))
    _print_table(group_rows(report["test"]))
    print(f"{bundle.name} is in {bundle.directory}. Use it with --model {bundle.directory}")
    return DONE


def _evaluate(options: Namespace) -> int:
    measuring, settings = _filled(EvaluationOptions, options), _settings(options)
    _set_environment(options)
    from virnuc_async.learning.dataset import label_files
    from virnuc_async.learning.evaluation import evaluate, figure_rows, group_rows

    data = label_files(options.viral, options.nonviral, options.clusters, options.groups)
    with _console(options), _terminable():
        report = evaluate(data, options.output, settings, measuring, _run, _command())
    _print_table(figure_rows(report["at"]))
    for place, of_levels in report["at"].items():
        print(f"\n{place}")
        _print_table(group_rows(of_levels))
    return DONE


def _calibrate(options: Namespace) -> int:
    settings = _settings(options)
    _set_environment(options)
    from virnuc_async.learning.dataset import label_files
    from virnuc_async.learning.evaluation import calibrate
    from virnuc_async.models.calibration import Method

    data = label_files(options.viral, options.nonviral, options.clusters, options.groups)
    with _console(options), _terminable():
        found = calibrate(data, options.output, settings, Method(options.method), options.fpr, _run)
    errors = f"{found['ece_before']:.3f} before and {found['ece_after']:.3f} after"
    print(f"calibration error {errors}, cross-validated")
    print(
        f"mean_p_virus from {found['threshold']:.6g} on: a false positive rate of at most {found['fpr']:g} "
        f"and a sensitivity of {found['sensitivity_at_threshold']:.3f} on these {found['viral']:,} viral and "
        f"{found['nonviral']:,} other contigs"
    )
    print(f"predict --model {options.model} adds p_virus_calibrated to contigs.tsv from now on")
    return DONE


def _filled(kind: Callable[..., Any], options: Namespace, **others: Any) -> Any:
    """Make settings of the *kind* of the options that are called as its fields."""
    names = set(kind.__dataclass_fields__) & set(vars(options))  # type: ignore[attr-defined]
    enums = {"optimizer": Optimizer, "balance": Balance, "leaks": LeakPolicy}
    told = {name: enums.get(name, _same)(getattr(options, name)) for name in names}
    return kind(**told | others)


def _same(value: Any) -> Any:
    return value


def _command() -> str:
    import shlex

    return shlex.join((PROGRAM, *sys.argv[1:]))


def _set_environment(options: Namespace) -> None:
    # Threads that spin while they wait halve a machine that others use too, and make a run on
    # busy cores ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _show_only(options.gpus)


def _run(inputs: Sequence[str], out_dir: str | Path, settings: Settings) -> "Summary":
    """Run the pipeline; raises _Interrupted when a signal ends it."""
    import anyio

    before = getsignal(SIGTERM)
    try:
        return anyio.run(_run_until_signalled, inputs, out_dir, settings)
    finally:
        signal(SIGTERM, before)  # asyncio leaves the system's own


def _show_only(gpus: tuple[int, ...]) -> None:
    """Hide all other GPUs, if any are named, from this process; before torch looks."""
    # No context is made on a GPU that was not named, and what an outer script left in
    # CUDA_VISIBLE_DEVICES does not hide one that was.
    if gpus:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end what is not a run as Ctrl-C does, with a word."""

    def stop(number: int, _: object) -> NoReturn:
        raise _Interrupted(number)

    before = signal(SIGTERM, stop)
    try:
        yield
    finally:
        signal(SIGTERM, before)


async def _run_until_signalled(inputs: Sequence[str], out_dir: str | Path, settings: Settings) -> "Summary":
    import anyio

    from virnuc_async.pipeline import run_pipeline

    caught: list[int] = []
    summary: Summary | None = None

    async def watch_signals() -> None:
        with anyio.open_signal_receiver(SIGINT, SIGTERM) as signals:
            async for number in signals:
                if caught:
                    # Asked twice; what is in the store is whole at any instant.
                    print(_INTERRUPTED, file=sys.stderr, flush=True)
                    os._exit(128 + number)
                caught.append(number)
                print("Stopping after the batches under way ...", file=sys.stderr)
                run_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_signals)
            with anyio.CancelScope() as run_scope:
                command = (PROGRAM, *sys.argv[1:])
                summary = await run_pipeline(
                    inputs, out_dir, settings, stdin=sys.stdin.buffer, command=command
                )
            tasks.cancel_scope.cancel()
    except* VirnucError as group:
        raise group.exceptions[0] from None
    if summary is None:
        raise _Interrupted(caught[0])
    return summary


def _names(options: Namespace) -> tuple[list[str], str]:
    """Tell inputs from the output directory."""
    names, out_dir = list(options.names), options.output_dir
    if out_dir is None:
        if not names:
            raise UsageError("name an input and an output directory")
        out_dir = names.pop()
    inputs = [*options.input, *names, *_listed(options.input_list)]
    if not inputs and options.input_list:
        raise UsageError(f"the input list {options.input_list!r} names no input")
    if not inputs:
        raise UsageError(f"name an input before the output directory {out_dir!r}")
    if os.path.isfile(out_dir):
        raise UsageError(f"the output directory comes last, but {out_dir!r} is a file")
    return inputs, out_dir


def _listed(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        with open(path, "rb") as file:
            lines = file.read(_LARGEST_LIST + 1)
    except OSError as error:
        raise UnreadableInput(path, error.strerror or str(error)) from error
    if len(lines) > _LARGEST_LIST:
        raise UnreadableInput(path, f"a list of more than {_LARGEST_LIST:,} bytes")
    return [os.fsdecode(line.strip()) for line in lines.splitlines() if line.strip()]


def _settings(options: Namespace, **others: Any) -> Settings:
    return Settings(
        model=options.model,
        cache_dir=_cache(options),
        devices=options.devices,
        gpus=options.gpus,
        precision=Precision(options.precision),
        compile=Compile(options.compile),
        tokens_per_batch=options.esm_batch_size,
        threshold=options.threshold,
        overwrite=options.overwrite,
        **others,
    )


@contextmanager
def _console(options: Namespace) -> Iterator[None]:
    """Show what a run says on standard error: bars on a terminal, lines elsewhere."""
    from rich.console import Console

    from virnuc_async.log import logger

    from .progress_bars import Bars, Lines

    level = "WARNING" if options.quiet else "DEBUG" if options.verbose else "INFO"
    console = Console(stderr=True)
    with ExitStack() as undo:
        draws = console.is_terminal and not options.quiet
        sink = undo.enter_context(Bars(console)) if draws else Lines(sys.stderr)
        undo.callback(logger.remove, logger.add(sink, format=_line, level=level, catch=False))
        yield


def _line(record: "Record") -> str:
    level = record["level"]
    return "{level.name}: {message}\n" if level.no >= 30 else "{message}\n"


def _devices(options: Namespace) -> int:
    from virnuc_async.engine.devices import available, choose, decide_budget, decide_precision

    used = {device.name for device in choose(Settings())}
    rows = [("device", "model", "memory", "capability", "precision", "tokens per batch", "used")]
    for device in available():
        precision = decide_precision([device], Precision.AUTO)
        is_cpu = device.capability is None
        why = "yes"
        if is_cpu:
            why = "yes, no GPU here that CUDA can use" if device.name in used else "no, there are GPUs"
        rows.append(
            (
                "cpu" if is_cpu else device.name,  # what --devices takes
                device.model,
                f"{device.memory / 2**30:.0f} GiB",
                "-" if device.capability is None else "{}.{}".format(*device.capability),
                precision.upper(),
                f"{decide_budget([device], precision, None):,}",
                why,
            )
        )
    _print_table(rows)
    return DONE


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(escape_control_chars("  ".join(map(str.ljust, row, widths)).rstrip()))


def _list_models(options: Namespace) -> int:
    from virnuc_async.models.bundle import DEFAULT, HOW_TO_GET, PUBLISHED, find, known

    rows = [("model", "fragments", "directory")]
    installed = list(known(_cache(options)))
    for name, directory in installed:
        try:
            fact = f"{find(directory).length} bp"
        except BadBundle as failure:  # the others can still be used
            fact = f"not usable: {failure.reason}"
        rows.append((f"{name} (default)" if name == DEFAULT else name, fact, str(directory)))
    missing = [name for name in PUBLISHED if name not in {name for name, _ in installed}]
    _print_table(rows + [(name, "-", "not on this machine") for name in missing])
    if missing:
        print(HOW_TO_GET)
    return DONE


def _model_info(options: Namespace) -> int:
    from virnuc_async.models.bundle import REFERENCE, find
    from virnuc_async.models.reference import reference_of

    bundle = find(options.name, _cache(options))
    bundle.check()
    protein, nucleotide, classifier = (
        bundle.shapes.protein,
        bundle.shapes.nucleotide,
        bundle.shapes.classifier,
    )
    facts = {
        "name": bundle.name,
        "directory": bundle.directory,
        "fingerprint": bundle.fingerprint,
        "fragments": f"{bundle.length} bp",
        "protein": f"ESM-2, {protein.layers} layers of {protein.width}",
        "nucleotide": f"DNABERT-S, {nucleotide.layers} layers of {nucleotide.width}",
        "classifier": f"{classifier.inputs} -> {classifier.hidden} -> 2",
        "licence": bundle.licence or "not stated",
        "reference": reference_of(bundle).source if REFERENCE in bundle.checksums else "none",
        "calibration": _told_calibration(bundle),
        **{f"origin of {part}": place for part, place in bundle.origin.items()},
        **{name: f"sha256 {checksum}, checked" for name, checksum in bundle.checksums.items()},
    }
    for name, fact in facts.items():
        print(f"{name:24}{fact}")
    if bundle.notice:
        print(bundle.notice)
    return DONE


def _told_calibration(bundle: "Bundle") -> str:
    found = bundle.calibration
    if found is None:
        return "none"
    threshold = f"mean_p_virus from {found.threshold:.6g} on is a false positive rate of {found.fpr:g}"
    return f"{found.method} ({found.fingerprint}); {threshold}"


def _import_model(options: Namespace) -> int:
    from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle

    if options.length < 1:
        raise UsageError(f"--length is a number of bases, 300 or 500 as published, not {options.length}")
    parts = CheckpointPaths(options.protein, options.nucleotide, options.classifier)
    reference = _reference_for_import(options.reference, parts)
    try:
        bundle = import_bundle(parts, options.output, options.name, options.length, reference)
    except OSError as error:
        raise CannotWrite(str(options.output), error.strerror or str(error)) from error
    if options.reference == "record":
        bundle = _recorded(bundle)
    print(f"{bundle.name} is in {bundle.directory}. Use it with --model {bundle.directory}")
    return DONE


def _download_models(options: Namespace) -> int:
    from virnuc_async.models.bundle import cache_directory
    from virnuc_async.models.published import Mirrors, download

    if bool(options.names) == bool(options.protein):
        raise UsageError("name models to download, or a --protein")
    if options.to and len(options.names) > 1:
        raise UsageError("--to takes one model")
    mirror = options.mirror or os.environ.get("VIRNUC_ASYNC_MIRROR", "")
    targets = _targets(options, Mirrors(os.environ.get("HF_ENDPOINT", ""), mirror))
    try:
        with _watching(options.quiet) as watch, _telling(options.quiet) as tell:
            download(targets, cache_directory(_cache(options)).parent, watch, tell)
    except OSError as error:
        raise CannotWrite(str(error.filename or next(iter(targets))), error.strerror or str(error)) from error
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where it was.", file=sys.stderr)
        return 128 + SIGINT
    for target, wanted in targets.items():
        print(f"{wanted.name} is in {target}. {_how_to_use(options, target)}")
    return DONE


def _targets(options: Namespace, places: "Mirrors") -> "dict[Path, ModelFiles]":
    """Say where what is to lie."""
    from virnuc_async.models.bundle import cache_directory
    from virnuc_async.models.published import MODELS, published_encoders

    if options.protein:
        target = options.to or cache_directory(_cache(options)).with_name("encoders") / options.protein
        return {target: published_encoders(options.protein, places)}
    if unknown := [name for name in options.names if name not in MODELS]:
        raise UsageError(f"no published model is called {unknown[0]!r}: there are {', '.join(MODELS)}")
    return {
        options.to or cache_directory(_cache(options)) / name: MODELS[name](places) for name in options.names
    }


def _how_to_use(options: Namespace, target: Path) -> str:
    if options.protein:
        files = f"--protein {target / options.protein}.pt --nucleotide {target / 'DNABERT-S'}"
        return f"For models import: {files}"
    model = target if options.to else target.name
    return f"Use it with --model {model}; see that it is right with: models verify {model}"


@contextmanager
def _watching(quiet: bool) -> "Iterator[ProgressCallback]":
    """Show how far downloads are on standard error: bars on a terminal, lines elsewhere."""
    from rich.console import Console

    from .progress_bars import TransferBars, TransferLines

    console = Console(stderr=True)
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        with TransferBars(console) as bars:
            yield bars
    else:
        yield TransferLines(sys.stderr)


def _reference_for_import(wanted: str, parts: "CheckpointPaths") -> "Reference | None":
    from virnuc_async.models.published import reference_for
    from virnuc_async.models.reference import read_reference

    if wanted == "published":
        return reference_for(parts.classifier)
    return None if wanted in ("record", "none") else read_reference(Path(wanted))


def _verify_model(options: Namespace) -> int:
    _show_only(options.gpus)
    import anyio

    from virnuc_async.engine.devices import choose
    from virnuc_async.engine.verification import precisions_of, verify
    from virnuc_async.models.bundle import find
    from virnuc_async.models.reference import reference_of

    bundle = find(options.name, _cache(options))
    wanted, found = Precision(options.precision), []
    with _telling(options.quiet) as tell:
        tell(f"{bundle.name}: checking its files")
        bundle.check()
        if options.record:
            tell(f"{bundle.name}: computing its reference on a CPU in FP32")
            bundle = _recorded(bundle)
        reference = reference_of(bundle)
        tell(f"{bundle.name}: {len(reference)} ORFs, compared with {reference.source}")
        for device in choose(Settings(devices=options.devices, gpus=options.gpus)):
            for precision in precisions_of(device, wanted):
                tell(f"{device.name} in {precision.upper()}")
                found.append(anyio.run(verify, bundle, reference, device, precision))
    if not options.quiet:
        _print_table([_VERIFY_HEAD, *map(_verify_row, found)])
    for finding in found:
        if not finding.is_right:
            print(f"{PROGRAM}: {bundle.name} {_what_is_wrong(finding)}", file=sys.stderr)
    return DONE if all(finding.is_right for finding in found) else FAILED


def _recorded(bundle: "Bundle") -> "Bundle":
    """Give *bundle* with a reference of what it gives here."""
    import anyio

    from virnuc_async.engine.verification import record

    try:
        return anyio.run(record, bundle)
    except OSError as error:
        raise CannotWrite(str(bundle.directory), error.strerror or str(error)) from error


_VERIFY_HEAD = ("device", "precision", "scores", "embeddings", "cosine", "length", "labels", "result")


def _what_is_wrong(finding: "VerificationResult") -> str:
    where = f"on {finding.device.name} in {finding.precision.upper()}"
    if finding.failure:
        return f"could not be verified {where}: {finding.failure}"
    return (
        f"does not give what it should {where}. Its files are what they were when it was made: suspect the "
        "device, its driver or torch's build, and where all devices are wrong, the model"
    )


@contextmanager
def _telling(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Give a function that says what is being done; said again while it is being done."""
    doing, since, done = "", time.monotonic(), threading.Event()

    def tell(text: str) -> None:
        nonlocal doing, since
        doing, since = text, time.monotonic()
        if text and not quiet:
            print(text, file=sys.stderr, flush=True)

    def go_on() -> None:
        while not done.wait(_AGAIN_SECONDS):
            if not doing:
                continue
            print(f"{doing} ({time.monotonic() - since:.0f} s)", file=sys.stderr, flush=True)

    thread = threading.Thread(target=go_on, daemon=True)
    if not quiet:
        thread.start()
    try:
        yield tell
    finally:
        done.set()
        if not quiet:
            thread.join()


def _verify_row(finding: "VerificationResult") -> tuple[str, ...]:
    is_cpu = finding.device.capability is None
    name = finding.device.name
    who = (f"{name} ({finding.device.model})" if not is_cpu else name, finding.precision.upper())
    found, most = finding.deviation, finding.tolerance
    if found is None:
        return (*who, "-", "-", "-", "-", "-", f"failed: {finding.failure}")
    return (
        *who,
        "-" if found.score is None else f"{found.score:.1e} ({most.score:.0e})",
        f"{found.distance:.1e} ({most.distance:.0e})",
        f"{found.cosine:.7f} ({most.cosine:.7g})",
        f"{found.length:.1e} ({most.length:.0e})",
        f"{found.labels} of {found.of}" if found.of else "-",
        "right" if finding.is_right else "WRONG",
    )
