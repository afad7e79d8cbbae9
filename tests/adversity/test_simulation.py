"""
Ten thousand runs in which all goes wrong that can, in an order that a seed decides.

SIMULATION_SEEDS=1000 plays other than 10,000 seeds. A seed that fails says how to play it again.
"""

import os
from collections.abc import Iterator

import pytest

from .scenario import Trial, Workplace, workplace

_SEEDS = int(os.environ.get("SIMULATION_SEEDS", "10000"))
_AT_ONCE = 250  # seeds of a test; several may run side by side

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place() -> Iterator[Workplace]:
    with workplace() as place:
        yield place


@pytest.mark.parametrize("first", range(0, _SEEDS, _AT_ONCE))
def test_whatever_happens_the_tables_are_those_of_a_calm_run(place: Workplace, first: int) -> None:
    for seed in range(first, min(first + _AT_ONCE, _SEEDS)):
        Trial(place, seed).run()


@pytest.mark.skipif("SIMULATION_SEED" not in os.environ, reason="SIMULATION_SEED=number plays one seed")
def test_one_seed(place: Workplace) -> None:
    trial = Trial(place, int(os.environ["SIMULATION_SEED"]))
    trial.run()
    print(*trial.story, sep="\n")


def test_a_seed_decides_everything(place: Workplace) -> None:
    for seed in range(100):
        assert Trial(place, seed).run() == Trial(place, seed).run(), f"two traces of {seed}"
