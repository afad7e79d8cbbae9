"""
Options of the command lines that VirNucPro and programs around it have, for whoever changes one word of them.

What has a meaning here has it. What has none is accepted, and all such options of a command are named in one
line, with reasons.
"""

import os
from argparse import SUPPRESS, Action, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from virnuc_async.errors import UnreadableInput, UsageError
from virnuc_async.settings import Settings

from .environment import cache_from
from .parser import PROGRAM, path_text

LENGTHS = (500, 300)  # of the published models; the first one is the default of those programs

_CUSTOM = "custom"
_DESCRIPTION = """\
-m, -p, -e, -o, -d, -b, -t, --resume, --force and all others of VirNucPro's predict are taken too:
docs/how-to/from-virnucpro.md says what they do here. With one of them, the output directory of a
single input need not be named: it is then {name}_predictions."""


class _WithoutEffect(NamedTuple):
    """Options with one reason to have no effect; the names of one option stand in one text."""

    reason: str
    flags: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()  # the options that have one
    paths: tuple[str, ...] = ()  # the options that have one


_PARALLEL = _WithoutEffect("all devices of a run work at once", ("--parallel",))
_PERSISTENT = _WithoutEffect(
    "the model is loaded once and stays loaded", ("--persistent-models", "--no-persistent-models")
)
_BATCHES = _WithoutEffect(
    "both encoders and the classifier take the same batch, of --esm-batch-size tokens",
    numbers=("--batch-size -b", "--dnabert-batch-size"),
)
_ONE_WAY = _WithoutEffect(
    "there is one way to compute, with the scores of the published program",
    ("--v1-fallback", "--v1-attention"),
)
_INSTALLATION = _WithoutEffect(
    "the model is an installed one, or that of --model", paths=("--virnucpro-path",)
)
_WORKERS = _WithoutEffect(
    "one process reads ahead and feeds all devices",
    ("--pin-memory",),
    ("--num-workers -w", "--dataloader-workers"),
)
_MEMORY = _WithoutEffect(
    "each device decides by its memory",
    ("--expandable-segments", "--cuda-streams", "--no-cuda-streams"),
    ("--cache-clear-interval",),
)
_INTERMEDIATE = _WithoutEffect(
    "there are no intermediate files; --embeddings writes the features", ("--keep-intermediate -k",)
)
_CHECKPOINTS = _WithoutEffect(
    "all that is resumed is checked; --repair recovers a damaged run",
    ("--skip-checkpoint-validation", "--force-resume"),
)
_RESUMED = "the same command resumes in any case"

CONTAINER = (_PARALLEL, _PERSISTENT, _BATCHES, _ONE_WAY, _INSTALLATION)
_PREDICT = (*CONTAINER[:-1], _WORKERS, _MEMORY, _INTERMEDIATE, _CHECKPOINTS)


def add_options_without_effect(group: Any, kinds: Iterable[_WithoutEffect] = CONTAINER) -> None:
    """Add the options of *kinds* to *group*; they are not in its help."""
    for kind in kinds:
        note = {"action": _Note, "const": kind.reason, "dest": "without_effect", "default": {}}
        values = ((kind.flags, {"nargs": 0}), (kind.numbers, {"type": int}), (kind.paths, {"type": str}))
        for options, value in values:
            for names in options:
                group.add_argument(*names.split(), help=SUPPRESS, **note, **value)


def describe_without_effect(options: Namespace) -> str:
    """Return a line on the options of a command that have no effect, "" if it has none of them."""
    parts = [f"{', '.join(names)} ({reason})" for reason, names in options.without_effect.items()]
    return f"without effect here: {'; '.join(parts)}" if parts else ""


def add_earlier_options(parser: Any) -> None:
    """Add the options of VirNucPro's predict to *parser*, which has those with our own names already."""
    group = parser.add_argument_group("options of VirNucPro", _DESCRIPTION)
    for names, keywords in (
        (("-m", "--model-type"), {"choices": [*map(str, LENGTHS), _CUSTOM]}),
        (("-p", "--model-path"), {"type": path_text}),
        (("-e", "--expected-length"), {"type": int}),
        (("-d", "--device"), {"type": str.strip}),
        (("-t", "--merge-threads"), {"type": int}),
        (("--resume",), {"action": "store_true"}),
        (("--force", "-f"), {"action": "store_true"}),
        (("--no-progress",), {"action": "store_true"}),
    ):
        group.add_argument(*names, help=SUPPRESS, **keywords)
    add_options_without_effect(group, _PREDICT)
    parser.set_defaults(model=None)  # or it could not be told from one that was named


def apply_earlier_options(options: Namespace) -> None:
    """
    Set those of our own *options* that the earlier ones stand for.

    Raises:
        UsageError: they contradict each other or the model
        UnreadableInput: the file of a model cannot be read
        UnknownBundle, BadBundle: the model whose length is named
    """
    if options.output_dir is None and _has_earlier(options):
        options.output_dir = _default_output(options)
    options.model = _model(options)
    options.devices = _devices(options)
    if options.merge_threads is not None:
        options.threads = options.merge_threads
    if options.force:
        options.overwrite = not options.resume
    elif options.resume:
        options.without_effect = options.without_effect | {_RESUMED: ("--resume",)}
    cache = cache_from(options)
    if options.model_type not in (None, _CUSTOM):
        require_length(options.model, cache, int(options.model_type), "-m")
    require_length(options.model, cache, options.expected_length, "-e")


def require_length(model: str, cache: Path | None, length: int | None, option: str) -> None:
    """
    Check that a model is for fragments of the *length* that *option* names, if any; nothing is loaded.

    Raises:
        UsageError: it is for another length
        UnknownBundle, BadBundle: the model
    """
    if length is None:
        return
    from virnuc_async.models.bundle import find

    found = find(model, cache).length
    if length != found:
        raise UsageError(f"{option} is {length}, but the model {model!r} is for fragments of {found} bases")


def _has_earlier(options: Namespace) -> bool:
    """Return whether an option was given that only the earlier command line has."""
    valued = (options.model_type, options.model_path, options.expected_length, options.device)
    flags = (options.resume, options.force, options.no_progress, options.without_effect)
    return any(value is not None for value in (*valued, options.merge_threads)) or any(flags)


def _default_output(options: Namespace) -> str | None:
    """Return the output directory of a command that names one file and nothing else, else None."""
    if options.input or options.input_list or len(options.names) != 1:
        return None
    (name,) = options.names
    if not os.path.isfile(name):  # it may be an output directory, whose input was forgotten
        return None
    from virnuc_async.sequences.inputs import stem

    return f"{stem(name)}_predictions"


def _model(options: Namespace) -> str:
    if options.model and options.model_path:
        raise UsageError("choose --model or -p, not both: each is a model")
    if options.model_type == _CUSTOM and not (options.model or options.model_path):
        raise UsageError("-m custom needs a model: -p DIR, or --model NAME")
    if options.model_path:
        return _model_at(options.model_path)
    published = f"virnucpro-{options.model_type}" if options.model_type else str(Settings().model)
    return options.model or published


def _model_at(path: str) -> str:
    """Return the model that is in the directory *path*, or of which the published classifier *path* is."""
    if not os.path.isfile(path):
        return path
    from virnuc_async.downloads.source import git_blob
    from virnuc_async.models.bundle import CLASSIFIERS

    try:
        found = git_blob(Path(path))
    except OSError as error:
        raise UnreadableInput(path, error.strerror or str(error)) from error
    for length, published in CLASSIFIERS.items():
        if found == published:
            return f"virnucpro-{length}"
    raise UsageError(
        f"-p {path} is not a published classifier. Import it once, and give -p the directory of the model:\n"
        f"{PROGRAM} models import --classifier {path} --protein ESM2.pt --nucleotide DNABERT_S_DIR --length "
        "500 --name NAME --output DIR"
    )


def _devices(options: Namespace) -> tuple[str, ...]:
    name = options.device
    if name is None:
        return tuple(options.devices)
    if options.devices:
        raise UsageError("choose --devices or -d, not both")
    if name == "auto" or (name == "cuda" and options.gpus):
        return ()
    return (f"cuda:{name}" if name.isdecimal() else name,)


class _Note(Action):
    """Notes that an option was given, by its reason to have no effect."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: str | Sequence[Any] | None, option: str | None = None
    ) -> None:
        noted = getattr(namespace, self.dest)
        names = dict.fromkeys((*noted.get(self.const, ()), option))
        setattr(namespace, self.dest, noted | {self.const: tuple(names)})
