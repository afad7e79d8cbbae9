"""
Options of the command lines that VirNucPro and programs around it have, for whoever changes one word of them.

What has no meaning here is accepted, and all such options of a command are named in one line, with reasons.
"""

from argparse import SUPPRESS, Action, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from virnuc_async.errors import UsageError


class _WithoutEffect(NamedTuple):
    """Options with one reason to have no effect."""

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
    numbers=("--batch-size", "--dnabert-batch-size"),
)
_ONE_WAY = _WithoutEffect(
    "there is one way to compute, with the scores of the published program",
    ("--v1-fallback", "--v1-attention"),
)
_INSTALLATION = _WithoutEffect(
    "the model is an installed one, or that of --model", paths=("--virnucpro-path",)
)
CONTAINER = (_PARALLEL, _PERSISTENT, _BATCHES, _ONE_WAY, _INSTALLATION)


def add_options_without_effect(group: Any, kinds: Iterable[_WithoutEffect]) -> None:
    """Add the options of *kinds* to *group*; they are not in its help."""
    for kind in kinds:
        note = {"action": _Note, "const": kind.reason, "dest": "without_effect", "default": {}}
        values = ((kind.flags, {"nargs": 0}), (kind.numbers, {"type": int}), (kind.paths, {"type": str}))
        for names, value in values:
            for name in names:
                group.add_argument(name, help=SUPPRESS, **note, **value)


def describe_without_effect(options: Namespace) -> str:
    """Return a line on the options of a command that have no effect, "" if it has none of them."""
    parts = [f"{', '.join(names)} ({reason})" for reason, names in options.without_effect.items()]
    return f"without effect here: {'; '.join(parts)}" if parts else ""


def require_length(model: str, cache: Path | None, length: int | None, option: str) -> None:
    """
    Check that a model is for fragments of the *length* that *option* names, if any; nothing is loaded.

    Raises:
        UsageError: it is for another length
        UnknownBundle, BadBundle: the model
    """
    from virnuc_async.models.bundle import find

    found = find(model, cache).length
    if length not in (None, found):
        raise UsageError(f"{option} is {length}, but the model {model!r} is for fragments of {found} bases")


class _Note(Action):
    """Notes that an option was given, by its reason to have no effect."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: str | Sequence[Any] | None, option: str | None = None
    ) -> None:
        noted = getattr(namespace, self.dest)
        names = dict.fromkeys((*noted.get(self.const, ()), option))
        setattr(namespace, self.dest, noted | {self.const: tuple(names)})
