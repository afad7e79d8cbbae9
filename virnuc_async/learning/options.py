"""The options of training and evaluation, validated once and immutable."""

from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral

from virnuc_async.errors import UsageError
from virnuc_async.settings import Check, check_fields, flag, fraction, number, one_of, tuple_of, whole


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
        UsageError: a value is of another type or out of its range
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
        check_fields(self, _RECIPE_CHECKS)


_BELOW_1 = number("at least 0 and below 1", lambda value: 0 <= value < 1)
_RECIPE_CHECKS: dict[str, Check] = {
    "optimizer": one_of(Optimizer),
    "rate": number("a finite number above 0", lambda value: 0 < value < float("inf")),
    "momentum": _BELOW_1,
    "weight_decay": number("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "step": whole(1),
    "decay": number("above 0 and at most 1", lambda value: 0 < value <= 1),
    "epochs": whole(1),
    "patience": whole(1),
    "batch": whole(2),
    "hidden": whole(1),
    "dropout": _BELOW_1,
    "balance": one_of(Balance),
    "seed": whole(0),
}


@dataclass(frozen=True, slots=True)
class Split:
    """
    Which labelled sequences are held out of training.

    Raises:
        UsageError: a value is of another type or out of its range
    """

    validation: float = 0.1  # fraction that decides when training stops
    test: float = 0.2  # fraction that the metrics are computed on
    by_fragment: bool = False  # as published; the metrics are optimistic
    leakage: LeakPolicy = LeakPolicy.DROP
    leakage_share: float = 0.0  # fraction of the k-mers of a record that training records may contain

    def __post_init__(self) -> None:
        check_fields(self, _SPLIT_CHECKS)
        if not (self.validation > 0 and self.test > 0 and self.validation + self.test < 1):
            raise UsageError(
                "validation and test must be fractions above 0 whose sum is below 1, "
                f"not {self.validation} and {self.test}"
            )


_ANY_NUMBER = number("a number", lambda value: True)  # the sum of two is checked
_SPLIT_CHECKS: dict[str, Check] = {
    "validation": _ANY_NUMBER,
    "test": _ANY_NUMBER,
    "by_fragment": flag,
    "leakage": one_of(LeakPolicy),
    "leakage_share": fraction,
}


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """
    How a model is evaluated.

    Raises:
        UsageError: a value is of another type or out of its range
    """

    lengths: tuple[int, ...] = (150, 300, 500, 1000)  # of subsequences that are cut from the records
    subsequences: int = 1  # per length and record that is long enough
    resamples: int = 1000  # of the clusters, for the confidence intervals
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, _EVALUATION_CHECKS)
        if any(length < 1 for length in self.lengths) or len(set(self.lengths)) < len(self.lengths):
            raise UsageError(f"lengths must be different numbers of bases, not {list(self.lengths)}")


_EVALUATION_CHECKS: dict[str, Check] = {
    "lengths": tuple_of(whole(), Integral, "numbers of bases such as 500 or (150, 500)"),
    "subsequences": whole(1),
    "resamples": whole(1),
    "seed": whole(0),
}
