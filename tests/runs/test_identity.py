"""The identity of a run: the same run is resumed, a different one is refused."""

import pytest
from example_runs import (
    FILE_A,
    FILE_B,
    IDENTITY,
    reopen,
)

from virnuc_async.errors import (
    RunMismatchError,
)
from virnuc_async.runs.store import Store


def test_the_same_run_is_resumed(store: Store) -> None:
    reopen(store).bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])
    assert [line.path for line in store.reader.files()] == ["/data/a.fa", "/data/b.fa"]


def test_inputs_are_compared_by_content_and_may_be_renamed(store: Store) -> None:
    renamed = {**IDENTITY, "inputs": [["/here/a.fa", 10, 1], ["/here/c.fa", 20, 2]]}
    store.bind_run(renamed, ["a.fa", "c.fa"])
    assert [line.path for line in store.reader.files()] == ["a.fa", "c.fa"]
    assert store.get_meta("identity") == renamed


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"threshold": 0.6}, ["threshold: 0.5 -> 0.6"]),
        ({"model": "n", "more": 1}, ["model: m -> n", "more: None -> 1"]),
        ({"inputs": [FILE_A]}, ["inputs: /data/b.fa was removed"]),
        ({"inputs": [FILE_A, ["/data/b.fa", 20, 3]]}, ["inputs: /data/b.fa has changed"]),
        ({"inputs": [FILE_A, ["/data/b.fa", None]]}, ["inputs: /data/b.fa cannot be read now"]),
        ({"inputs": [FILE_B, FILE_A]}, ["inputs: the same files in another order"]),
        ({"inputs": [FILE_A, FILE_B, FILE_A]}, ["inputs: /data/a.fa (no. 2) was added"]),
        (
            {"inputs": [["-"], ["/c", 1, 1]]},
            ["inputs: - was added, /c was added, /data/a.fa was removed and 1 more"],
        ),
    ],
)
def test_a_different_run_is_refused_with_its_differences(
    change: dict[str, object], text: list[str], store: Store
) -> None:
    with pytest.raises(RunMismatchError) as caught:
        store.bind_run({**IDENTITY, **change}, [])
    assert list(caught.value.differences) == text
    assert store.get_meta("identity") == IDENTITY
