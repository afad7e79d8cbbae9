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
    from virnuc_async.errors import (
        AmbiguousFeatures,
        AnotherRun,
        BadBundle,
        BadCheckpoint,
        BadFeatures,
        BadReference,
        BadTable,
        BrokenInput,
        BundleError,
        CannotWrite,
        DamagedStore,
        DeviceError,
        DeviceLost,
        DeviceOutOfMemory,
        DirectoryBusy,
        DirectoryHeld,
        Diverged,
        DownloadBroken,
        DownloadBusy,
        DownloadError,
        FeatureError,
        InputError,
        LabelError,
        MixedDevices,
        NoDevicesLeft,
        NoFeatures,
        NoRecords,
        NoReference,
        NotOurDirectory,
        NotSequences,
        NotServed,
        OneClass,
        OutputError,
        SharedSequences,
        Stage,
        StrangeFeatures,
        TooFewClusters,
        TooLarge,
        UnknownBundle,
        UnknownDevice,
        UnreadableInput,
        UsageError,
        VirnucError,
        WrongDownload,
    )
    from virnuc_async.log import (
        logger,
    )
    from virnuc_async.outputs.predictions import (
        Summary,
    )
    from virnuc_async.pipeline import (
        run_pipeline,
    )
    from virnuc_async.settings import (
        Pairing,
        Precision,
        Settings,
    )

__all__ = [
    "AmbiguousFeatures",
    "AnotherRun",
    "BadBundle",
    "BadCheckpoint",
    "BadFeatures",
    "BadReference",
    "BadTable",
    "BrokenInput",
    "BundleError",
    "CannotWrite",
    "DamagedStore",
    "DeviceError",
    "DeviceLost",
    "DeviceOutOfMemory",
    "DirectoryBusy",
    "DirectoryHeld",
    "Diverged",
    "DownloadBroken",
    "DownloadBusy",
    "DownloadError",
    "FeatureError",
    "InputError",
    "LabelError",
    "MixedDevices",
    "NoDevicesLeft",
    "NoFeatures",
    "NoRecords",
    "NoReference",
    "NotOurDirectory",
    "NotSequences",
    "NotServed",
    "OneClass",
    "OutputError",
    "Pairing",
    "Precision",
    "Settings",
    "SharedSequences",
    "Stage",
    "StrangeFeatures",
    "Summary",
    "TooFewClusters",
    "TooLarge",
    "UnknownBundle",
    "UnknownDevice",
    "UnreadableInput",
    "UsageError",
    "VirnucError",
    "WrongDownload",
    "__version__",
    "logger",
    "run_pipeline",
]

_MODULES = {
    "errors": (
        "AmbiguousFeatures",
        "AnotherRun",
        "BadBundle",
        "BadCheckpoint",
        "BadFeatures",
        "BadReference",
        "BadTable",
        "BrokenInput",
        "BundleError",
        "CannotWrite",
        "DamagedStore",
        "DeviceError",
        "DeviceLost",
        "DeviceOutOfMemory",
        "DirectoryBusy",
        "DirectoryHeld",
        "Diverged",
        "DownloadBroken",
        "DownloadBusy",
        "DownloadError",
        "FeatureError",
        "InputError",
        "LabelError",
        "MixedDevices",
        "NoDevicesLeft",
        "NoFeatures",
        "NoRecords",
        "NoReference",
        "NotOurDirectory",
        "NotSequences",
        "NotServed",
        "OneClass",
        "OutputError",
        "SharedSequences",
        "Stage",
        "StrangeFeatures",
        "TooFewClusters",
        "TooLarge",
        "UnknownBundle",
        "UnknownDevice",
        "UnreadableInput",
        "UsageError",
        "VirnucError",
        "WrongDownload",
    ),
    "log": ("logger",),
    "outputs.predictions": ("Summary",),
    "pipeline": ("run_pipeline",),
    "settings": (
        "Pairing",
        "Precision",
        "Settings",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"virnuc_async.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
