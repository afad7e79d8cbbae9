"""Inputs that broke a promise, found by fuzzing, and the seeds that fuzzing starts with."""

from pathlib import Path

import pytest

from .targets import TARGETS, seeds

CRASHES = Path(__file__).parents[1] / "data" / "crashes"
FOUND = sorted(path for path in CRASHES.rglob("*") if path.is_file() and path.parent.name in TARGETS)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_is_fixed(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_keep_every_promise(name: str) -> None:
    inputs = list(seeds(name))
    assert inputs
    for seed in inputs:
        TARGETS[name](seed)
