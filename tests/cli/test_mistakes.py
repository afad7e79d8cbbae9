"""Mistakes of users: no traceback, at most three lines, the right exit code, and a message that helps."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mistakes import HOMELESS, LEARN, MODELS, PREDICT, SURVIVED, Mistake, command, table
from running import OPEN, ROOT, run
from support import fasta

ACCOUNT = "54321"  # that no machine has
AS_ANOTHER_USER = ["setpriv", "--reuid", ACCOUNT, "--regid", ACCOUNT, "--clear-groups"]


def prepare(directory: Path) -> None:
    """Fill the directory that the commands are run in."""
    (directory / "good.fa").write_text(fasta([("good", OPEN * 40)]))
    (directory / "other.fa").write_text(fasta([("other", OPEN * 41)]))
    (directory / "empty.fa").touch()
    (directory / "notes.txt").write_text("Dear reviewer,\n")
    (directory / "utf16.txt").write_bytes("good.fa\tx\n".encode("utf-16"))
    (directory / "groups.tsv").write_bytes(b"\xef\xbb\xbfgood\tphages\r\n")
    (directory / "taken").mkdir()
    (directory / "taken" / "contigs.tsv").write_text("years of work\n")
    (directory / "cut-model").mkdir()
    (directory / "cut-model" / "bundle.json").write_text('{"format": 1, "na')
    (directory / "dangling").symlink_to("gone")
    (directory / "reads").mkdir()
    (directory / "reads" / "a.fa").write_text(fasta([("a", OPEN)]))
    (directory / "reads" / "b.fa").symlink_to("gone")
    (directory / "bom.txt").write_bytes(b"\xef\xbb\xbfgood.fa\r\nother.fa\r\n")
    (directory / "logged").mkdir()
    (directory / "logged" / "slurm-1.out").write_text("job 1\n")


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.mark.parametrize("mistake", [*PREDICT, *LEARN, *MODELS], ids=lambda mistake: mistake.command[:60])
def test_mistake(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIRNUC_ASYNC_CACHE_DIR", str(tmp_path / "cache"))
    before = names(tmp_path)
    ended = run(*shlex.split(command(mistake)))
    assert (ended.code, ended.out) == (mistake.code, "")
    assert mistake.says in ended.err
    assert ended.err.startswith("virnuc-async: ")
    assert len(ended.err.splitlines()) <= 3
    assert names(tmp_path) == before  # nothing is made, under any name


@pytest.mark.parametrize("mistake", SURVIVED, ids=lambda mistake: mistake.command[:60])
def test_mistake_that_a_run_survives(
    mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    ended = run(*shlex.split(command(mistake)), "--devices", "cpu")
    assert (ended.code, ended.out) == (mistake.code, "")
    assert mistake.says in ended.err
    assert len(ended.err.splitlines()) <= 3
    assert len(list(tmp_path.rglob("prediction_results.txt"))) == 1


@pytest.fixture
def shared_directory() -> Iterator[Path]:
    """A directory that another user can enter, but not write into; and one in it where they can."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        prepare(directory)
        (directory / "secret.fa").write_text(fasta([("secret", OPEN)]))
        (directory / "secret.fa").chmod(0)
        (directory / "open").mkdir()
        (directory / "open").chmod(0o777)
        yield directory


@pytest.mark.parametrize("mistake", HOMELESS, ids=lambda mistake: mistake.command)
def test_mistake_of_a_user_without_a_home(mistake: Mistake, shared_directory: Path) -> None:
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become a user without an account")
    words = [*AS_ANOTHER_USER, sys.executable]
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    keywords = {"cwd": shared_directory, "env": environment, "capture_output": True, "text": True}
    if subprocess.run([*words, "-c", "import virnuc_async"], **keywords).returncode:
        pytest.skip("another user cannot read this installation")
    done = subprocess.run([*words, "-m", "virnuc_async", *shlex.split(mistake.command)], **keywords)
    assert done.returncode == mistake.code, done.stderr
    assert mistake.says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    tables = [path.name for path in (shared_directory / "open").rglob("contigs.tsv")]
    assert tables == ["contigs.tsv"] * (mistake.code == 0 and "predict" in mistake.command)


def test_the_document_has_these_mistakes() -> None:
    """``python tests/mistakes.py`` prints what it has to have."""
    assert table() in (ROOT / "docs" / "explanation" / "reliability.md").read_text("utf-8")
    assert len({*PREDICT, *SURVIVED, *LEARN, *MODELS, *HOMELESS}) >= 50
