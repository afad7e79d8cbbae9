"""The three networks together: upstream's embeddings and scores, and what is not finite."""

from pathlib import Path

import pytest
import torch
from golden_networks import EXACT
from safetensors.torch import load_file
from support import CPU, pieces, read_embeddings, read_table
from torch.testing import assert_close

from virnuc_async.models.bundle import Bundle
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.model import Model, similarity
from virnuc_async.networks.packing import pack
from virnuc_async.networks.shapes import ClassifierShape
from virnuc_async.sequences.tokens import OrfTokenizer


def test_upstreams_embeddings_and_scores(golden: Path, expected: Path, golden_bundle: Bundle):
    tokenizer = OrfTokenizer(golden_bundle.tokenizer())
    model = Model.load(golden_bundle.directory, golden_bundle.shapes, CPU, torch.float32)
    cut = list(pieces(golden / "upstream" / "input.fa", golden_bundle.length))
    names = [f"{piece.id}{orf.frame.name}" for piece in cut for orf in piece.orfs]
    orfs = [orf for piece in cut for orf in piece.orfs]
    bases = model.nucleotide.embeddings(pack(tokenizer.nucleotides([orf.bases for orf in orfs])))
    residues = model.protein.embeddings(pack(tokenizer.residues([orf.protein for orf in orfs])))
    scores, is_finite, features = model.classify(bases, residues)
    assert is_finite.shape == (3, len(names))
    assert is_finite.all()

    merged = torch.load(expected / "merged.pt", weights_only=True)
    assert names == merged["ids"]
    assert_close(features, merged["data"], **EXACT)
    dnabert_s, esm2 = read_embeddings(expected)
    stacked = torch.stack([torch.cat((dnabert_s[name], esm2[name])) for name in names])
    assert_close(features, stacked, **EXACT)
    _, *rows = read_table(expected / "prediction_results.txt")
    assert names == [row[0] for row in rows]
    assert_close(scores, torch.tensor([[float(row[2]), float(row[3])] for row in rows]), **EXACT)
    labels = ["virus" if others < virus else "others" for others, virus in scores.tolist()]
    assert labels == [row[1] for row in rows]


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_marked_by_network(
    row: int, value: float, golden_bundle: Bundle
) -> None:
    model = Model.load(golden_bundle.directory, golden_bundle.shapes, CPU, torch.float32)
    shapes = golden_bundle.shapes
    bases, residues = torch.ones(3, shapes.nucleotide.width), torch.ones(3, shapes.protein.width)
    residues[row, 1] = value
    outputs = model.classify(bases, residues)
    assert outputs.is_finite[0].all()
    assert outputs.is_finite[1].logical_not().nonzero().flatten().tolist() == [row]
    assert outputs.is_finite[2].logical_not().nonzero().flatten().tolist() == [row]


def test_each_tensor_is_announced_before_it_is_loaded(golden_bundle: Bundle) -> None:
    calls: list[None] = []
    Model.load(golden_bundle.directory, golden_bundle.shapes, CPU, torch.float32, lambda: calls.append(None))
    files = (f"{name}.safetensors" for name in ("nucleotide", "protein", "classifier"))
    assert len(calls) == sum(len(load_file(golden_bundle.directory / name)) for name in files)

    def stop() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        Model.load(golden_bundle.directory, golden_bundle.shapes, CPU, torch.float32, stop)


def test_similarity_is_the_cosine_of_rows_of_equal_length() -> None:
    some = torch.tensor([[3.0, 4.0], [3.0, 4.0], [1.0, 0.0]])
    others = torch.tensor([[3.0, 4.0], [4.0, 3.0], [3.0, 0.0]])
    assert_close(similarity(some, others), torch.tensor([1.0, 0.96, 0.6]))


def test_the_classifier_is_linear_norm_relu_linear_softmax():
    torch.manual_seed(1)
    network = Classifier(ClassifierShape(inputs=5, hidden=4)).eval()
    network.norm.running_mean.normal_()
    network.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 5)
    hidden = x @ network.hidden.weight.T + network.hidden.bias
    normed = (hidden - network.norm.running_mean) / (network.norm.running_var + 1e-5).sqrt()
    logits = normed.clamp(min=0) @ network.output.weight.T + network.output.bias
    assert_close(network.logits(x), logits)
    assert_close(network(x), logits.exp() / logits.exp().sum(1, keepdim=True))
