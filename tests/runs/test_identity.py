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
from virnuc_async.runs.file_changes import FileChanges
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
        ({"inputs": [FILE_A], "model": "n"}, ["inputs: /data/b.fa was removed", "model: m -> n"]),
        ({"inputs": [FILE_A, ["/data/b.fa", None]]}, ["inputs: /data/b.fa cannot be read now"]),
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


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([FILE_A], "/data/b.fa was removed"),
        ([FILE_A, ["/data/b.fa", 20, 3]], "/data/b.fa has changed"),
        ([FILE_B, FILE_A], "the same files in another order"),
        ([FILE_A, FILE_B, FILE_A], "/data/a.fa (no. 2) was added"),
        (
            [["/a", 10, 1], ["/c", 1, 1]],
            "/a was added, /c was added, /data/a.fa was removed and 1 more",
        ),
        ([["/data/a.fa", 11, 3]], "/data/b.fa was removed, /data/a.fa has changed"),
    ],
)
def test_corrected_inputs_change_nothing_before_they_are_read(
    inputs: list[list[object]], text: str, store: Store
) -> None:
    store.bind_run({**IDENTITY, "inputs": inputs}, ["new"])
    assert str(FileChanges(IDENTITY["inputs"], inputs)) == text
    assert store.get_meta("identity") == IDENTITY
    assert [line.path for line in store.reader.files()] == ["/data/a.fa", "/data/b.fa"]


def test_what_identifies_no_content_is_nothing_in_common() -> None:
    for content in (None, ["stream"]):
        changes = FileChanges([["/a", content], ["/b", [1, "x"]]], [["/c", content], ["/d", [2, "y"]]])
        assert not changes.share_content
        assert not changes.are_corrections
    assert str(FileChanges([["/a", None]], [["/a", [1, "x"]]])) == "/a can be read now"
