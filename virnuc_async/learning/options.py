"""The options of training and evaluation, validated once and immutable."""

from dataclasses import dataclass
from enum import StrEnum

from virnuc_async.errors import UsageError


class Optimizer(StrEnum):
    """The algorithm that updates the weights of the classifier."""

    SGD = "sgd"
    ADAMW = "adamw"


class Balance(StrEnum):
    """What has the same total weight in training: nothing, each class, or each group."""

    NONE = "none"
    CLASS = "class"
    GROUP = "group"


class LeakPolicy(StrEnum):
    """What happens to held-out records that share long k-mers with training records."""

    DROP = "drop"
    REFUSE = "refuse"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Recipe:
    """
    How a classifier is trained; the defaults are those of the published VirNucPro.

    Raises:
        UsageError: a value is out of its range
    """

    optimizer: Optimizer = Optimizer.SGD
    rate: float = 2e-4
    momentum: float = 0.9  # AdamW's first beta
    weight_decay: float = 0.0
    step: int = 10  # epochs between two reductions of the learning rate
    decay: float = 0.85  # factor of each reduction
    epochs: int = 200  # at most
    patience: int = 5  # epochs without a lower validation loss before training stops
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
    Which labelled sequences are held out of training.

    Raises:
        UsageError: a value is out of its range
    """

    validation: float = 0.1  # fraction that decides when training stops
    test: float = 0.2  # fraction that the metrics are computed on
    by_fragment: bool = False  # as published; the metrics are optimistic
    leakage: LeakPolicy = LeakPolicy.DROP
    leakage_share: float = 0.0  # fraction of the k-mers of a record that training records may contain

    def __post_init__(self) -> None:
        if not (self.validation > 0 and self.test > 0 and self.validation + self.test < 1):
            raise UsageError(
                "validation and test are shares above 0, below 1 together, "
                f"not {self.validation} and {self.test}"
            )
        if not 0 <= self.leakage_share <= 1:
            raise UsageError(f"the leakage share is a number from 0 to 1, not {self.leakage_share}")


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """
    How a model is evaluated.

    Raises:
        UsageError: a value is out of its range
    """

    lengths: tuple[int, ...] = (150, 300, 500, 1000)  # of subsequences that are cut from the records
    subsequences: int = 1  # per length and record that is long enough
    resamples: int = 1000  # of the clusters, for the confidence intervals
    seed: int = 0

    def __post_init__(self) -> None:
        if any(length < 1 for length in self.lengths) or len(set(self.lengths)) < len(self.lengths):
            raise UsageError(f"lengths are different numbers of bases, not {list(self.lengths)}")
        for name in ("subsequences", "resamples"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise UsageError(f"the seed is a whole number from 0 on, not {self.seed}")
