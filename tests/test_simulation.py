"""The first of the ten thousand simulated runs in tests/adversity."""

from adversity.scenario import Trial, workplace


def test_whatever_happens_the_tables_are_those_of_a_calm_run() -> None:
    with workplace() as place:
        for seed in range(80):
            Trial(place, seed).run()
