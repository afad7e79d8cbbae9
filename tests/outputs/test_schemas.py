"""The schemas that come with the package, and the files that they describe."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from running import OPEN, SHUT, predict
from support import ROOT, fasta

SCHEMAS = ROOT / "virnuc_async" / "outputs" / "schemas"
PAIRS = fasta([("a/1", OPEN * 60), ("a/2", OPEN * 60), ("b/1", OPEN * 60), ("b/2", SHUT * 5)])


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_each_is_a_schema(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("files", "options", "code", "counts"),
    [
        ({"a.fa": PAIRS}, (), 0, {"contigs": 4, "failures": 0}),
        ({"a.fa": PAIRS}, ("--pairs", "interleaved"), 0, {"pairs": 2}),
        ({"a.fa": PAIRS}, ("--precision", "bf16"), 0, {"orfs_recomputed": 0}),
        ({"a.fa": PAIRS}, ("--calls", "--embeddings", "--min-length", "100"), 0, {}),
        ({"a.fa": PAIRS, "b.fa": ">x\n!\n"}, (), 2, {"failures": 1}),
        ({"a.fa": ""}, (), 0, {"contigs": 0, "orfs": 0}),
        ({"a.fa": fasta([("a", SHUT * 5)])}, (), 0, {"contigs": 1, "orfs": 0}),
        ({os.fsdecode(b"\xff.fa"): PAIRS}, (), 0, {"contigs": 4}),
    ],
    ids=["plain", "pairs", "bf16", "options", "failures", "empty", "no_orf", "bytes"],
)
def test_summary(
    files: dict[str, str], options: tuple[str, ...], code: int, counts: dict[str, int], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    ended = predict(*(tmp_path / name for name in files), tmp_path / "out", *options)
    assert ended.code == code
    found = json.loads((tmp_path / "out" / "summary.json").read_bytes())
    assert counts.items() <= found["counts"].items()
    validator("summary").validate(found)


def _valid() -> dict[str, Any]:
    count = {"contigs": 1, "fragments": 1, "orfs": 1, "batches": 1, "viral_contigs": 1, "failures": 0}
    return {
        "version": "1",
        "command": "",
        "settings": {"model": "m", "threshold": 0.5, "precision": "fp32", "tokens_per_batch": 1},
        "bundle": {"name": "m", "fingerprint": "0123456789abcdef"},
        "inputs": [{"path": "-", "contigs": 1, "status": "read"}],
        "counts": count,
        "devices": [],
        "seconds": {"total": 1.5, "load": 0.0, "model": 0.0},
        "session": {"orfs": 1, "batches": 1, "orfs_before": 0, "batches_before": 0},
        "reproducible": True,
        "finished": True,
    }


def test_what_is_wrong_is_refused() -> None:
    check = validator("summary")
    check.validate(_valid())
    for key in _valid():
        assert not check.is_valid({name: value for name, value in _valid().items() if name != key})
    for key, value in (
        ("counts", _valid()["counts"] | {"pairs": 1}),
        ("counts", _valid()["counts"] | {"orfs": -1}),
        ("inputs", [{"path": "-", "contigs": 1, "status": "fine"}]),
        ("bundle", {"name": "m", "fingerprint": "x"}),
        ("finished", "yes"),
    ):
        assert not check.is_valid(_valid() | {key: value}), key
