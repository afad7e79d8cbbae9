"""The Galaxy tool: planemo lint, and its own tests with Galaxy's parser, Cheetah and checks of outputs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_files import RECIPES, Note, Shell, commands

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(120)]
TOOL = "virnuc_async.xml"
RUNNER = Path(__file__).with_name("galaxy_tool.py")


@pytest.fixture
def galaxy(shell: Shell, tool: Callable[[str], str]) -> Shell:
    """A shell in a copy of the tool; *python* has Galaxy's libraries."""
    shell.environment["GALAXY_PYTHON"] = str(Path(tool("planemo")).parent / "python")
    shutil.copytree(RECIPES / "galaxy", shell.directory, dirs_exist_ok=True)
    return shell


def test_the_commands_of_the_readme(galaxy: Shell, note: Note) -> None:
    printed = galaxy.run(commands("Galaxy"))
    assert f"Linting tool {galaxy.directory / TOOL}" in printed
    assert ".. WARNING" not in printed
    assert ".. ERROR" not in printed
    note("Galaxy: planemo lint, no warning")


def test_its_own_tests(galaxy: Shell, note: Note) -> None:
    (galaxy.directory / "jobs").mkdir()
    printed = galaxy.run(f'"$GALAXY_PYTHON" {RUNNER} {TOOL} jobs', CUDA_VISIBLE_DEVICES="", GALAXY_SLOTS="2")
    lines = [line.split() for line in printed.splitlines() if " virnuc-async predict " in line]
    # What each input adds to the command, test by test.
    for words, expected in zip(
        lines,
        (
            "--model 'tiny-500' --pairs auto --threshold 0.5",
            "--model 'tiny-500' --pairs off --threshold 1.0 --calls --id-pattern '(contig)_'",
            "--model 'tiny-500' --pairs interleaved --threshold 0.5",
        ),
        strict=True,
    ):
        assert " ".join(words).endswith(f' out {expected} --threads "${{GALAXY_SLOTS:-1}}"')
    note(
        "Galaxy: the tests of the tool: its command by Cheetah, the real program, Galaxy's checks of outputs"
    )


def test_its_tests_notice_another_result(galaxy: Shell) -> None:
    path = galaxy.directory / TOOL
    path.write_text(path.read_text().replace('<has_n_lines n="4"/>', '<has_n_lines n="5"/>', 1))
    (galaxy.directory / "jobs").mkdir()
    printed = galaxy.run(f'"$GALAXY_PYTHON" {RUNNER} {TOOL} jobs', code=1, CUDA_VISIBLE_DEVICES="")
    assert "Expected 5" in printed
