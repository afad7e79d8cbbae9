"""Training by the command: what the classifier learns, the bundle, determinism, and what is refused."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from running import OPEN, SHUT, predict, rows
from safetensors.torch import load_file
from support import fasta
from tiny_models import Toys, write_shuffled, write_toys
from training_command import auroc_of, report, train, weights

from virnuc_async.models.bundle import Bundle, find


def test_trained_classifier_predicts_new_sequences(toys: Toys, work: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    ended = train(toys, output, "--work", work)
    assert ended.code == 0
    assert f"mine is in {output}. Use it with --model {output}\n" in ended.out
    assert re.search(r"^epoch 1: training loss \d\.\d+, validation loss \d\.\d+$", ended.err, re.MULTILINE)
    assert all(auroc_of(output, level) > 0.95 for level in ("ORF", "fragment", "contig"))
    # The same weights, used by predict.
    fresh = write_toys(tmp_path / "fresh", 10, seed=1)
    assert predict(*fresh, tmp_path / "out", "--model", output).code == 0
    verdicts = [row[9] for row in rows(tmp_path / "out" / "contigs.tsv")[1:]]
    assert np.mean([verdict == "virus" for verdict in verdicts[:10]]) >= 0.9
    assert np.mean([verdict == "others" for verdict in verdicts[10:]]) >= 0.9


def test_shuffled_labels_are_not_learnt(tmp_path: Path) -> None:
    toys = write_shuffled(tmp_path, 150, 150)
    assert train(toys, tmp_path / "model", "--test", "0.4").code == 0
    assert 0.35 < auroc_of(tmp_path / "model") < 0.65


def test_results_of_groups(toys: Toys, work: Path, tmp_path: Path) -> None:
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    names = {group["group"] for group in report(tmp_path / "one")["test"]["contig"]["groups"]}
    assert names == {"av", "bv", "an", "bn"}
    table = tmp_path / "g.tsv"
    table.write_text("".join(f"{kind}g{number}\tall|of|it\n" for kind in "vn" for number in range(20)))
    assert train(toys, tmp_path / "two", "--work", work, "--groups", table).code == 0
    names = {group["group"] for group in report(tmp_path / "two")["test"]["contig"]["groups"]}
    assert names == {"all|of|it"}
    assert "| all\\|of\\|it | viral | 40 | 16,000 | 20 |" in (tmp_path / "two" / "README.md").read_text()


def test_seed_determines_every_byte(toys: Toys, work: Path, tmp_path: Path) -> None:
    one, again, other = (tmp_path / name for name in ("one", "again", "other"))
    assert train(toys, one, "--work", work).code == 0
    assert train(toys, again).code == 0  # without existing features
    assert train(toys, other, "--work", work, "--seed", "1").code == 0
    assert weights(one) == weights(again) != weights(other)
    assert report(one)["split"] == report(again)["split"]
    assert report(one)["test"] == report(again)["test"]
    assert report(one)["split"] != report(other)["split"]


def test_global_random_state_is_restored(toys: Toys, work: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert train(toys, tmp_path / "one", "--work", work).code == 0
    assert torch.equal(torch.rand(3), expected)


# The bundle


def test_bundle_is_complete(toys: Toys, work: Path, tmp_path: Path) -> None:
    output, base = tmp_path / "mine", find("tiny-500")
    assert train(toys, output, "--work", work, "--hidden", "7").code == 0
    bundle = find(output)
    bundle.check()
    assert (bundle.name, bundle.length, bundle.shapes.classifier.hidden) == ("mine", 500, 7)
    assert bundle.shapes.protein == base.shapes.protein
    assert bundle.fingerprint != base.fingerprint
    assert bundle.notice.startswith("the encoders are those of tiny-500: ")
    for name in ("protein.safetensors", "nucleotide.safetensors", "tokenizer.json"):
        assert bundle.checksums[name] == base.checksums[name]
    names = {"README.md", "training.json", "bundle.json", *bundle.checksums}
    assert {path.name for path in output.iterdir()} == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "work"]


def test_encoders_are_copied_if_they_cannot_be_linked(
    toys: Toys, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    linked, copied = tmp_path / "linked", tmp_path / "copied"
    assert train(toys, linked, "--work", work).code == 0
    monkeypatch.setattr(os, "link", refuse)
    assert train(toys, copied, "--work", work).code == 0
    assert find(copied).fingerprint == find(linked).fingerprint
    assert (copied / "protein.safetensors").stat().st_nlink == 1


def test_training_on_an_imported_model(golden_bundle: Bundle, toys: Toys, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    assert train(toys, output, "--model", golden_bundle.directory).code == 0
    bundle = find(output)
    assert bundle.length == golden_bundle.length
    assert not bundle.notice
    assert report(output)["base"]["fingerprint"] == golden_bundle.fingerprint
    assert auroc_of(output) > 0.8
    tensors = load_file(output / "classifier.safetensors")
    assert tensors["hidden.weight"].shape == (512, golden_bundle.shapes.classifier.inputs)


# What is refused


def test_existing_output_is_not_overwritten(toys: Toys, work: Path, tmp_path: Path) -> None:
    output = tmp_path / "one"
    output.mkdir()
    assert train(toys, output, "--work", work).code == 0  # an empty directory is accepted
    before = weights(output)
    message = f"virnuc-async: {output}: exists and is not empty. Choose a new or empty directory\n"
    assert train(toys, output, "--work", work, "--seed", "1") == (1, "", message)
    assert weights(output) == before


def test_invalid_model_name(toys: Toys, tmp_path: Path) -> None:
    ended = train(toys, tmp_path / "one\x1b[31m")
    assert ended.code == 64
    assert "invalid model name 'one\\x1b[31m': the model is named after the output directory" in ended.err


def test_work_directory_with_files_of_our_names(toys: Toys, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "epochs.pt").write_text("all of it")
    ended = train(toys, tmp_path / "one", "--work", tmp_path / "work")
    message = (
        f"virnuc-async: {tmp_path / 'work'}: contains 'epochs.pt' and no training, which would write files "
        "of these names. Choose another --work\n"
    )
    assert ended == (1, "", message)


def test_unusable_sequences(toys: Toys, tmp_path: Path) -> None:
    empty, shut = tmp_path / "empty.fa", tmp_path / "shut.fa"
    empty.write_text("")
    shut.write_text(fasta([(f"s{number}", SHUT) for number in range(5)]))
    messages = {
        Toys(empty, toys.nonviral): "nothing viral in the labelled sequences: both classes are needed",
        Toys(toys.viral, empty): "nothing nonviral in the labelled sequences: both classes are needed",
        Toys(shut, toys.nonviral): "nothing viral in the ORFs for training: both classes are needed",
        Toys(tmp_path / "none.fa", toys.nonviral): f"{tmp_path / 'none.fa'}: No such file or directory",
    }
    for number, (unusable, message) in enumerate(messages.items()):
        ended = train(unusable, tmp_path / f"model{number}")
        assert ended.code == 1
        assert ended.err.endswith(f"virnuc-async: {message}\n")
        assert not (tmp_path / f"model{number}").exists()
    few = tmp_path / "few.fa"
    few.write_text(fasta([("a", OPEN * 50), ("b", OPEN * 50)]))
    ended = train(Toys(few, toys.nonviral), tmp_path / "model")
    assert "2 clusters of viral records cannot be divided into 3 splits" in ended.err


def test_diverging_training(toys: Toys, work: Path, tmp_path: Path) -> None:
    options = ("--optimizer", "sgd", "--rate", "1e30")
    for _ in range(2):
        ended = train(toys, tmp_path / "one", "--work", work, *options)
        assert ended.code == 1
        message = "the loss is NaN or infinite after epoch 1: choose a lower --rate than 1e+30"
        assert ended.err.endswith(f"virnuc-async: {message}\n")
    assert not (tmp_path / "one").exists()
