"""
The optimisation of a classifier on embeddings, with a checkpoint after each epoch.

The embeddings are mapped from the disk. The data, the recipe and the number of threads determine every
byte of the weights, whether or not training was interrupted.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from virnuc_async.errors import BadCheckpoint, TrainingDiverged
from virnuc_async.fileio import atomic_write, unwrapped_torch_errors, writing_to
from virnuc_async.log import ThrottledProgress, logger
from virnuc_async.models.checkpoints import read_values
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.shapes import ClassifierShape
from virnuc_async.text import plural

from .dataset import TRAINING, VALIDATION, Splits
from .options import Balance, Optimizer, Recipe

_INFERENCE_ROWS = 4096  # per batch when the weights do not change
_HASHED_ROWS = 1 << 16  # of the features, at a time

Weights = dict[str, Tensor]
History = list[dict[str, float]]  # one entry per epoch


@dataclass(frozen=True, slots=True)
class Examples:
    """The scored ORFs of the labelled sequences, in columns."""

    features: NDArray[np.float32]  # (ORFs, C), mapped from the disk
    record_index: NDArray[np.int64]
    fragment_index: NDArray[np.int64]  # over all records, from 0
    are_viral: NDArray[np.bool_]
    groups: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FittedClassifier:
    """The weights of the best epoch, and the losses of all epochs."""

    weights: Weights
    history: History

    @property
    def best_epoch(self) -> int:
        """The number of the epoch with the lowest validation loss, from 1."""
        losses = _validation_losses(self.history)
        return 1 + losses.index(min(losses))


def fit(examples: Examples, splits: Splits, recipe: Recipe, checkpoint: Path) -> FittedClassifier:
    """
    Train until the validation loss stops falling, and return the best weights.

    Training resumes from *checkpoint* if it belongs to the same data and recipe. The state of torch's global
    random number generator is restored afterwards.

    Raises:
        TrainingDiverged: the validation loss is NaN or infinite
        CannotWrite: the checkpoint cannot be written
    """
    with _restored_random_state():
        trainer = _Trainer(examples, splits, recipe)
        trainer.resume(checkpoint)
        while not trainer.is_done:
            trainer.train_epoch()
            trainer.save_checkpoint(checkpoint)
            logger.info("{}", trainer.epoch_summary())
    return FittedClassifier(trainer.best_weights, trainer.history)


@torch.inference_mode()
def predict_probabilities(
    examples: Examples, rows: NDArray[np.int64], weights: Weights
) -> NDArray[np.float32]:
    """Return P(others) and P(virus) of every ORF, (ORFs, 2); those outside *rows* are 0."""
    hidden, inputs = weights["hidden.weight"].shape
    with torch.device("meta"):
        network = Classifier(ClassifierShape(inputs, hidden))
    network.load_state_dict(weights, assign=True)
    network.eval()
    probabilities = np.zeros((len(examples.features), 2), np.float32)
    for batch in _batches(rows, _INFERENCE_ROWS):
        probabilities[batch] = network(torch.from_numpy(examples.features[batch])).numpy()
    return probabilities


def sample_weights(
    balance: Balance, are_viral: NDArray[np.bool_], groups: NDArray[np.int64]
) -> NDArray[np.float32]:
    """
    Return the weight of each ORF in the loss, 1 on average.

    Balanced by class, both classes have the same total weight. Balanced by group, the groups of a class also
    share its weight by the square root of their numbers of ORFs: a large group does not dominate, and a tiny
    one is not overfitted.
    """
    keys = {
        Balance.NONE: np.zeros(len(groups), np.int64),
        Balance.CLASS: are_viral.astype(np.int64),
        Balance.GROUP: groups,
    }[balance]
    names, key_index, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    is_viral = np.zeros(len(names), bool)
    is_viral[key_index] = are_viral
    shares = np.sqrt(sizes)
    if balance is not Balance.NONE:
        for kind in (True, False):
            shares[is_viral == kind] /= 2 * shares[is_viral == kind].sum()
    else:
        shares = np.ones(1)
    weights: NDArray[np.float32] = (len(groups) * shares / sizes)[key_index].astype(np.float32)
    return weights


@contextmanager
def _restored_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


class _Trainer:
    """A classifier, its optimizer, and the epochs so far."""

    def __init__(self, examples: Examples, splits: Splits, recipe: Recipe) -> None:
        self.examples, self.recipe = examples, recipe
        self.rows = {split: np.flatnonzero(splits == split) for split in (TRAINING, VALIDATION)}
        self.sample_weights = np.zeros(len(splits), np.float32)
        for rows in self.rows.values():
            own = examples.are_viral[rows], examples.groups[rows]
            self.sample_weights[rows] = sample_weights(recipe.balance, *own)
        self.key = self._checkpoint_key(splits)
        self.progress = ThrottledProgress("{} training ORFs processed so far")
        self.history: History = []
        self.best_weights: Weights = {}
        self._seed(0)
        self.network = Classifier(ClassifierShape(examples.features.shape[1], recipe.hidden), recipe.dropout)
        self.optimizer = _make_optimizer(self.network, recipe)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, recipe.step, recipe.decay)

    def __repr__(self) -> str:
        return f"<_Trainer [{len(self.history)} of {self.recipe.epochs} epochs]>"

    @property
    def is_done(self) -> bool:
        """Whether the patience or the epochs are used up."""
        return self._is_over(self.history)

    def epoch_summary(self) -> str:
        """Format the losses of the last epoch."""
        last = self.history[-1]
        return (
            f"epoch {len(self.history)}: training loss {last['training_loss']:.4f}, "
            f"validation loss {last['validation_loss']:.4f}"
        )

    def train_epoch(self) -> None:
        """Train on all ORFs once, in a new order; raise TrainingDiverged if the loss is not finite."""
        # Seeded by the number of the epoch, so that resumed training draws the same numbers.
        self._seed(len(self.history) + 1)
        rows = self.rows[TRAINING]
        order = rows[torch.randperm(len(rows)).numpy()]
        rate = float(self.schedule.get_last_lr()[0])
        self.network.train()
        total = sum(self._step(batch) for batch in _batches(order, self.recipe.batch))
        self.schedule.step()
        loss = self._validation_loss()
        self.history.append({"rate": rate, "training_loss": total / len(rows), "validation_loss": loss})
        if not np.isfinite(loss):
            raise TrainingDiverged(len(self.history), rate)
        if loss == min(_validation_losses(self.history)):
            self.best_weights = _copy(self.network.state_dict())

    def save_checkpoint(self, path: Path) -> None:
        """Write the state after the last epoch to *path*; raise CannotWrite if that fails."""
        state = {
            "key": self.key,
            "history": self.history,
            "best": self.best_weights,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        with writing_to(path.parent, path.name), unwrapped_torch_errors(), atomic_write(path) as file:
            torch.save(state, file)

    def resume(self, path: Path) -> None:
        """Load the epochs in *path* if they belong to this training; else log why not."""
        if not path.exists():
            return
        try:
            state = read_values(path)
        except BadCheckpoint as error:
            logger.warning("{}: starting from the first epoch", error)
            return
        if not self._can_resume(state):
            logger.info(
                "the saved epochs are from other data, another recipe or another number of threads: "
                "starting from the first epoch"
            )
            return
        # Copied, because they are mapped from a file that the next epoch replaces.
        self.best_weights = _copy(state["best"])
        self.history = state["history"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        logger.info("resuming after {}", plural(len(self.history), "epoch"))

    def _can_resume(self, state: Any) -> bool:
        if not isinstance(state, dict) or state.get("key") != self.key:
            return False
        # Not if this recipe would have ended earlier: later epochs must not affect the result.
        history = state["history"]
        return not any(self._is_over(history[:count]) for count in range(len(history)))

    def _is_over(self, history: History) -> bool:
        losses = _validation_losses(history)
        without_improvement = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        return without_improvement >= self.recipe.patience or len(losses) >= self.recipe.epochs

    def _checkpoint_key(self, splits: Splits) -> str:
        # How long to train does not change the epochs so far.
        unlimited = {
            name: value for name, value in asdict(self.recipe).items() if name not in ("epochs", "patience")
        }
        # The last digits of a sum depend on how many threads compute it.
        digest = hashlib.sha256(json.dumps([unlimited, torch.get_num_threads()]).encode())
        digest.update(splits.tobytes())
        digest.update(self.sample_weights.tobytes())
        features = self.examples.features
        for first in range(0, len(features), _HASHED_ROWS):
            digest.update(np.ascontiguousarray(features[first : first + _HASHED_ROWS]).data)
        return digest.hexdigest()

    def _seed(self, epoch: int) -> None:
        (state,) = np.random.SeedSequence([self.recipe.seed, epoch]).generate_state(1, np.uint64)
        torch.default_generator.manual_seed(int(state))

    def _step(self, rows: NDArray[np.int64]) -> float:
        """Update the weights by one batch, and return the sum of its losses."""
        loss = self._loss(rows)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.progress.advance(len(rows))
        return loss.item() * len(rows)

    @torch.inference_mode()
    def _validation_loss(self) -> float:
        self.network.eval()
        rows = self.rows[VALIDATION]
        total = sum(self._loss(batch).item() * len(batch) for batch in _batches(rows, _INFERENCE_ROWS))
        return total / len(rows)

    def _loss(self, rows: NDArray[np.int64]) -> Tensor:
        truth = torch.from_numpy(self.examples.are_viral[rows].astype(np.int64))
        logits = self.network.logits(torch.from_numpy(self.examples.features[rows]))
        losses = functional.cross_entropy(logits, truth, reduction="none")
        return (losses * torch.from_numpy(self.sample_weights[rows])).mean()


def _validation_losses(history: History) -> list[float]:
    return [epoch["validation_loss"] for epoch in history]


def _copy(weights: Weights) -> Weights:
    return {name: tensor.clone() for name, tensor in weights.items()}


def _make_optimizer(network: Classifier, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer is Optimizer.ADAMW:
        betas = (recipe.momentum, 0.999)
        return torch.optim.AdamW(network.parameters(), recipe.rate, betas, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        network.parameters(), recipe.rate, recipe.momentum, weight_decay=recipe.weight_decay
    )


def _batches(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Yield *rows* in batches; a single last row joins the batch before it, as it has no variance."""
    starts = list(range(0, len(rows), size))
    if len(starts) > 1 and len(rows) - starts[-1] == 1:
        del starts[-1]
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        # Sorted, so that a batch is read from the disk in one direction; its loss is the same.
        yield np.sort(rows[start:end])
