import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from virnuc_async import fileio
from virnuc_async.errors import BadBundle, NoCacheDirectory, UnknownBundle
from virnuc_async.fileio import sha256
from virnuc_async.models import bundle as bundles
from virnuc_async.models.bundle import Bundle, cache_directory, find, known, write_manifest
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape

SHAPES = bundles.Shapes(
    ProteinShape(layers=1, width=8, heads=2),
    NucleotideShape(layers=1, width=8, heads=2, intermediate=16, vocabulary=32),
    ClassifierShape(inputs=16, hidden=4),
)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "virnuc-async" / "models"


def make(directory: Path, name: str = "mine", length: int = 500, **more: str) -> Bundle:
    """Make a bundle with text files instead of networks: only their checksums matter here."""
    directory.mkdir(parents=True)
    for part in bundles.PARTS:
        (directory / part).write_text(f"the content of {part}\n")
    return write_manifest(directory, name, length, SHAPES, {"protein": "somewhere"}, **more)


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "bundle.json"
    described = json.loads(path.read_bytes())
    change(described)
    path.write_text(json.dumps(described))


# Finding


def test_a_bundle_is_read_back_as_it_was_written(tmp_path: Path):
    written = make(tmp_path / "b", licence="CC0-1.0", notice="only a toy – not for use")
    assert written == Bundle(
        directory=tmp_path / "b",
        name="mine",
        length=500,
        shapes=SHAPES,
        checksums={part: sha256(tmp_path / "b" / part) for part in bundles.PARTS},
        origin={"protein": "somewhere"},
        licence="CC0-1.0",
        notice="only a toy – not for use",
    )
    assert find(tmp_path / "b") == find(str(tmp_path / "b")) == written
    written.check()


def test_the_contents_of_bundle_json(tmp_path: Path):
    make(tmp_path / "b", licence="MIT")
    described = json.loads((tmp_path / "b" / "bundle.json").read_bytes())
    assert list(described) == [
        *("format", "name", "fragment_length", "licence"),
        *("protein", "nucleotide", "classifier", "origin", "files"),
    ]
    assert described["fragment_length"] == 500
    assert described["protein"] == {"layers": 1, "width": 8, "heads": 2}
    assert described["files"]["tokenizer.json"] == sha256(tmp_path / "b" / "tokenizer.json")


def test_a_bundle_of_the_cache_is_found_by_name(empty_cache: Path):
    assert cache_directory() == empty_cache
    made = make(empty_cache / "virnucpro-500")
    (empty_cache / "unfinished").mkdir()
    (empty_cache / "file").touch()
    make(empty_cache / ".being-made")
    assert find("virnucpro-500") == made
    assert [name for name, _ in known()] == ["tiny-500", "virnucpro-500"]
    assert dict(known())["virnucpro-500"] == empty_cache / "virnucpro-500"


def test_another_cache_directory(empty_cache: Path, tmp_path: Path):
    made = make(tmp_path / "other" / "models" / "mine")
    assert find("mine", tmp_path / "other") == made
    assert [name for name, _ in known(tmp_path / "other")] == ["tiny-500", "mine"]
    with pytest.raises(UnknownBundle):
        find("mine")


def no_home(_: str) -> Path:
    raise RuntimeError("could not determine the home directory")


# Older versions of platformdirs return the path as it is.
@pytest.mark.parametrize("cache_path", [no_home, lambda name: Path("~/.cache", name)])
def test_without_a_home_the_shipped_model_is_found(cache_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fileio, "user_cache_path", cache_path)
    assert [name for name, _ in known()] == ["tiny-500"]
    assert find("tiny-500").name == "tiny-500"
    reason = "the home directory of this user is unknown (HOME is unset or relative)"
    advice = "Choose another directory for models with --cache-dir, or set VIRNUC_ASYNC_CACHE_DIR"
    with pytest.raises(NoCacheDirectory) as caught:
        cache_directory()
    assert str(caught.value) == f"there is no directory for models: {reason}. {advice}"
    with pytest.raises(UnknownBundle) as unknown:
        find("virnucpro-500")
    others = f"Others cannot be seen: {reason}. {advice}"
    assert str(unknown.value) == f"no model 'virnucpro-500' here. Installed: tiny-500. {others}"


@pytest.mark.parametrize("name", ["n" * 300, "a/" * 3000])
def test_a_name_that_is_too_long(name: str, tmp_path: Path):
    with pytest.raises(UnknownBundle, match="Others cannot be seen: .*File name too long"):
        find("nonesuch", tmp_path / name)
    assert find("tiny-500", tmp_path / name).name == "tiny-500"
    with pytest.raises(UnknownBundle):
        find(name)


def test_a_known_name_wins_over_a_directory_here(empty_cache: Path, tmp_path: Path, monkeypatch):
    made = make(empty_cache / "mine")
    make(tmp_path / "mine", length=300)
    monkeypatch.chdir(tmp_path)
    assert find("mine") == made
    assert find("./mine").length == 300


def test_an_unknown_name_lists_the_known_ones(empty_cache: Path):
    make(empty_cache / "b-300")
    make(empty_cache / "a-500")
    names = [name for name, _ in known()]
    assert names[-2:] == ["a-500", "b-300"]
    with pytest.raises(UnknownBundle) as caught:
        find("nonesuch")
    assert caught.value.known == tuple(names)
    assert str(caught.value) == (
        f"no model 'nonesuch' here. Installed: {', '.join(names)}. To download: virnucpro-500, virnucpro-300."
    )


@pytest.mark.parametrize("name", ["virnucpro-500", "virnucpro-300"])
def test_a_published_name_has_a_hint(name: str):
    with pytest.raises(UnknownBundle) as caught:
        find(name)
    assert str(caught.value).startswith(f"no model '{name}' here. Installed: ")
    assert str(caught.value).endswith(f"Get it with: models download {name}")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tiny500", "Did you mean tiny-500?"),
        ("virnucpro", "Did you mean virnucpro-500 or virnucpro-300?"),
        ("VirNucPro-300", "Did you mean virnucpro-300 or virnucpro-500?"),
    ],
)
def test_a_name_that_is_close_to_one_is_suggested(empty_cache: Path, name: str, hint: str):
    with pytest.raises(UnknownBundle) as caught:
        find(name)
    assert str(caught.value) == (
        f"no model '{name}' here. {hint} Installed: tiny-500. To download: virnucpro-500, virnucpro-300."
    )


def test_a_directory_without_a_bundle_is_unknown(tmp_path: Path):
    with pytest.raises(UnknownBundle, match="no model"):
        find(tmp_path)


# Checking


@pytest.mark.parametrize("part", bundles.PARTS)
def test_a_changed_file_is_detected(part: str, tmp_path: Path):
    bundle = make(tmp_path / "b")
    path = tmp_path / "b" / part
    path.write_bytes(path.read_bytes().replace(b"e", b"E", 1))
    with pytest.raises(BadBundle) as caught:
        bundle.check()
    changed = f"{part} has changed or is damaged (sha256 {sha256(path)[:12]})"
    assert str(caught.value) == f"{tmp_path / 'b'} is not a usable bundle: {changed}"


def test_what_was_checked_is_not_read_again_until_it_is_written(tmp_path: Path):
    bundle, path = make(tmp_path / "b"), tmp_path / "b" / bundles.PARTS[0]
    bundle.check_once()
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"e", b"E", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    bundle.check_once()  # as far as can be seen, nothing was written
    with pytest.raises(BadBundle):
        bundle.check()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    for _ in range(2):
        with pytest.raises(BadBundle):
            bundle.check_once()


@pytest.mark.parametrize("part", bundles.PARTS)
def test_a_missing_file_is_detected(part: str, tmp_path: Path):
    bundle = make(tmp_path / "b")
    (tmp_path / "b" / part).unlink()
    with pytest.raises(BadBundle) as caught:
        bundle.check()
    assert str(caught.value).endswith(f"not a usable bundle: {part}: No such file or directory")


def test_the_golden_bundle_is_complete(golden_bundle: Bundle, length: int):
    golden_bundle.check()
    assert find(golden_bundle.directory) == golden_bundle
    assert (golden_bundle.name, golden_bundle.length) == (f"golden-{length}", length)
    assert golden_bundle.shapes == bundles.Shapes(
        ProteinShape(layers=3, width=64, heads=4),
        NucleotideShape(layers=2, width=96, heads=12, intermediate=192, vocabulary=1024, eps=1e-12),
        ClassifierShape(inputs=160, hidden=32),
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(format=2), "its format is 2, this program reads 1"),
        (lambda d: d.pop("format"), "bundle.json: KeyError('format')"),
        (lambda d: d.pop("name"), "bundle.json: KeyError('name')"),
        (lambda d: d.pop("fragment_length"), "bundle.json: KeyError('fragment_length')"),
        (lambda d: d.pop("protein"), "bundle.json: KeyError('protein')"),
        (lambda d: d.pop("files"), "bundle.json: KeyError('files')"),
        (lambda d: d.update(fragment_length=0), "bundle.json: ValueError('fragment_length is 0')"),
        (lambda d: d.update(fragment_length="500"), "fragment_length is '500'"),
        (lambda d: d.update(fragment_length=500.0), "fragment_length is 500.0"),
        (lambda d: d.update(fragment_length=True), "fragment_length is True"),
        (lambda d: d["classifier"].pop("hidden"), "missing 1 required positional argument: 'hidden'"),
        (lambda d: d["protein"].update(depth=3), "unexpected keyword argument 'depth'"),
        (lambda d: d["protein"].update(layers="3"), "layers is '3'"),
        (lambda d: d["protein"].update(heads=0), "heads is 0"),
        (lambda d: d["nucleotide"].update(eps=None), "eps is None"),
        (lambda d: d.update(nucleotide=[1, 2]), "bundle.json: AttributeError"),
        (lambda d: d["files"].pop("tokenizer.json"), "it must describe protein.safetensors"),
        (lambda d: d["files"].update({"more.bin": "0"}), "tokenizer.json, more.bin"),
        (lambda d: d["files"].update({"../../secret": d["files"].pop("tokenizer.json")}), "not protein"),
        (lambda d: d["files"].update({"/etc/passwd": "0"}), "/etc/passwd"),
        (lambda d: d.update(files=[*d["files"]]), "bundle.json: "),
        (lambda d: d.update(files=None), "bundle.json: TypeError"),
        (lambda d: d["files"].update({"tokenizer.json": 5}), "tokenizer.json is 5"),
        (lambda d: d.update(format="\x1b[2J"), "its format is '\\x1b[2J', this"),
        (lambda d: d.update(name="\x1b[2J"), "name is '"),
        (lambda d: d.update(name=5), "name is 5"),
        (lambda d: d.update(notice="two\nlines"), "notice is '"),
        (lambda d: d.update(licence=["MIT"]), "licence is ['MIT']"),
        (lambda d: d.update(origin=["here"]), "bundle.json: AttributeError"),
        (lambda d: d.update(origin={"protein": {}}), "protein is {}"),
        (lambda d: d["nucleotide"].update(eps=float("nan")), "eps is nan"),
        (lambda d: d["nucleotide"].update(eps=float("inf")), "eps is inf"),
        (lambda d: d["protein"].update(heads=8), "the heads cannot share the width"),
        (lambda d: d["nucleotide"].update(heads=3), "the heads cannot share the width"),
        (
            lambda d: d["classifier"].update(inputs=15),
            "inputs are 15, not the sum of both widths",
        ),
        (lambda d: d["protein"].update(layers=1_001), "layers is 1001"),
        (lambda d: d["protein"].update(width=1 << 21), "width is 2097152"),
        (lambda d: d.update(fragment_length=10**99), "fragment_length is 1000"),
    ],
)
def test_an_invalid_bundle_json(change, reason: str, tmp_path: Path):
    make(tmp_path / "b")
    edit(tmp_path / "b", change)
    with pytest.raises(BadBundle) as caught:
        find(tmp_path / "b")
    assert str(caught.value).startswith(f"{tmp_path / 'b'} is not a usable bundle: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b"name: mine", b"9" * 9_999),
        *(b"[" * 99_999, b'{"a":' * 99_999, b" " * (2 << 20)),
    ],
)
def test_a_bundle_json_with_other_content(content: bytes, tmp_path: Path):
    make(tmp_path / "b")
    (tmp_path / "b" / "bundle.json").write_bytes(content)
    with pytest.raises(BadBundle, match=r"is not a usable bundle: bundle\.json: "):
        find(tmp_path / "b")


# The tokenizer


TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "A": 31}, "unk_token": "[UNK]"},
}


def test_a_tokenizer_that_fits(tmp_path: Path):
    bundle = make(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    assert json.loads(bundle.tokenizer()) == TOKENIZER


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no JSON\n", "tokenizer.json: expected"),
        (b"\xff", "tokenizer.json: 'utf-8' codec can't decode"),
        (b"[" * 99_999, "tokenizer.json: invalid type"),
        (b" " * (1 << 24) + b"{}", "tokenizer.json: it holds more than 16,777,216 bytes"),
        (
            json.dumps(TOKENIZER).replace("31", "32").encode(),
            "tokenizer.json: it has 33 tokens, but the network 32",
        ),
        (json.dumps(TOKENIZER).replace("[UNK]", "[unk]", 1).encode(), "tokenizer.json: WordLevel error"),
    ],
)
def test_a_tokenizer_that_does_not_fit(content: bytes, reason: str, tmp_path: Path):
    bundle = make(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadBundle) as caught:
        bundle.tokenizer()
    assert caught.value.reason.startswith(reason)


# The fingerprint


def test_the_fingerprint_depends_only_on_content_and_length(tmp_path: Path):
    first = make(tmp_path / "first", "first", licence="MIT")
    second = make(tmp_path / "second", "another name", notice="moved")
    assert first.fingerprint == second.fingerprint
    shutil.copytree(tmp_path / "first", tmp_path / "third")
    assert find(tmp_path / "third").fingerprint == first.fingerprint
    assert len(first.fingerprint) == 16
    assert int(first.fingerprint, 16) >= 0


def test_the_fingerprint_changes_with_the_length(tmp_path: Path):
    fingerprints = {make(tmp_path / str(size), length=size).fingerprint for size in (300, 500)}
    assert len(fingerprints) == 2


@pytest.mark.parametrize("part", bundles.PARTS)
def test_the_fingerprint_changes_with_every_file(part: str, tmp_path: Path):
    bundle = make(tmp_path / "b")
    (tmp_path / "b" / part).write_bytes(b"other content")
    rewritten = write_manifest(tmp_path / "b", bundle.name, bundle.length, SHAPES, {})
    assert rewritten.fingerprint != bundle.fingerprint


def test_the_fingerprint_does_not_change_with_the_reference(tmp_path: Path):
    bundle = make(tmp_path / "b")
    (tmp_path / "b" / bundles.REFERENCE).write_text("its results")
    rewritten = write_manifest(tmp_path / "b", bundle.name, bundle.length, SHAPES, {})
    assert rewritten.checksums[bundles.REFERENCE] == sha256(tmp_path / "b" / bundles.REFERENCE)
    assert rewritten.fingerprint == bundle.fingerprint


def test_the_fingerprint_does_not_depend_on_the_order_of_files(tmp_path: Path):
    bundle = make(tmp_path / "b")
    reordered = dataclasses.replace(bundle, checksums=dict(reversed(bundle.checksums.items())))
    assert reordered.fingerprint == bundle.fingerprint
