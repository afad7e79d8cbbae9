"""A clock that is set, and counts of a run, for tests of what is logged."""

from virnuc_async.log import Counts


class Clock:
    """A clock that stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def working(**devices: tuple[int, int]) -> Counts:
    """Counts of a run whose devices, ready at 1000, have scored so many ORFs and tokens."""
    counts = Counts(started=990.0)
    for name, (orfs, tokens) in devices.items():
        counts.ready(name)
        counts.devices[name].started = 1000.0
        counts.finished(name, orfs, tokens)
    return counts
