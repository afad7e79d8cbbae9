"""Groups of options that several commands have, and the settings that they make."""

from argparse import SUPPRESS, Namespace
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnuc_async.errors import UsageError
from virnuc_async.learning.options import EvaluationOptions
from virnuc_async.settings import (
    CallRules,
    Compile,
    Format,
    Layout,
    Pairing,
    Precision,
    RegionRules,
    Settings,
    VerdictBy,
    ViralFasta,
)

from .environment import cache_from, temporary_dir
from .parser import fraction, names, numbers, path, path_text, token_count

if TYPE_CHECKING:
    from virnuc_async.learning.dataset import LabelledFiles


def add_verbosity_options(parser: Any) -> None:
    """Add --verbose and --quiet."""
    verbosity = parser.add_mutually_exclusive_group()
    verbosity.add_argument("--verbose", action="store_true", help="print more, such as a line for each batch")
    verbosity.add_argument("--quiet", action="store_true", help="print only warnings and errors")


def add_model_choice(group: Any) -> None:
    """Add --model and --cache-dir."""
    group.add_argument(
        "--model",
        type=path_text,
        default="tiny-500",
        metavar="NAME|DIR",
        help="the model to use; 'models list' shows the installed ones (default: tiny-500)",
    )
    add_cache_option(group)


def add_model_options(group: Any) -> None:
    """Add --model, --cache-dir and --threshold."""
    add_model_choice(group)
    add_threshold_option(group)


_CALL_RULES, _REGION_RULES = CallRules(), RegionRules()
_AS_BEFORE = "as before"  # the default of an option of tables that are made again


def add_threshold_option(group: Any, default: float | None = 0.5) -> None:
    """Add --threshold."""
    group.add_argument(
        "--threshold",
        type=fraction,
        default=default,
        metavar="FRACTION",
        help="a contig is viral if at least this fraction of its fragments is "
        f"(default: {default or _AS_BEFORE})",
    )


def add_pairs_option(group: Any, default: Pairing | None = Pairing.AUTO) -> None:
    """Add --pairs."""
    group.add_argument(
        "--pairs",
        choices=[pairing.value for pairing in Pairing],
        default=default,
        help="how reads are paired; each pair gets one verdict in pairs.tsv. auto: files whose names differ "
        "only in R1 and R2 (or 1 and 2), if all read ids match; interleaved: consecutive records "
        f"(default: {default or _AS_BEFORE})",
    )


def add_table_options(group: Any, is_again: bool = False) -> None:
    """Add what decides which records are in the tables, and in which files; if *is_again*, as before."""
    group.add_argument(
        "--min-length",
        type=int,
        default=None if is_again else 0,
        metavar="N",
        help="leave records of fewer bases out of every table; they are scored all the same "
        f"(default: {_AS_BEFORE if is_again else 0})",
    )
    group.add_argument(
        "--format",
        dest="formats",
        default=None if is_again else Format.TSV,
        metavar="LIST",
        help="formats of the tables: tsv, parquet, jsonl, or several of them, separated by commas. Parquet "
        f"needs: pip install 'virnuc-async[parquet]' (default: {_AS_BEFORE if is_again else 'tsv'})",
    )
    group.add_argument(
        "--layout",
        choices=[layout.value for layout in Layout],
        help="also write the published tables, the one of fragments with their highest scores, into "
        "OUT_DIR/{name}_merged for each input, as VirNucPro does; once written they stay",
    )


def add_verdict_options(group: Any, default: str = "fraction, with --fpr log_odds") -> None:
    """Add --verdict-by, whose help says that its default is *default*, and --fpr."""
    group.add_argument(
        "--verdict-by",
        choices=[score.value for score in VerdictBy],
        help="the score of a contig that --threshold is of: the fraction of viral fragments, their mean "
        f"P(virus), or the probability that their added log odds are (default: {default})",
    )
    group.add_argument(
        "--fpr",
        type=fraction,
        metavar="FRACTION",
        help="instead of --threshold: the threshold that the model's calibration has for this false positive "
        "rate, of log_odds or of the mean",
    )


def add_installed_model(parser: Any) -> None:
    """Add the name of a model, and --cache-dir."""
    what = "an installed model, or the directory of one"
    parser.add_argument("name", type=path_text, metavar="NAME|DIR", help=what)
    add_cache_option(parser)


def add_cache_option(group: Any) -> None:
    """Add --cache-dir."""
    group.add_argument(
        "--cache-dir",
        type=path,
        metavar="DIR",
        help="where models are stored (default: $VIRNUC_ASYNC_CACHE_DIR, else ~/.cache/virnuc-async)",
    )


def add_device_options(group: Any) -> None:
    """Add which devices to use, and how."""
    add_device_choice(group)
    group.add_argument(
        "--compile",
        choices=[choice.value for choice in Compile],
        help=SUPPRESS,  # an option of earlier versions, without effect
    )
    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of the CPU, which its replicas share (default: as many as this process may use, by its "
        "affinity and the limits of its container)",
    )
    add_tokens_option(group)


def add_tokens_option(group: Any) -> None:
    """Add --tokens-per-batch."""
    group.add_argument(
        "--tokens-per-batch",
        "--esm-batch-size",
        type=token_count,
        default=None,
        metavar="N|auto",
        help="maximum number of residue tokens per batch; --esm-batch-size is the older name of this option "
        "(default: auto, by the memory of the devices)",
    )


def add_device_choice(
    group: Any, auto: str = "auto: BF16 or FP16, as the GPUs support it, else FP32 (default: auto)"
) -> None:
    """Add --gpus, --devices and --precision, whose help is *auto*."""
    group.add_argument(
        "--gpus",
        type=numbers("GPU numbers", "0,2"),
        default=(),
        metavar="0,2",
        help="GPUs by the numbers that nvidia-smi shows",
    )
    group.add_argument(
        "--devices",
        type=names,
        default=(),
        metavar="LIST",
        help="cuda:0,cuda:1 or cuda (every GPU) or cpu or cpu,cpu; 'devices' shows them (default: every GPU, "
        "else one CPU)",
    )
    group.add_argument(
        "--precision",
        choices=[precision.value for precision in Precision],
        default=Precision.AUTO.value,
        help=auto,
    )


def add_data_options(group: Any, output: str, kind: Callable[[str], Path] = path) -> None:
    """Add the labelled sequences and the output directory, of this *kind* and with the help *output*."""
    files = {"nargs": "+", "action": "extend", "type": path_text, "required": True, "metavar": "FILE"}
    group.add_argument("--viral", help="viral sequences: files or directories", **files)
    group.add_argument("--nonviral", help="non-viral sequences: files or directories", **files)
    add_listing_options(group)
    group.add_argument(
        "--clusters",
        type=path,
        metavar="TSV",
        help="table of clusters: records of one cluster are never separated by a split",
    )
    group.add_argument(
        "--groups",
        type=path,
        metavar="TSV",
        help="table of groups, which are balanced and reported separately",
    )
    group.add_argument("--output", type=kind, required=True, metavar="DIR", help=output)
    group.add_argument(
        "--overwrite", action="store_true", help="discard existing scores of a different run and start over"
    )


def add_listing_options(group: Any) -> None:
    """Add --recursive and --allow-duplicates."""
    group.add_argument(
        "--recursive", action="store_true", help="also read the directories in directories, and so on"
    )
    group.add_argument(
        "--allow-duplicates",
        action="store_true",
        help="read a file as often as it is named; without it, once, with a warning",
    )


def label_files_from(options: Namespace) -> "LabelledFiles":
    """Return the labelled sequences that *options* name."""
    from virnuc_async.learning.dataset import label_files

    return label_files(
        options.viral,
        options.nonviral,
        options.clusters,
        options.groups,
        recursive=options.recursive,
        allow_duplicates=options.allow_duplicates,
    )


def add_resamples_option(parser: Any) -> None:
    """Add --resamples."""
    add_field(parser, EvaluationOptions(), "resamples", int, "resamples of the clusters for the intervals")


def add_field(
    group: Any, defaults: object, name: str, kind: Callable[[str], Any], what: str, prefix: str = ""
) -> None:
    """Add an option, with *prefix* before it, for the field *name* of *defaults*; None: as before."""
    default = getattr(defaults, name, None)
    group.add_argument(
        f"--{(prefix + name).replace('_', '-')}",
        type=kind,
        default=default,
        metavar="N" if kind is int else "X",
        help=f"{what} (default: {_AS_BEFORE if default is None else default})",
    )


def add_call_rules(group: Any, defaults: CallRules | None = _CALL_RULES) -> None:
    """Add an option for each of the rules of contig_calls.tsv; by default as before if *defaults* is None."""
    rules = (
        ("call_threshold", float, "a weighted delta beyond this, in either direction, is a call"),
        ("high_threshold", float, "and beyond this of high confidence, if fragments confirm it"),
        ("confident_score", float, "a fragment is confident above this score of a class"),
        ("confident_other_score", float, "and below this score of the other class"),
        ("ambiguous_score", float, "a fragment is ambiguous above this score of both classes"),
        ("min_confident", int, "confident fragments that confirm a call"),
        ("min_proportion", float, "of the fragments that are not ambiguous, these must be at least"),
        ("min_fragments", int, "with fewer fragments a call is one tier lower"),
    )
    for name, kind, what in rules:
        add_field(group, defaults, name, kind, what)
    group.add_argument(
        "--id-pattern",
        metavar="REGEX",
        help="contigs whose ids have the same match, or first group, are called as one "
        f"(default: {_AS_BEFORE if defaults is None else 'each id by itself'})",
    )


def add_viral_options(group: Any) -> None:
    """Add where the viral sequences are written, and how."""
    group.add_argument(
        "--viral-fasta",
        nargs="?",
        type=path_text,
        const=True,  # beside the tables
        metavar="FILE",
        help="also write the viral records as they are in the inputs, which are read again. FASTQ stays "
        "FASTQ, mates of viral pairs go to files of their own, and FILE is compressed by its name: .gz, "
        ".zst, .bz2, .xz (default: viral.fasta or viral.fastq beside the tables)",
    )
    group.add_argument(
        "--original-headers",
        action="store_true",
        help="with --viral-fasta: leave the headers as they are, without scores",
    )


def viral_fasta_from(options: Namespace) -> ViralFasta | None:
    """Return where the viral sequences are to be written, if *options* ask for them."""
    if options.viral_fasta is None:
        if options.original_headers:
            raise UsageError("--original-headers is for viral sequences: add --viral-fasta")
        return None
    return ViralFasta(None if options.viral_fasta is True else options.viral_fasta, options.original_headers)


OF_REGIONS = "region_"  # begins the names of their options, of which others mean something else


def add_region_rules(group: Any, defaults: RegionRules | None = _REGION_RULES) -> None:
    """Add an option for each rule of regions.bed and regions.gff3; as before if *defaults* is None."""
    rules = (
        ("open_score", float, "a region begins where the smoothed score of fragments reaches this"),
        ("close_score", float, "and extends until it falls below this"),
        ("smoothing", int, "bases around each fragment over which scores are averaged"),
        ("gap", int, "regions with at most so many bases between them are one"),
        ("min_length", int, "bases of a region, at least"),
        ("min_contig", int, "bases of a contig that is looked at, at least"),
        ("whole_fraction", float, "a region of this fraction of its contig is a viral contig as a whole"),
    )
    for name, kind, what in rules:
        add_field(group, defaults, name, kind, what, prefix=OF_REGIONS)


def region_rules_from(options: Namespace) -> RegionRules:
    """Return the rules of regions that *options* name."""
    return RegionRules(**given_rules(RegionRules, options, OF_REGIONS))


def given_rules(kind: type, options: Namespace, prefix: str = "") -> dict[str, Any]:
    """Return those fields of the dataclass *kind* for which *options*, with *prefix*, have a value."""
    names = (field.name for field in fields(kind))
    return {name: value for name in names if (value := getattr(options, prefix + name, None)) is not None}


def settings_from(options: Namespace, **others: Any) -> Settings:
    """Return the settings of a run that *options* name."""
    return Settings(
        model=options.model,
        cache_dir=cache_from(options),
        devices=options.devices,
        gpus=options.gpus,
        precision=Precision(options.precision),
        compile=options.compile,
        tokens_per_batch=options.tokens_per_batch,
        threads=options.threads,
        threshold=options.threshold,
        overwrite=options.overwrite,
        temporary_dir=temporary_dir(),
        **others,
    )


def fields_from(kind: Callable[..., Any], options: Namespace, **others: Any) -> Any:
    """Return an object of *kind*, a dataclass, with the options that have the names of its fields."""
    defaults = kind()
    shared = [name for name in defaults.__dataclass_fields__ if name in vars(options)]
    # Words of the command line become members of the enum that the default is of.
    kinds = {name: type(default) for name in shared if (default := getattr(defaults, name)) is not None}
    values = {name: kinds.get(name, _as_it_is)(getattr(options, name)) for name in shared}
    return kind(**values | others)


def _as_it_is(value: Any) -> Any:
    return value
