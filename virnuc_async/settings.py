"""The settings of a run, validated once and immutable."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from virnuc_async.errors import UsageError


class Precision(StrEnum):
    """The number format of the encoders' weights and activations."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Compile(StrEnum):
    """Whether kernels are compiled for the networks before the first batch."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Pairing(StrEnum):
    """Which records are mates and get one verdict."""

    AUTO = "auto"  # records of two files that are named like mates, if all ids match
    INTERLEAVED = "interleaved"  # records 1 and 2 of a file, 3 and 4, ...
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Settings:
    """
    The settings of one run.

    Raises:
        UsageError: a value is out of its range
    """

    model: str | Path = "tiny-500"  # name or directory of a bundle
    cache_dir: Path | None = None  # where bundles are installed; None: the cache directory of the user
    devices: tuple[str, ...] = ()  # "cpu", "cuda:1"; empty: every GPU, else one CPU replica
    gpus: tuple[int, ...] = ()  # numbers that nvidia-smi shows; excludes *devices*
    precision: Precision = Precision.AUTO
    compile: Compile = Compile.AUTO  # auto: if the input is large enough to be worth it
    tokens_per_batch: int | None = None  # residue tokens; None: by the memory of the devices
    threshold: float = 0.5  # fraction of viral fragments from which on a contig is viral
    embeddings: bool = False  # also write merged_features.pt
    calibrated: bool = True  # write p_virus_calibrated if the model has a calibration
    pairs: Pairing = Pairing.AUTO  # which records get one verdict, in pairs.tsv
    reuse_features: Path | None = None  # a directory with feature files of VirNucPro
    skip_missing: bool = False  # go on without inputs that cannot be read, which fail
    recursive: bool = False  # also read the directories in directories
    allow_duplicates: bool = False  # read a file as often as it is named
    overwrite: bool = False  # discard an existing run in the directory and start over
    repair: bool = False  # recover intact batches from a damaged store, recompute the rest

    def __post_init__(self) -> None:
        if self.devices and self.gpus:
            raise UsageError("choose devices or gpus, not both")
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise UsageError(f"tokens per batch must be at least 1, not {self.tokens_per_batch}")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"the threshold must be a number from 0 to 1, not {self.threshold}")
        if self.overwrite and self.repair:
            raise UsageError("choose overwrite or repair, not both")
        if len(set(self.gpus)) < len(self.gpus):
            raise UsageError("a GPU is listed twice")
