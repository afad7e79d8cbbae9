"""Inputs of the tests of recipes, and the commands of docs/recipes/README.md."""

import random
import re
from pathlib import Path

from support import ROOT, fasta

RECIPES = ROOT / "docs" / "recipes"
EXAMPLE = ROOT / "docs" / "examples" / "metagenome.fa.gz"
# Of predict: a GPU has other last digits, and small batches leave time to end a run in the middle.
OPTIONS = ("--devices", "cpu", "--tokens-per-batch", "1024")
TABLES = ("contigs.tsv", "fragments.tsv", "contig_calls.tsv")


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


def commands(heading: str) -> str:
    """Return the first block of commands below *heading* in the README of the recipes."""
    text = (RECIPES / "README.md").read_text()
    block = re.search(rf"^## {re.escape(heading)}\n(?:(?!^## ).*\n)*?```\n((?:.*\n)*?)```$", text, re.MULTILINE)
    assert block, f"no commands below {heading}"
    return block[1]
