import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import files_no_larger_than, memory_for_no_more_than
from safetensors.torch import load_file, save_file
from support import packed
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import EsmConfig, EsmForMaskedLM, EsmModel

from virnuc_async.errors import BadCheckpoint, ForeignDirectoryError
from virnuc_async.models import import_checkpoint as upstream
from virnuc_async.models.bundle import PARTS, Bundle, find
from virnuc_async.models.import_checkpoint import (
    CheckpointPaths,
    import_bundle,
    read_classifier,
    read_nucleotide,
    read_protein,
)
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape

# transformers 5 leaves config.json open when it saves a network.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in.*config\.json:pytest.PytestUnraisableExceptionWarning"
)

exact = {"rtol": 0, "atol": 1e-5}
Tensors = dict[str, Tensor]


def same(found: Tensors, wanted: Tensors) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def filled(network: Callable[[], nn.Module], tensors: Tensors) -> nn.Module:
    with torch.device("meta"):
        built = network()
    built.load_state_dict(tensors, assign=True)
    return built.requires_grad_(False).eval()


def refusal(read: Callable[[Path], Any], path: Path) -> str:
    """Give the reason for which *read* refuses *path*: one line, that begins with a path."""
    with pytest.raises(BadCheckpoint) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value) == f"{caught.value.path} cannot be imported: {caught.value.reason}"
    assert caught.value.path.startswith(str(path))
    return caught.value.reason


def reading(change: Callable[[dict[str, Any]], object], source: Path, target: Path) -> Path:
    """Write what torch finds in *source*, changed, to *target*."""
    found = torch.load(source, weights_only=False)
    change(found)
    torch.save(found, target)
    return target


def pickled(found: object) -> bytes:
    return pickle.dumps(found, protocol=2)


def zipped(found: object) -> bytes:
    file = io.BytesIO()
    torch.save(found, file)
    return file.getvalue()


def unzipped(found: object) -> bytes:
    """Save in torch's old form, which would keep the source text of modules too, if it had it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Couldn't retrieve source code", UserWarning)
        torch.save(found, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


# ESM-2 as fair-esm has it


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
def test_every_prefix_that_fair_esm_checkpoints_have(
    prefix: str, golden_parts: CheckpointPaths, tmp_path: Path
):
    def renamed(found: dict[str, Any]) -> None:
        found["model"] = {
            name.replace("encoder.sentence_encoder.", prefix): t for name, t in found["model"].items()
        }
        found["model"]["lm_head.weight"] = torch.zeros(1)
        found["model"]["encoder.lm_head.layer_norm.bias"] = torch.zeros(1)
        found["model"]["contact_head.regression.weight"] = torch.zeros(1)

    path = reading(renamed, golden_parts.protein, tmp_path / "x.pt")
    assert same(read_protein(path)[0], read_protein(golden_parts.protein)[0])


def test_settings_under_args_as_older_files_have_them(golden_parts: CheckpointPaths, tmp_path: Path):
    path = reading(lambda f: f.update(args=f.pop("cfg")["model"]), golden_parts.protein, tmp_path / "x.pt")
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
        (lambda f: f.pop("cfg"), "nothing says how many heads this network of 3 layers has"),
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
def test_a_fair_esm_checkpoint_that_is_no_esm2(
    change, reason: str, golden_parts: CheckpointPaths, tmp_path: Path
):
    path = reading(change, golden_parts.protein, tmp_path / "x.pt")
    assert reason in refusal(read_protein, path)


def test_published_sizes_need_no_settings(tmp_path: Path):
    torch.manual_seed(0)
    network = Esm2(ProteinShape(layers=6, width=320, heads=20))
    theirs = {}
    for name, tensor in network.state_dict().items():
        for ours, fair in (("up", "fc1"), ("down", "fc2"), ("out", "self_attn.out_proj")):
            name = name.replace(f".{ours}.", f".{fair}.")
        name = name.replace("attention_norm", "self_attn_layer_norm").replace("mlp_norm", "final_layer_norm")
        name = name.replace("embed.", "embed_tokens.").removeprefix("norm.")
        if ".qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                theirs[name.replace(".qkv.", f".self_attn.{letter}_proj.")] = part
        else:
            theirs[f"emb_layer_norm_after.{name}" if name in ("weight", "bias") else name] = tensor
    torch.save({"model": theirs}, tmp_path / "esm2_t6_8M_UR50D.pt")
    tensors, shape = read_protein(tmp_path / "esm2_t6_8M_UR50D.pt")
    assert shape == ProteinShape(layers=6, width=320, heads=20)
    assert same(tensors, dict(network.state_dict()))


# ESM-2 as Hugging Face has it

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


def gives_what_transformers_gives(tensors: Tensors, shape: ProteinShape, theirs: nn.Module) -> None:
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
    gives_what_transformers_gives(*read_protein(directory), theirs)


def test_a_bare_safetensors_file_beside_its_config(hugging_face):
    directory, theirs = hugging_face
    gives_what_transformers_gives(*read_protein(directory / "model.safetensors"), theirs)


def test_a_directory_with_a_pickle(hugging_face, tmp_path: Path):
    directory, theirs = hugging_face
    shutil.copy(directory / "config.json", tmp_path)
    torch.save(dict(theirs.state_dict()), tmp_path / "pytorch_model.bin")
    gives_what_transformers_gives(*read_protein(tmp_path), theirs)


def test_a_directory_in_several_files(hugging_face, tmp_path: Path):
    _, theirs = hugging_face
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    gives_what_transformers_gives(*read_protein(tmp_path), theirs)
    next(tmp_path.glob("*-00002-of-*.safetensors")).unlink()
    assert "damaged or incomplete: " in refusal(read_protein, tmp_path)


def test_a_bare_safetensors_file_of_unknown_size(hugging_face, tmp_path: Path):
    shutil.copy(hugging_face[0] / "model.safetensors", tmp_path / "esm.safetensors")
    wanted = "nothing says how many heads this network of 2 layers has; a config.json beside it would"
    assert refusal(read_protein, tmp_path / "esm.safetensors") == wanted


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
        (b"[]", "it does not say num_attention_heads"),
        (b"{}", "it does not say num_attention_heads"),
        (b'{"num_attention_heads": "4"}', "it does not say num_attention_heads"),
        (b'{"num_attention_heads": -4}', "-4 heads cannot share a width of 40"),
        (b'{"num_attention_heads": 3}', "3 heads cannot share a width of 40"),
    ],
)
def test_a_config_that_cannot_be_used(config: bytes | None, reason: str, hugging_face, tmp_path: Path):
    shutil.copy(hugging_face[0] / "model.safetensors", tmp_path)
    if config is not None:
        (tmp_path / "config.json").write_bytes(config)
    assert reason in refusal(read_protein, tmp_path)


# DNABERT-S


@pytest.fixture
def dnabert(golden_parts: CheckpointPaths, tmp_path: Path) -> Path:
    """A copy of the golden DNABERT directory, to change."""
    shutil.copytree(golden_parts.nucleotide, tmp_path / "dnabert")
    return tmp_path / "dnabert"


def dnabert_tensors(directory: Path) -> Tensors:
    return torch.load(directory / "pytorch_model.bin", weights_only=True)


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
    wanted, wanted_shape = read_nucleotide(golden_parts.nucleotide)
    assert shape == wanted_shape
    assert same(tensors, wanted)


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
            "unknown tensor 'encoder.layer.0.attention.self.query.weight'",  # a common BERT
        ),
    ],
)
def test_tensors_that_are_no_dnabert(change, reason: str, dnabert: Path):
    tensors = dnabert_tensors(dnabert)
    change(tensors)
    torch.save(tensors, dnabert / "pytorch_model.bin")
    assert reason in refusal(read_nucleotide, dnabert)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"num_attention_heads": 7}, "7 heads cannot share a width of 96"),
        ({"num_attention_heads": 0}, "0 heads cannot share a width of 96"),
        ({"layer_norm_eps": "small"}, "config.json says layer_norm_eps 'small'"),
    ],
)
def test_a_config_that_fits_no_dnabert(more: dict[str, Any], reason: str, dnabert: Path):
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
    assert refusal(read_nucleotide, dnabert) == "it holds no named tensors"


# The classifier


class MLPClassifier(nn.Module):
    """VirNucPro's own class, as its training program has it."""

    def __init__(self, inputs: int = 6, hidden: int = 4) -> None:
        super().__init__()
        self.hidden_layer = nn.Linear(inputs, hidden)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.dropout = nn.Dropout(0.5)
        self.output_layer = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.dropout(torch.relu(self.bn1(self.hidden_layer(x)))))


@pytest.fixture
def as_main(monkeypatch: pytest.MonkeyPatch) -> type[MLPClassifier]:
    """Let the class be ``__main__.MLPClassifier``, as it was in the program that pickled it."""
    monkeypatch.setattr(MLPClassifier, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "MLPClassifier", MLPClassifier, raising=False)
    return MLPClassifier


def test_a_pickled_classifier_gives_the_same_scores(as_main, tmp_path: Path):
    torch.manual_seed(5)
    theirs = as_main()
    x = torch.randn(32, 6)
    theirs(x)  # so that the batch norm has seen something
    theirs.eval()
    torch.save(theirs, tmp_path / "500_model.pth")
    tensors, shape = read_classifier(tmp_path / "500_model.pth")
    assert shape == ClassifierShape(inputs=6, hidden=4)
    ours = filled(lambda: Classifier(shape), tensors)
    assert torch.equal(ours(x), torch.softmax(theirs(x), 1))


def test_a_module_in_torchs_old_form_cannot_be_read_safely(as_main, tmp_path: Path):
    (tmp_path / "x.pth").write_bytes(unzipped(as_main()))
    assert refusal(read_classifier, tmp_path / "x.pth").endswith("; nothing of it was executed")


def test_tensors_in_torchs_old_form(golden_parts: CheckpointPaths, tmp_path: Path):
    (tmp_path / "x.pt").write_bytes(unzipped(torch.load(golden_parts.protein, weights_only=False)))
    assert same(read_protein(tmp_path / "x.pt")[0], read_protein(golden_parts.protein)[0])


def test_the_golden_classifier(golden_parts: CheckpointPaths, expected: Path):
    tensors, shape = read_classifier(golden_parts.classifier)
    assert shape == ClassifierShape(inputs=160, hidden=32)
    merged = torch.load(expected / "merged.pt", weights_only=True)["data"]
    rows = [line.split("\t") for line in (expected / "prediction_results.txt").read_text().splitlines()[1:]]
    wanted = torch.tensor([[float(row[2]), float(row[3])] for row in rows])
    assert_close(filled(lambda: Classifier(shape), tensors)(merged), wanted, **exact)


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
            "(torch.nn.modules.conv.Conv1d); nothing of it was",
        ),
        (lambda m: setattr(m, "bn1", nn.LayerNorm(4)), "(torch.nn.modules.normalization.LayerNorm); nothing"),
    ],
)
def test_a_pickled_module_that_is_not_the_published_one(change, reason: str, as_main, tmp_path: Path):
    module = as_main()
    change(module)
    torch.save(module, tmp_path / "x.pth")
    assert reason in refusal(read_classifier, tmp_path / "x.pth")


def test_tensors_are_no_pickled_classifier(tmp_path: Path):
    torch.save(MLPClassifier().state_dict(), tmp_path / "x.pth")
    assert refusal(read_classifier, tmp_path / "x.pth") == "not a pickled MLPClassifier"


def test_a_classifier_is_no_encoder(golden_parts: CheckpointPaths, dnabert: Path):
    shutil.copy(golden_parts.classifier, dnabert / "pytorch_model.bin")
    wanted = "it holds more than tensors (__main__.MLPClassifier); nothing of it was executed"
    assert refusal(read_protein, golden_parts.classifier) == wanted
    assert refusal(read_nucleotide, dnabert) == wanted


# Hostile files


class Gadget:
    """Calls *function* when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Trap(nn.Module):
    """A class of somebody's own, that acts when its state is set."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        open(state["mark"], "w").close()


GADGETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "system": (lambda mark: Gadget(os.system, f"touch {mark}"), "posix.system"),
    "eval": (lambda mark: Gadget(eval, f"__import__('pathlib').Path({str(mark)!r}).touch()"), "eval"),
    "exec": (lambda mark: Gadget(exec, f"import pathlib; pathlib.Path({str(mark)!r}).touch()"), "exec"),
    "open": (lambda mark: Gadget(open, str(mark), "w"), "io.open"),
    "popen": (lambda mark: Gadget(subprocess.Popen, ["touch", str(mark)]), "commands.Popen"),
    "touch": (lambda mark: Gadget(Path.touch, mark), "getattr"),
    "class": (lambda mark: _trap(mark), f"{Trap.__module__}.Trap"),
}


def _trap(mark: Path) -> Trap:
    trap = Trap()
    trap.mark = str(mark)
    return trap


@pytest.mark.parametrize("wrap", [zipped, unzipped, pickled])
@pytest.mark.parametrize("name", GADGETS)
def test_nothing_of_a_hostile_file_is_executed(name: str, wrap, as_main, dnabert: Path, tmp_path: Path):
    make, named = GADGETS[name]
    mark = tmp_path / "executed"
    module = as_main()
    module.more = make(mark)
    for read, path, found in (
        (read_protein, tmp_path / "x.pt", {"model": {"a": make(mark)}, "cfg": None}),
        (read_protein, tmp_path / "x.pt", {"model": {}, "cfg": {"model": make(mark)}}),
        (read_nucleotide, dnabert, {"embeddings.word_embeddings.weight": make(mark)}),
        (read_nucleotide, dnabert, make(mark)),
        (read_classifier, tmp_path / "x.pth", module),
        (read_classifier, tmp_path / "x.pth", make(mark)),
    ):
        file = path / "pytorch_model.bin" if path.is_dir() else path
        file.write_bytes(wrap(found))
        reason = refusal(read, path)
        assert reason.endswith("; nothing of it was executed")
        if wrap is zipped:
            assert f"({named})" in reason
        assert not mark.exists()


def test_the_gadgets_would_act_if_they_were_let(tmp_path: Path):
    for number, (make, _) in enumerate(GADGETS.values()):
        mark = tmp_path / str(number)
        result = pickle.loads(pickle.dumps(make(mark)))
        if isinstance(result, subprocess.Popen):
            result.wait()
        if hasattr(result, "close"):
            result.close()
        assert mark.exists()


def damaged(content: bytes, rng: random.Random) -> bytes:
    bad = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(bad))
        bad[at : at + rng.choice((0, 1, 1, 1, 5))] = rng.randbytes(rng.choice((0, 1, 1, 3)))
    return bytes(bad)


@pytest.mark.parametrize("part", ["protein", "classifier"])
def test_a_damaged_pickle_raises_nothing_but_our_failure(
    part: str, golden_parts: CheckpointPaths, tmp_path: Path
):
    read = {"protein": read_protein, "classifier": read_classifier}[part]
    rng = random.Random(6)
    with zipfile.ZipFile(getattr(golden_parts, part)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (program,) = [name for name in members if name.endswith("data.pkl")]
    refusals = []
    for _ in range(150):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, damaged(content, rng) if name == program else content)
        try:
            read(tmp_path / "x.pt")
        except BadCheckpoint as failure:
            refusals.append(str(failure))
    assert len(refusals) > 100
    assert max(len(text.splitlines()) for text in refusals) == 1


# Files that ask for memory


def refused_at_no_cost(read: Callable[[Path], Any], path: Path) -> str:
    """See that *read* refuses *path* with hardly any memory; say why."""
    with memory_for_no_more_than(256 << 20):
        return refusal(read, path)


def repacked(source: Path, target: Path, compression: int, **members: bytes) -> Path:
    """Write the zip file *source* anew, with other *members*, whose names end so."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.rpartition("/")[2].replace(".", "_"), old.read(name)))
    return target


def test_a_compressed_member_is_not_unpacked(golden_parts: CheckpointPaths, tmp_path: Path):
    program = bytes(1 << 29)
    path = repacked(golden_parts.protein, tmp_path / "x.pt", zipfile.ZIP_DEFLATED, data_pkl=program)
    assert path.stat().st_size < 2 << 20
    assert refused_at_no_cost(read_protein, path) == "it is compressed, which torch's files are not"


def test_a_member_that_claims_to_be_larger_than_the_file(golden_parts: CheckpointPaths, tmp_path: Path):
    content = bytearray(golden_parts.protein.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # in the directory at the end
    struct.pack_into("<II", content, at + 20, 1 << 31, 1 << 31)
    (tmp_path / "x.pt").write_bytes(content)
    assert (
        refused_at_no_cost(read_protein, tmp_path / "x.pt") == "its members claim to be larger than the file"
    )


def claiming(source: Path, target: Path, numbers: int) -> Path:
    """Write *source*, a file with one storage, anew, with that claimed to be of so many numbers."""
    with zipfile.ZipFile(source) as old:
        (name,) = [name for name in old.namelist() if name.endswith("data.pkl")]
        program = old.read(name)
    (length,) = {len(program) - len(program.replace(b"M\x00\x10", b""))}
    assert length == 2 * 3  # of the storage, and of the tensor
    return repacked(
        source,
        target,
        zipfile.ZIP_STORED,
        data_pkl=program.replace(b"M\x00\x10", b"J" + struct.pack("<i", numbers)),
    )


@pytest.mark.parametrize("wrap", [zipped, unzipped])
def test_a_tensor_that_is_larger_than_its_storage(wrap, dnabert: Path):
    tensors = dnabert_tensors(dnabert)
    tensors["embeddings.word_embeddings.weight"] = torch.zeros(1).expand(1 << 17, 1 << 17)
    (dnabert / "pytorch_model.bin").write_bytes(wrap(tensors))
    wanted = "'embeddings.word_embeddings.weight' claims more numbers than it has"
    assert refused_at_no_cost(read_nucleotide, dnabert) == wanted


def test_a_classifier_that_is_larger_than_its_storage(as_main, tmp_path: Path):
    module = as_main()
    module.hidden_layer.weight = nn.Parameter(torch.zeros(1).expand(1 << 17, 1 << 17))
    torch.save(module, tmp_path / "x.pth")
    wanted = "'hidden_layer.weight' claims more numbers than it has"
    assert refused_at_no_cost(read_classifier, tmp_path / "x.pth") == wanted


def test_a_storage_that_is_larger_than_its_member(tmp_path: Path):
    torch.save({"model": {"lm_head.bias": torch.zeros(1 << 12)}}, tmp_path / "small.pt")
    path = claiming(tmp_path / "small.pt", tmp_path / "x.pt", 1 << 29)
    assert refused_at_no_cost(read_protein, path).startswith("damaged, or not a checkpoint (RuntimeError: ")


def test_a_storage_of_the_old_form_that_is_not_in_the_file(tmp_path: Path):
    content = unzipped({"model": {"lm_head.bias": torch.zeros(1 << 12)}})
    claimed = content.replace(b"M\x00\x10", b"J" + struct.pack("<i", 1 << 29))
    keys = claimed.rindex(b"\x80\x02")  # the last pickle names the storages that follow: none now
    (tmp_path / "x.pt").write_bytes(claimed[:keys] + pickled([]))
    # torch asks for the memory here, but nobody touches it.
    assert refusal(read_protein, tmp_path / "x.pt") == "its tensors claim more numbers than it has"


@pytest.mark.parametrize("wrap", [zipped, unzipped])
def test_many_views_of_one_storage(wrap, tmp_path: Path):
    whole = torch.zeros(1 << 10, 1 << 10)
    views = {f"layers.{number}.fc1.weight": whole.t() for number in range(1_000)}
    (tmp_path / "x.pt").write_bytes(wrap({"model": views}))
    assert refused_at_no_cost(read_protein, tmp_path / "x.pt") == "its tensors claim more numbers than it has"


@pytest.mark.parametrize("wrap", [zipped, unzipped, pickled])
def test_room_for_nothing(wrap, tmp_path: Path):
    (tmp_path / "x.pt").write_bytes(wrap({"model": Gadget(bytearray, 1 << 34)}))
    wanted = "it holds more than tensors (bytearray); nothing of it was executed"
    assert refused_at_no_cost(read_protein, tmp_path / "x.pt") == wanted


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1])
def test_a_word_that_claims_to_be_longer_than_the_file(size: int, tmp_path: Path):
    (tmp_path / "x.pt").write_bytes(b"\x80\x04\x8d" + struct.pack("<Q", size) + b"word")
    assert refused_at_no_cost(read_protein, tmp_path / "x.pt").startswith("damaged, or not a checkpoint")


def test_tensors_that_share_their_numbers(dnabert: Path, golden_parts: CheckpointPaths, tmp_path: Path):
    tensors = dnabert_tensors(dnabert)
    norm = "encoder.layer.{}.mlp.layernorm.bias"
    tensors[norm.format(1)] = tensors[norm.format(0)]
    torch.save(tensors, dnabert / "pytorch_model.bin")
    parts = CheckpointPaths(golden_parts.protein, dnabert, golden_parts.classifier)
    made = import_bundle(parts, tmp_path / "made", "made", 500)
    written = load_file(made.directory / "nucleotide.safetensors")
    assert torch.equal(written["layers.1.mlp_norm.bias"], tensors[norm.format(0)])


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
    path = reading(lambda f: f["model"].update({name: tensor}), golden_parts.protein, tmp_path / "x.pt")
    assert refusal(read_protein, path) == reason


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64, torch.bool])
def test_weights_that_are_no_fractions(kind: torch.dtype, dnabert: Path):
    tensors = dnabert_tensors(dnabert)
    tensors["embeddings.LayerNorm.weight"] = torch.zeros(96, dtype=kind)
    torch.save(tensors, dnabert / "pytorch_model.bin")
    assert refusal(read_nucleotide, dnabert) == f"damaged: norm.weight holds {kind}"


def test_a_tensor_that_is_none(dnabert: Path):
    tensors = dnabert_tensors(dnabert)
    tensors["embeddings.LayerNorm.weight"] = torch.zeros(96).to_sparse()
    torch.save(tensors, dnabert / "pytorch_model.bin")
    assert refusal(read_nucleotide, dnabert) == "'embeddings.LayerNorm.weight' is not a plain tensor"


def safetensors(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", 1 << 62),
        safetensors(b"{}", 1 << 30),
        safetensors(b'{"a":{"dtype":"F32","shape":[268435456],"data_offsets":[0,1073741824]}}'),
        safetensors(b'{"a":{"dtype":"F32","shape":[268435456],"data_offsets":[0,4]}}') + bytes(4),
        safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'),
        safetensors(b'{"a":' * 9_999),
        safetensors(b"{" + b'"a":1,' * 9_999 + b"}"),
    ],
)
def test_safetensors_that_lie(content: bytes, tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(content)
    assert refused_at_no_cost(read_protein, tmp_path / "x.safetensors").startswith(
        "damaged, or not a checkpoint"
    )


@pytest.mark.parametrize(("name", "deep"), [("config.json", "recursion"), ("tokenizer.json", "sequence")])
def test_json_beyond_all_measure(
    name: str, deep: str, dnabert: Path, golden_parts: CheckpointPaths, tmp_path: Path
):
    def read(nucleotide: Path) -> object:
        parts = CheckpointPaths(golden_parts.protein, nucleotide, golden_parts.classifier)
        return import_bundle(parts, tmp_path / "made", "made", 500)

    (dnabert / name).write_bytes(b"[" * 100_000)
    assert deep in refused_at_no_cost(read, dnabert)
    with open(dnabert / name, "wb") as file:
        file.truncate(1 << 34)  # a hole, which takes no room on disk
    assert refused_at_no_cost(read, dnabert).endswith(" bytes")
    (dnabert / name).unlink()
    os.mkfifo(dnabert / name)
    refusal(read, dnabert)
    assert not (tmp_path / "made").exists()


def test_a_pipe_for_a_checkpoint(tmp_path: Path):
    for name, read in (("x.pt", read_protein), ("x.safetensors", read_protein), ("x.pth", read_classifier)):
        os.mkfifo(tmp_path / name)
        assert refusal(read, tmp_path / name) == "it is not a plain file"
    (tmp_path / "dnabert").mkdir()
    (tmp_path / "dnabert" / "config.json").write_text('{"num_attention_heads": 4}')
    os.mkfifo(tmp_path / "dnabert" / "pytorch_model.bin")
    assert refusal(read_nucleotide, tmp_path / "dnabert") == "it is not a plain file"


def test_files_that_an_index_names_are_not_looked_for(dnabert: Path, tmp_path: Path):
    shutil.move(dnabert / "pytorch_model.bin", tmp_path / "pytorch_model.bin")
    index = {"weight_map": dict.fromkeys(("embeddings.word_embeddings.weight",), "../pytorch_model.bin")}
    (dnabert / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert refusal(read_nucleotide, dnabert) == "no *.safetensors and no pytorch_model*.bin in it"


def test_files_may_be_links_as_in_the_cache_of_hugging_face(
    dnabert: Path, golden_parts: CheckpointPaths, tmp_path: Path
):
    (tmp_path / "snapshot").mkdir()
    for path in dnabert.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert same(read_nucleotide(tmp_path / "snapshot")[0], read_nucleotide(golden_parts.nucleotide)[0])


# Damaged files


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated_files(share: float, golden_parts: CheckpointPaths, dnabert: Path, tmp_path: Path):
    save_file(dnabert_tensors(dnabert), dnabert / "model.safetensors")
    for read, source, target in (
        (read_protein, golden_parts.protein, tmp_path / "x.pt"),
        (read_classifier, golden_parts.classifier, tmp_path / "x.pth"),
        (read_nucleotide, dnabert / "model.safetensors", dnabert / "model.safetensors"),
        (read_protein, dnabert / "model.safetensors", tmp_path / "x.safetensors"),
    ):
        content = source.read_bytes()
        target.write_bytes(content[: int(len(content) * share)])
        reason = refusal(read, target if read is not read_nucleotide else dnabert)
        assert reason.startswith("damaged, or not a checkpoint")


@pytest.mark.parametrize(
    "content", [b"hello\n", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x02", b"\xff" * 99]
)
@pytest.mark.parametrize("read", [read_protein, read_classifier])
def test_what_is_no_checkpoint(read, content: bytes, tmp_path: Path):
    (tmp_path / "x.pt").write_bytes(content)
    assert refusal(read, tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_missing_file(name: str, tmp_path: Path):
    assert "No such file or directory" in refusal(read_protein, tmp_path / name)


def test_a_directory_where_a_file_should_be(tmp_path: Path):
    assert refusal(read_classifier, tmp_path) == "Is a directory"


# A whole bundle


def test_an_imported_bundle(golden_parts: CheckpointPaths, tmp_path: Path):
    made = import_bundle(golden_parts, tmp_path / "deep" / "mine", "mine", 500)
    assert made == find(tmp_path / "deep" / "mine")
    assert sorted(path.name for path in made.directory.iterdir()) == sorted((*PARTS, "bundle.json"))
    assert made.tokenizer() == (golden_parts.nucleotide / "tokenizer.json").read_text("utf-8")
    for part, (tensors, shape), network in (
        ("protein", read_protein(golden_parts.protein), Esm2),
        ("nucleotide", read_nucleotide(golden_parts.nucleotide), DnabertS),
        ("classifier", read_classifier(golden_parts.classifier), Classifier),
    ):
        assert getattr(made.shapes, part) == shape
        assert same(load_file(made.directory / f"{part}.safetensors"), tensors)
        with torch.device("meta"):
            assert network(shape).state_dict().keys() == tensors.keys()
    made.check()


def test_an_imported_bundle_says_where_it_came_from_but_not_the_place(
    golden_parts: CheckpointPaths, tmp_path: Path
):
    made = import_bundle(golden_parts, tmp_path / "mine", "mine", 500)
    assert made.origin["nucleotide"].startswith("dnabert/pytorch_model.bin, sha256 ")
    assert made.origin["classifier"].startswith("classifier.pth, sha256 4c25273d313815b4")
    assert str(golden_parts.protein.parent) not in (made.directory / "bundle.json").read_text("utf-8")


def test_importing_twice_gives_the_same_bundle(golden_parts: CheckpointPaths, tmp_path: Path):
    first, second = (import_bundle(golden_parts, tmp_path / name, name, 300) for name in "ab")
    assert first.fingerprint == second.fingerprint


def test_an_empty_directory_is_taken_and_another_is_not(golden_parts: CheckpointPaths, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    import_bundle(golden_parts, tmp_path / "empty", "mine", 500)
    with pytest.raises(ForeignDirectoryError) as caught:
        import_bundle(golden_parts, tmp_path / "empty", "mine", 500)
    assert (
        str(caught.value) == f"{tmp_path / 'empty'}: exists and is not empty. Choose a new or empty directory"
    )


def test_a_full_disk_leaves_nothing_of_a_bundle(golden_parts: CheckpointPaths, tmp_path: Path):
    with files_no_larger_than(10_000), pytest.raises(OSError, match="File too large"):
        import_bundle(golden_parts, tmp_path / "mine", "mine", 500)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_import_left_is_not_in_the_way(golden_parts: CheckpointPaths, tmp_path: Path):
    left = tmp_path / f".mine.{os.getpid()}"
    left.mkdir()
    (left / "protein.safetensors").touch()
    import_bundle(golden_parts, tmp_path / "mine", "mine", 500).check()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_numbers_that_are_no_weights(golden_parts: CheckpointPaths, tmp_path: Path):
    def narrowed(found: dict[str, Any]) -> None:
        name = "encoder.sentence_encoder.emb_layer_norm_after.bias"
        found["model"][name] = found["model"][name].to(torch.float8_e4m3fn)

    path = reading(narrowed, golden_parts.protein, tmp_path / "x.pt")
    assert refusal(read_protein, path) == "damaged: norm.bias holds torch.float8_e4m3fn"


def test_q_k_and_v_of_numbers_that_cannot_be_stacked(golden_parts: CheckpointPaths, tmp_path: Path):
    def narrowed(found: dict[str, Any]) -> None:
        name = "encoder.sentence_encoder.layers.0.self_attn.k_proj.bias"
        found["model"][name] = found["model"][name].to(torch.float8_e4m3fn)

    path = reading(narrowed, golden_parts.protein, tmp_path / "x.pt")
    assert refusal(read_protein, path).startswith("damaged or incomplete: layers.0.k.bias has the shape")


def test_parts_that_do_not_fit_each_other(golden_parts: CheckpointPaths, as_main, tmp_path: Path):
    torch.save(as_main(), tmp_path / "x.pth")
    parts = CheckpointPaths(golden_parts.protein, golden_parts.nucleotide, tmp_path / "x.pth")
    with pytest.raises(BadCheckpoint) as caught:
        import_bundle(parts, tmp_path / "mine", "mine", 500)
    assert caught.value.reason == "it takes 6 numbers, but the encoders give 96 + 64"
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (None, "there is no tokenizer.json in it"),
        (b"{}", "Model missing"),
        (b"not json", "expected ident"),
        (b"\xff", "codec can't decode"),
    ],
)
def test_a_tokenizer_that_cannot_be_used(
    tokenizer: bytes | None, reason: str, golden_parts, dnabert, tmp_path
):
    (dnabert / "tokenizer.json").unlink()
    if tokenizer is not None:
        (dnabert / "tokenizer.json").write_bytes(tokenizer)
    parts = CheckpointPaths(golden_parts.protein, dnabert, golden_parts.classifier)
    assert reason in refusal(lambda _: import_bundle(parts, tmp_path / "mine", "mine", 500), dnabert)
    assert not (tmp_path / "mine").exists()


def test_a_tokenizer_of_more_tokens_than_the_network_has(
    golden_parts: CheckpointPaths, dnabert: Path, tmp_path: Path
):
    path = dnabert / "tokenizer.json"
    described = json.loads(path.read_bytes())
    described["model"]["vocab"] |= {f"TTTT{number}": number for number in range(1024, 1030)}
    path.write_text(json.dumps(described))
    parts = CheckpointPaths(golden_parts.protein, dnabert, golden_parts.classifier)
    found = refusal(lambda _: import_bundle(parts, tmp_path / "mine", "mine", 500), dnabert)
    assert found == "it has 1030 tokens, the network 1024"


def test_the_stand_in_class_holds_parts_and_does_nothing():
    assert set(vars(upstream.MLPClassifier)) <= {"__doc__", "__module__"}


def test_every_file_of_an_imported_bundle_follows_the_umask(golden_bundle: Bundle):
    modes = {path.stat().st_mode & 0o777 for path in golden_bundle.directory.iterdir()}
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {0o666 & ~mask}
