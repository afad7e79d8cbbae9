"""The published models: their addresses, mirrors, limits and checks."""

import json
from pathlib import Path

import pytest

from virnuc_async.errors import BadCheckpoint, UsageError
from virnuc_async.models.import_checkpoint import CheckpointPaths
from virnuc_async.models.published import ESM2, MODELS, Mirrors, published_encoders, published_model

OFFICIAL = {
    "esm2_t36_3B_UR50D.pt": "https://dl.fbaipublicfiles.com/fair-esm/models/esm2_t36_3B_UR50D.pt",
    "500_model.pth": "https://github.com/Li-Jing-1997/VirNucPro/raw/HEAD/500_model.pth",
    "DNABERT-S/config.json": "https://huggingface.co/zhihan1996/DNABERT-S/resolve/"
    "00e47f96cdea35e4b6f5df89e5419cbe47d490c6/config.json",
}


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


def test_another_hub_replaces_hugging_face() -> None:
    for mirror in ("", "https://m.example"):
        mirrors = Mirrors(hub="https://hub.example/", mirror=mirror)
        urls = {source.name: source.url for source in published_model(300, mirrors).sources}
        config = OFFICIAL["DNABERT-S/config.json"]
        assert urls["DNABERT-S/config.json"] == config.replace("huggingface.co", "hub.example")
        assert "hub.example" not in urls["300_model.pth"]


@pytest.mark.parametrize("url", ["ftp://m.example", "m.example", "file:///etc"])
def test_a_mirror_is_a_web_server(url: str) -> None:
    with pytest.raises(UsageError, match="a mirror begins with https"):
        Mirrors(mirror=url)


def test_every_file_of_a_model_has_a_check() -> None:
    for name in MODELS:
        for source in MODELS[name](Mirrors()).sources:
            assert source.sha256 or source.git_blob or source.check, source.name


def test_every_file_has_a_size_limit() -> None:
    sources = [source for name in MODELS for source in MODELS[name](Mirrors()).sources]
    sources += [published_encoders(name, Mirrors()).protein for name in ESM2]
    limits = {source.name: source.limit for source in sources}
    # FP32 and a quarter; the largest ones were published in FP16.
    assert limits["esm2_t6_8M_UR50D.pt"] == 5 * 7_408_960 + (1 << 24)
    assert 2 * 5_700_000_000 < limits["esm2_t36_3B_UR50D.pt"] < 3 * 5_700_000_000
    assert limits["500_model.pth"] < 30_000_000
    assert limits["DNABERT-S/config.json"] == 1 << 20
    assert max(limits.values()) < 1 << 37


def test_an_unknown_esm2_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="There are: esm2_t6_8M_UR50D, "):
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
    published_config = {"num_attention_heads": 12, "hidden_size": 768, "num_hidden_layers": 12, "more": 1}
    (tmp_path / "config.json").write_text(json.dumps(published_config))
    check(tmp_path / "config.json")
