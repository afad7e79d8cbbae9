"""VirNucPro's pickled classifiers: the published module, and other ones."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import MLPClassifier, filled, refusal, unzipped
from torch import nn
from torch.testing import assert_close

from virnuc_async.models import checkpoint_formats
from virnuc_async.models.checkpoint_formats import read_classifier, read_nucleotide, read_protein
from virnuc_async.models.import_checkpoint import CheckpointPaths
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.shapes import ClassifierShape

exact = {"rtol": 0, "atol": 1e-5}


def test_a_pickled_classifier_gives_the_same_scores(as_main, tmp_path: Path):
    torch.manual_seed(5)
    theirs = as_main()
    x = torch.randn(32, 6)
    theirs(x)  # so that the batch norm has statistics
    theirs.eval()
    torch.save(theirs, tmp_path / "500_model.pth")
    tensors, shape = read_classifier(tmp_path / "500_model.pth")
    assert shape == ClassifierShape(inputs=6, hidden=4)
    ours = filled(lambda: Classifier(shape), tensors)
    assert torch.equal(ours(x), torch.softmax(theirs(x), 1))


def test_a_module_in_torchs_old_form_cannot_be_read_safely(as_main, tmp_path: Path):
    (tmp_path / "x.pth").write_bytes(unzipped(as_main()))
    assert refusal(read_classifier, tmp_path / "x.pth").endswith("; no code from it was executed")


def test_the_golden_classifier(golden_parts: CheckpointPaths, expected: Path):
    tensors, shape = read_classifier(golden_parts.classifier)
    assert shape == ClassifierShape(inputs=160, hidden=32)
    merged = torch.load(expected / "merged.pt", weights_only=True)["data"]
    rows = [line.split("\t") for line in (expected / "prediction_results.txt").read_text().splitlines()[1:]]
    expected_scores = torch.tensor([[float(row[2]), float(row[3])] for row in rows])
    assert_close(filled(lambda: Classifier(shape), tensors)(merged), expected_scores, **exact)


def without(name: str) -> Callable[[MLPClassifier], object]:
    return lambda module: delattr(module, name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("hidden_layer"), "it has no matrix hidden.weight"),
        (without("output_layer"), "damaged or incomplete: output.bias has the shape None, not (2,)"),
        (without("bn1"), "damaged or incomplete: norm.bias has the shape None, not (4,)"),
        (without("_modules"), "the pickled module is incomplete"),
        (lambda m: setattr(m, "output_layer", nn.Linear(4, 3)), "output.bias has the shape (3,), not (2,)"),
        (lambda m: setattr(m, "more", nn.Linear(2, 2)), "unknown tensor 'more.weight'"),
        (
            lambda m: setattr(m, "more", nn.Conv1d(1, 1, 1)),
            "(torch.nn.modules.conv.Conv1d); no code from it was",
        ),
        (lambda m: setattr(m, "bn1", nn.LayerNorm(4)), "(torch.nn.modules.normalization.LayerNorm); no code"),
    ],
)
def test_a_pickled_module_that_is_not_the_published_one(change, reason: str, as_main, tmp_path: Path):
    module = as_main()
    change(module)
    torch.save(module, tmp_path / "x.pth")
    assert reason in refusal(read_classifier, tmp_path / "x.pth")


def test_tensors_without_a_module(tmp_path: Path):
    torch.save(MLPClassifier().state_dict(), tmp_path / "x.pth")
    assert refusal(read_classifier, tmp_path / "x.pth") == "not a pickled MLPClassifier"


def test_a_classifier_is_not_an_encoder(golden_parts: CheckpointPaths, dnabert: Path):
    shutil.copy(golden_parts.classifier, dnabert / "pytorch_model.bin")
    expected = "it contains more than tensors (__main__.MLPClassifier); no code from it was executed"
    assert refusal(read_protein, golden_parts.classifier) == expected
    assert refusal(read_nucleotide, dnabert) == expected


def test_the_stand_in_class_has_no_behaviour():
    assert set(vars(checkpoint_formats.MLPClassifier)) <= {"__doc__", "__module__"}
