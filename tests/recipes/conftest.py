"""
Fixtures of the tests of docs/recipes: the program and the tools on PATH, and what was checked with what.

``nox -s recipes`` installs the tools into an environment of its own and names its programs' directory in
RECIPE_TOOLS; then a missing tool is a failure. Elsewhere a test that needs one is skipped without it.
"""

import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from recipe_files import (
    OPTIONS,
    PATH,
    PLANNED,
    TOOLS,
    Note,
    Shell,
    Tables,
    compute_in_segments,
    read_tables,
    write_contigs,
)
from running import predict
from support import ROOT


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was checked, and how."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("skipped")]
    lines = [str(value) for report in reports for name, value in report.user_properties if name == "checked"]
    if lines:
        terminalreporter.section("recipes: what was checked, and how")
        for line in sorted(set(lines)):
            terminalreporter.write_line(line)


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Return a function that notes what this test checks, and how, for the summary."""
    return lambda line: request.node.user_properties.append(("checked", line))


@pytest.fixture
def tool() -> Callable[[str], str]:
    """Return a function that returns a tool's path, or skips the test if it is not there."""

    def find(name: str) -> str:
        path = shutil.which(name, path=PATH)
        if path is None:
            assert not TOOLS, f"{name} is missing in {TOOLS}"
            pytest.skip(f"needs {name}")
        return path

    return find


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell in a directory of its own."""
    return make_shell(tmp_path)


def make_shell(place: Path) -> Shell:
    work, programs = place / "work", place / "programs"
    work.mkdir()
    programs.mkdir()
    shell = Shell(work, programs)
    shell.add("virnuc-async", f'exec "{sys.executable}" -m virnuc_async "$@"')
    shell.add("virnucpro_cli.py", f'exec "{sys.executable}" "{ROOT}/scripts/virnucpro_cli.py" "$@"')
    return shell


@pytest.fixture(scope="session")
def contigs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FASTA file whose run takes some seconds."""
    return write_contigs(tmp_path_factory.mktemp("contigs") / "contigs.fa", 300)


@pytest.fixture(scope="session")
def undisturbed(contigs: Path, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of a run on *contigs* that nothing interrupts, without the path of the input."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert predict(contigs, out, *OPTIONS, "--calls").code == 0
    return read_tables(out, contigs)


@pytest.fixture(scope="session")
def in_segments(contigs: Path, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of a run on *contigs* by one machine in several segments, without the path of the input."""
    shell = make_shell(tmp_path_factory.mktemp("in_segments"))
    compute_in_segments(shell)
    shell.run(f"virnuc-async predict {contigs} out --devices cpu {PLANNED}")
    with closing(sqlite3.connect(shell.directory / "out" / "run.sqlite3")) as store:
        assert store.execute("SELECT COUNT(*) FROM windows").fetchall() == [(6,)]  # one in each segment
    return read_tables(shell.directory / "out", contigs)
