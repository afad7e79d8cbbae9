"""
Every failure that this package raises on purpose.

::

    VirnucError                 exit code 1
    ├── UsageError              exit code 64: the command line or the settings make no sense
    ├── InputError              one input file; the run goes on without it
    │   ├── UnreadableInput     missing, a directory without sequences, no permission
    │   ├── NotSequences        not FASTA, not FASTQ, or not DNA; says which line and what it saw
    │   ├── TooLarge            a record or an id beyond what is read; says which line and the limit
    │   └── BrokenInput         ends or breaks half way; the records before the break count
    ├── NoRecords               no input holds a single record
    ├── BundleError             a set of models
    │   ├── UnknownBundle       no such name and no such directory; says which there are
    │   ├── BadBundle           a file is missing, changed, or of the wrong shape
    │   ├── BadCheckpoint       a file of somebody else's that cannot be imported
    │   ├── NoReference         there is nothing to verify it by; says how there will be
    │   └── BadReference        a file that should hold figures to verify by, and does not
    ├── DownloadError           a file of the published models
    │   ├── DownloadRefused           the server does not give it; says what else can be done
    │   ├── DownloadInterrupted      the connection failed too often; what came is kept
    │   ├── ChecksumMismatch       it is not the file that was published; nothing of it is used
    │   └── DownloadBusy        another process is downloading there
    ├── FeatureError            embeddings of earlier work, which cannot be reused
    │   ├── NoFeatures          there are none; says which names they would have
    │   ├── BadFeatures         a file is damaged, hostile, or of another model
    │   ├── AmbiguousFeatures   nobody knows which sequence they are of
    │   └── FeatureMismatchError     the model gives others for the sequence
    ├── LabelError              labelled sequences, to learn or to measure from
    │   ├── MissingClassError            records of one class are missing, so nothing can be told apart
    │   ├── TooFewClusters      of one class, to stand on every side of a split
    │   ├── BadTable            the table of clusters or groups is malformed, or does not name a record
    │   ├── SharedSequences     held-out records share long stretches with training ones
    │   └── TrainingDiverged            the loss of a training is no number any more
    ├── DeviceError             one device
    │   ├── UnknownDevice       no such device; says which there are
    │   ├── DeviceOutOfMemory   this batch does not fit: halve it and try again
    │   └── DeviceLost          the device answers no more: retire it
    ├── NoDevicesLeft           too many devices were lost to go on
    ├── MixedDevices            the devices of one run would compute differently
    └── OutputError             the output directory
        ├── ForeignDirectoryError     it holds something else
        ├── RunMismatchError          it holds a run with other inputs, models or settings
        ├── DirectoryLockedError       another process is writing there
        │   └── LockHeldRemotely   its process is elsewhere, and may be dead
        ├── DamagedStore        what is done cannot be read any more, or not all of it
        └── CannotWrite         disk full, read-only

A failure carries its facts as fields and makes its text in one place, ``__str__``. Anything else
that is raised is a bug and keeps its traceback.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum

from virnuc_async.text import plural


class Stage(StrEnum):
    """Where something failed; the second column of ``failed_files.txt``."""

    INPUT = "Input"
    NUCLEOTIDE = "DNABERT-S"
    PROTEIN = "ESM-2"
    CLASSIFIER = "Classifier"
    OUTPUT = "Output"


class VirnucError(Exception):
    """The root of the tree; *exit_code* is what the command line ends with."""

    exit_code = 1


class UsageError(VirnucError):
    """A setting or an argument that makes no sense; *reason* says which and what would."""

    exit_code = 64

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InputError(VirnucError):
    """One input cannot be used, wholly or from some line on; the others can."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class UnreadableInput(InputError):
    """The file is missing, may not be read, or is a directory without sequence files."""


class NotSequences(InputError):
    """The content is not DNA in FASTA or FASTQ; *line* counts from 1."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(path, f"line {line:,}: {reason}")
        self.line = line


class TooLarge(InputError):
    """A record of the file, from *line* on, is larger than what is read as one; those before it count."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(path, f"line {line:,}: {reason}")
        self.line = line


class BrokenInput(InputError):
    """The file ends or breaks half way: *records* whole records came before."""

    def __init__(self, path: str, records: int, reason: str) -> None:
        super().__init__(path, f"breaks after {plural(records, 'record')}: {reason}")
        self.records = records


class NoRecords(VirnucError):
    """There is nothing to do: none of *paths* holds a record; *failures* say why, where one does."""

    def __init__(self, paths: Sequence[str], failures: Sequence[InputError] = ()) -> None:
        super().__init__(tuple(paths), tuple(failures))
        self.paths, self.failures = tuple(paths), tuple(failures)

    def __str__(self) -> str:
        which = self.paths[0] if len(self.paths) == 1 else f"the {len(self.paths):,} inputs"
        return "\n".join((f"no sequence record in {which}", *map(str, self.failures)))


class BundleError(VirnucError):
    """A set of models cannot be used."""


class UnknownBundle(BundleError):
    """Neither a bundle that is installed here nor a directory with one."""

    def __init__(self, name: str, known: Iterable[str], hint: str = "") -> None:
        super().__init__(name)
        self.name, self.known, self.hint = name, tuple(known), hint

    def __str__(self) -> str:
        text = f"no model {self.name!r} here. Installed: {', '.join(self.known)}."
        return f"{text} {self.hint}" if self.hint else text


class BadBundle(BundleError):
    """The bundle at *path* is incomplete, damaged, or of another shape than it says."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is not a usable bundle: {self.reason}"


class BadCheckpoint(BundleError):
    """The checkpoint at *path* was not taken: it is damaged, hostile, or another network's."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} cannot be imported: {self.reason}"


class NoReference(BundleError):
    """The bundle *name* has no figures to be verified by."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"the model {self.name!r} has no reference to be verified by. Where it is known to be right, "
            "'models verify --record' makes one of what a CPU gives in FP32"
        )


class BadReference(BundleError):
    """The file at *path* holds no figures that a model can be verified by."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is not a reference to verify a model by: {self.reason}"


class DownloadError(VirnucError):
    """A file could not be had."""


class DownloadRefused(DownloadError):
    """The server does not give *url*, and will not if it is asked again."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return (
            f"{self.url} cannot be had: {self.reason}. Behind a proxy, set HTTPS_PROXY; else name a "
            "--mirror, or get the files elsewhere and use 'models import' (docs/how-to/models.md)"
        )


class DownloadInterrupted(DownloadError):
    """The connection for *url* failed too often in a row to go on."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return (
            f"{self.url} could not be had to the end: {self.reason}. "
            "What has come is kept: the same command goes on"
        )


class ChecksumMismatch(DownloadError):
    """What the server gave for *url* is not the file that was published."""

    def __init__(self, url: str, reason: str, is_deleted: bool = False) -> None:
        super().__init__(url, reason, is_deleted)
        self.url, self.reason, self.is_deleted = url, reason, is_deleted

    def __str__(self) -> str:
        what = (
            "It was deleted: the same command gets it again. If that does not help"
            if self.is_deleted
            else "Nothing of it was used. If it stays so"
        )
        return (
            f"{self.url} is not the file that it should be: {self.reason}. {what}, name a --mirror that has "
            "the published one, or get the files elsewhere and use 'models import' (docs/how-to/models.md)"
        )


class DownloadBusy(DownloadError):
    """Another process is downloading into *directory*."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.directory = directory

    def __str__(self) -> str:
        return (
            f"another process is downloading into {self.directory}. "
            "Wait for it: the same command then finds what it got"
        )


class FeatureError(VirnucError):
    """Embeddings of earlier work cannot be reused."""


class NoFeatures(FeatureError):
    """The *directory* cannot be searched, or nothing in it is named as feature files are."""

    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(directory, reason)
        self.directory, self.reason = directory, reason

    def __str__(self) -> str:
        return f"no features to reuse in {self.directory}: {self.reason}"


class BadFeatures(FeatureError):
    """The file at *path* was not taken: it is damaged, hostile, or does not fit the model."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be reused: {self.reason}. "
            "Move it elsewhere to have what it holds computed anew"
        )


class AmbiguousFeatures(FeatureError):
    """Features are told by the *id* of their ORF, which does not say whose they are here."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(id, reason)
        self.id, self.reason = id, reason

    def __str__(self) -> str:
        return (
            f"nobody can tell whose features those of {self.id} are: {self.reason}. "
            "Ids must be unique where features are reused"
        )


class FeatureMismatchError(FeatureError):
    """The model gives other numbers for the ORF *id* than the files *paths* hold: less than *least* alike."""

    def __init__(self, id: str, paths: Sequence[str], similarity: float, least: float) -> None:
        super().__init__(id, tuple(paths), similarity, least)
        self.id, self.paths, self.similarity, self.least = id, tuple(paths), similarity, least

    def __str__(self) -> str:
        return (
            f"the features of {self.id} in {' and '.join(self.paths)} are of another sequence or of another "
            f"model: the cosine to what this model gives (less where lengths differ) is "
            f"{self.similarity:.5f}, not {self.least} or more. "
            "Start anew without them: with another --reuse-features or none, and --overwrite"
        )


class LabelError(VirnucError):
    """Nothing can be learnt from these labelled sequences, or nothing honest be said of them."""


class MissingClassError(LabelError):
    """There is nothing of the class *missing* in *where*."""

    def __init__(self, missing: str, where: str) -> None:
        super().__init__(missing, where)
        self.missing, self.where = missing, where

    def __str__(self) -> str:
        return f"nothing {self.missing} in {self.where}: both classes are needed"


class TooFewClusters(LabelError):
    """The *found* clusters of the class *kind* cannot stand on *sides* sides."""

    def __init__(self, kind: str, found: int, sides: int) -> None:
        super().__init__(kind, found, sides)
        self.kind, self.found, self.sides = kind, found, sides

    def __str__(self) -> str:
        return (
            f"{plural(self.found, 'cluster')} of {self.kind} records cannot be split into {self.sides} "
            "sides. A cluster is what --clusters says, else a genome= of the headers, else a record"
        )


class BadTable(LabelError):
    """The table at *path* cannot be used."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class SharedSequences(LabelError):
    """Of *held* held-out records, *found* share long stretches with training ones."""

    def __init__(self, found: int, held: int, length: int) -> None:
        super().__init__(found, held, length)
        self.found, self.held, self.length = found, held, length

    def __str__(self) -> str:
        return (
            f"{self.found:,} of {plural(self.held, 'held-out record')} share stretches of {self.length} "
            "bases with training ones, and figures on them would flatter. Cluster the sequences and name the "
            "table with --clusters, or have them left out with --leaks drop"
        )


class TrainingDiverged(LabelError):
    """The loss is no number after *epoch*, at this learning *rate*."""

    def __init__(self, epoch: int, rate: float) -> None:
        super().__init__(epoch, rate)
        self.epoch, self.rate = epoch, rate

    def __str__(self) -> str:
        return f"the loss is no number after epoch {self.epoch:,}: choose a lower --rate than {self.rate:g}"


class DeviceError(VirnucError):
    """One device cannot do what was asked of it."""


class UnknownDevice(DeviceError):
    """The machine has no such device."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(name)
        self.name, self.known = name, tuple(known)

    def __str__(self) -> str:
        return f"no device {self.name!r} here. There are: {', '.join(self.known)}"


class DeviceOutOfMemory(DeviceError):
    """A batch of *tokens* tokens did not fit, at *stage*; half of it may."""

    def __init__(self, device: str, tokens: int, stage: Stage = Stage.PROTEIN) -> None:
        super().__init__(device, tokens, stage)
        self.device, self.tokens, self.stage = device, tokens, stage

    def __str__(self) -> str:
        return f"{self.device} ran out of memory on a batch of {self.tokens:,} tokens"


class DeviceLost(DeviceError):
    """The device failed in a way that it does not recover from within this process."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(device, reason)
        self.device, self.reason = device, reason

    def __str__(self) -> str:
        return f"{self.device} failed: {self.reason}"


class NoDevicesLeft(VirnucError):
    """The run cannot go on; what was finished is kept."""

    def __init__(self, lost: Sequence[DeviceLost]) -> None:
        super().__init__(tuple(lost))
        self.lost = tuple(lost)

    def __str__(self) -> str:
        each = "; ".join(map(str, self.lost))
        return f"too many devices failed to go on ({each}). Finished work is kept: the same command resumes"


class MixedDevices(VirnucError):
    """The devices differ in how they compute, and nobody said which precision to use."""

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__(tuple(kinds))
        self.kinds = tuple(kinds)

    def __str__(self) -> str:
        return (
            f"these devices compute differently ({', '.join(self.kinds)}): "
            "name devices of one kind, or choose --precision fp32 or bf16 to mix them"
        )


class OutputError(VirnucError):
    """The output directory *path* cannot take this run."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ForeignDirectoryError(OutputError):
    """The directory holds files of somebody else's, or is not a directory."""


class RunMismatchError(OutputError):
    """The directory holds a run that differs from the one asked for."""

    def __init__(self, path: str, differences: Sequence[str]) -> None:
        reason = (
            f"holds another run: {'; '.join(differences)}. "
            "Choose another directory, or --overwrite to start anew"
        )
        super().__init__(path, reason)
        self.differences = tuple(differences)


class DirectoryLockedError(OutputError):
    """Another process holds the store of this directory."""


class LockHeldRemotely(DirectoryLockedError):
    """A process holds the directory of which only time will tell whether it lives: *owner*."""

    def __init__(self, path: str, owner: object) -> None:
        super().__init__(path, f"{owner} holds it, which cannot be seen from this machine")
        self.owner = owner


class DamagedStore(OutputError):
    """The store of this directory is damaged; *reason* says what can be saved, and how."""


class CannotWrite(OutputError):
    """The operating system refused to write; the disk may be full."""
