"""
Other people's checkpoints become a bundle: fair-esm, Hugging Face, and VirNucPro's own.

Two of these forms are pickles. They are read with torch's restricted unpickler and an allow-list,
which builds tensors and the few named types and runs nothing; whatever else a file asks for is
refused. A file takes no more memory than it is large: what it claims beyond that is refused before
it is made.

In a directory only the tensors' files, ``config.json`` and ``tokenizer.json`` are looked at, by these
names: an index that names others is not.
"""

import argparse
import json
import pickle
import pickletools
import re
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import safe_globals

from virnuc_async.errors import BadBundle, BadCheckpoint
from virnuc_async.fileio import (
    atomic_directory,
    create_new,
    link_or_copy,
    read_bounded,
    require_empty_directory,
    sha256,
)
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.saving import DTYPES, Stacked, save
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape, Shapes
from virnuc_async.sequences.tokens import OrfTokenizer

from .bundle import ENCODERS, LARGEST_TOKENIZER, Bundle, find, write_manifest
from .reference import Reference, write_reference

Tensors = Mapping[str, Tensor]

# The number of heads is in no tensor: these are ESM-2's published sizes, layers and width.
ESM2_HEADS = {(6, 320): 20, (12, 480): 20, (30, 640): 20, (33, 1280): 20, (36, 2560): 40, (48, 5120): 40}
_ALPHABET = 33
_MOST_PICKLES = 5  # in a file of torch's before 1.6
_LARGEST_CONFIG = 1 << 20  # bytes


class MLPClassifier(nn.Module):
    """Stands for the class that VirNucPro pickled its classifier as; it only holds the parts."""


@dataclass(frozen=True, slots=True)
class CheckpointPaths:
    """Where each part of a bundle is to come from."""

    protein: Path
    nucleotide: Path
    classifier: Path
    addresses: Mapping[str, str] = field(default_factory=dict)  # by part, of those that have one


def import_bundle(
    parts: CheckpointPaths,
    directory: Path,
    name: str,
    length: int,
    reference: Reference | None = None,
    **more: str,
) -> Bundle:
    """
    Make a bundle called *name*, for fragments of *length* bases, in the new *directory*.

    *more* may hold ``licence`` and ``notice``.

    Raises:
        BadCheckpoint: a part is damaged, hostile, of an unknown form, or does not fit the others
        ForeignDirectoryError: *directory* exists and is not empty
    """
    require_empty_directory(directory)
    protein, protein_shape = read_protein(parts.protein)
    nucleotide, nucleotide_shape = read_nucleotide(parts.nucleotide)
    classifier, classifier_shape = read_classifier(parts.classifier)
    shapes = Shapes(protein_shape, nucleotide_shape, classifier_shape)
    _see_that_they_fit(parts.classifier, shapes)
    tokenizer = _tokenizer(parts.nucleotide, nucleotide_shape)
    with atomic_directory(directory) as hidden:
        save(_in_parts(protein), hidden / "protein.safetensors")
        save(nucleotide, hidden / "nucleotide.safetensors")
        save(classifier, hidden / "classifier.safetensors")
        with create_new(hidden / "tokenizer.json") as file:
            file.write(tokenizer)
        if reference:
            write_reference(hidden, reference)
        write_manifest(hidden, name, length, shapes, _origin(parts), **more)
    return find(directory)


def import_classifier(
    path: Path,
    base: Bundle,
    directory: Path,
    name: str,
    length: int,
    reference: Reference | None = None,
    **more: str,
) -> Bundle:
    """
    Make a bundle of the encoders of *base* and the classifier at *path*, as ``import_bundle`` does.

    *more* may also hold the ``address`` that the classifier is from.

    Raises:
        BadCheckpoint: it is damaged, hostile, of an unknown form, or does not fit the encoders
        BadBundle: the encoders are not what *base* was made with
        ForeignDirectoryError: *directory* exists and is not empty
    """
    require_empty_directory(directory)
    classifier, shape = read_classifier(path)
    shapes = replace(base.shapes, classifier=shape)
    _see_that_they_fit(path, shapes)
    origin = {**base.origin, "classifier": _named(path, more.get("address", ""))}
    with atomic_directory(directory) as hidden:
        for file in ENCODERS:
            link_or_copy(base.directory / file, hidden / file)
        save(classifier, hidden / "classifier.safetensors")
        if reference:
            write_reference(hidden, reference)
        made = write_manifest(hidden, name, length, shapes, origin, **more)
        for file in ENCODERS:
            if made.checksums[file] != base.checksums[file]:
                raise BadBundle(str(base.directory), f"{file} has changed or is damaged")
    return find(directory)


def _see_that_they_fit(path: Path, shapes: Shapes) -> None:
    """See that the classifier at *path* takes what the encoders give."""
    given = (shapes.nucleotide.width, shapes.protein.width)
    if shapes.classifier.inputs != sum(given):
        reason = f"it takes {shapes.classifier.inputs} numbers, but the encoders give {given[0]} + {given[1]}"
        raise BadCheckpoint(str(path), reason)


def _origin(parts: CheckpointPaths) -> dict[str, str]:
    """Say which files the parts came from, by name and content; where they lay is nobody's business."""
    places = {"protein": parts.protein, "nucleotide": parts.nucleotide, "classifier": parts.classifier}
    return {part: _named(path, parts.addresses.get(part, "")) for part, path in places.items()}


def _named(path: Path, address: str) -> str:
    """Give the name and checksum of the file at *path*, or of the one that is all there is in it."""
    files = _files(path)
    if len(files) != 1:
        return address or _printable(path.name)
    (file,) = files
    name = path.name if file == path else f"{path.name}/{file.name}"
    return f"{address or _printable(name)}, sha256 {sha256(file)}"


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def read_protein(path: Path) -> tuple[Tensors, ProteinShape]:
    """
    Read an ESM-2: a fair-esm ``.pt``, or a Hugging Face EsmModel (directory or safetensors).

    Raises:
        BadCheckpoint: it is not one
    """
    if path.is_dir() or path.suffix == ".safetensors":
        config = _config(path if path.is_dir() else path.parent, required=path.is_dir())
        if config.get("position_embedding_type", "rotary") != "rotary" or not config.get(
            "token_dropout", True
        ):
            raise BadCheckpoint(str(path), "not an ESM-2: config.json describes an older ESM")
        tensors = _renamed(path, _hugging_face(path), _FROM_HF_ESM)
        return _with_shape(path, tensors, config.get("num_attention_heads"))
    found = _unpickle(path, [argparse.Namespace])
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise BadCheckpoint(str(path), "not a fair-esm checkpoint: it has no 'model'")
    settings = _fair_esm_settings(found)
    if not getattr(settings, "token_dropout", True):
        raise BadCheckpoint(str(path), "not an ESM-2: its settings describe an older ESM")
    heads = getattr(settings, "encoder_attention_heads", None)
    return _with_shape(path, _renamed(path, found["model"], _FROM_FAIR_ESM), heads)


def read_nucleotide(path: Path) -> tuple[Tensors, NucleotideShape]:
    """
    Read a DNABERT-S or DNABERT-2 directory as Hugging Face has it.

    Raises:
        BadCheckpoint: it is not one
    """
    config = _config(path, required=True)
    tensors = _renamed(path, _hugging_face(path), _FROM_DNABERT)
    vocabulary, width = _matrix(path, tensors, "embed.weight")
    _, intermediate = _matrix(path, tensors, "layers.0.down.weight")
    _matrix(path, tensors, "token_types")
    # Every token of ours is of type 0; the other row is never looked up.
    tensors["token_type"] = tensors.pop("token_types")[0].clone()
    eps = config.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise BadCheckpoint(str(path), f"config.json says layer_norm_eps {eps!r}")
    heads = _heads(path, config["num_attention_heads"], width)
    shape = NucleotideShape(_layers(tensors), width, heads, intermediate, vocabulary, eps)
    return _complete(path, tensors, partial(DnabertS, shape)), shape


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
    module = _unpickle(path, allowed)
    if not isinstance(module, MLPClassifier):
        raise BadCheckpoint(str(path), "not a pickled MLPClassifier")
    try:
        tensors = {name: value.detach() for name, value in module.state_dict().items()}
    except (AttributeError, TypeError, RecursionError) as error:
        raise BadCheckpoint(str(path), "the pickled module is incomplete") from error
    tensors = _renamed(path, tensors, _FROM_CLASSIFIER)
    hidden, inputs = _matrix(path, tensors, "hidden.weight")
    shape = ClassifierShape(inputs=inputs, hidden=hidden)
    return _complete(path, tensors, partial(Classifier, shape)), shape


def read_values(path: Path) -> Any:
    """
    Read tensors and plain values that torch saved. Tensors stay in the file until they are used.

    Raises:
        BadCheckpoint: it is damaged, or holds something else too
    """
    return _unpickle(path, [])


# What a damaged file was seen to make the readers raise.
_DAMAGED = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError),
    *(OSError, struct.error, SafetensorError, BadZipFile, MemoryError, OverflowError, RecursionError),
)

# Patterns of names: (theirs, ours). None for ours: a tensor that we have no use for.
_Names = tuple[tuple[str, str | None], ...]

_FROM_FAIR_ESM: _Names = (
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
_FROM_HF_ESM: _Names = (
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
_FROM_DNABERT: _Names = (
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
_FROM_CLASSIFIER: _Names = (
    (r"hidden_layer\.(weight|bias)", r"hidden.\1"),
    (r"bn1\.(weight|bias|running_mean|running_var|num_batches_tracked)", r"norm.\1"),
    (r"output_layer\.(weight|bias)", r"output.\1"),
)


def _renamed(path: Path, tensors: Mapping[str, Any], names: _Names) -> dict[str, Tensor]:
    """Rename every tensor by the first pattern that fits its whole name."""
    ours: dict[str, Tensor] = {}
    _see_that_all_is_there(path, tensors)
    for name, tensor in tensors.items():
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))  # of layer norms, at times
        for theirs, own in names:
            if found := re.fullmatch(theirs, name):
                if own is not None:
                    ours[found.expand(own)] = tensor.contiguous()
                break
        else:
            raise BadCheckpoint(str(path), f"unknown tensor {name!r}: not one of the networks known here")
    return ours


def _see_that_all_is_there(path: Path, tensors: Mapping[str, Any]) -> None:
    """See that *tensors* have no more numbers than the file: to copy them could take any memory."""
    size = 0
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise BadCheckpoint(str(path), f"{name!r:.99} is not a tensor")
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise BadCheckpoint(str(path), f"{name!r:.99} is not a plain tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise BadCheckpoint(str(path), f"{name!r:.99} claims more numbers than it has")
        size += tensor.numel() * tensor.element_size()
    # Twice: two tensors may share their numbers, as the first and last layer of some networks do.
    if size > 2 * sum(file.stat().st_size for file in _files(path)):
        raise BadCheckpoint(str(path), "its tensors claim more numbers than it has")


class _Fused(Mapping[str, Tensor]):
    """
    *tensors* with each layer's q, k and v, where they are apart, stacked into one qkv.

    They are stacked when they are asked for, and are in their parts until then: copies, of which the
    allocator may keep the memory, would add up to a third of a network.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.parts: dict[str, Tensor | Stacked] = dict(tensors)
        for name in [name for name in tensors if re.search(r"\.q\.(weight|bias)$", name)]:
            three = [name.replace(".q.", f".{letter}.") for letter in "qkv"]
            parts = [tensors[each] for each in three if each in tensors]
            # What does not fit is left apart, for the network's own shapes to tell.
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


def _in_parts(tensors: Tensors) -> Mapping[str, Tensor | Stacked]:
    return tensors.parts if isinstance(tensors, _Fused) else tensors


def _can_be_stacked(parts: Sequence[Tensor]) -> bool:
    is_three = len(parts) == 3 and all(part.dim() for part in parts)
    return is_three and len({(part.shape[1:], part.dtype) for part in parts}) == 1


def _layers(tensors: Iterable[str]) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith("layers.")})


def _with_shape(path: Path, apart: Tensors, heads: Any) -> tuple[Tensors, ProteinShape]:
    tensors = _Fused(apart)
    letters, width = _matrix(path, tensors, "embed.weight")
    if letters != _ALPHABET:
        raise BadCheckpoint(str(path), f"not an ESM-2: it has {letters} letters, not {_ALPHABET}")
    layers = _layers(tensors)
    heads = heads or ESM2_HEADS.get((layers, width))
    if heads is None:
        reason = (
            f"nothing says how many heads this network of {layers} layers has; a config.json beside it would"
        )
        raise BadCheckpoint(str(path), reason)
    shape = ProteinShape(layers=layers, width=width, heads=_heads(path, heads, width, even=True))
    return _complete(path, tensors, partial(Esm2, shape)), shape


def _matrix(path: Path, tensors: Tensors, name: str) -> tuple[int, int]:
    """Give the shape of the matrix *name*; ours, not the file's."""
    tensor = tensors.get(name)
    if tensor is None or tensor.dim() != 2 or not tensor.numel():
        raise BadCheckpoint(str(path), f"not the network that it should be: it has no matrix {name}")
    return tensor.shape[0], tensor.shape[1]


def _heads(path: Path, heads: Any, width: int, even: bool = False) -> int:
    """Give *heads* if they can share *width*; rotary positions want an *even* share."""
    if not isinstance(heads, int) or heads < 1 or width % (heads * (1 + even)):
        raise BadCheckpoint(str(path), f"{heads!r} heads cannot share a width of {width}")
    return heads


def _complete(path: Path, tensors: Tensors, build: Callable[[], nn.Module]) -> Tensors:
    """Give *tensors* if they are, by name and shape, all that the network wants."""
    with torch.device("meta"):
        like = build().state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in like.items()}
    facts = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _in_parts(tensors).items()}
    found = {name: shape for name, (shape, _) in facts.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            reason = f"{name} has the shape {found.get(name)}, not {wanted.get(name)}"
            raise BadCheckpoint(str(path), f"damaged or incomplete: {reason}")
        _, dtype = facts[name]
        if dtype not in DTYPES or dtype.is_floating_point != like[name].is_floating_point():
            raise BadCheckpoint(str(path), f"damaged: {name} holds {dtype}")
    return tensors


def _fair_esm_settings(found: Mapping[str, Any]) -> Any:
    """ESM-2's settings lie under ``cfg``, older models' under ``args``."""
    config = found.get("cfg")
    return config.get("model") if isinstance(config, dict) else found.get("args")


def _hugging_face(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a directory that holds them in any form."""
    files = _files(path)
    if not files:
        raise BadCheckpoint(str(path), "no *.safetensors and no pytorch_model*.bin in it")
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            tensors |= _translated(file, partial(load_file, file))
        else:
            found = _unpickle(file, [])
            if not isinstance(found, dict):
                raise BadCheckpoint(str(file), "it holds no named tensors")
            tensors |= found
    return tensors


def _files(path: Path) -> list[Path]:
    """Give the files that hold the tensors of *path*, which may be one or a directory."""
    if not path.is_dir():
        return [path]
    return sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))


def _config(directory: Path, required: bool) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(read_bounded(path, _LARGEST_CONFIG))
    except FileNotFoundError as error:
        if not required:
            return {}
        raise BadCheckpoint(str(directory), "there is no config.json in it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(str(path), str(error)) from error
    if not isinstance(config, dict) or not isinstance(config.get("num_attention_heads"), int):
        raise BadCheckpoint(str(path), "it does not say num_attention_heads")
    return config


def _tokenizer(directory: Path, shape: NucleotideShape) -> bytes:
    """Give the content of the tokenizer's file, if it is one that fits."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise BadCheckpoint(str(directory), "there is no tokenizer.json in it")
    try:
        content = read_bounded(path, LARGEST_TOKENIZER)
        vocabulary = OrfTokenizer(content.decode("utf-8")).vocabulary
    except (OSError, ValueError) as error:
        raise BadCheckpoint(str(path), str(error)) from error
    if vocabulary > shape.vocabulary:
        raise BadCheckpoint(str(path), f"it has {vocabulary} tokens, the network {shape.vocabulary}")
    return content


def _unpickle(path: Path, allowed: list[Any]) -> Any:
    def read() -> Any:
        is_zip = _is_sound_zip(path)
        # Mapped, a tensor is at most what the file holds of it. Read, torch would trust the pickle
        # in how long it is, and hand out what lies behind it in memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)

    # Of a strange file torch warns before it refuses it: the refusal is enough.
    with safe_globals(allowed), warnings.catch_warnings(action="ignore"):
        return _translated(path, read)


def _is_sound_zip(path: Path) -> bool:
    """
    Whether *path* is a zip file, as torch writes them since 1.6, or else pickles behind each other.

    Raises:
        BadCheckpoint: it would take more memory than it is large
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            file.seek(0)
            _see_that_it_makes_no_room(path, file)
            return False
        with ZipFile(file) as archive:
            members = archive.infolist()
            # torch stores its members as they are: a compressed one is a bomb, or not torch's.
            if any(member.compress_type != ZIP_STORED for member in members):
                raise BadCheckpoint(str(path), "it is compressed, which torch's files are not")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise BadCheckpoint(str(path), "its members claim to be larger than the file")
            for member in members:
                if member.filename.endswith("/data.pkl"):
                    with archive.open(member) as program:
                        _see_that_it_makes_no_room(path, program)
    return True


def _see_that_it_makes_no_room(path: Path, program: IO[bytes]) -> None:
    """Refuse a pickle that would have memory filled with nothing, which torch's own list allows."""
    # genops reads and runs nothing. It cannot tell what is no pickle: torch says that better.
    with suppress(ValueError, EOFError, struct.error, OverflowError):
        for code, named, _ in chain.from_iterable(map(pickletools.genops, repeat(program, _MOST_PICKLES))):
            if code.name == "GLOBAL" and str(named).endswith(" bytearray"):
                raise BadCheckpoint(
                    str(path), "it holds more than tensors (bytearray); nothing of it was executed"
                )


def _translated(path: Path, read: Callable[[], Any]) -> Any:
    """Call *read*; what torch and safetensors raise about the file becomes ours."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise BadCheckpoint(str(path), "it is not a plain file")  # to open a pipe would wait
    try:
        return read()
    except pickle.UnpicklingError as error:
        raise BadCheckpoint(str(path), _refusal(str(error))) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise BadCheckpoint(str(path), error.strerror or str(error)) from error
    except _DAMAGED as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        raise BadCheckpoint(str(path), f"damaged, or not a checkpoint ({what})") from error


def _refusal(text: str) -> str:
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds more than tensors ({named[1]}); nothing of it was executed"
    return "damaged, or not a checkpoint; nothing of it was executed"
