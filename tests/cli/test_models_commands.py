"""``models``: list, info and import."""

import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from running import ROOT, predict, run, summary

from virnuc_async.models.bundle import Bundle
from virnuc_async.models.import_checkpoint import CheckpointPaths


def test_models_are_imported_used_and_described(
    golden_parts: CheckpointPaths, source: Path, model: Bundle, tmp_path: Path, out: Path
) -> None:
    directory = tmp_path / "mine"
    parts = ("--protein", golden_parts.protein, "--nucleotide", golden_parts.nucleotide)
    more = (
        "--classifier",
        golden_parts.classifier,
        "--length",
        "500",
        "--name",
        "mine",
        "--output",
        directory,
    )
    ended = run("models", "import", *parts, *more)
    assert ended == (0, f"mine is in {directory}. Use it with --model {directory}\n", "")
    assert predict(source, out, "--model", directory).code == 0
    assert summary(out)["bundle"] == {"name": "mine", "fingerprint": model.fingerprint}
    ended = run("models", "info", directory)
    assert ended.code == 0
    facts = dict(re.findall(r"^(.{24})(.*)$", ended.out, re.MULTILINE))
    facts = {name.rstrip(): fact for name, fact in facts.items()}
    assert facts["name"] == "mine"
    assert facts["directory"] == str(directory)
    assert facts["fingerprint"] == model.fingerprint
    assert facts["fragments"] == "500 bp"
    assert facts["protein"] == "ESM-2, 3 layers of 64"
    assert facts["licence"] == "not stated"
    assert facts["protein.safetensors"] == f"sha256 {model.checksums['protein.safetensors']}, checked"
    ended = run("models", "import", *parts, *more)
    assert (ended.code, ended.out) == (1, "")
    assert (
        ended.err == f"virnuc-async: {directory}: exists and is not empty. Choose a new or empty directory\n"
    )


def test_model_list(model: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ended = run("models", "list")
    assert ended.code == 0
    *table, hint = ended.out.splitlines()
    header, default, *missing = [re.split(r"  +", line) for line in table]
    assert header == ["model", "fragments", "directory"]
    shipped = ROOT / "virnuc_async" / "models" / "tiny-500"
    assert default == ["tiny-500 (default)", "500 bp", str(shipped)]
    assert missing == [[name, "-", "not on this machine"] for name in ("virnucpro-500", "virnucpro-300")]
    assert "docs/how-to/models.md" in hint
    mine = tmp_path / "virnuc-async" / "models" / "virnucpro-500"
    shutil.copytree(model.directory, mine)
    assert re.search(f"^virnucpro-500 +500 bp +{mine}$", run("models", "list").out, re.MULTILINE)
    assert run("models", "info", "virnucpro-500").code == 0
    (mine / "bundle.json").write_text("{")
    ended = run("models", "list")
    assert ended.code == 0
    assert re.search(rf"^virnucpro-500 +not usable: bundle\.json: .* {mine}$", ended.out, re.MULTILINE)


def test_model_info_checks_the_files(model: Bundle, tmp_path: Path) -> None:
    assert "tiny-500 is a small demonstration model" in run("models", "info", "tiny-500").out
    broken = tmp_path / "broken"
    shutil.copytree(model.directory, broken)
    (broken / "tokenizer.json").write_text("{}")
    ended = run("models", "info", broken)
    assert (ended.code, ended.out) == (1, "")
    assert "tokenizer.json has changed or is damaged" in ended.err
    ended = run("models", "info", tmp_path / "none")
    assert ended.code == 1
    assert "Installed: tiny-500" in ended.err


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("part", ["--protein", "--classifier"])
def test_hostile_file_is_refused_and_not_executed(
    part: str, golden_parts: CheckpointPaths, tmp_path: Path
) -> None:
    mark, trap, directory = tmp_path / "run", tmp_path / "trap.pt", tmp_path / "new"
    torch.save({"model": Hostile(mark)}, trap)
    pickle.loads(pickle.dumps(Hostile(mark)))
    mark.rmdir()  # the trap works
    given = {
        "--protein": golden_parts.protein,
        "--nucleotide": golden_parts.nucleotide,
        "--classifier": golden_parts.classifier,
        part: trap,
    }
    words = [word for pair in given.items() for word in pair]
    ended = run("models", "import", *words, "--length", "500", "--name", "x", "--output", directory)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"virnuc-async: {trap} cannot be imported: ")
    assert not mark.exists()
    assert not directory.exists()


def test_import_with_wrong_arguments(golden_parts: CheckpointPaths, tmp_path: Path) -> None:
    good = ("--nucleotide", golden_parts.nucleotide, "--classifier", golden_parts.classifier, "--name", "x")
    missing, file = tmp_path / "no.pt", tmp_path / "file"
    file.touch()
    ended = run(
        "models", "import", *good, "--protein", missing, "--length", "500", "--output", tmp_path / "new"
    )
    assert ended.code == 1
    assert ended.err.startswith(f"virnuc-async: {missing} cannot be imported: ")
    whole = (*good, "--protein", golden_parts.protein)
    ended = run("models", "import", *whole, "--length", "0", "--output", tmp_path / "new")
    assert ended.code == 64
    assert ended.err == "virnuc-async: --length must be a number of bases, such as 300 or 500, not 0\n"
    ended = run("models", "import", *whole, "--length", "500", "--output", file)
    assert ended == (
        1,
        "",
        f"virnuc-async: {file}: is a file, not a directory. Choose a new or empty directory\n",
    )
