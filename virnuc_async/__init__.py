"""
virnuc-async finds viral sequences in metagenomic reads and contigs, as VirNucPro does.

::

    from virnuc_async import Settings, run_pipeline

    summary = await run_pipeline(["contigs.fa"], "out", Settings(model="tiny-500"))

The public names are imported when they are first used: importing the package itself takes no time
and loads neither torch nor the command line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from virnuc_async._version import __version__

if TYPE_CHECKING:
    from virnuc_async.distributed.merge import (
        merge_shards,
    )
    from virnuc_async.distributed.plan import (
        RunPlan,
        Shard,
    )
    from virnuc_async.distributed.planning import (
        make_plan,
    )
    from virnuc_async.distributed.scanning import (
        PlanProgress,
    )
    from virnuc_async.distributed.shard import (
        run_shard,
    )
    from virnuc_async.errors import (
        AmbiguousFeatures,
        BadBundle,
        BadCheckpoint,
        BadFeatures,
        BadRecord,
        BadReference,
        BadTable,
        BrokenInput,
        BundleError,
        CannotWrite,
        ChecksumMismatch,
        ClusterError,
        DamagedStore,
        DeviceError,
        DeviceLost,
        DeviceOutOfMemory,
        DirectoryLockedError,
        DownloadBusy,
        DownloadError,
        DownloadInterrupted,
        DownloadRefused,
        FeatureError,
        FeatureMismatchError,
        ForeignDirectoryError,
        InputChanged,
        InputError,
        LabelError,
        LockHeldRemotely,
        LostInput,
        MissingClassError,
        MissingInputs,
        MixedDevices,
        NoCacheDirectory,
        NoDevicesLeft,
        NoFeatures,
        NoPlan,
        NoRecords,
        NoReference,
        NoRun,
        NoThreshold,
        NotSequences,
        OutputError,
        PeerUnavailable,
        PlanMismatch,
        RunMismatchError,
        ScorerBusy,
        ScorerClosed,
        ShardsMissing,
        SharedSequences,
        Stage,
        TooFewClusters,
        TooLarge,
        TrainingDiverged,
        UnknownBundle,
        UnknownDevice,
        UnreadableInput,
        UnsuitablePrecision,
        UsageError,
        VirnucError,
        _PathError,
        _UrlError,
    )
    from virnuc_async.log import (
        logger,
    )
    from virnuc_async.outputs.shard_rows import (
        ShardSummary,
    )
    from virnuc_async.outputs.summary import (
        Summary,
    )
    from virnuc_async.pipeline import (
        run_pipeline,
    )
    from virnuc_async.runs.run_progress import (
        DeviceProgress,
        RunProgress,
    )
    from virnuc_async.scorer.predictions import (
        FragmentScore,
        OrfScore,
        Prediction,
        Predictions,
    )
    from virnuc_async.scorer.scorer import (
        Scorer,
        ScorerProgress,
    )
    from virnuc_async.settings import (
        CallRules,
        Pairing,
        Precision,
        RegionRules,
        Settings,
        VerdictBy,
    )

__all__ = [
    "AmbiguousFeatures",
    "BadBundle",
    "BadCheckpoint",
    "BadFeatures",
    "BadRecord",
    "BadReference",
    "BadTable",
    "BrokenInput",
    "BundleError",
    "CallRules",
    "CannotWrite",
    "ChecksumMismatch",
    "ClusterError",
    "DamagedStore",
    "DeviceError",
    "DeviceLost",
    "DeviceOutOfMemory",
    "DeviceProgress",
    "DirectoryLockedError",
    "DownloadBusy",
    "DownloadError",
    "DownloadInterrupted",
    "DownloadRefused",
    "FeatureError",
    "FeatureMismatchError",
    "ForeignDirectoryError",
    "FragmentScore",
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
    "OrfScore",
    "OutputError",
    "Pairing",
    "PeerUnavailable",
    "PlanMismatch",
    "PlanProgress",
    "Precision",
    "Prediction",
    "Predictions",
    "RegionRules",
    "RunMismatchError",
    "RunPlan",
    "RunProgress",
    "Scorer",
    "ScorerBusy",
    "ScorerClosed",
    "ScorerProgress",
    "Settings",
    "Shard",
    "ShardSummary",
    "ShardsMissing",
    "SharedSequences",
    "Stage",
    "Summary",
    "TooFewClusters",
    "TooLarge",
    "TrainingDiverged",
    "UnknownBundle",
    "UnknownDevice",
    "UnreadableInput",
    "UnsuitablePrecision",
    "UsageError",
    "VerdictBy",
    "VirnucError",
    "_PathError",
    "_UrlError",
    "__version__",
    "logger",
    "make_plan",
    "merge_shards",
    "run_pipeline",
    "run_shard",
]

# All others are errors.
_MODULE_OF = dict.fromkeys(__all__, "errors") | {
    "CallRules": "settings",
    "Pairing": "settings",
    "Precision": "settings",
    "RegionRules": "settings",
    "Settings": "settings",
    "DeviceProgress": "runs.run_progress",
    "RunProgress": "runs.run_progress",
    "FragmentScore": "scorer.predictions",
    "OrfScore": "scorer.predictions",
    "Prediction": "scorer.predictions",
    "Predictions": "scorer.predictions",
    "Scorer": "scorer.scorer",
    "ScorerProgress": "scorer.scorer",
    "Summary": "outputs.summary",
    "VerdictBy": "settings",
    "PlanProgress": "distributed.scanning",
    "RunPlan": "distributed.plan",
    "Shard": "distributed.plan",
    "ShardSummary": "outputs.shard_rows",
    "merge_shards": "distributed.merge",
    "run_shard": "distributed.shard",
    "logger": "log",
    "make_plan": "distributed.planning",
    "run_pipeline": "pipeline",
}
del _MODULE_OF["__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"virnuc_async.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
