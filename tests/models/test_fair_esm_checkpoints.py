"""ESM-2 checkpoints of fair-esm: every form of them, and other networks."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import edited, refusal, same, unzipped
from torch import Tensor

from virnuc_async.models.checkpoint_formats import read_protein
from virnuc_async.models.import_checkpoint import CheckpointPaths
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.shapes import ProteinShape


def test_a_fair_esm_checkpoint(golden_parts: CheckpointPaths):
    tensors, shape = read_protein(golden_parts.protein)
    theirs = torch.load(golden_parts.protein, weights_only=False)["model"]
    assert shape == ProteinShape(layers=3, width=64, heads=4)
    prefix = "encoder.sentence_encoder."
    assert torch.equal(tensors["embed.weight"], theirs[f"{prefix}embed_tokens.weight"])
    three = [theirs[f"{prefix}layers.2.self_attn.{letter}_proj.bias"] for letter in "qkv"]
    assert torch.equal(tensors["layers.2.qkv.bias"], torch.cat(three))
    assert torch.equal(tensors["layers.1.down.weight"], theirs[f"{prefix}layers.1.fc2.weight"])
    assert torch.equal(tensors["norm.bias"], theirs[f"{prefix}emb_layer_norm_after.bias"])


@pytest.mark.parametrize("prefix", ["", "sentence_encoder.", "encoder.sentence_encoder."])
def test_every_prefix_of_fair_esm_checkpoints(prefix: str, golden_parts: CheckpointPaths, tmp_path: Path):
    def renamed(found: dict[str, Any]) -> None:
        found["model"] = {
            name.replace("encoder.sentence_encoder.", prefix): t for name, t in found["model"].items()
        }
        found["model"]["lm_head.weight"] = torch.zeros(1)
        found["model"]["encoder.lm_head.layer_norm.bias"] = torch.zeros(1)
        found["model"]["contact_head.regression.weight"] = torch.zeros(1)

    path = edited(renamed, golden_parts.protein, tmp_path / "x.pt")
    assert same(read_protein(path)[0], read_protein(golden_parts.protein)[0])


def test_settings_of_older_files(golden_parts: CheckpointPaths, tmp_path: Path):
    path = edited(lambda f: f.update(args=f.pop("cfg")["model"]), golden_parts.protein, tmp_path / "x.pt")
    assert read_protein(path)[1] == ProteinShape(layers=3, width=64, heads=4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f.pop("model"), "not a fair-esm checkpoint: it has no 'model'"),
        (lambda f: f.update(model=[1]), "not a fair-esm checkpoint: it has no 'model'"),
        (lambda f: f.update(model={}), "it has no matrix embed.weight"),
        (
            lambda f: f["model"].update(x=torch.zeros(1)),
            "unknown tensor 'x': not one of the networks known here",
        ),
        (lambda f: f["model"].update({"a\nb": torch.zeros(1)}), "unknown tensor 'a\\nb'"),
        (lambda f: f["model"].update({7: torch.zeros(1)}), "7 is not a tensor"),
        (lambda f: f["model"].update({"lm_head.bias": 0.5}), "'lm_head.bias' is not a tensor"),
        (lambda f: f.pop("cfg"), "the number of heads of this network of 3 layers is unknown"),
        (
            lambda f: f.update(cfg={"model": Namespace(encoder_attention_heads=5)}),
            "5 heads cannot share a width of 64",
        ),
        (lambda f: f.update(cfg={"model": Namespace(encoder_attention_heads=64)}), "64 heads cannot share"),
        (lambda f: f.update(cfg={"model": Namespace(encoder_attention_heads="4")}), "'4' heads cannot share"),
        (
            lambda f: f.update(cfg={"model": Namespace(encoder_attention_heads=4, token_dropout=False)}),
            "not an ESM-2: its settings describe an older ESM",
        ),
        (
            lambda f: f["model"].pop("encoder.sentence_encoder.layers.1.fc1.bias"),
            "damaged or incomplete: layers.1.up.bias has the shape None, not (256,)",
        ),
        (
            lambda f: f["model"].pop("encoder.sentence_encoder.layers.0.self_attn.k_proj.weight"),
            "damaged or incomplete: layers.0.q",
        ),
        (
            lambda f: f["model"].update(
                {"encoder.sentence_encoder.emb_layer_norm_after.bias": torch.zeros(65)}
            ),
            "damaged or incomplete: norm.bias has the shape (65,), not (64,)",
        ),
        (
            lambda f: f["model"].update(
                {"encoder.sentence_encoder.embed_tokens.weight": torch.zeros(35, 64)}
            ),
            "not an ESM-2: it has 35 letters, not 33",
        ),
        (
            lambda f: f["model"].update(
                {"encoder.sentence_encoder.embed_positions.weight": torch.zeros(9, 64)}
            ),
            "unknown tensor 'encoder.sentence_encoder.embed_positions.weight'",  # ESM-1b
        ),
    ],
)
def test_a_fair_esm_checkpoint_of_another_network(
    change, reason: str, golden_parts: CheckpointPaths, tmp_path: Path
):
    path = edited(change, golden_parts.protein, tmp_path / "x.pt")
    assert reason in refusal(read_protein, path)


def test_published_sizes_need_no_settings(tmp_path: Path):
    torch.manual_seed(0)
    network = Esm2(ProteinShape(layers=6, width=320, heads=20))
    fair_esm = {}
    for name, tensor in network.state_dict().items():
        for ours, fair in (("up", "fc1"), ("down", "fc2"), ("out", "self_attn.out_proj")):
            name = name.replace(f".{ours}.", f".{fair}.")
        name = name.replace("attention_norm", "self_attn_layer_norm").replace("mlp_norm", "final_layer_norm")
        name = name.replace("embed.", "embed_tokens.").removeprefix("norm.")
        if ".qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                fair_esm[name.replace(".qkv.", f".self_attn.{letter}_proj.")] = part
        else:
            fair_esm[f"emb_layer_norm_after.{name}" if name in ("weight", "bias") else name] = tensor
    torch.save({"model": fair_esm}, tmp_path / "esm2_t6_8M_UR50D.pt")
    tensors, shape = read_protein(tmp_path / "esm2_t6_8M_UR50D.pt")
    assert shape == ProteinShape(layers=6, width=320, heads=20)
    assert same(tensors, dict(network.state_dict()))


def test_tensors_in_torchs_old_form(golden_parts: CheckpointPaths, tmp_path: Path):
    (tmp_path / "x.pt").write_bytes(unzipped(torch.load(golden_parts.protein, weights_only=False)))
    assert same(read_protein(tmp_path / "x.pt")[0], read_protein(golden_parts.protein)[0])


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(64, 65), "damaged or incomplete: layers.1.k.weight has the shape (64, 65), not None"),
        (torch.tensor(0.5), "damaged or incomplete: layers.1.k.weight has the shape (), not None"),
        (
            torch.zeros(65, 64),
            "damaged or incomplete: layers.1.qkv.weight has the shape (193, 64), not (192, 64)",
        ),
    ],
)
def test_q_k_and_v_that_do_not_fit_each_other(
    tensor: Tensor, reason: str, golden_parts: CheckpointPaths, tmp_path: Path
):
    name = "encoder.sentence_encoder.layers.1.self_attn.k_proj.weight"
    path = edited(lambda f: f["model"].update({name: tensor}), golden_parts.protein, tmp_path / "x.pt")
    assert refusal(read_protein, path) == reason


def test_q_k_and_v_of_different_types(golden_parts: CheckpointPaths, tmp_path: Path):
    def narrowed(found: dict[str, Any]) -> None:
        name = "encoder.sentence_encoder.layers.0.self_attn.k_proj.bias"
        found["model"][name] = found["model"][name].to(torch.float8_e4m3fn)

    path = edited(narrowed, golden_parts.protein, tmp_path / "x.pt")
    assert refusal(read_protein, path).startswith("damaged or incomplete: layers.0.k.bias has the shape")


def test_an_unknown_number_format(golden_parts: CheckpointPaths, tmp_path: Path):
    def narrowed(found: dict[str, Any]) -> None:
        name = "encoder.sentence_encoder.emb_layer_norm_after.bias"
        found["model"][name] = found["model"][name].to(torch.float8_e4m3fn)

    path = edited(narrowed, golden_parts.protein, tmp_path / "x.pt")
    assert refusal(read_protein, path) == "damaged: norm.bias has the type torch.float8_e4m3fn"
