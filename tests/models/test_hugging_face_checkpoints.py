"""ESM-2 checkpoints of Hugging Face, compared with transformers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import Tensors, filled, refusal
from support import packed
from torch import nn
from torch.testing import assert_close
from transformers import EsmConfig, EsmForMaskedLM, EsmModel

from virnuc_async.models.checkpoint_formats import read_protein
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.shapes import ProteinShape

# transformers 5 leaves config.json open when it saves a network.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in.*config\.json:pytest.PytestUnraisableExceptionWarning"
)

exact = {"rtol": 0, "atol": 1e-5}


PROTEINS = ([0, 20, 5, 6, 7, 2], [0, *range(4, 29), 2], [0, 4, 2])


def esm_config(**more: Any) -> EsmConfig:
    return EsmConfig(
        vocab_size=33,
        hidden_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=160,
        pad_token_id=1,
        mask_token_id=32,
        **{"position_embedding_type": "rotary", "token_dropout": True, "layer_norm_eps": 1e-5, **more},
    )


@pytest.fixture(scope="module", params=[EsmModel, EsmForMaskedLM])
def hugging_face(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    torch.manual_seed(4)
    network = request.param(esm_config()).requires_grad_(False).eval()
    for name, tensor in network.named_parameters():
        if "LayerNorm" in name or "layer_norm" in name:
            tensor.uniform_(0.5, 1.5) if name.endswith("weight") else tensor.uniform_(-0.3, 0.3)
        else:
            tensor.normal_(0, 1 if "embeddings" in name else 0.2)
    directory = tmp_path_factory.mktemp("hf")
    network.save_pretrained(directory)
    return directory, getattr(network, "esm", network)


def assert_same_as_transformers(tensors: Tensors, shape: ProteinShape, theirs: nn.Module) -> None:
    assert shape == ProteinShape(layers=2, width=40, heads=4)
    ours = filled(lambda: Esm2(shape), tensors)
    found = ours.embeddings(packed(PROTEINS))
    for ids, row in zip(PROTEINS, found, strict=True):
        states = theirs(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state[0]
        assert_close(ours(packed([ids])), states, **exact)
        assert_close(row, states[1:-1].mean(0), **exact)


def test_a_hugging_face_directory(hugging_face):
    directory, theirs = hugging_face
    assert (directory / "model.safetensors").is_file()
    assert_same_as_transformers(*read_protein(directory), theirs)


def test_a_bare_safetensors_file_beside_its_config(hugging_face):
    directory, theirs = hugging_face
    assert_same_as_transformers(*read_protein(directory / "model.safetensors"), theirs)


def test_a_directory_with_a_pickle(hugging_face, tmp_path: Path):
    directory, theirs = hugging_face
    shutil.copy(directory / "config.json", tmp_path)
    torch.save(dict(theirs.state_dict()), tmp_path / "pytorch_model.bin")
    assert_same_as_transformers(*read_protein(tmp_path), theirs)


def test_a_directory_in_several_files(hugging_face, tmp_path: Path):
    _, theirs = hugging_face
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_same_as_transformers(*read_protein(tmp_path), theirs)
    next(tmp_path.glob("*-00002-of-*.safetensors")).unlink()
    assert "damaged or incomplete: " in refusal(read_protein, tmp_path)


def test_a_bare_safetensors_file_of_unknown_size(hugging_face, tmp_path: Path):
    shutil.copy(hugging_face[0] / "model.safetensors", tmp_path / "esm.safetensors")
    expected = "the number of heads of this network of 2 layers is unknown; put its config.json next to it"
    assert refusal(read_protein, tmp_path / "esm.safetensors") == expected


@pytest.mark.parametrize("more", [{"position_embedding_type": "absolute"}, {"token_dropout": False}])
def test_an_older_esm_of_hugging_face(more: dict[str, Any], tmp_path: Path):
    EsmModel(esm_config(**more)).save_pretrained(tmp_path)
    assert refusal(read_protein, tmp_path) == "not an ESM-2: config.json describes an older ESM"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "there is no config.json in it"),
        (b"{", "Expecting property name"),
        (b"\xff", "codec can't decode"),
        (b"[]", "it does not state num_attention_heads"),
        (b"{}", "it does not state num_attention_heads"),
        (b'{"num_attention_heads": "4"}', "it does not state num_attention_heads"),
        (b'{"num_attention_heads": -4}', "-4 heads cannot share a width of 40"),
        (b'{"num_attention_heads": 3}', "3 heads cannot share a width of 40"),
    ],
)
def test_a_config_that_cannot_be_used(config: bytes | None, reason: str, hugging_face, tmp_path: Path):
    shutil.copy(hugging_face[0] / "model.safetensors", tmp_path)
    if config is not None:
        (tmp_path / "config.json").write_bytes(config)
    assert reason in refusal(read_protein, tmp_path)
