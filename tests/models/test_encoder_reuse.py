"""Encoders of earlier downloads: which are reused, and which are not."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from golden_models import download, golden_files, requested_files
from running import predict
from serving import Server

from virnuc_async.models import published
from virnuc_async.models.bundle import find
from virnuc_async.models.import_checkpoint import CheckpointPaths
from virnuc_async.models.published import Mirrors, ModelFiles


def test_two_models_share_their_encoders(server: Server, cache: Path) -> None:
    assert download(server, "virnucpro-500", "virnucpro-300", "--quiet").code == 0
    assert requested_files(server).count("esm2.pt") == 1
    assert [path.name for path in sorted(cache.iterdir())] == ["virnucpro-300", "virnucpro-500"]
    for name in ("virnucpro-300", "virnucpro-500"):
        find(cache / name).check()
    first, second = (cache / name / "protein.safetensors" for name in ("virnucpro-300", "virnucpro-500"))
    assert first.samefile(second)


@pytest.mark.parametrize("order", [(500, 300), (300, 500)])
def test_a_second_model_reuses_the_encoders_of_the_first(
    order: tuple[int, int], server: Server, cache: Path, golden: Path, tmp_path: Path
) -> None:
    first, second = (f"virnucpro-{length}" for length in order)
    assert download(server, first).code == 0
    server.requests.clear()
    ended = download(server, second)
    assert ended.code == 0
    assert requested_files(server) == [f"{order[1]}.pth"]
    assert ended.err.splitlines() == [
        f"{second}: only the classifier is downloaded, the encoders are taken from {cache / first} "
        "after a check",
        f"{second}: writing to {cache / second}",
    ]
    found = {length: find(cache / f"virnucpro-{length}") for length in order}
    assert found[order[1]].length == order[1]
    assert found[500].checksums | {"reference.json": ""} == found[300].checksums | {"reference.json": ""}
    assert found[300].origin["protein"] == found[500].origin["protein"]
    assert found[300].origin["classifier"].startswith("https://github.com/300.pth by a mirror, sha256 ")
    assert found[300].licence == found[500].licence
    found[order[1]].check()
    source = golden / "upstream" / "input.fa"
    assert predict(source, tmp_path / "out", "--model", second).code == 0


def test_encoders_of_the_cache_are_reused_anywhere(server: Server, cache: Path, tmp_path: Path) -> None:
    assert download(server, "virnucpro-500").code == 0
    server.requests.clear()
    assert download(server, "virnucpro-300", "--to", tmp_path / "usb" / "model").code == 0
    assert requested_files(server) == ["300.pth"]
    find(tmp_path / "usb" / "model").check()


def test_damaged_encoders_are_not_reused(server: Server, cache: Path) -> None:
    assert download(server, "virnucpro-500").code == 0
    protein = cache / "virnucpro-500" / "protein.safetensors"
    content = bytearray(protein.read_bytes())
    content[-1] ^= 1
    protein.write_bytes(content)
    server.requests.clear()
    ended = download(server, "virnucpro-300")
    assert ended.code == 0
    assert "protein.safetensors has changed or is damaged" in ended.err
    assert "It is not used" in ended.err
    assert len(requested_files(server)) == 5
    find(cache / "virnucpro-300").check()


@pytest.mark.parametrize(
    ("part", "origin"),
    [
        ("protein", "esm2.pt, sha256 0123"),  # of an import: a file of that name, with any content
        ("protein", "https://dl.fbaipublicfiles.com/fair-esm/models/esm2.pt by somebody, sha256 0123"),
        ("nucleotide", "https://huggingface.co/x/pytorch_model.bin, sha256 0123"),
    ],
)
def test_encoders_of_other_files_are_not_reused(part: str, origin: str, server: Server, cache: Path) -> None:
    assert download(server, "virnucpro-500").code == 0
    described = json.loads((cache / "virnucpro-500" / "bundle.json").read_bytes())
    described["origin"][part] = origin
    (cache / "virnucpro-500" / "bundle.json").write_text(json.dumps(described))
    server.requests.clear()
    assert download(server, "virnucpro-300").code == 0
    assert len(requested_files(server)) == 5


def officially(files: ModelFiles) -> ModelFiles:
    """Return *files* as if this server were the official one."""
    origin = files.protein.origin.removesuffix(" by a mirror")
    return replace(files, protein=replace(files.protein, origin=origin))


@pytest.mark.parametrize("is_official", [(True, False), (False, True)])
def test_a_file_of_a_mirror_is_not_taken_for_official(
    is_official: tuple[bool, bool], server: Server, golden_parts: CheckpointPaths, tmp_path: Path
) -> None:
    for length, official in zip((500, 300), is_official, strict=True):
        server.requests.clear()
        files = golden_files(golden_parts, length, Mirrors(mirror=server.url))
        target = tmp_path / "models" / files.name
        files = officially(files) if official else files
        published.download({target: files}, tmp_path, lambda _: None, lambda _: None)
    assert len(requested_files(server)) == (1 if is_official[0] else 5)
    origin = find(tmp_path / "models" / "virnucpro-300").origin["protein"]
    assert " by a mirror, sha256 " not in origin


@pytest.fixture
def encoders(golden_parts: CheckpointPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden encoders under the names of published ones."""

    def files(name: str, mirrors: Mirrors) -> ModelFiles:
        model = golden_files(golden_parts, 500, mirrors)
        return ModelFiles(name, replace(model.protein, name=f"{name}.pt"), model.nucleotide)

    monkeypatch.setattr(published, "published_encoders", files)
    monkeypatch.setitem(published.ESM2, "esm2", (3, 64))
    monkeypatch.setitem(published.ESM2, "esm2b", (3, 64))


@pytest.mark.usefixtures("encoders")
def test_checkpoints_of_an_earlier_download_are_reused(server: Server, cache: Path) -> None:
    assert download(server, "--protein", "esm2").code == 0
    server.requests.clear()
    ended = download(server, "virnucpro-500", "virnucpro-300")
    assert ended.code == 0
    assert sorted(requested_files(server)) == ["300.pth", "500.pth"]
    encoders = cache.parent / "encoders" / "esm2"
    names = "esm2.pt, DNABERT-S/config.json, DNABERT-S/tokenizer.json, DNABERT-S/pytorch_model.bin"
    assert ended.err.splitlines()[0] == f"virnucpro-500: using {names} from {encoders} after a check"
    assert os.listdir(encoders / "DNABERT-S")
    first, second = (find(cache / name) for name in ("virnucpro-500", "virnucpro-300"))
    first.check()
    second.check()
    # Its address was not recorded.
    assert first.origin["protein"].startswith("esm2.pt, sha256 ")
    assert first.origin["nucleotide"].startswith("https://huggingface.co/x/pytorch_model.bin ")
    one, other = (bundle.directory / "protein.safetensors" for bundle in (first, second))
    assert one.samefile(other)


@pytest.mark.usefixtures("encoders")
def test_dnabert_s_is_downloaded_once_for_all_encoders(server: Server, cache: Path) -> None:
    assert download(server, "--protein", "esm2").code == 0
    weights = cache.parent / "encoders" / "esm2" / "DNABERT-S" / "pytorch_model.bin"
    server.requests.clear()
    assert download(server, "--protein", "esm2b").code == 0
    assert requested_files(server) == ["esm2.pt"]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)  # of both directories, which share the file
    shutil.rmtree(cache.parent / "encoders" / "esm2b")
    server.requests.clear()
    assert download(server, "--protein", "esm2b").code == 0
    assert sorted(requested_files(server)) == ["esm2.pt", "pytorch_model.bin"]
    assert weights.read_bytes() == content  # not ours to change
