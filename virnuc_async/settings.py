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


class Optimizer(StrEnum):
    """How the classifier's weights follow the gradient."""

    SGD = "sgd"
    ADAMW = "adamw"


class Balance(StrEnum):
    """What counts the same in training, however many ORFs there are of it."""

    NONE = "none"
    CLASS = "class"
    GROUP = "group"


class LeakPolicy(StrEnum):
    """What becomes of held-out records that share long stretches with training ones."""

    DROP = "drop"
    REFUSE = "refuse"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Recipe:
    """
    How a classifier is trained; by default as VirNucPro's were.

    Raises:
        UsageError: a value is out of its range
    """

    optimizer: Optimizer = Optimizer.SGD
    rate: float = 2e-4
    momentum: float = 0.9  # AdamW's first beta
    weight_decay: float = 0.0
    step: int = 10  # epochs after which the rate falls
    decay: float = 0.85  # what it is multiplied by then
    epochs: int = 200  # at most
    patience: int = 5  # epochs without a lower validation loss before the end
    batch: int = 256
    hidden: int = 512
    dropout: float = 0.5
    balance: Balance = Balance.CLASS
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("step", "epochs", "patience", "batch", "hidden"):
            if getattr(self, name) < 1 + (name == "batch"):
                raise UsageError(
                    f"{name} must be at least {1 + (name == 'batch')}, not {getattr(self, name)}"
                )
        if not 0 < self.rate < float("inf"):
            raise UsageError(f"the rate is a number above 0, not {self.rate}")
        for name in ("momentum", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is a number from 0 to below 1, not {getattr(self, name)}")
        if not 0 < self.decay <= 1:
            raise UsageError(f"decay is a number above 0, up to 1, not {self.decay}")
        if not 0 <= self.weight_decay < float("inf"):
            raise UsageError(f"weight decay is a number from 0 on, not {self.weight_decay}")
        if self.seed < 0:
            raise UsageError(f"the seed is a whole number from 0 on, not {self.seed}")


@dataclass(frozen=True, slots=True)
class Split:
    """
    Which labelled sequences a classifier does not learn from.

    Raises:
        UsageError: a value is out of its range
    """

    validation: float = 0.1  # share that says when to stop
    test: float = 0.2  # share that the figures are of
    by_fragment: bool = False  # as published, which flatters
    leaks: LeakPolicy = LeakPolicy.DROP
    leak_share: float = 0.0  # of a record's long stretches that training ones may have too

    def __post_init__(self) -> None:
        if not (self.validation > 0 and self.test > 0 and self.validation + self.test < 1):
            raise UsageError(
                "validation and test are shares above 0, below 1 together, "
                f"not {self.validation} and {self.test}"
            )
        if not 0 <= self.leak_share <= 1:
            raise UsageError(f"the share of leaks is a number from 0 to 1, not {self.leak_share}")


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """
    How a model is measured.

    Raises:
        UsageError: a value is out of its range
    """

    lengths: tuple[int, ...] = (150, 300, 500, 1000)  # of stretches that are cut from the records
    stretches: int = 1  # of each length from each record that is long enough
    resamples: int = 1000  # of the clusters, for the intervals
    seed: int = 0

    def __post_init__(self) -> None:
        if any(length < 1 for length in self.lengths) or len(set(self.lengths)) < len(self.lengths):
            raise UsageError(f"lengths are different numbers of bases, not {list(self.lengths)}")
        for name in ("stretches", "resamples"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise UsageError(f"the seed is a whole number from 0 on, not {self.seed}")
