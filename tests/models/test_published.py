"""Published models from a server on this machine, by the real command."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from running import ROOT, Ran, predict, run, wait_until
from serving import Server, ends_after, hangs_after, instead, serving, status

from virnuc_async.downloads.source import Source, git_blob
from virnuc_async.errors import BadCheckpoint, UsageError
from virnuc_async.models import published
from virnuc_async.models.bundle import find
from virnuc_async.models.import_checkpoint import CheckpointPaths, read_protein
from virnuc_async.models.published import (
    ESM2,
    MODELS,
    Mirrors,
    ModelFiles,
    published_encoders,
    published_model,
)
from virnuc_async.models.reference import published_reference

OFFICIAL = {
    "esm2_t36_3B_UR50D.pt": "https://dl.fbaipublicfiles.com/fair-esm/models/esm2_t36_3B_UR50D.pt",
    "500_model.pth": "https://github.com/Li-Jing-1997/VirNucPro/raw/HEAD/500_model.pth",
    "DNABERT-S/config.json": "https://huggingface.co/zhihan1996/DNABERT-S/resolve/"
    "00e47f96cdea35e4b6f5df89e5419cbe47d490c6/config.json",
}


# What is known of the published files


def test_the_official_places() -> None:
    urls = {source.name: source.url for source in published_model(500, Mirrors()).sources}
    assert {name: urls[name] for name in OFFICIAL} == OFFICIAL
    assert sorted(urls) == sorted(
        [*OFFICIAL, "DNABERT-S/tokenizer.json", "DNABERT-S/pytorch_model.bin"],
    )


def test_a_mirror_has_every_file_by_its_host_and_path() -> None:
    for mirror in ("https://m.example/x", "https://m.example/x/"):
        urls = {source.name: source.url for source in published_model(500, Mirrors(mirror=mirror)).sources}
        for name, official in OFFICIAL.items():
            assert urls[name] == official.replace("https://", "https://m.example/x/")


def test_another_hub_is_asked_for_what_is_of_hugging_face() -> None:
    for mirror in ("", "https://m.example"):
        places = Mirrors(hub="https://hub.example/", mirror=mirror)
        urls = {source.name: source.url for source in published_model(300, places).sources}
        config = OFFICIAL["DNABERT-S/config.json"]
        assert urls["DNABERT-S/config.json"] == config.replace("huggingface.co", "hub.example")
        assert "hub.example" not in urls["300_model.pth"]


@pytest.mark.parametrize("place", ["ftp://m.example", "m.example", "file:///etc"])
def test_a_mirror_is_a_web_server(place: str) -> None:
    with pytest.raises(UsageError, match="a mirror begins with https"):
        Mirrors(mirror=place)


def test_every_file_of_a_model_has_a_check() -> None:
    for name in MODELS:
        for source in MODELS[name](Mirrors()).sources:
            assert source.sha256 or source.git_blob or source.check, source.name


def test_every_file_has_a_length_that_it_cannot_pass() -> None:
    sources = [source for name in MODELS for source in MODELS[name](Mirrors()).sources]
    sources += [published_encoders(name, Mirrors()).protein for name in ESM2]
    limits = {source.name: source.limit for source in sources}
    # FP32 and a quarter; the largest ones were published in FP16.
    assert limits["esm2_t6_8M_UR50D.pt"] == 5 * 7_408_960 + (1 << 24)
    assert 2 * 5_700_000_000 < limits["esm2_t36_3B_UR50D.pt"] < 3 * 5_700_000_000
    assert limits["500_model.pth"] < 30_000_000
    assert limits["DNABERT-S/config.json"] == 1 << 20
    assert max(limits.values()) < 1 << 37


def test_an_unknown_esm2_is_told_which_there_are() -> None:
    with pytest.raises(UsageError, match="there are esm2_t6_8M_UR50D, "):
        published_encoders("esm1b", Mirrors())


def test_an_esm2_of_another_size_is_refused(golden_parts: CheckpointPaths) -> None:
    check = published_encoders("esm2_t6_8M_UR50D", Mirrors()).protein.check
    assert check is not None
    with pytest.raises(BadCheckpoint, match="it is an ESM-2 of 3 layers of 64, 4 heads"):
        check(golden_parts.protein)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>log in</html>", "not the configuration of a network"),
        (b"[]", "not the configuration of a network"),
        (b"{}", "not the configuration of a network"),
        (
            b'{"num_attention_heads": 8, "hidden_size": 768, "num_hidden_layers": 12}',
            "not the configuration of DNABERT-S",
        ),
    ],
)
def test_another_configuration_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    (check,) = [s.check for s in published_model(500, Mirrors()).nucleotide if s.check]
    with pytest.raises(BadCheckpoint, match=reason):
        check(tmp_path / "config.json")
    wanted = {"num_attention_heads": 12, "hidden_size": 768, "num_hidden_layers": 12, "more": 1}
    (tmp_path / "config.json").write_text(json.dumps(wanted))
    check(tmp_path / "config.json")


# Downloading, of the golden networks under the published names


@pytest.fixture
def server(golden_parts: CheckpointPaths) -> Iterator[Server]:
    with serving() as server:
        host = "/dl.fbaipublicfiles.com/fair-esm/models/esm2.pt"
        server.files[host] = golden_parts.protein.read_bytes()
        for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
            server.files[f"/huggingface.co/x/{name}"] = (golden_parts.nucleotide / name).read_bytes()
        server.files["/github.com/500.pth"] = golden_parts.classifier.read_bytes()
        server.files["/github.com/300.pth"] = golden_parts.classifier.read_bytes()
        yield server


def golden_wanted(parts: CheckpointPaths, length: int, places: Mirrors) -> ModelFiles:
    def source(official: str, name: str, path: Path) -> Source:
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        return places.source(f"https://{official}", name, size=path.stat().st_size, sha256=checksum)

    names = ("config.json", "tokenizer.json", "pytorch_model.bin")
    protein = places.source(
        "https://dl.fbaipublicfiles.com/fair-esm/models/esm2.pt",
        "esm2.pt",
        check=read_protein,
        max_size=1_000_000,
    )
    nucleotide = tuple(
        source(f"huggingface.co/x/{name}", f"DNABERT-S/{name}", parts.nucleotide / name) for name in names
    )
    classifier = places.source(
        f"https://github.com/{length}.pth",
        f"{length}.pth",
        git_blob=git_blob(parts.classifier),
    )
    return ModelFiles(
        f"virnucpro-{length}", protein, nucleotide, classifier, length, published_reference(length)
    )


@pytest.fixture
def cache(golden_parts: CheckpointPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for length in (500, 300):
        wanted = partial(golden_wanted, golden_parts, length)
        monkeypatch.setitem(published.MODELS, f"virnucpro-{length}", wanted)
    monkeypatch.setenv("VIRNUC_ASYNC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def download(server: Server, *more: str | Path) -> Ran:
    return run("models", "download", *more, "--mirror", server.url)


def asked_for(server: Server) -> list[str]:
    return [path.rsplit("/", 1)[1] for path, _ in server.requests]


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
        f"{name} is in {cache / name}. Use it with --model {name}; "
        f"see that it is right with: models verify {name}\n"
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


def test_what_is_there_is_not_downloaded_again(server: Server, cache: Path) -> None:
    assert download(server, "virnucpro-500").code == 0
    server.requests.clear()
    ended = download(server, "virnucpro-500")
    assert ended.code == 0
    assert ended.err == f"{cache / 'virnucpro-500'} is there: checking its files\n"
    assert not server.requests
    (cache / "virnucpro-500" / "tokenizer.json").write_text("{}")
    ended = download(server, "virnucpro-500")
    assert (ended.code, ended.out) == (1, "")
    assert "tokenizer.json has changed or is damaged" in ended.err


def test_two_models_share_their_encoders(server: Server, cache: Path) -> None:
    assert download(server, "virnucpro-500", "virnucpro-300", "--quiet").code == 0
    assert asked_for(server).count("esm2.pt") == 1
    assert [path.name for path in sorted(cache.iterdir())] == ["virnucpro-300", "virnucpro-500"]
    for name in ("virnucpro-300", "virnucpro-500"):
        find(cache / name).check()
    first, second = (cache / name / "protein.safetensors" for name in ("virnucpro-300", "virnucpro-500"))
    assert first.samefile(second)


# What was downloaded before


@pytest.mark.parametrize("order", [(500, 300), (300, 500)])
def test_a_second_model_takes_the_encoders_of_the_first(
    order: tuple[int, int], server: Server, cache: Path, golden: Path, tmp_path: Path
) -> None:
    first, second = (f"virnucpro-{length}" for length in order)
    assert download(server, first).code == 0
    server.requests.clear()
    ended = download(server, second)
    assert ended.code == 0
    assert asked_for(server) == [f"{order[1]}.pth"]
    assert ended.err.splitlines() == [
        f"{second}: only the classifier is fetched, since {cache / first} has its encoders, "
        "which are checked",
        f"{second}: writing it to {cache / second}",
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


def test_those_of_the_cache_are_taken_anywhere(server: Server, cache: Path, tmp_path: Path) -> None:
    assert download(server, "virnucpro-500").code == 0
    server.requests.clear()
    assert download(server, "virnucpro-300", "--to", tmp_path / "usb" / "model").code == 0
    assert asked_for(server) == ["300.pth"]
    find(tmp_path / "usb" / "model").check()


def test_damaged_encoders_are_not_taken(server: Server, cache: Path) -> None:
    assert download(server, "virnucpro-500").code == 0
    protein = cache / "virnucpro-500" / "protein.safetensors"
    content = bytearray(protein.read_bytes())
    content[-1] ^= 1
    protein.write_bytes(content)
    server.requests.clear()
    ended = download(server, "virnucpro-300")
    assert ended.code == 0
    assert "protein.safetensors has changed or is damaged" in ended.err
    assert "nothing of it is used" in ended.err
    assert len(asked_for(server)) == 5
    find(cache / "virnucpro-300").check()


@pytest.mark.parametrize(
    ("part", "origin"),
    [
        ("protein", "esm2.pt, sha256 0123"),  # of an import: a file of that name, whatever is in it
        ("protein", "https://dl.fbaipublicfiles.com/fair-esm/models/esm2.pt by somebody, sha256 0123"),
        ("nucleotide", "https://huggingface.co/x/pytorch_model.bin, sha256 0123"),
    ],
)
def test_encoders_of_other_files_are_not_taken(part: str, origin: str, server: Server, cache: Path) -> None:
    assert download(server, "virnucpro-500").code == 0
    described = json.loads((cache / "virnucpro-500" / "bundle.json").read_bytes())
    described["origin"][part] = origin
    (cache / "virnucpro-500" / "bundle.json").write_text(json.dumps(described))
    server.requests.clear()
    assert download(server, "virnucpro-300").code == 0
    assert len(asked_for(server)) == 5


def officially(wanted: ModelFiles) -> ModelFiles:
    """Give *wanted* as if this server were the official one."""
    origin = wanted.protein.origin.removesuffix(" by a mirror")
    return replace(wanted, protein=replace(wanted.protein, origin=origin))


@pytest.mark.parametrize("is_official", [(True, False), (False, True)])
def test_what_a_mirror_gave_is_not_taken_for_official(
    is_official: tuple[bool, bool], server: Server, golden_parts: CheckpointPaths, tmp_path: Path
) -> None:
    for length, official in zip((500, 300), is_official, strict=True):
        server.requests.clear()
        wanted = golden_wanted(golden_parts, length, Mirrors(mirror=server.url))
        target = tmp_path / "models" / wanted.name
        wanted = officially(wanted) if official else wanted
        published.download({target: wanted}, tmp_path, lambda _: None, lambda _: None)
    assert len(asked_for(server)) == (1 if is_official[0] else 5)
    origin = find(tmp_path / "models" / "virnucpro-300").origin["protein"]
    assert " by a mirror, sha256 " not in origin


def test_a_directory_to_be_moved(server: Server, cache: Path, golden: Path, tmp_path: Path) -> None:
    ended = download(server, "virnucpro-500", "--to", tmp_path / "usb" / "model")
    assert ended.code == 0
    assert [path.name for path in (tmp_path / "usb").iterdir()] == ["model"]
    assert not cache.exists()
    shutil.move(tmp_path / "usb" / "model", tmp_path / "elsewhere")
    source = golden / "upstream" / "input.fa"
    assert predict(source, tmp_path / "out", "--model", tmp_path / "elsewhere").code == 0


def test_a_directory_of_somebody_else_is_refused(server: Server, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    ended = download(server, "virnucpro-500", "--to", tmp_path)
    assert ended.code == 1
    assert f"{tmp_path}: is not empty. Name another directory" in ended.err
    assert not server.requests


def test_the_cache_directory_is_asked_everywhere(
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


# What goes wrong


def test_a_file_that_is_not_given(server: Server, cache: Path) -> None:
    del server.files["/github.com/500.pth"]
    ended = download(server, "virnucpro-500")
    assert (ended.code, ended.out) == (1, "")
    assert f"{server.url}/github.com/500.pth cannot be had: the server answers 404 Not Found" in ended.err
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
def test_a_page_in_the_place_of_a_file(path: str, name: str, server: Server, cache: Path) -> None:
    server.faults[path] = [instead(b"<html>please log in</html>")]
    ended = download(server, "virnucpro-500")
    assert ended.code == 1
    assert f"{server.url}{path} is not the file that it should be: " in ended.err
    assert not (cache / "virnucpro-500").exists()
    assert not list((cache / ".download").rglob(f"{name}*"))
    assert download(server, "virnucpro-500").code == 0
    assert [path.name for path in cache.iterdir()] == ["virnucpro-500"]


def test_an_interrupted_download_goes_on(server: Server, cache: Path) -> None:
    path = "/dl.fbaipublicfiles.com/fair-esm/models/esm2.pt"
    server.faults[path] = [ends_after(1_000), status(404)]
    assert download(server, "virnucpro-500").code == 1
    assert "virnucpro-500 (" not in run("models", "list").out
    assert download(server, "virnucpro-500").code == 0
    assert server.ranges(path)[-1] == "bytes=1000-646326"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "name models to download, or a --protein"),
        (("virnucpro-500", "--protein", "esm2_t6_8M_UR50D"), "name models to download, or a --protein"),
        (("virnucpro-500", "virnucpro-300", "--to", "x"), "--to takes one model"),
        (("tiny-500",), "no published model is called 'tiny-500': there are virnucpro-500, virnucpro-300"),
        (("--protein", "esm2"), "no ESM-2 is called 'esm2': there are esm2_t6_8M_UR50D"),
        (("virnucpro-500", "--mirror", "nowhere"), "a mirror begins with https:// or http://"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], reason: str) -> None:
    ended = run("models", "download", *words)
    assert (ended.code, ended.out) == (64, "")
    assert reason in ended.err


def test_a_directory_that_cannot_be_made(server: Server, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = download(server, "virnucpro-500", "--to", tmp_path / "file" / "model")
    assert ended.code == 1
    assert "Traceback" not in ended.err


# Encoders alone


def test_encoders_to_train_on(
    server: Server, cache: Path, golden_parts: CheckpointPaths, tmp_path: Path, monkeypatch
) -> None:
    def encoders(name: str, places: Mirrors) -> ModelFiles:
        wanted = golden_wanted(golden_parts, 500, places)
        return ModelFiles(name, wanted.protein, wanted.nucleotide)

    monkeypatch.setattr(published, "published_encoders", encoders)
    ended = download(server, "--protein", "esm2", "--to", tmp_path / "parts")
    assert ended.code == 0, ended.err
    assert ended.out == (
        f"esm2 is in {tmp_path / 'parts'}. For models import: --protein {tmp_path / 'parts' / 'esm2.pt'} "
        f"--nucleotide {tmp_path / 'parts' / 'DNABERT-S'}\n"
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


@pytest.fixture
def encoders(golden_parts: CheckpointPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden encoders, under the names of published ones."""

    def wanted(name: str, places: Mirrors) -> ModelFiles:
        model = golden_wanted(golden_parts, 500, places)
        return ModelFiles(name, replace(model.protein, name=f"{name}.pt"), model.nucleotide)

    monkeypatch.setattr(published, "published_encoders", wanted)
    monkeypatch.setitem(published.ESM2, "esm2", (3, 64))
    monkeypatch.setitem(published.ESM2, "esm2b", (3, 64))


@pytest.mark.usefixtures("encoders")
def test_checkpoints_of_an_earlier_day_are_taken(server: Server, cache: Path) -> None:
    assert download(server, "--protein", "esm2").code == 0
    server.requests.clear()
    ended = download(server, "virnucpro-500", "virnucpro-300")
    assert ended.code == 0
    assert sorted(asked_for(server)) == ["300.pth", "500.pth"]
    of_it = cache.parent / "encoders" / "esm2"
    names = "esm2.pt, DNABERT-S/config.json, DNABERT-S/tokenizer.json, DNABERT-S/pytorch_model.bin"
    assert ended.err.splitlines()[0] == (f"virnucpro-500: {of_it} has {names}, which is taken if it is right")
    assert os.listdir(of_it / "DNABERT-S")
    first, second = (find(cache / name) for name in ("virnucpro-500", "virnucpro-300"))
    first.check()
    second.check()
    # Where it is from was not written down.
    assert first.origin["protein"].startswith("esm2.pt, sha256 ")
    assert first.origin["nucleotide"].startswith("https://huggingface.co/x/pytorch_model.bin ")
    one, other = (bundle.directory / "protein.safetensors" for bundle in (first, second))
    assert one.samefile(other)


@pytest.mark.usefixtures("encoders")
def test_dnabert_s_is_fetched_once_for_all_encoders(server: Server, cache: Path) -> None:
    assert download(server, "--protein", "esm2").code == 0
    weights = cache.parent / "encoders" / "esm2" / "DNABERT-S" / "pytorch_model.bin"
    server.requests.clear()
    assert download(server, "--protein", "esm2b").code == 0
    assert asked_for(server) == ["esm2.pt"]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)  # both of them, which are one
    shutil.rmtree(cache.parent / "encoders" / "esm2b")
    server.requests.clear()
    assert download(server, "--protein", "esm2b").code == 0
    assert sorted(asked_for(server)) == ["esm2.pt", "pytorch_model.bin"]
    assert weights.read_bytes() == content  # of somebody else


# The command as a process of its own

STARTED = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/models"]
from functools import partial
from test_published import golden_wanted
from virnuc_async.models import published
from virnuc_async.cli import main as cli
from virnuc_async.models.import_checkpoint import CheckpointPaths
models = Path("tests/data/golden/upstream/models")
parts = CheckpointPaths(models / "esm2_t3_tiny.pt", models / "dnabert", models / "classifier.pth")
published.MODELS["virnucpro-500"] = partial(golden_wanted, parts, 500)
cli.run()
"""


def start_download(server: Server, log: Path, cache: Path) -> "subprocess.Popen[bytes]":
    words = ("models", "download", "virnucpro-500", "--mirror", server.url, "--cache-dir", str(cache.parent))
    with open(log, "wb") as file:
        return subprocess.Popen([sys.executable, "-c", STARTED, *words], cwd=ROOT, stderr=file)


PROTEIN = "/dl.fbaipublicfiles.com/fair-esm/models/esm2.pt"


def test_ctrl_c_ends_it_at_once_and_it_goes_on(server: Server, cache: Path, tmp_path: Path) -> None:
    server.faults[PROTEIN] = [hangs_after(2_000)]
    process = start_download(server, tmp_path / "log", cache)
    part = cache / ".download" / "esm2.pt.part"
    wait_until(lambda: part.is_file() and part.stat().st_size == 2_000, process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert time.monotonic() - began < 5
    assert (tmp_path / "log").read_text() == "Interrupted. The same command goes on where it was.\n"
    assert download(server, "virnucpro-500").code == 0
    assert server.ranges(PROTEIN) == [None, "bytes=2000-646326"]


def test_a_killed_one_leaves_nothing_that_is_found(server: Server, cache: Path, tmp_path: Path) -> None:
    server.faults[PROTEIN] = [hangs_after(2_000)]
    process = start_download(server, tmp_path / "log", cache)
    wait_until(lambda: (cache / ".download" / "esm2.pt.part").is_file(), process)
    process.kill()
    process.wait()
    left = cache / ".virnucpro-500.99999"  # of one that was killed later
    left.mkdir()
    (left / "bundle.json").write_text("{}")
    assert "no model 'virnucpro-500' here" in run("models", "info", "virnucpro-500").err
    assert download(server, "virnucpro-500").code == 0
    assert os.listdir(cache) == ["virnucpro-500"]


def test_two_at_once(server: Server, cache: Path, tmp_path: Path) -> None:
    server.faults[PROTEIN] = [hangs_after(2_000)]
    process = start_download(server, tmp_path / "log", cache)
    wait_until(lambda: (cache / ".download" / "esm2.pt.part").is_file(), process)
    ended = download(server, "virnucpro-500")
    assert ended.code == 1
    assert "another process is downloading into" in ended.err
    server.released.set()  # the first one is hung up on, and goes on
    assert process.wait() == 0
    assert download(server, "virnucpro-500").code == 0
    assert asked_for(server).count("500.pth") == 1
