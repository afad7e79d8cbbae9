"""
Runs whose files are moved, changed, damaged and removed; the tables in the end are those of a calm run.

SIMULATION_SEEDS=1000 runs 1,000 seeds and not 10,000; SIMULATION_SEED=number runs one and prints its history.
"""

import os
from collections.abc import Iterator

import pytest

from .mishap_scenario import MishapScenario
from .scenario import Workspace, open_workspace

_SEEDS = int(os.environ.get("SIMULATION_SEEDS", "10000"))
_SEEDS_PER_TEST = 250  # tests may run in parallel
_FAST_SEEDS = 20  # of every test run


@pytest.fixture(scope="module")
def workspace() -> Iterator[Workspace]:
    with open_workspace() as workspace:
        yield workspace


def test_the_first_seeds(workspace: Workspace) -> None:
    for seed in range(_FAST_SEEDS):
        MishapScenario(workspace, seed).run()


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, _SEEDS, _SEEDS_PER_TEST))
def test_whatever_happens_to_its_files_a_run_gives_the_right_tables_or_says_what_to_do(
    workspace: Workspace, first: int
) -> None:
    for seed in range(first, min(first + _SEEDS_PER_TEST, _SEEDS)):
        MishapScenario(workspace, seed).run()


@pytest.mark.skipif("SIMULATION_SEED" not in os.environ, reason="SIMULATION_SEED=number runs one seed")
def test_one_seed(workspace: Workspace) -> None:
    scenario = MishapScenario(workspace, int(os.environ["SIMULATION_SEED"]))
    scenario.run()
    print(*scenario.history, sep="\n")


@pytest.mark.slow
def test_a_seed_decides_everything(workspace: Workspace) -> None:
    for seed in range(50):
        assert MishapScenario(workspace, seed).run() == MishapScenario(workspace, seed).run(), (
            f"two of {seed}"
        )
