"""What a run and a training can be told: every knob, checked once, frozen."""

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
    """Whether a GPU's kernels are compiled for the networks before the first batch."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Pairing(StrEnum):
    """Which records are mates, and get a verdict together."""

    AUTO = "auto"  # those of two files that are named as mates are, where their ids agree
    INTERLEAVED = "interleaved"  # the first and the second of a file, the third and the fourth, ...
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Settings:
    """
    The settings of one run.

    Raises:
        UsageError: a value is out of its range
    """

    model: str | Path = "tiny-500"  # a bundle's name or directory
    cache_dir: Path | None = None  # where bundles are looked for by name; None: the user's cache directory
    devices: tuple[str, ...] = ()  # "cpu", "cuda:1"; empty: every GPU, else one CPU replica
    gpus: tuple[int, ...] = ()  # numbers as nvidia-smi counts; excludes *devices*
    precision: Precision = Precision.AUTO
    compile: Compile = Compile.AUTO  # auto: where the input is large enough to win the time back
    tokens_per_batch: int | None = None  # residue tokens; None: by the devices' memory
    threshold: float = 0.5  # share of viral fragments that makes a contig viral
    embeddings: bool = False  # write merged_features.pt
    calibrated: bool = True  # add a column where the model has a calibration
    pairs: Pairing = Pairing.AUTO  # which records are judged together, in a table of their own
    reuse_features: Path | None = None  # a directory of feature files, which need not be computed
    overwrite: bool = False  # start anew where the directory holds another run of ours
    repair: bool = False  # keep what is whole of a damaged store, and compute the rest again

    def __post_init__(self) -> None:
        if self.devices and self.gpus:
            raise UsageError("name devices or gpus, not both")
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise UsageError(f"tokens per batch must be at least 1, not {self.tokens_per_batch}")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"the threshold is a share from 0 to 1, not {self.threshold}")
        if self.overwrite and self.repair:
            raise UsageError("start anew or repair what is there, not both")
        if len(set(self.gpus)) < len(self.gpus):
            raise UsageError("a gpu is named twice")
