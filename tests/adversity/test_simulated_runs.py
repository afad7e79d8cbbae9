"""The first of the ten thousand simulated runs in test_simulation.py, fast enough for every test run."""

from .scenario import Scenario, open_workspace


def test_whatever_happens_the_tables_are_those_of_an_undisturbed_run() -> None:
    with open_workspace() as workspace:
        for seed in range(80):
            Scenario(workspace, seed).run()
