"""The optimisation of the classifier: balance, batches, the best epoch, and checkpoints."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import files_no_larger_than

from virnuc_async.errors import CannotWrite
from virnuc_async.learning.dataset import TEST, TRAINING, VALIDATION
from virnuc_async.learning.options import Balance, Recipe
from virnuc_async.learning.trainer import Examples, fit, sample_weights


def make_examples(count: int) -> tuple[Examples, np.ndarray]:
    random = np.random.default_rng(0)
    viral = np.arange(count) % 2 == 0
    features = random.normal(0, 1, (count, 8)).astype(np.float32) + viral[:, None] * 0.5
    index = np.arange(count)
    splits = np.array([TRAINING, TRAINING, VALIDATION, VALIDATION, TEST, TEST], np.uint8)[index % 6]
    return Examples(features.astype(np.float32), index, index, viral, viral.astype(np.int64)), splits


class Interrupted(io.BytesIO):
    """A file that Ctrl-C interrupts after the first write."""

    def write(self, content: Any) -> int:
        if self.tell():
            raise KeyboardInterrupt
        return super().write(content)


def open_interrupted(name: str, mode: str, opener: Any) -> Any:
    """Create files, and interrupt what is written to them."""
    return open(name, mode, opener=opener) if mode == "xb" else Interrupted()


def test_interrupt_during_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, splits = make_examples(66)
    with monkeypatch.context() as patch:
        patch.setattr("virnuc_async.fileio.open", open_interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):  # and not the RuntimeError that torch raises in its place
            fit(examples, splits, Recipe(epochs=2, hidden=4), tmp_path / "epochs.pt")
    assert fit(examples, splits, Recipe(epochs=2, hidden=4), tmp_path / "epochs.pt").history


def test_full_disk_during_a_checkpoint(tmp_path: Path) -> None:
    examples, splits = make_examples(66)
    with files_no_larger_than(1000), pytest.raises(CannotWrite, match=r"epochs\.pt: File too large"):
        fit(examples, splits, Recipe(epochs=2, hidden=4), tmp_path / "epochs.pt")
    assert not (tmp_path / "epochs.pt").exists()


@pytest.mark.parametrize("batch", [2, 7, 8, 99])
def test_all_training_rows_are_used_with_any_batch_size(tmp_path: Path, batch: int) -> None:
    # 22 training rows: with batches of 7, the last batch would be a single row, which has no variance.
    examples, splits = make_examples(66)
    fitted = fit(examples, splits, Recipe(batch=batch, epochs=3, hidden=4), tmp_path / "epochs.pt")
    batches = fitted.weights["norm.num_batches_tracked"].item()
    assert batches == fitted.best_epoch * len([start for start in range(0, 22, batch) if 22 - start > 1])


def test_best_epoch_is_kept(tmp_path: Path) -> None:
    examples, splits = make_examples(120)
    recipe = Recipe(rate=0.5, batch=8, epochs=30, hidden=4, patience=4)
    fitted = fit(examples, splits, recipe, tmp_path / "epochs.pt")
    losses = [epoch["validation_loss"] for epoch in fitted.history]
    assert min(losses) == losses[fitted.best_epoch - 1]
    assert len(losses) == min(30, fitted.best_epoch + 4)
    short = Recipe(rate=0.5, batch=8, epochs=fitted.best_epoch, hidden=4, patience=4)
    again = fit(examples, splits, short, tmp_path / "other.pt")
    assert all(torch.equal(tensor, again.weights[name]) for name, tensor in fitted.weights.items())


def test_default_recipe_is_the_published_one() -> None:
    recipe = Recipe()
    assert (recipe.optimizer, recipe.rate, recipe.momentum) == ("sgd", 0.0002, 0.9)
    assert (recipe.step, recipe.decay, recipe.patience, recipe.batch) == (10, 0.85, 5, 256)
    assert (recipe.hidden, recipe.dropout) == (512, 0.5)


def test_sample_weights_by_class_and_group() -> None:
    viral = np.array([True] * 20 + [False] * 80)
    groups = np.array([0] * 16 + [1] * 4 + [2] * 80)
    assert set(sample_weights(Balance.NONE, viral, groups).tolist()) == {1.0}
    by_class = sample_weights(Balance.CLASS, viral, groups)
    assert by_class[viral].sum() == pytest.approx(50)
    assert by_class[~viral].sum() == pytest.approx(50)
    by_group = sample_weights(Balance.GROUP, viral, groups)
    sums = [by_group[groups == number].sum() for number in range(3)]
    # Groups of 16 and 4 ORFs share the viral half 4 to 2.
    assert sums == pytest.approx([50 * 4 / 6, 50 * 2 / 6, 50])
    # With equal classes, the weights are those of the published recipe.
    even = np.array([True, False] * 10)
    assert set(sample_weights(Balance.CLASS, even, even.astype(np.int64)).tolist()) == {1.0}
