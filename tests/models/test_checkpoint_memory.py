"""Checkpoints that claim more memory than they are large: they are refused at no cost."""

import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_files import (
    Gadget,
    dnabert_tensors,
    pickled,
    refusal,
    refused_without_memory,
    repacked,
    unzipped,
    zipped,
)
from torch import nn

from virnuc_async.models.checkpoint_formats import read_classifier, read_nucleotide, read_protein
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle


def test_a_compressed_member_is_not_unpacked(golden_parts: CheckpointPaths, tmp_path: Path):
    program = bytes(1 << 29)
    path = repacked(golden_parts.protein, tmp_path / "x.pt", zipfile.ZIP_DEFLATED, data_pkl=program)
    assert path.stat().st_size < 2 << 20
    assert refused_without_memory(read_protein, path) == "it is compressed, which torch's files are not"


def test_a_member_that_claims_to_be_larger_than_the_file(golden_parts: CheckpointPaths, tmp_path: Path):
    content = bytearray(golden_parts.protein.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # in the directory at the end
    struct.pack_into("<II", content, at + 20, 1 << 31, 1 << 31)
    (tmp_path / "x.pt").write_bytes(content)
    assert (
        refused_without_memory(read_protein, tmp_path / "x.pt")
        == "its members claim to be larger than the file"
    )


def claiming(source: Path, target: Path, numbers: int) -> Path:
    """Copy *source*, a file with one storage, which then claims to have *numbers* numbers."""
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
    expected = "'embeddings.word_embeddings.weight' claims more numbers than it has"
    assert refused_without_memory(read_nucleotide, dnabert) == expected


def test_a_classifier_that_is_larger_than_its_storage(as_main, tmp_path: Path):
    module = as_main()
    module.hidden_layer.weight = nn.Parameter(torch.zeros(1).expand(1 << 17, 1 << 17))
    torch.save(module, tmp_path / "x.pth")
    expected = "'hidden_layer.weight' claims more numbers than it has"
    assert refused_without_memory(read_classifier, tmp_path / "x.pth") == expected


def test_a_storage_that_is_larger_than_its_member(tmp_path: Path):
    torch.save({"model": {"lm_head.bias": torch.zeros(1 << 12)}}, tmp_path / "small.pt")
    path = claiming(tmp_path / "small.pt", tmp_path / "x.pt", 1 << 29)
    assert refused_without_memory(read_protein, path).startswith(
        "damaged, or not a checkpoint (RuntimeError: "
    )


def test_a_storage_of_the_old_form_that_is_not_in_the_file(tmp_path: Path):
    content = unzipped({"model": {"lm_head.bias": torch.zeros(1 << 12)}})
    claimed = content.replace(b"M\x00\x10", b"J" + struct.pack("<i", 1 << 29))
    keys = claimed.rindex(b"\x80\x02")  # the last pickle names the storages that follow: none now
    (tmp_path / "x.pt").write_bytes(claimed[:keys] + pickled([]))
    # torch allocates the memory here, but nothing touches it.
    assert refusal(read_protein, tmp_path / "x.pt") == "its tensors claim more numbers than it has"


@pytest.mark.parametrize("wrap", [zipped, unzipped])
def test_many_views_of_one_storage(wrap, tmp_path: Path):
    whole = torch.zeros(1 << 10, 1 << 10)
    views = {f"layers.{number}.fc1.weight": whole.t() for number in range(1_000)}
    (tmp_path / "x.pt").write_bytes(wrap({"model": views}))
    assert (
        refused_without_memory(read_protein, tmp_path / "x.pt")
        == "its tensors claim more numbers than it has"
    )


@pytest.mark.parametrize("wrap", [zipped, unzipped, pickled])
def test_memory_without_data(wrap, tmp_path: Path):
    (tmp_path / "x.pt").write_bytes(wrap({"model": Gadget(bytearray, 1 << 34)}))
    expected = "it contains more than tensors (bytearray); no code from it was executed"
    assert refused_without_memory(read_protein, tmp_path / "x.pt") == expected


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1])
def test_a_string_that_claims_to_be_longer_than_the_file(size: int, tmp_path: Path):
    (tmp_path / "x.pt").write_bytes(b"\x80\x04\x8d" + struct.pack("<Q", size) + b"word")
    assert refused_without_memory(read_protein, tmp_path / "x.pt").startswith("damaged, or not a checkpoint")


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
def test_safetensors_with_false_headers(content: bytes, tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(content)
    assert refused_without_memory(read_protein, tmp_path / "x.safetensors").startswith(
        "damaged, or not a checkpoint"
    )


@pytest.mark.parametrize(
    ("name", "deep"), [("config.json", "nested too deeply"), ("tokenizer.json", "sequence")]
)
def test_json_that_is_too_deep_or_too_large(
    name: str, deep: str, dnabert: Path, golden_parts: CheckpointPaths, tmp_path: Path
):
    def read(nucleotide: Path) -> object:
        parts = CheckpointPaths(golden_parts.protein, nucleotide, golden_parts.classifier)
        return import_bundle(parts, tmp_path / "made", "made", 500)

    (dnabert / name).write_bytes(b"[" * 100_000)
    assert deep in refused_without_memory(read, dnabert)
    with open(dnabert / name, "wb") as file:
        file.truncate(1 << 34)  # a hole, which takes no space on disk
    assert refused_without_memory(read, dnabert).endswith(" bytes")
    (dnabert / name).unlink()
    os.mkfifo(dnabert / name)
    refusal(read, dnabert)
    assert not (tmp_path / "made").exists()
