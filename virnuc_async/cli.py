"""
Arguments in, exit code out: the only module that prints, reads the environment, or exits.

Everything heavy is imported by the command that needs it, so that ``--help`` answers at once.
"""

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM, getsignal, signal
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .failures import BadBundle, CannotWrite, UnreadableInput, UsageError, VirnucError, harmless
from .settings import (
    Balance,
    Compile,
    Leaks,
    Measuring,
    Optimizer,
    Precision,
    Recipe,
    Settings,
    Split,
)

if TYPE_CHECKING:
    from loguru import Record

    from .bundles import Bundle
    from .results import Summary

PROGRAM = "virnucpro-async"
DONE, FAILED, INCOMPLETE = 0, 1, 2
_INTERRUPTED = "Interrupted. The same command resumes this run."
_LARGEST_LIST = 1 << 28  # bytes: millions of names

_EXAMPLES = """\
examples:
  python -m virnucpro_async predict contigs.fa out/
  python -m virnucpro_async predict sample1.fq.gz sample2.fa.zst reads/ out/
  zcat reads.fq.gz | python -m virnucpro_async predict - out/
  python -m virnucpro_async predict contigs.fa out/ --model /data/virnucpro-500 --gpus 0,1
  python -m virnucpro_async train --viral viruses.fa --nonviral others.fa --output my-model/
  python -m virnucpro_async evaluate --viral viruses.fa --nonviral others.fa --output figures/
  python -m virnucpro_async models list

The same command resumes a run that was interrupted.
"""
_PREDICT_EXAMPLES = """\
examples:
  python -m virnucpro_async predict contigs.fa out/
  python -m virnucpro_async predict reads_1.fq.gz reads_2.fq.gz out/ --threshold 0.8
  python -m virnucpro_async predict --input-list samples.txt --output-dir out/ --quiet
  zcat reads.fq.gz | python -m virnucpro_async predict - out/ --devices cpu,cpu
  python -m virnucpro_async predict contigs.fa out/ --reuse-features old_run/ --model virnucpro-500

inputs are FASTA or FASTQ files, plain or compressed (gz, bz2, xz, zst), directories of them, or -
for standard input; the last name is the output directory.

exit codes: 0 done; 1 failed; 2 done, but see failed_files.txt; 64 wrong usage; 130 and 143
interrupted, the same command resumes.
"""
_TRAIN_EXAMPLES = """\
examples:
  python -m virnucpro_async train --viral viruses.fa --nonviral bacteria.fa human.fa --output my-model/
  python -m virnucpro_async train --viral v/ --nonviral n/ --clusters clusters.tsv --balance group \\
      --model virnucpro-500 --output my-model/ --optimizer adamw --rate 0.001
  python -m virnucpro_async predict contigs.fa out/ --model my-model/

clusters and groups are tables of two columns: a record or its genome, a tab, what it belongs to.
Without them, genome= and group= in the headers say so. docs/training.md says what a split must keep
apart, and what the figures mean. The same command resumes.
"""
_EVALUATE_EXAMPLES = """\
examples:
  python -m virnucpro_async evaluate --viral viruses.fa --nonviral others.fa --output figures/
  python -m virnucpro_async evaluate --viral viruses.fa --nonviral others.fa --output figures/ \\
      --model my-model/ --clusters clusters.tsv --groups groups.tsv --lengths 150,500 --stretches 3

figures/evaluation.html is for people, figures/evaluation.json for programs. docs/training.md says what
each figure means. The same command resumes.
"""
_CALIBRATE_EXAMPLES = """\
examples:
  python -m virnucpro_async calibrate --viral viruses.fa --nonviral others.fa --output scores/ \\
      --model my-model/ --fpr 0.01

Scores and verdicts stay as they are: contigs.tsv has a column more, p_virus_calibrated. The sequences
must be new to the model. The same command resumes.
"""
_MODELS_EXAMPLES = """\
examples:
  python -m virnucpro_async models list
  python -m virnucpro_async models info tiny-500
  python -m virnucpro_async models import --protein esm2_t36_3B_UR50D.pt --nucleotide DNABERT-S/ \\
      --classifier 500_model.pth --length 500 --name virnucpro-500 --output virnucpro-500/

docs/models.md says where the published files are.
"""
_DEVICES_EXAMPLES = """\
examples:
  python -m virnucpro_async devices
  python -m virnucpro_async predict contigs.fa out/ --devices cuda:0,cuda:1
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
        print(f"{PROGRAM}: {harmless(str(failure))}", file=sys.stderr)
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


def _add_device_options(group: Any) -> None:
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
        help="auto: BF16 where the GPUs have it, else FP32 (default: auto)",
    )
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
        default=Measuring().lengths,
        metavar="BP,BP",
        help="measure stretches of these lengths, cut from the records, too (default: 150,300,500,1000)",
    )
    _add_setting(evaluate, Measuring(), "stretches", int, "of each length from each record")
    _add_setting(evaluate, Measuring(), "seed", int, "of stretches and intervals")
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
    _add_setting(parser, Measuring(), "resamples", int, "of the clusters, for the intervals")


def _add_split_options(group: Any) -> None:
    _add_setting(group, Split(), "validation", _share, "share that says when to stop")
    _add_setting(group, Split(), "test", _share, "share that the figures are of")
    group.add_argument(
        "--leaks",
        choices=[choice.value for choice in Leaks],
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
    models = _add(commands, "models", "list, describe or import models", _MODELS_EXAMPLES)
    actions = models.add_subparsers(metavar="ACTION", required=True)
    listing = _add(actions, "list", "list the models of this machine", _MODELS_EXAMPLES)
    listing.set_defaults(command=_list_models)
    info = _add(actions, "info", "describe one model and check its files", _MODELS_EXAMPLES)
    info.add_argument("name", metavar="NAME|DIR")
    info.set_defaults(command=_model_info)
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
    take.set_defaults(command=_import_model)


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
        reuse_features=options.reuse_features,
        repair=options.repair,
    )
    _set_environment(options)
    with _console(options):
        summary = _run(inputs, out_dir, settings)
    return INCOMPLETE if summary.counts["failures"] else DONE


def _train(options: Namespace) -> int:
    recipe, split = _filled(Recipe, options), _filled(Split, options, by_fragment=options.split_by_fragment)
    measuring, settings = _filled(Measuring, options, lengths=()), _settings(options)
    _set_environment(options)
    from .evaluation import figure_rows, group_rows
    from .labels import labelled
    from .training import Task, train

    output: Path = options.output
    task = Task(
        data=labelled(options.viral, options.nonviral, options.clusters, options.groups),
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
    measuring, settings = _filled(Measuring, options), _settings(options)
    _set_environment(options)
    from .evaluation import evaluate, figure_rows, group_rows
    from .labels import labelled

    data = labelled(options.viral, options.nonviral, options.clusters, options.groups)
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
    from .calibration import Method
    from .evaluation import calibrate
    from .labels import labelled

    data = labelled(options.viral, options.nonviral, options.clusters, options.groups)
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
    enums = {"optimizer": Optimizer, "balance": Balance, "leaks": Leaks}
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
    if options.gpus:
        # Before torch looks: no context is made on a GPU that was not named, and what an outer
        # script left in CUDA_VISIBLE_DEVICES does not hide one that was.
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, options.gpus))


def _run(inputs: Sequence[str], out_dir: str | Path, settings: Settings) -> "Summary":
    """Run the pipeline; raises _Interrupted when a signal ends it."""
    import anyio

    before = getsignal(SIGTERM)
    try:
        return anyio.run(_run_until_signalled, inputs, out_dir, settings)
    finally:
        signal(SIGTERM, before)  # asyncio leaves the system's own


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

    from .pipeline import run_pipeline

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

    from .progress import Bars, Lines, logger

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
    from .devices import available, choose, decide_budget, decide_precision

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
        print(harmless("  ".join(map(str.ljust, row, widths)).rstrip()))


def _list_models(options: Namespace) -> int:
    from .bundles import DEFAULT, HOW_TO_GET, PUBLISHED, find, known

    rows = [("model", "fragments", "directory")]
    installed = list(known())
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
    from .bundles import find

    bundle = find(options.name)
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
    from .upstream import Parts, import_bundle

    if options.length < 1:
        raise UsageError(f"--length is a number of bases, 300 or 500 as published, not {options.length}")
    parts = Parts(options.protein, options.nucleotide, options.classifier)
    try:
        bundle = import_bundle(parts, options.output, options.name, options.length)
    except OSError as error:
        raise CannotWrite(str(options.output), error.strerror or str(error)) from error
    print(f"{bundle.name} is in {bundle.directory}. Use it with --model {bundle.directory}")
    return DONE
