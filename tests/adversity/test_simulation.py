"""
Ten thousand runs with faults of every kind, in an order that a seed decides.

SIMULATION_SEEDS=1000 runs 1,000 seeds instead. The error message of a failing seed says how to run it again.
"""

import os
from collections.abc import Iterator

import pytest

from .scenario import Scenario, Workspace, open_workspace

_SEEDS = int(os.environ.get("SIMULATION_SEEDS", "10000"))
_SEEDS_PER_TEST = 250  # tests may run in parallel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace() -> Iterator[Workspace]:
    with open_workspace() as workspace:
        yield workspace


@pytest.mark.parametrize("first", range(0, _SEEDS, _SEEDS_PER_TEST))
def test_whatever_happens_the_tables_are_those_of_an_undisturbed_run(
    workspace: Workspace, first: int
) -> None:
    for seed in range(first, min(first + _SEEDS_PER_TEST, _SEEDS)):
        Scenario(workspace, seed).run()


@pytest.mark.skipif("SIMULATION_SEED" not in os.environ, reason="SIMULATION_SEED=number runs one seed")
def test_one_seed(workspace: Workspace) -> None:
    scenario = Scenario(workspace, int(os.environ["SIMULATION_SEED"]))
    scenario.run()
    print(*scenario.history, sep="\n")


def test_a_seed_decides_everything(workspace: Workspace) -> None:
    for seed in range(100):
        assert Scenario(workspace, seed).run() == Scenario(workspace, seed).run(), f"two traces of {seed}"
