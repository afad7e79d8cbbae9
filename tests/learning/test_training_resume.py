"""Training resumes: features and epochs, after interruptions of every kind."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from half_made import MAKER, half_made
from running import run, start, wait_until
from tiny_models import Toys, write_toys
from training_command import QUICK, auroc_of, report, train, weights

OTHER = "the saved epochs are from other data, another recipe or another number of threads"


def test_training_resumes_after_the_last_epoch(toys: Toys, work: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path / "other")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train(toys, whole, "--work", work, "--epochs", "6").code == 0
    assert train(toys, resumed, "--work", tmp_path / "other", "--epochs", "2").code == 0
    shutil.rmtree(resumed)
    ended = train(toys, resumed, "--work", tmp_path / "other", "--epochs", "6")
    assert "resuming after 2 epochs" in ended.err
    assert "epoch 3: " in ended.err
    assert "epoch 2: " not in ended.err
    assert weights(whole) == weights(resumed)
    assert report(whole)["history"] == report(resumed)["history"]


def test_epochs_of_another_recipe_and_damaged_epochs_are_discarded(
    toys: Toys, work: Path, tmp_path: Path
) -> None:
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    ended = train(toys, tmp_path / "two", "--work", work, "--dropout", "0.1")
    assert f"{OTHER}: starting from the first epoch" in ended.err
    assert "epoch 1: " in ended.err
    (work / "epochs.pt").write_bytes(b"not torch's")
    ended = train(toys, tmp_path / "three", "--work", work, "--dropout", "0.1")
    assert re.search(r"epochs\.pt cannot be imported: .*: starting from the first epoch", ended.err)
    assert weights(tmp_path / "two") == weights(tmp_path / "three") != weights(tmp_path / "one")


def test_epochs_of_another_number_of_threads_are_discarded(toys: Toys, work: Path, tmp_path: Path) -> None:
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    torch.set_num_threads(2)
    try:
        ended = train(toys, tmp_path / "two", "--work", work)
    finally:
        torch.set_num_threads(1)
    assert OTHER in ended.err
    assert (report(tmp_path / "one")["threads"], report(tmp_path / "two")["threads"]) == (1, 2)


def test_later_epochs_of_a_longer_training_have_no_effect(
    toys: Toys, work: Path, tmp_path: Path, default_weights: bytes
) -> None:
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    assert train(toys, one, "--work", work, "--epochs", "9").code == 0
    assert train(toys, two, "--work", work).code == 0  # five epochs
    assert len(report(two)["history"]) == 5
    assert weights(two) == default_weights
    assert train(toys, again, "--work", work).code == 0
    assert weights(again) == default_weights


@pytest.mark.slow
def test_interrupted_features_resume(tmp_path: Path) -> None:
    toys = write_toys(tmp_path, 60, 500)
    command = ("train", *toys.options, "--output", tmp_path / "model", "--devices", "cpu", *QUICK)
    log = tmp_path / "log.txt"
    process = start(*command, "--esm-batch-size", "300", "--verbose", stderr=log)
    wait_until(lambda: "batch 0.3 done" in log.read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    process.stdin.close()  # type: ignore[union-attr]
    end = r"\nInterrupted: [\d,]+ ORFs are kept \(\d+% of the work\)\. The same command resumes this run\.\n$"
    assert re.search(end, log.read_text())
    assert not (tmp_path / "model").exists()
    ended = run(*command, "--esm-batch-size", "300")
    assert ended.code == 0
    assert re.search(r"resuming after \d+ ORFs of an earlier session", ended.err)
    assert auroc_of(tmp_path / "model") > 0.95


@pytest.mark.parametrize(
    ("signal_number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        (signal.SIGKILL, -9),
    ],
)
def test_interrupted_epochs_resume(
    toys: Toys,
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal_number: signal.Signals,
    code: int,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process

    def command(work_directory: Path, epochs: int) -> tuple[str | Path, ...]:
        output = tmp_path / work_directory.name.replace("work", "model")
        paths = (*toys.options, "--output", output, "--work", work_directory)
        return ("train", *paths, "--devices", "cpu", *QUICK, "--patience", "100000", "--epochs", str(epochs))

    other = shutil.copytree(work, tmp_path / "work2")
    log = tmp_path / "log.txt"
    process = start(*command(work, 100_000), stderr=log)
    wait_until(lambda: "epoch 3: " in log.read_text(), process)
    process.send_signal(signal_number)
    assert process.wait() == code
    process.stdin.close()  # type: ignore[union-attr]
    is_announced = log.read_text().endswith("Interrupted. The same command resumes this run.\n")
    assert is_announced == (signal_number is not signal.SIGKILL)
    assert not (tmp_path / "model").exists()
    epochs = 3 + max(int(number) for number in re.findall(r"epoch (\d+): ", log.read_text()))
    ended = run(*command(work, epochs))
    assert ended.code == 0
    assert re.search(r"resuming after \d+ epochs", ended.err)
    assert run(*command(other, epochs)).code == 0
    assert weights(tmp_path / "model") == weights(tmp_path / "model2")


def test_what_a_killed_process_left_beside_the_output_is_removed(
    toys: Toys, work: Path, tmp_path: Path
) -> None:
    with half_made(MAKER, "directory", tmp_path / "killed"), half_made(MAKER, "write", work / "epochs.pt"):
        pass
    assert len([*tmp_path.glob(".*.partial"), *work.glob(".*.partial")]) == 2
    assert train(toys, tmp_path / "model", "--work", work).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "work"]
    assert sorted(path.name for path in work.iterdir()) == ["epochs.pt", "features"]


def test_checkpoint_does_not_follow_a_symbolic_link(toys: Toys, work: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for name in ("epochs.pt", ".epochs.pt.partial"):
        (work / name).symlink_to(tmp_path / "precious")
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    assert (tmp_path / "precious").read_text() == "precious"


def test_work_directory_of_other_sequences(toys: Toys, work: Path, tmp_path: Path) -> None:
    other = write_toys(tmp_path / "other", 10, seed=3)
    ended = train(other, tmp_path / "one", "--work", work)
    assert ended.code == 1
    assert "contains a different run: inputs" in ended.err
    assert train(other, tmp_path / "one", "--work", work, "--overwrite").code == 0


def test_features_that_were_changed_are_computed_again(
    toys: Toys, work: Path, tmp_path: Path, default_weights: bytes
) -> None:
    path = work / "features" / "merged_features.pt"
    found = torch.load(path, weights_only=True)
    torch.save({"ids": found["ids"][1:], "data": found["data"][1:].clone()}, path)
    # Neither joined by position nor silently dropped.
    ended = train(toys, tmp_path / "one", "--work", work)
    assert ended.code == 0
    assert torch.load(path, weights_only=True)["ids"] == found["ids"]
    assert weights(tmp_path / "one") == default_weights
