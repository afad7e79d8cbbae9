"""The command ``models download``, with a server on this machine."""

import shutil
from pathlib import Path

import pytest
from golden_models import download, golden_files
from running import predict, run
from serving import Server, ends_after, instead, status

from virnuc_async.models import published
from virnuc_async.models.bundle import find
from virnuc_async.models.import_checkpoint import CheckpointPaths
from virnuc_async.models.published import Mirrors, ModelFiles


def test_a_model_is_downloaded_and_used(
    server: Server, cache: Path, golden: Path, expected: Path, tmp_path: Path
) -> None:
    name = f"virnucpro-{expected.name[-3:]}"
    source = golden / "upstream" / "input.fa"
    missing = predict(source, tmp_path / "out", "--model", name)
    assert missing.code == 1
    assert missing.err.endswith(f"Get it with: models download {name}\n")
    ended = download(server, name)
    assert ended.code == 0, ended.err
    assert ended.out == (
        f"{name} is in {cache / name}. Use it with --model {name}; verify it with: models verify {name}\n"
    )
    assert [path.name for path in cache.iterdir()] == [name]
    find(cache / name).check()
    assert find(cache / name).licence.startswith("ESM-2: MIT; ")
    assert "sha256 " in find(cache / name).origin["protein"]
    assert predict(source, tmp_path / "out", "--model", name).code == 0
    highest = "prediction_results_highestscore.csv"
    assert (tmp_path / "out" / highest).read_bytes() == (expected / highest).read_bytes()
    assert name in run("models", "list").out.splitlines()[2]
    assert run("models", "info", name).code == 0


def test_an_existing_model_is_not_downloaded_again(server: Server, cache: Path) -> None:
    assert download(server, "virnucpro-500").code == 0
    server.requests.clear()
    ended = download(server, "virnucpro-500")
    assert ended.code == 0
    assert ended.err == f"{cache / 'virnucpro-500'} exists: checking its files\n"
    assert not server.requests
    (cache / "virnucpro-500" / "tokenizer.json").write_text("{}")
    ended = download(server, "virnucpro-500")
    assert (ended.code, ended.out) == (1, "")
    assert "tokenizer.json has changed or is damaged" in ended.err


def test_what_a_download_left_that_was_killed_at_its_end_is_removed(server: Server, cache: Path) -> None:
    assert download(server, "virnucpro-500").code == 0
    work = cache / ".download"
    (work / "DNABERT-S").mkdir(parents=True)
    for name in ("lock", "esm2.pt", "500.pth", "DNABERT-S/config.json"):
        (work / name).touch()
    assert download(server, "virnucpro-500").code == 0
    assert [path.name for path in cache.iterdir()] == ["virnucpro-500"]


def test_what_was_received_of_another_model_is_kept(server: Server, cache: Path) -> None:
    assert download(server, "virnucpro-500").code == 0
    work = cache / ".download"
    work.mkdir()
    for name in ("esm2.pt", "another.pth", "300.pth.part"):
        (work / name).touch()
    assert download(server, "virnucpro-500").code == 0
    assert sorted(path.name for path in work.iterdir()) == ["300.pth.part", "another.pth", "lock"]


def test_a_directory_to_be_moved(server: Server, cache: Path, golden: Path, tmp_path: Path) -> None:
    ended = download(server, "virnucpro-500", "--to", tmp_path / "usb" / "model")
    assert ended.code == 0
    assert [path.name for path in (tmp_path / "usb").iterdir()] == ["model"]
    assert not cache.exists()
    shutil.move(tmp_path / "usb" / "model", tmp_path / "elsewhere")
    source = golden / "upstream" / "input.fa"
    assert predict(source, tmp_path / "out", "--model", tmp_path / "elsewhere").code == 0


def test_every_command_uses_the_cache_directory(
    server: Server, cache: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.delenv("VIRNUC_ASYNC_CACHE_DIR")
    there = ("--cache-dir", tmp_path / "there")
    assert download(server, "virnucpro-500", *there).code == 0
    assert not cache.exists()
    source = tmp_path / "in.fa"
    source.write_text(">a\nGCAGCAGCA\n")
    for words in (("models", "info"), ("models", "verify")):
        assert "no model 'virnucpro-500' here" in run(*words, "virnucpro-500").err
        assert "no model" not in run(*words, "virnucpro-500", *there).err
    assert "not on this machine" in run("models", "list").out.split("virnucpro-500")[1].splitlines()[0]
    assert "500 bp" in run("models", "list", *there).out.split("virnucpro-500")[1].splitlines()[0]
    assert predict(source, tmp_path / "out", "--model", "virnucpro-500", *there).code == 0


def test_encoders_to_train_on(
    server: Server, cache: Path, golden_parts: CheckpointPaths, tmp_path: Path, monkeypatch
) -> None:
    def encoders(name: str, mirrors: Mirrors) -> ModelFiles:
        files = golden_files(golden_parts, 500, mirrors)
        return ModelFiles(name, files.protein, files.nucleotide)

    monkeypatch.setattr(published, "published_encoders", encoders)
    ended = download(server, "--protein", "esm2", "--to", tmp_path / "parts")
    assert ended.code == 0, ended.err
    assert ended.out == (
        f"esm2 is in {tmp_path / 'parts'}. Use it with: models import "
        f"--protein {tmp_path / 'parts' / 'esm2.pt'} --nucleotide {tmp_path / 'parts' / 'DNABERT-S'}\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts"]
    made = run(
        *("models", "import", "--protein", tmp_path / "parts" / "esm2.pt"),
        *("--nucleotide", tmp_path / "parts" / "DNABERT-S", "--classifier", golden_parts.classifier),
        *("--length", "500", "--name", "mine", "--output", tmp_path / "mine"),
    )
    assert made.code == 0
    assert download(server, "--protein", "esm2", "--to", tmp_path / "parts").code == 0
    assert download(server, "--protein", "esm2").code == 0
    assert (cache.parent / "encoders" / "esm2" / "DNABERT-S" / "config.json").is_file()


# What goes wrong


def test_a_foreign_directory_is_refused(server: Server, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    ended = download(server, "virnucpro-500", "--to", tmp_path)
    assert ended.code == 1
    assert f"{tmp_path}: exists and is not empty. Choose a new or empty directory" in ended.err
    assert not server.requests


def test_a_file_that_the_server_does_not_have(server: Server, cache: Path) -> None:
    del server.files["/github.com/500.pth"]
    ended = download(server, "virnucpro-500")
    assert (ended.code, ended.out) == (1, "")
    reason = "cannot be downloaded: the server answers 404 Not Found"
    assert f"{server.url}/github.com/500.pth {reason}" in ended.err
    assert "Traceback" not in ended.err
    assert not (cache / "virnucpro-500").exists()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/dl.fbaipublicfiles.com/fair-esm/models/esm2.pt", "esm2.pt"),
        ("/github.com/500.pth", "500.pth"),
        ("/huggingface.co/x/tokenizer.json", "tokenizer.json"),
    ],
)
def test_a_page_instead_of_a_file(path: str, name: str, server: Server, cache: Path) -> None:
    server.faults[path] = [instead(b"<html>please log in</html>")]
    ended = download(server, "virnucpro-500")
    assert ended.code == 1
    assert f"{server.url}{path} is not the published file: " in ended.err
    assert not (cache / "virnucpro-500").exists()
    assert not list((cache / ".download").rglob(f"{name}*"))
    assert download(server, "virnucpro-500").code == 0
    assert [path.name for path in cache.iterdir()] == ["virnucpro-500"]


def test_an_interrupted_download_is_resumed(server: Server, cache: Path) -> None:
    path = "/dl.fbaipublicfiles.com/fair-esm/models/esm2.pt"
    server.faults[path] = [ends_after(1_000), status(404)]
    assert download(server, "virnucpro-500").code == 1
    assert "virnucpro-500 (" not in run("models", "list").out
    assert download(server, "virnucpro-500").code == 0
    assert server.ranges(path)[-1] == "bytes=1000-646326"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "name models to download, or an ESM-2 with --protein"),
        (
            ("virnucpro-500", "--protein", "esm2_t6_8M_UR50D"),
            "name models to download, or an ESM-2 with --protein",
        ),
        (("virnucpro-500", "virnucpro-300", "--to", "x"), "--to takes one model"),
        (
            ("tiny-500",),
            "no published model is called 'tiny-500'. Published models: virnucpro-500, virnucpro-300",
        ),
        (
            ("--protein", "esm2"),
            "no ESM-2 is called 'esm2'. Did you mean esm2_t6_8M_UR50D or esm2_t12_35M_UR50D? There are: ",
        ),
        (("virnucpro-500", "--mirror", "nowhere"), "a mirror begins with https:// or http://"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], reason: str) -> None:
    ended = run("models", "download", *words)
    assert (ended.code, ended.out) == (64, "")
    assert reason in ended.err


def test_a_directory_that_cannot_be_created(server: Server, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = download(server, "virnucpro-500", "--to", tmp_path / "file" / "model")
    assert ended.code == 1
    assert "Traceback" not in ended.err
