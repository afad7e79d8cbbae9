"""Every option of training has an effect, and values out of range are refused."""

import shutil
from pathlib import Path

import pytest
from support import fasta
from tiny_models import Toys, records
from training_command import report, train, weights

from virnuc_async.learning.options import Balance


@pytest.mark.parametrize(
    "option",
    [
        ("--optimizer", "sgd"),
        ("--rate", "0.02"),
        ("--momentum", "0.5"),
        ("--weight-decay", "0.1"),
        ("--step", "1"),
        ("--epochs", "1"),
        ("--batch", "32"),
        ("--hidden", "16"),
        ("--dropout", "0"),
        ("--seed", "7"),
        ("--validation", "0.2"),
        ("--test", "0.1"),
        ("--augment",),
        ("--split-by-fragment",),
    ],
    ids=" ".join,
)
def test_options_change_the_classifier(
    toys: Toys, features: Path, tmp_path: Path, option: tuple[str, ...], default_weights: bytes
) -> None:
    work = () if option == ("--augment",) else ("--work", shutil.copytree(features, tmp_path / "work"))
    assert train(toys, tmp_path / "one", *work, *option).code == 0
    assert weights(tmp_path / "one") != default_weights


def test_decay_patience_and_threshold(toys: Toys, work: Path, tmp_path: Path) -> None:
    assert train(toys, tmp_path / "one", "--work", work, "--step", "1", "--decay", "0.5").code == 0
    rates = [epoch["rate"] for epoch in report(tmp_path / "one")["history"]]
    assert rates == pytest.approx([0.01 * 0.5**epoch for epoch in range(len(rates))])
    options = ("--rate", "0.5", "--epochs", "60", "--patience", "2")
    assert train(toys, tmp_path / "two", "--work", work, *options).code == 0
    found = report(tmp_path / "two")
    assert len(found["history"]) == found["best_epoch"] + 2 < 60
    ended = train(toys, tmp_path / "three", "--work", work, "--threshold", "0")
    assert "this run is finished already" in ended.err
    assert report(tmp_path / "three")["test"]["contig"]["figures"]["specificity"]["value"] == 0


def test_balance_changes_the_classifier(toys: Toys, tmp_path: Path) -> None:
    few = Toys(toys.viral, tmp_path / "few.fa")
    few.nonviral.write_text(fasta(records(False, 13, 400, 0)))
    found = set()
    for balance in Balance:
        assert train(few, tmp_path / balance, "--work", tmp_path / "work", "--balance", balance).code == 0
        found.add(weights(tmp_path / balance))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--rate", "0"), "the rate must be a finite number above 0, not 0.0"),
        (("--dropout", "1"), "dropout must be at least 0 and below 1, not 1.0"),
        (("--momentum", "-1"), "momentum must be at least 0 and below 1, not -1.0"),
        (("--decay", "0"), "decay must be above 0 and at most 1, not 0.0"),
        (("--weight-decay", "-1"), "weight decay must be a finite number of at least 0, not -1.0"),
        (("--batch", "1"), "batch must be at least 2, not 1"),
        (("--hidden", "0"), "hidden must be at least 1, not 0"),
        (("--seed", "-1"), "the seed must be at least 0, not -1"),
        (
            ("--test", "1"),
            "validation and test must be fractions above 0 whose sum is below 1, not 0.1 and 1.0",
        ),
        (("--leakage-share", "2"), "the leakage share must be a number from 0 to 1, not 2.0"),
        (("--resamples", "0"), "resamples must be at least 1, not 0"),
    ],
)
def test_values_out_of_range(toys: Toys, tmp_path: Path, option: tuple[str, ...], message: str) -> None:
    assert train(toys, tmp_path / "one", *option) == (64, "", f"virnuc-async: {message}\n")
