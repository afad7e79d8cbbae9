"""What all errors have in common, and how errors that come in groups are taken apart."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any


def first_error(error: BaseException) -> BaseException:
    """Return the error to raise of a group, or *error* itself: a bug before one that may follow from it."""
    found = list(leaves(error))
    bugs = [leaf for leaf in found if not isinstance(leaf, VirnucError)]
    return (bugs or found)[0]


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that the group *error* has, at any depth; *error* itself if it is no group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


class Stage(StrEnum):
    """Where an input or an ORF failed; the second column of ``failed_files.txt``."""

    INPUT = "Input"
    NUCLEOTIDE = "DNABERT-S"
    PROTEIN = "ESM-2"
    CLASSIFIER = "Classifier"
    OUTPUT = "Output"


class VirnucError(Exception):
    """The base of all errors of this package; *exit_code* is that of the command."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how it is made again in another process: its constructor may take something else."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[VirnucError], args: tuple[Any, ...], facts: dict[str, Any]) -> VirnucError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


class _PathError(VirnucError):
    """An error about the file or directory at *path*."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _UrlError(VirnucError):
    """An error about the file at *url*."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason


class UsageError(VirnucError):
    """A setting or an argument makes no sense; *reason* says which, and what would."""

    exit_code = 64

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
