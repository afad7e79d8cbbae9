"""DNABERT directories of Hugging Face: every form of them, and other networks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import dnabert_tensors, refusal, same
from safetensors.torch import save_file

from virnuc_async.models.checkpoint_formats import read_nucleotide
from virnuc_async.models.import_checkpoint import CheckpointPaths
from virnuc_async.networks.shapes import NucleotideShape


def test_a_dnabert_directory(golden_parts: CheckpointPaths):
    tensors, shape = read_nucleotide(golden_parts.nucleotide)
    theirs = dnabert_tensors(golden_parts.nucleotide)
    assert shape == NucleotideShape(
        layers=2, width=96, heads=12, intermediate=192, vocabulary=1024, eps=1e-12
    )
    assert torch.equal(tensors["token_type"], theirs["embeddings.token_type_embeddings.weight"][0])
    assert torch.equal(tensors["layers.1.qkv.weight"], theirs["encoder.layer.1.attention.self.Wqkv.weight"])
    assert torch.equal(tensors["layers.0.gate_up.weight"], theirs["encoder.layer.0.mlp.gated_layers.weight"])


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("form", ["bin", "safetensors", "bins"])
def test_every_form_of_a_dnabert_directory(
    form: str, prefix: str, dnabert: Path, golden_parts: CheckpointPaths
):
    theirs = {f"{prefix}{name}": tensor for name, tensor in dnabert_tensors(dnabert).items()}
    theirs |= {"cls.predictions.bias": torch.zeros(3), f"{prefix}embeddings.position_ids": torch.zeros(1, 3)}
    (dnabert / "pytorch_model.bin").unlink()
    if form == "safetensors":
        save_file(theirs, dnabert / "model.safetensors")
    elif form == "bin":
        torch.save(theirs, dnabert / "pytorch_model.bin")
    else:
        names = sorted(theirs)
        torch.save({name: theirs[name] for name in names[::2]}, dnabert / "pytorch_model-00001-of-00002.bin")
        torch.save({name: theirs[name] for name in names[1::2]}, dnabert / "pytorch_model-00002-of-00002.bin")
    tensors, shape = read_nucleotide(dnabert)
    expected, expected_shape = read_nucleotide(golden_parts.nucleotide)
    assert shape == expected_shape
    assert same(tensors, expected)


def test_layer_norms_called_gamma_and_beta(dnabert: Path, golden_parts: CheckpointPaths):
    def old(name: str) -> str:
        is_norm = "LayerNorm" in name or "layernorm" in name
        return name.replace(".weight", ".gamma").replace(".bias", ".beta") if is_norm else name

    torch.save({old(name): t for name, t in dnabert_tensors(dnabert).items()}, dnabert / "pytorch_model.bin")
    assert same(read_nucleotide(dnabert)[0], read_nucleotide(golden_parts.nucleotide)[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("embeddings.word_embeddings.weight"), "it has no matrix embed.weight"),
        (lambda t: t.pop("embeddings.token_type_embeddings.weight"), "it has no matrix token_types"),
        (lambda t: [t.pop(n) for n in list(t) if ".layer." in n], "it has no matrix layers.0.down.weight"),
        (lambda t: [t.pop(n) for n in list(t) if ".layer.0." in n], "it has no matrix layers.0.down.weight"),
        (
            lambda t: t.update({"embeddings.word_embeddings.weight": torch.zeros(1024)}),
            "it has no matrix embed.weight",
        ),
        (
            lambda t: t.update({"embeddings.token_type_embeddings.weight": torch.zeros(0, 96)}),
            "it has no matrix token_types",
        ),
        (
            lambda t: t.pop("encoder.layer.1.mlp.wo.bias"),
            "damaged or incomplete: layers.1.down.bias has the shape None, not (96,)",
        ),
        (
            lambda t: t.update({"encoder.layer.0.mlp.gated_layers.weight": torch.zeros(192, 96)}),
            "damaged or incomplete: layers.0.gate_up.weight has the shape (192, 96), not (384, 96)",
        ),
        (
            lambda t: t.update({"encoder.layer.0.attention.self.query.weight": torch.zeros(96, 96)}),
            "unknown tensor 'encoder.layer.0.attention.self.query.weight'",  # an ordinary BERT
        ),
    ],
)
def test_tensors_of_another_network(change, reason: str, dnabert: Path):
    tensors = dnabert_tensors(dnabert)
    change(tensors)
    torch.save(tensors, dnabert / "pytorch_model.bin")
    assert reason in refusal(read_nucleotide, dnabert)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"num_attention_heads": 7}, "7 heads cannot share a width of 96"),
        ({"num_attention_heads": 0}, "0 heads cannot share a width of 96"),
        ({"layer_norm_eps": "small"}, "config.json has layer_norm_eps 'small'"),
    ],
)
def test_a_config_that_does_not_fit(more: dict[str, Any], reason: str, dnabert: Path):
    path = dnabert / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | more))
    assert refusal(read_nucleotide, dnabert) == reason


def test_a_dnabert_directory_without_config_or_weights(dnabert: Path):
    (dnabert / "pytorch_model.bin").unlink()
    assert refusal(read_nucleotide, dnabert) == "no *.safetensors and no pytorch_model*.bin in it"
    (dnabert / "config.json").unlink()
    assert refusal(read_nucleotide, dnabert) == "there is no config.json in it"


@pytest.mark.parametrize("found", [[1, 2], torch.zeros(2), "text", 5])
def test_a_pickle_without_names(found: Any, dnabert: Path):
    torch.save(found, dnabert / "pytorch_model.bin")
    assert refusal(read_nucleotide, dnabert) == "it contains no named tensors"


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64, torch.bool])
def test_weights_that_are_not_floating_point(kind: torch.dtype, dnabert: Path):
    tensors = dnabert_tensors(dnabert)
    tensors["embeddings.LayerNorm.weight"] = torch.zeros(96, dtype=kind)
    torch.save(tensors, dnabert / "pytorch_model.bin")
    assert refusal(read_nucleotide, dnabert) == f"damaged: norm.weight has the type {kind}"


def test_a_sparse_tensor(dnabert: Path):
    tensors = dnabert_tensors(dnabert)
    tensors["embeddings.LayerNorm.weight"] = torch.zeros(96).to_sparse()
    torch.save(tensors, dnabert / "pytorch_model.bin")
    assert refusal(read_nucleotide, dnabert) == "'embeddings.LayerNorm.weight' is not a plain tensor"
