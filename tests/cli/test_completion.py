"""``completion``: what a real bash completes with the script."""

import shutil
import subprocess
from pathlib import Path

import pytest
from running import run

# Calls the function that the script registers, as bash does for a Tab behind these words.
_COMPLETE = """
source {script}
name=$(complete -p virnuc-async | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE="{words}"
"$name" virnuc-async "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("virnuc-async pre", {"predict"}),
        ("virnuc-async predict --thr", {"--threshold", "--threads"}),
        ("virnuc-async predict --precision f", {"fp32", "fp16", "fp8"}),
        ("virnuc-async models i", {"info", "import"}),
        ("virnuc-async predict con", {"contigs.fa"}),
        ("virnuc-async predict --input con", {"contigs.fa"}),
    ],
)
def test_bash_completes_commands_options_and_files(words: str, expected: set[str], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(run("completion", "bash").out)
    (tmp_path / "contigs.fa").touch()
    text = _COMPLETE.format(script=script, words=words)
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


def test_the_script_for_zsh(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(run("completion", "zsh").out)
    assert script.read_text().startswith("#compdef virnuc-async\n")
    assert "--threshold" in script.read_text()
    if program := shutil.which("zsh"):
        assert subprocess.run([program, "-n", script]).returncode == 0


def test_says_how_to_get_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    done = run("completion", "bash")
    assert (done.code, done.out) == (64, "")
    assert "shtab is not installed: pip install 'virnuc-async[completion]'" in done.err


def test_names_the_shells() -> None:
    assert "Choices: bash, zsh" in run("completion", "bsh").err
