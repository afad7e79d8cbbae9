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
    ├── ClusterError                the cluster cannot be reached, or no worker of it can be used
    ├── ScorerBusy                  too much is waiting already; say so to the caller, or wait
    ├── ScorerClosed                the scorer is not open, or was closed before it had scored all
    └── OutputError                 the output directory
        ├── ForeignDirectoryError   it contains something else
        ├── NoRun                   it contains no run, or one that is not finished
        ├── RunMismatchError        it contains a run with other inputs, models or settings
        ├── NoPlan                  it contains no plan of a run, or one that cannot be read
        ├── PlanMismatch            a shard would run on other content, another version or kind of device
        ├── ShardsMissing           shards are missing, not finished, or there twice; lists them
        ├── DirectoryLockedError    another process is writing there
        │   └── LockHeldRemotely    that process is elsewhere, and may be dead
        ├── DamagedStore            finished work cannot be read, or not all of it
        └── CannotWrite             disk full, read-only

An error has its facts as fields and makes its text in one place, ``__str__``. Any other exception is
a bug and keeps its traceback.
"""

from .base import Stage, UsageError, VirnucError, _PathError, _UrlError, first_error, leaves
from .devices import (
    ClusterError,
    DeviceError,
    DeviceLost,
    DeviceOutOfMemory,
    MixedDevices,
    NoDevicesLeft,
    ScorerBusy,
    ScorerClosed,
    UnknownDevice,
    UnsuitablePrecision,
)
from .downloads import ChecksumMismatch, DownloadBusy, DownloadError, DownloadInterrupted, DownloadRefused
from .inputs import (
    BadRecord,
    BadTable,
    BrokenInput,
    InputChanged,
    InputError,
    LabelError,
    LostInput,
    MissingClassError,
    MissingInputs,
    NoRecords,
    NotSequences,
    SharedSequences,
    TooFewClusters,
    TooLarge,
    TrainingDiverged,
    UnreadableInput,
)
from .models import (
    ANOTHER_CACHE,
    AmbiguousFeatures,
    BadBundle,
    BadCheckpoint,
    BadFeatures,
    BadReference,
    BundleError,
    FeatureError,
    FeatureMismatchError,
    NoCacheDirectory,
    NoFeatures,
    NoReference,
    NoThreshold,
    PeerUnavailable,
    UnknownBundle,
)
from .outputs import (
    CannotWrite,
    DamagedStore,
    DirectoryLockedError,
    ForeignDirectoryError,
    LockHeldRemotely,
    NoPlan,
    NoRun,
    OutputError,
    PlanMismatch,
    RunMismatchError,
    ShardsMissing,
)

__all__ = [
    "ANOTHER_CACHE",
    "AmbiguousFeatures",
    "BadBundle",
    "BadCheckpoint",
    "BadFeatures",
    "BadRecord",
    "BadReference",
    "BadTable",
    "BrokenInput",
    "BundleError",
    "CannotWrite",
    "ChecksumMismatch",
    "ClusterError",
    "DamagedStore",
    "DeviceError",
    "DeviceLost",
    "DeviceOutOfMemory",
    "DirectoryLockedError",
    "DownloadBusy",
    "DownloadError",
    "DownloadInterrupted",
    "DownloadRefused",
    "FeatureError",
    "FeatureMismatchError",
    "ForeignDirectoryError",
    "InputChanged",
    "InputError",
    "LabelError",
    "LockHeldRemotely",
    "LostInput",
    "MissingClassError",
    "MissingInputs",
    "MixedDevices",
    "NoCacheDirectory",
    "NoDevicesLeft",
    "NoFeatures",
    "NoPlan",
    "NoRecords",
    "NoReference",
    "NoRun",
    "NoThreshold",
    "NotSequences",
    "OutputError",
    "PeerUnavailable",
    "PlanMismatch",
    "RunMismatchError",
    "ScorerBusy",
    "ScorerClosed",
    "ShardsMissing",
    "SharedSequences",
    "Stage",
    "TooFewClusters",
    "TooLarge",
    "TrainingDiverged",
    "UnknownBundle",
    "UnknownDevice",
    "UnreadableInput",
    "UnsuitablePrecision",
    "UsageError",
    "VirnucError",
    "_PathError",
    "_UrlError",
    "first_error",
    "leaves",
]
