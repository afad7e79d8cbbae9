"""Files that are truncated, damaged, missing, or not checkpoints."""

import json
import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest
from checkpoint_files import dnabert_tensors, refusal, same
from safetensors.torch import save_file

from virnuc_async.errors import BadCheckpoint
from virnuc_async.models.checkpoint_formats import read_classifier, read_nucleotide, read_protein
from virnuc_async.models.import_checkpoint import CheckpointPaths


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
def test_content_that_is_not_a_checkpoint(read, content: bytes, tmp_path: Path):
    (tmp_path / "x.pt").write_bytes(content)
    assert refusal(read, tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_missing_file(name: str, tmp_path: Path):
    assert "No such file or directory" in refusal(read_protein, tmp_path / name)


def test_a_directory_where_a_file_should_be(tmp_path: Path):
    assert refusal(read_classifier, tmp_path) == "Is a directory"


def test_a_pipe_for_a_checkpoint(tmp_path: Path):
    for name, read in (("x.pt", read_protein), ("x.safetensors", read_protein), ("x.pth", read_classifier)):
        os.mkfifo(tmp_path / name)
        assert refusal(read, tmp_path / name) == "it is not a plain file"
    (tmp_path / "dnabert").mkdir()
    (tmp_path / "dnabert" / "config.json").write_text('{"num_attention_heads": 4}')
    os.mkfifo(tmp_path / "dnabert" / "pytorch_model.bin")
    assert refusal(read_nucleotide, tmp_path / "dnabert") == "it is not a plain file"


def test_files_named_by_an_index_are_not_read(dnabert: Path, tmp_path: Path):
    shutil.move(dnabert / "pytorch_model.bin", tmp_path / "pytorch_model.bin")
    index = {"weight_map": dict.fromkeys(("embeddings.word_embeddings.weight",), "../pytorch_model.bin")}
    (dnabert / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert refusal(read_nucleotide, dnabert) == "no *.safetensors and no pytorch_model*.bin in it"


def test_links_as_in_the_hugging_face_cache(dnabert: Path, golden_parts: CheckpointPaths, tmp_path: Path):
    (tmp_path / "snapshot").mkdir()
    for path in dnabert.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert same(read_nucleotide(tmp_path / "snapshot")[0], read_nucleotide(golden_parts.nucleotide)[0])


def damaged(content: bytes, rng: random.Random) -> bytes:
    bad = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(bad))
        bad[at : at + rng.choice((0, 1, 1, 1, 5))] = rng.randbytes(rng.choice((0, 1, 1, 3)))
    return bytes(bad)


@pytest.mark.parametrize("part", ["protein", "classifier"])
def test_a_damaged_pickle_raises_only_bad_checkpoint(
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
