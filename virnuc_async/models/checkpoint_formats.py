"""
The formats of third-party checkpoints: fair-esm, Hugging Face, and VirNucPro's classifier.

Each reader returns the tensors by the names that our networks give them, and the shape of the network,
after checking that the tensors are all that it needs.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from virnuc_async.errors import BadCheckpoint
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.saving import DTYPES, Stacked
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape

from .checkpoints import check_storage, read_config, read_tensors, unpickle

Tensors = Mapping[str, Tensor]

# No tensor shows the number of heads: these are ESM-2's published sizes, by layers and width.
ESM2_HEADS = {(6, 320): 20, (12, 480): 20, (30, 640): 20, (33, 1280): 20, (36, 2560): 40, (48, 5120): 40}
_ALPHABET_SIZE = 33


class MLPClassifier(nn.Module):
    """Stands in for the class that VirNucPro pickled its classifier as; it only holds the layers."""


def read_protein(path: Path) -> tuple[Tensors, ProteinShape]:
    """
    Read an ESM-2: a fair-esm ``.pt``, or a Hugging Face EsmModel (directory or safetensors).

    Raises:
        BadCheckpoint: it is not one
    """
    if path.is_dir() or path.suffix == ".safetensors":
        config = read_config(path if path.is_dir() else path.parent, required=path.is_dir())
        is_rotary = config.get("position_embedding_type", "rotary") == "rotary"
        if not is_rotary or not config.get("token_dropout", True):
            raise BadCheckpoint(str(path), "not an ESM-2: config.json describes an older ESM")
        tensors = _rename_keys(path, read_tensors(path), _FROM_HF_ESM)
        return _fuse(path, tensors, config.get("num_attention_heads"))
    found = unpickle(path, [argparse.Namespace])
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise BadCheckpoint(str(path), "not a fair-esm checkpoint: it has no 'model'")
    settings = _fair_esm_settings(found)
    if not getattr(settings, "token_dropout", True):
        raise BadCheckpoint(str(path), "not an ESM-2: its settings describe an older ESM")
    heads = getattr(settings, "encoder_attention_heads", None)
    return _fuse(path, _rename_keys(path, found["model"], _FROM_FAIR_ESM), heads)


def read_nucleotide(path: Path) -> tuple[Tensors, NucleotideShape]:
    """
    Read a Hugging Face directory of DNABERT-S or DNABERT-2.

    Raises:
        BadCheckpoint: it is not one
    """
    config = read_config(path, required=True)
    tensors = _rename_keys(path, read_tensors(path), _FROM_DNABERT)
    vocabulary, width = _matrix_shape(path, tensors, "embed.weight")
    _, intermediate = _matrix_shape(path, tensors, "layers.0.down.weight")
    _matrix_shape(path, tensors, "token_types")
    # All of our tokens are of type 0; the other row is never used.
    tensors["token_type"] = tensors.pop("token_types")[0].clone()
    eps = config.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise BadCheckpoint(str(path), f"config.json has layer_norm_eps {eps!r}")
    heads = _check_heads(path, config["num_attention_heads"], width)
    shape = NucleotideShape(_count_layers(tensors), width, heads, intermediate, vocabulary, eps)
    return _check_tensors(path, tensors, partial(DnabertS, shape)), shape


def read_classifier(path: Path) -> tuple[Tensors, ClassifierShape]:
    """
    Read VirNucPro's ``300_model.pth`` or ``500_model.pth``: a pickled module, never executed.

    Raises:
        BadCheckpoint: it is not one
    """
    allowed = [
        (MLPClassifier, "__main__.MLPClassifier"),
        *(nn.Linear, nn.BatchNorm1d, nn.Dropout, set),
    ]
    module = unpickle(path, allowed)
    if not isinstance(module, MLPClassifier):
        raise BadCheckpoint(str(path), "not a pickled MLPClassifier")
    try:
        tensors = {name: value.detach() for name, value in module.state_dict().items()}
    except (AttributeError, TypeError, RecursionError) as error:
        raise BadCheckpoint(str(path), "the pickled module is incomplete") from error
    tensors = _rename_keys(path, tensors, _FROM_CLASSIFIER)
    hidden, inputs = _matrix_shape(path, tensors, "hidden.weight")
    shape = ClassifierShape(inputs=inputs, hidden=hidden)
    return _check_tensors(path, tensors, partial(Classifier, shape)), shape


# (pattern of a third-party name, our name); None for a tensor that is not used.
_KeyMapping = tuple[tuple[str, str | None], ...]

_FROM_FAIR_ESM: _KeyMapping = (
    (r"(?:encoder\.)?(?:sentence_encoder\.)?embed_tokens\.weight", "embed.weight"),
    (r".*layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", r"layers.\1.\2.\3"),
    (r".*layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)", r"layers.\1.out.\2"),
    (r".*layers\.(\d+)\.self_attn_layer_norm\.(weight|bias)", r"layers.\1.attention_norm.\2"),
    (r".*layers\.(\d+)\.fc1\.(weight|bias)", r"layers.\1.up.\2"),
    (r".*layers\.(\d+)\.fc2\.(weight|bias)", r"layers.\1.down.\2"),
    (r".*layers\.(\d+)\.final_layer_norm\.(weight|bias)", r"layers.\1.mlp_norm.\2"),
    (r".*emb_layer_norm_after\.(weight|bias)", r"norm.\1"),
    (r".*rot_emb\.inv_freq|.*lm_head\..*|.*contact_head\..*", None),
)
_FROM_HF_ESM: _KeyMapping = (
    (r"(?:esm\.)?embeddings\.word_embeddings\.weight", "embed.weight"),
    (r".*layer\.(\d+)\.attention\.self\.([qkv])(?:uery|ey|alue)\.(weight|bias)", r"layers.\1.\2.\3"),
    (r".*layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"layers.\1.out.\2"),
    (r".*layer\.(\d+)\.attention\.LayerNorm\.(weight|bias)", r"layers.\1.attention_norm.\2"),
    (r".*layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"layers.\1.up.\2"),
    (r".*layer\.(\d+)\.output\.dense\.(weight|bias)", r"layers.\1.down.\2"),
    (r".*layer\.(\d+)\.LayerNorm\.(weight|bias)", r"layers.\1.mlp_norm.\2"),
    (r".*emb_layer_norm_after\.(weight|bias)", r"norm.\1"),
    (r".*inv_freq|.*position_ids|.*position_embeddings\..*|.*pooler\..*", None),
    (r"lm_head\..*|.*contact_head\..*", None),
)
_FROM_DNABERT: _KeyMapping = (
    (r"(?:bert\.)?embeddings\.word_embeddings\.weight", "embed.weight"),
    (r"(?:bert\.)?embeddings\.token_type_embeddings\.weight", "token_types"),
    (r"(?:bert\.)?embeddings\.LayerNorm\.(weight|bias)", r"norm.\1"),
    (r".*layer\.(\d+)\.attention\.self\.Wqkv\.(weight|bias)", r"layers.\1.qkv.\2"),
    (r".*layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"layers.\1.out.\2"),
    (r".*layer\.(\d+)\.attention\.output\.LayerNorm\.(weight|bias)", r"layers.\1.attention_norm.\2"),
    (r".*layer\.(\d+)\.mlp\.gated_layers\.weight", r"layers.\1.gate_up.weight"),
    (r".*layer\.(\d+)\.mlp\.wo\.(weight|bias)", r"layers.\1.down.\2"),
    (r".*layer\.(\d+)\.mlp\.layernorm\.(weight|bias)", r"layers.\1.mlp_norm.\2"),
    (r"(?:bert\.)?pooler\..*|cls\..*|.*position_ids", None),
)
_FROM_CLASSIFIER: _KeyMapping = (
    (r"hidden_layer\.(weight|bias)", r"hidden.\1"),
    (r"bn1\.(weight|bias|running_mean|running_var|num_batches_tracked)", r"norm.\1"),
    (r"output_layer\.(weight|bias)", r"output.\1"),
)


def _rename_keys(path: Path, tensors: Mapping[str, Any], mapping: _KeyMapping) -> dict[str, Tensor]:
    """Rename each tensor by the first pattern that matches all of its name."""
    renamed: dict[str, Tensor] = {}
    check_storage(path, tensors)
    for name, tensor in tensors.items():
        # Older layer norms have gamma and beta.
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        for pattern, own in mapping:
            if found := re.fullmatch(pattern, name):
                if own is not None:
                    renamed[found.expand(own)] = tensor.contiguous()
                break
        else:
            raise BadCheckpoint(str(path), f"unknown tensor {name!r}: not one of the networks known here")
    return renamed


class _FusedTensors(Mapping[str, Tensor]):
    """
    *tensors* with separate q, k and v of a layer stacked into one qkv.

    They are stacked on access and stay separate until then: copies, whose memory the allocator may keep,
    would add up to a third of a network.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.parts: dict[str, Tensor | Stacked] = dict(tensors)
        for name in [name for name in tensors if re.search(r"\.q\.(weight|bias)$", name)]:
            three = [name.replace(".q.", f".{letter}.") for letter in "qkv"]
            parts = [tensors[each] for each in three if each in tensors]
            # What does not fit stays separate: the check against the network's shapes reports it.
            if _can_be_stacked(parts):
                for each in three:
                    del self.parts[each]
                self.parts[name.replace(".q.", ".qkv.")] = Stacked(tuple(parts))

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.parts[name]
        return torch.cat(tensor.parts) if isinstance(tensor, Stacked) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def as_stacked(tensors: Tensors) -> Mapping[str, Tensor | Stacked]:
    """Return *tensors* without copies: those that are fused on access as their parts."""
    return tensors.parts if isinstance(tensors, _FusedTensors) else tensors


def _can_be_stacked(parts: Sequence[Tensor]) -> bool:
    is_three = len(parts) == 3 and all(part.dim() for part in parts)
    return is_three and len({(part.shape[1:], part.dtype) for part in parts}) == 1


def _fuse(path: Path, unfused: Tensors, heads: Any) -> tuple[Tensors, ProteinShape]:
    """Return the tensors of an ESM-2 with fused q, k and v, and its shape."""
    tensors = _FusedTensors(unfused)
    letters, width = _matrix_shape(path, tensors, "embed.weight")
    if letters != _ALPHABET_SIZE:
        raise BadCheckpoint(str(path), f"not an ESM-2: it has {letters} letters, not {_ALPHABET_SIZE}")
    layers = _count_layers(tensors)
    heads = heads or ESM2_HEADS.get((layers, width))
    if heads is None:
        reason = f"the number of heads of this network of {layers} layers is unknown"
        raise BadCheckpoint(str(path), f"{reason}; put its config.json next to it")
    shape = ProteinShape(layers=layers, width=width, heads=_check_heads(path, heads, width, even=True))
    return _check_tensors(path, tensors, partial(Esm2, shape)), shape


def _count_layers(tensors: Iterable[str]) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith("layers.")})


def _matrix_shape(path: Path, tensors: Tensors, name: str) -> tuple[int, int]:
    """Return the shape of the matrix called *name* by us; raise BadCheckpoint if there is none."""
    tensor = tensors.get(name)
    if tensor is None or tensor.dim() != 2 or not tensor.numel():
        raise BadCheckpoint(str(path), f"not the expected network: it has no matrix {name}")
    return tensor.shape[0], tensor.shape[1]


def _check_heads(path: Path, heads: Any, width: int, even: bool = False) -> int:
    """Return *heads* if they can share *width*; rotary positions need an *even* share."""
    if not isinstance(heads, int) or heads < 1 or width % (heads * (1 + even)):
        raise BadCheckpoint(str(path), f"{heads!r} heads cannot share a width of {width}")
    return heads


def _check_tensors(path: Path, tensors: Tensors, build: Callable[[], nn.Module]) -> Tensors:
    """Return *tensors* if they are, by name, shape and kind, exactly those of the network."""
    with torch.device("meta"):
        network = build().state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in network.items()}
    facts = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in as_stacked(tensors).items()}
    found = {name: shape for name, (shape, _) in facts.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            reason = f"{name} has the shape {found.get(name)}, not {expected.get(name)}"
            raise BadCheckpoint(str(path), f"damaged or incomplete: {reason}")
        _, dtype = facts[name]
        if dtype not in DTYPES or dtype.is_floating_point != network[name].is_floating_point():
            raise BadCheckpoint(str(path), f"damaged: {name} has the type {dtype}")
    return tensors


def _fair_esm_settings(found: Mapping[str, Any]) -> Any:
    """Return the settings of a fair-esm checkpoint: under ``cfg``, or ``args`` of older models."""
    config = found.get("cfg")
    return config.get("model") if isinstance(config, dict) else found.get("args")
