"""What the tests of recipes share: inputs, a shell, and the commands of docs/recipes/README.md."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support import ROOT, fasta

RECIPES = ROOT / "docs" / "recipes"
EXAMPLE = ROOT / "docs" / "examples" / "metagenome.fa.gz"
# Of predict: a GPU has other last digits, and small batches leave time to end a run in the middle.
OPTIONS = ("--devices", "cpu", "--tokens-per-batch", "1024")
TOOLS = os.environ.get("RECIPE_TOOLS", "")
PATH = os.pathsep.join(filter(None, (TOOLS, os.environ["PATH"])))
TABLES = ("contigs.tsv", "fragments.tsv", "contig_calls.tsv")
SHARDS = 3  # in place of the hundred of the recipes
PLANNED = "--calls --tokens-per-batch 1024"  # of plan

Note = Callable[[str], None]
Tables = dict[str, bytes]


class Shell:
    """Runs commands in *directory*, with the program, the tests' fakes and the tools on PATH."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.directory, self._programs = directory, programs
        self.environment = os.environ | {
            "PATH": f"{programs}{os.pathsep}{PATH}",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(directory),
        }

    def add(self, name: str, script: str) -> None:
        """Add a program that is a script of the shell."""
        path = self._programs / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def start(self, command: str, **variables: str) -> "subprocess.Popen[str]":
        """Start *command* in a process group of its own."""
        return subprocess.Popen(
            ["bash", "-euc", command],
            cwd=self.directory,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str, code: int = 0, **variables: str) -> str:
        """Run *command*, which ends with *code*, and return what it prints."""
        process = self.start(command, **variables)
        out, _ = process.communicate()
        assert process.returncode == code, out
        return out


def contigs(count: int, length: int = 400) -> list[tuple[str, str]]:
    """Return records with names of SPAdes; without T there is no stop on the forward strand."""
    rng = random.Random(count)
    return [
        (f"NODE_{number}_length_{length}_cov_1.0", "".join(rng.choices("ACG", k=length)))
        for number in range(1, count + 1)
    ]


def write_contigs(path: Path, count: int) -> Path:
    """Write *count* contigs as FASTA."""
    path.write_text(fasta(contigs(count)))
    return path


def commands(heading: str, number: int = 0) -> str:
    """Return block *number*, from 0, of the commands below *heading* in the README of the recipes."""
    return blocks(heading)[number]


def blocks(heading: str) -> list[str]:
    """Return all blocks of commands below *heading* in the README of the recipes."""
    text = (RECIPES / "README.md").read_text()
    section = re.search(rf"^## {re.escape(heading)}\n((?:(?!^## ).*\n)*)", text, re.MULTILINE)
    assert section, f"no section {heading}"
    return re.findall(r"^```\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


def few_shards(text: str) -> str:
    """Return the commands or a file of a recipe for three shards on the CPU, with the tests' options."""
    text = text.replace("0-99", f"0-{SHARDS - 1}").replace("100", str(SHARDS))
    words = ("--for-device", "cpu", *PLANNED.split())
    return re.sub(r"--for-device([^\w-]+)[\w-]+", lambda found: found[1].join(words), text)


def compute_in_segments(shell: Shell) -> None:
    """Let the program of *shell* compute in short segments, so that a small input has several, on the CPU."""
    script = Path(__file__).with_name("short_segments.py")
    shell.add("virnuc-async", f'exec "{sys.executable}" "{script}" "$@"')
    shell.environment["CUDA_VISIBLE_DEVICES"] = ""


def read_tables(directory: Path, *paths: Path | str) -> Tables:
    """Return the tables in *directory*, with the names of inputs replaced."""
    tables = {name: (directory / name).read_bytes() for name in TABLES}
    for path in paths:
        tables = {name: table.replace(os.fsencode(path), b"INPUT") for name, table in tables.items()}
    return tables
