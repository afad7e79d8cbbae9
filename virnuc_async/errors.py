"""
Every error that this package raises on purpose.

::

    VirnucError                     exit code 1
    ├── UsageError                  exit code 64: the command line or the settings make no sense
    ├── InputError                  one input file; the run continues without it
    │   ├── UnreadableInput         missing, a directory without sequence files, no permission
    │   │   └── MissingInputs       all of them that were found before the start
    │   ├── NotSequences            not FASTA, not FASTQ, or not DNA; names the line and what is there
    │   ├── TooLarge                a record or an id above the limit; names the line and the limit
    │   └── BrokenInput             truncated or damaged; the records before that count
    ├── BadRecord                   a record in memory that cannot be scored; names it
    ├── InputChanged                an input is not what it was when the run began
    ├── LostInput                   an input of a finished run is needed again, and is not what was scored
    ├── NoRecords                   no input has a single record, and some cannot be read
    ├── BundleError                 a model bundle
    │   ├── UnknownBundle           no such name and no such directory; lists those that exist
    │   ├── NoCacheDirectory        there is no place for models, since the user has no home directory
    │   ├── BadBundle               a file is missing, changed, or of the wrong shape
    │   ├── BadCheckpoint           a third-party file that cannot be imported
    │   ├── NoThreshold             it has no threshold for the false positive rate that is asked for
    │   ├── NoReference             there is no reference to verify the model against
    │   └── BadReference            the file with the reference is damaged
    ├── PeerUnavailable             fair-esm or transformers cannot be compared with
    ├── DownloadError               a file of the published models
    │   ├── DownloadRefused         permanent: the server does not have it; lists alternatives
    │   ├── DownloadInterrupted     retries are exhausted; what was received is kept
    │   ├── ChecksumMismatch        it is not the file that was published; nothing of it is used
    │   └── DownloadBusy            another process is downloading there
    ├── FeatureError                precomputed embeddings that cannot be reused
    │   ├── NoFeatures              there are none; lists the names that they can have
    │   ├── BadFeatures             a file is damaged, hostile, or of a different model
    │   ├── AmbiguousFeatures       it is unknown which sequence they are of
    │   └── FeatureMismatchError    the model computes different ones for the sequence
    ├── LabelError                  labelled sequences, for training or evaluation
    │   ├── MissingClassError       there are no records of one class
    │   ├── TooFewClusters          of one class, to have some in every split
    │   ├── BadTable                the table of clusters or groups is malformed, or lacks a record
    │   ├── SharedSequences         held-out records share long subsequences with training records
    │   └── TrainingDiverged        the loss of a training is NaN or infinite
    ├── DeviceError                 one device
    │   ├── UnknownDevice           no such device; lists those that exist
    │   ├── DeviceOutOfMemory       this batch does not fit: split it and try again
    │   ├── DeviceLost              the device does not respond any more: continue without it
    │   └── UnsuitablePrecision     the model or the device gives no right scores in this precision
    ├── NoDevicesLeft               too many devices failed
    ├── MixedDevices                the devices of one run would compute differently
    ├── ScorerBusy                  too much is waiting already; say so to the caller, or wait
    ├── ScorerClosed                the scorer is not open, or was closed before it had scored all
    └── OutputError                 the output directory
        ├── ForeignDirectoryError   it contains something else
        ├── NoRun                   it contains no run, or one that is not finished
        ├── RunMismatchError        it contains a run with other inputs, models or settings
        ├── DirectoryLockedError    another process is writing there
        │   └── LockHeldRemotely    that process is elsewhere, and may be dead
        ├── DamagedStore            finished work cannot be read, or not all of it
        └── CannotWrite             disk full, read-only

An error has its facts as fields and makes its text in one place, ``__str__``. Any other exception is
a bug and keeps its traceback.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

from virnuc_async.text import did_you_mean, plural


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


ANOTHER_CACHE = "Choose another directory for models with --cache-dir, or set VIRNUC_ASYNC_CACHE_DIR"


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


class BundleError(VirnucError):
    """A model bundle cannot be used."""


class UnknownBundle(BundleError):
    """*name* is neither an installed bundle nor a directory with one."""

    def __init__(
        self, name: str, known: Iterable[str], published: Iterable[str] = (), unseen: str = ""
    ) -> None:
        super().__init__(name)
        self.name, self.known, self.published = name, tuple(known), tuple(published)
        self.unseen = unseen  # why there may be more, in a directory that cannot be read

    def __str__(self) -> str:
        installed = f"Installed: {', '.join(self.known)}."
        if self.unseen:
            return f"no model {self.name!r} here. {installed} Others cannot be seen: {self.unseen}"
        if self.name in self.published:
            return f"no model {self.name!r} here. {installed} Get it with: models download {self.name}"
        hint = did_you_mean(self.name, [*self.known, *self.published])
        others = [name for name in self.published if name not in self.known]
        download = f" To download: {', '.join(others)}." if others else ""
        return f"no model {self.name!r} here.{hint} {installed}{download}"


class NoCacheDirectory(BundleError):
    """There is no directory for installed models, since *reason*."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"there is no directory for models: {self.reason}. {ANOTHER_CACHE}"


class BadBundle(BundleError, _PathError):
    """The bundle at *path* is incomplete, damaged, or of another shape than its manifest says."""

    def __str__(self) -> str:
        return f"{self.path} is not a usable bundle: {self.reason}"


class BadCheckpoint(BundleError, _PathError):
    """The checkpoint at *path* is damaged, hostile, or of a different network."""

    def __str__(self) -> str:
        return f"{self.path} cannot be imported: {self.reason}"


class NoThreshold(BundleError):
    """The bundle *name* has no threshold for a false positive rate, since *reason*."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return (
            f"the model {self.name!r} has no threshold for this false positive rate: {self.reason}. "
            "'calibrate --viral FILE --nonviral FILE --output DIR --model DIR' makes one of labelled "
            "sequences, in a copy of the model if it comes with the program"
        )


class NoReference(BundleError):
    """The bundle *name* has no reference to verify it against."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"the model {self.name!r} has no reference to verify it against. If it is known to be correct, "
            "'models verify --record' records one: its outputs on a CPU in FP32"
        )


class BadReference(BundleError, _PathError):
    """The file at *path* is not a reference that a model can be verified against."""

    def __str__(self) -> str:
        return f"{self.path} is not a usable reference: {self.reason}"


class PeerUnavailable(VirnucError):
    """The ESM-2 of the package *peer* cannot be used to compare with."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(peer, reason)
        self.peer, self.reason = peer, reason

    def __str__(self) -> str:
        return (
            f"the ESM-2 of {self.peer} cannot be used: {self.reason}. The installation is broken; repair it "
            "with: pip install --force-reinstall fair-esm==2.0.0 'transformers>=4.50' (and without the "
            "package 'esm', which hides fair-esm)"
        )


class DownloadError(VirnucError):
    """A file could not be downloaded."""


class DownloadRefused(DownloadError, _UrlError):
    """The server refuses *url*, and would refuse it again."""

    def __str__(self) -> str:
        return (
            f"{self.url} cannot be downloaded: {self.reason}. Behind a proxy, set HTTPS_PROXY; otherwise use "
            "a --mirror, or get the files elsewhere and use 'models import' (docs/how-to/models.md)"
        )


class DownloadInterrupted(DownloadError, _UrlError):
    """The download of *url* was tried *attempts* times in a row and came no further."""

    def __init__(self, url: str, reason: str, attempts: int) -> None:
        super().__init__(url, reason)
        self.args = (url, reason, attempts)
        self.attempts = attempts

    def __str__(self) -> str:
        return (
            f"{self.url} was not downloaded completely: {self.reason}. No progress in "
            f"{plural(self.attempts, 'attempt')}; if it fails again, use a --mirror, or get the files "
            "elsewhere and use 'models import' (docs/how-to/models.md). "
            "Received data is kept: rerun the same command to resume"
        )


class ChecksumMismatch(DownloadError, _UrlError):
    """The file that the server sent for *url* is not the published one."""

    def __init__(self, url: str, reason: str, is_deleted: bool = False) -> None:
        super().__init__(url, reason)
        self.is_deleted = is_deleted

    def __str__(self) -> str:
        what_now = (
            "It was deleted: rerun the same command to download it again. If that does not help"
            if self.is_deleted
            else "Nothing of it was used. If this happens again"
        )
        return (
            f"{self.url} is not the published file: {self.reason}. {what_now}, use a --mirror that has the "
            "published one, or get the files elsewhere and use 'models import' (docs/how-to/models.md)"
        )


class DownloadBusy(DownloadError):
    """Another process is downloading into *directory*."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.directory = directory

    def __str__(self) -> str:
        return (
            f"another process is downloading into {self.directory}. "
            "Wait for it to end, then rerun the same command: it uses what was downloaded"
        )


class FeatureError(VirnucError):
    """Precomputed embeddings cannot be reused."""


class NoFeatures(FeatureError):
    """The *directory* cannot be searched, or no file in it has the name of a feature file."""

    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(directory, reason)
        self.directory, self.reason = directory, reason

    def __str__(self) -> str:
        return f"no features to reuse in {self.directory}: {self.reason}"


class BadFeatures(FeatureError, _PathError):
    """The file of features at *path* is damaged, hostile, or does not fit the model."""

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be reused: {self.reason}. Move it elsewhere to compute its embeddings again"
        )


class AmbiguousFeatures(FeatureError):
    """Features are identified by the *id* of their ORF, which is not unique here."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(id, reason)
        self.id, self.reason = id, reason

    def __str__(self) -> str:
        return (
            f"ambiguous features for {self.id}: {self.reason}. "
            "Ids must be unique when --reuse-features is given"
        )


class FeatureMismatchError(FeatureError):
    """What the model computes for the ORF *id* is less similar than *minimum* to what is in *paths*."""

    def __init__(self, id: str, paths: Sequence[str], similarity: float, minimum: float) -> None:
        super().__init__(id, tuple(paths), similarity, minimum)
        self.id, self.paths, self.similarity, self.minimum = id, tuple(paths), similarity, minimum

    def __str__(self) -> str:
        return (
            f"the features of {self.id} in {' and '.join(self.paths)} are of a different sequence or a "
            f"different model: their cosine similarity to what this model computes (lower if lengths differ) "
            f"is {self.similarity:.5f}, below {self.minimum}. "
            "Use another --reuse-features or none, and --overwrite to start over"
        )


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


class DeviceError(VirnucError):
    """One device failed, or does not exist."""


class UnknownDevice(DeviceError):
    """The machine has no such device."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(name)
        self.name, self.known = name, tuple(known)

    def __str__(self) -> str:
        # Another number is no better guess than the number that was given.
        kinds = {name.rstrip("0123456789") for name in self.known if name[-1:].isdecimal()}
        is_number = self.name.rstrip("0123456789") in kinds
        hint = "" if is_number else did_you_mean(self.name, self.known)
        return f"no device {self.name!r} here.{hint} There are: {', '.join(self.known)}"


class DeviceOutOfMemory(DeviceError):
    """A batch of *tokens* tokens did not fit, at *stage*; half of it may fit."""

    def __init__(self, device: str, tokens: int, stage: Stage = Stage.PROTEIN) -> None:
        super().__init__(device, tokens, stage)
        self.device, self.tokens, self.stage = device, tokens, stage

    def __str__(self) -> str:
        return f"{self.device} ran out of memory on a batch of {self.tokens:,} tokens"


class DeviceLost(DeviceError):
    """The device failed, and cannot be used again in this process."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(device, reason)
        self.device, self.reason = device, reason

    def __str__(self) -> str:
        return f"{self.device} failed: {self.reason}"


class NoDevicesLeft(VirnucError):
    """Too many devices failed to continue; finished work is kept."""

    def __init__(self, lost: Sequence[DeviceLost]) -> None:
        super().__init__(tuple(lost))
        self.lost = tuple(lost)

    def __str__(self) -> str:
        reasons = "; ".join(map(str, self.lost))
        return f"too many devices failed ({reasons}). Finished work is kept: rerun the same command to resume"


class MixedDevices(VirnucError):
    """The devices compute differently, and no precision was chosen."""

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__(tuple(kinds))
        self.kinds = tuple(kinds)

    def __str__(self) -> str:
        return (
            f"these devices compute differently ({', '.join(self.kinds)}): "
            "name devices of one kind, or choose --precision fp32, bf16 or fp16 to mix them"
        )


class ScorerBusy(VirnucError):
    """As much as a scorer takes is waiting already: *waiting* ORFs."""

    def __init__(self, waiting: int) -> None:
        super().__init__(waiting)
        self.waiting = waiting

    def __str__(self) -> str:
        waiting = plural(self.waiting, "ORF")
        return f"too much waits already ({waiting}): try again in a moment, or let score() wait"


class ScorerClosed(VirnucError):
    """A scorer is used before it is entered or after it is left: ``async with Scorer(...) as scorer``."""

    def __str__(self) -> str:
        return "the scorer is not open: use it within 'async with Scorer(...) as scorer'"


class UnsuitablePrecision(DeviceError):
    """A model or a device does not give the right scores in *precision*, but does in *instead*."""

    def __init__(self, precision: str, reason: str, instead: str) -> None:
        super().__init__(precision, reason, instead)
        self.precision, self.reason, self.instead = precision, reason, instead

    def __str__(self) -> str:
        return f"cannot compute in {self.precision}: {self.reason}. Use --precision {self.instead}"


class OutputError(_PathError):
    """The output directory at *path* cannot be used for this run."""


class ForeignDirectoryError(OutputError):
    """The directory contains third-party files, or is not a directory."""


class NoRun(OutputError):
    """The directory contains no finished run."""


class RunMismatchError(OutputError):
    """The directory contains a run with other inputs, models or settings: *differences*."""

    def __init__(self, path: str, differences: Sequence[str]) -> None:
        reason = f"contains a different run: {'; '.join(differences)}. Use another directory, or --overwrite"
        super().__init__(path, reason)
        self.differences = tuple(differences)


class DirectoryLockedError(OutputError):
    """Another process is using the directory."""


class LockHeldRemotely(DirectoryLockedError):
    """The *owner* of the lock is on another machine or in another container, and may be dead."""

    def __init__(self, path: str, owner: object) -> None:
        super().__init__(path, f"is locked by {owner}, which cannot be checked from this machine")
        self.owner = owner


class DamagedStore(OutputError):
    """The store of the directory is damaged; *reason* says what can be recovered, and how."""


class CannotWrite(OutputError):
    """The operating system refused to write; the disk may be full."""
