"""Errors of inputs: sequences, labels and tables."""

from collections.abc import Sequence

from virnuc_async.text import plural

from .base import VirnucError, _PathError


class InputError(_PathError):
    """An input cannot be read, completely or from some line on; the other inputs can."""


class UnreadableInput(InputError):
    """The file is missing, may not be read, or is a directory without sequence files."""


class MissingInputs(UnreadableInput):
    """Inputs cannot be read, and nothing was begun; *failures* has all of them. *hint* says what to do."""

    def __init__(self, failures: Sequence[UnreadableInput], hint: str = "") -> None:
        super().__init__(failures[0].path, failures[0].reason)
        self.args = (tuple(failures), hint)
        self.failures, self.hint = tuple(failures), hint

    def __str__(self) -> str:
        if len(self.failures) == 1:
            what_now = f". Nothing was begun: correct the name{self.hint}" if self.hint else ""
            return f"{self.failures[0]}{what_now}"
        count, what_now = len(self.failures), f"Nothing was begun: correct the names{self.hint}"
        return "\n".join((f"{count:,} inputs cannot be read. {what_now}", *map(str, self.failures)))


class NotSequences(InputError):
    """The content is not DNA in FASTA or FASTQ; lines are counted from 1."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(path, f"line {line:,}: {reason}")
        self.line = line


class TooLarge(InputError):
    """The record at *line* is above the limit; those before it count."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(path, f"line {line:,}: {reason}")
        self.line = line


class BrokenInput(InputError):
    """The file is truncated or damaged after *records* complete records."""

    def __init__(self, path: str, records: int, reason: str) -> None:
        super().__init__(path, f"breaks after {plural(records, 'record')}: {reason}")
        self.records = records


class BadRecord(VirnucError):
    """The record with the number *record*, from 1, and *id* cannot be scored."""

    def __init__(self, record: int, id: bytes, reason: str) -> None:
        super().__init__(record, id, reason)
        self.record, self.id, self.reason = record, id, reason

    def __str__(self) -> str:
        name = ascii(self.id.decode("utf-8", "replace"))[1:-1]
        return f"record {self.record:,} ({name}): {self.reason}"


class InputChanged(VirnucError):
    """The input at *path* is not the one any more that the run was begun with."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"{self.path} has changed since this run began. Rerun the same command when nothing writes to "
            "it: what was scored before the change is kept"
        )


class LostInput(_PathError):
    """An input of a finished run, which is needed again, is missing or not what was scored."""

    def __str__(self) -> str:
        return (
            f"{super().__str__()}. Viral sequences are read from the inputs again: put this one back as it "
            "was, or go on without --viral-fasta"
        )


class NoRecords(VirnucError):
    """None of *paths* has a record; *failures* has the reasons of those that could not be read."""

    def __init__(self, paths: Sequence[str], failures: Sequence[InputError] = ()) -> None:
        super().__init__(tuple(paths), tuple(failures))
        self.paths, self.failures = tuple(paths), tuple(failures)

    def __str__(self) -> str:
        which = self.paths[0] if len(self.paths) == 1 else f"the {len(self.paths):,} inputs"
        return "\n".join((f"no sequence record in {which}", *map(str, self.failures)))


class LabelError(VirnucError):
    """The labelled sequences cannot be used for training or evaluation."""


class MissingClassError(LabelError):
    """There are no sequences of the class *missing* in *where*."""

    def __init__(self, missing: str, where: str) -> None:
        super().__init__(missing, where)
        self.missing, self.where = missing, where

    def __str__(self) -> str:
        return f"nothing {self.missing} in {self.where}: both classes are needed"


class TooFewClusters(LabelError):
    """The *found* clusters of the class *kind* are too few for *splits* splits."""

    def __init__(self, kind: str, found: int, splits: int) -> None:
        super().__init__(kind, found, splits)
        self.kind, self.found, self.splits = kind, found, splits

    def __str__(self) -> str:
        return (
            f"{plural(self.found, 'cluster')} of {self.kind} records cannot be divided into {self.splits} "
            "splits. Clusters are those of --clusters, else of genome= in the headers, else single records"
        )


class BadTable(LabelError, _PathError):
    """The table of clusters or groups at *path* cannot be used."""


class SharedSequences(LabelError):
    """Of *held_out* held-out records, *found* share k-mers of *length* bases with training records."""

    def __init__(self, found: int, held_out: int, length: int) -> None:
        super().__init__(found, held_out, length)
        self.found, self.held_out, self.length = found, held_out, length

    def __str__(self) -> str:
        return (
            f"{self.found:,} of {plural(self.held_out, 'held-out record')} share {self.length}-mers with "
            "training records, so metrics on them would be optimistic. Cluster the sequences and give the "
            "table with --clusters, or leave these records out with --leakage drop"
        )


class TrainingDiverged(LabelError):
    """The loss is NaN or infinite after *epoch*, at the learning *rate*."""

    def __init__(self, epoch: int, rate: float) -> None:
        super().__init__(epoch, rate)
        self.epoch, self.rate = epoch, rate

    def __str__(self) -> str:
        return (
            f"the loss is NaN or infinite after epoch {self.epoch:,}: "
            f"choose a lower --rate than {self.rate:g}"
        )
