"""How a run is divided on a cluster, what is refused before that, and what is said without Ray."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from plans import planned

from virnuc_async.cli.environment import prepare_ray
from virnuc_async.cli.main import main
from virnuc_async.distributed.ray_cluster import Node, connect, slots
from virnuc_async.distributed.ray_runner import OnRay, number_of_shards, run_on_ray
from virnuc_async.errors import ClusterError, UsageError
from virnuc_async.sequences.segments import START
from virnuc_async.settings import Settings

NODE = Node("id", "host", cpus=32, gpus=8)
SMALL = NODE._replace(cpus=2)


def test_a_shard_is_a_segment_however_many_workers_there_are() -> None:
    plan = planned([[100] * 40, [100] * 10], 100)
    assert [number_of_shards(plan, workers) for workers in (1, 1000)] == [50, 50]


def test_files_that_are_read_from_their_beginning_have_few_shards() -> None:
    plan = planned([[100] * 400], 100)
    skimmed = replace(plan, segments=tuple(replace(segment, seek=START) for segment in plan.segments))
    assert [number_of_shards(skimmed, workers) for workers in (1, 20, 1000)] == [16, 40, 400]


def test_segments_that_begin_with_their_files_are_not_skimmed() -> None:
    plan = planned([[100] for _ in range(40)], 100)
    begun = replace(plan, segments=tuple(replace(segment, seek=START) for segment in plan.segments))
    assert number_of_shards(begun, 1) == 40


@pytest.mark.parametrize(
    ("node", "options", "expected"),
    [
        (NODE, {"wants_gpus": True}, [(0, 1)] * 8),
        (NODE, {"wants_gpus": False}, [(32, 0)]),
        (NODE, {"wants_gpus": False, "threads": 8}, [(8, 0)] * 4),
        (NODE, {"wants_gpus": False, "cpu_workers": 3}, [(10, 0)] * 3),
        (NODE, {"wants_gpus": False, "cpu_workers": 3, "threads": 4}, [(4, 0)] * 3),
        (SMALL, {"wants_gpus": False, "cpu_workers": 3}, [(1, 0)] * 2),
        (SMALL, {"wants_gpus": False, "threads": 8}, [(2, 0)]),
        (NODE._replace(cpus=0), {"wants_gpus": False}, []),
        (NODE._replace(gpus=0), {"wants_gpus": True}, []),
    ],
)
def test_places_of_workers(node: Node, options: dict[str, int], expected: list[tuple[int, int]]) -> None:
    found = slots(node, **{"cpu_workers": 0, "threads": None, **options})
    assert [(slot.cpus, slot.gpus) for slot in found] == expected
    assert len({slot.name for slot in found}) == len({slot.label for slot in found}) == len(found)


@pytest.mark.parametrize(
    ("settings", "address", "message"),
    [
        ({"gpus": (0,)}, "auto", "--gpus are numbers on one machine: with --ray auto"),
        ({"devices": ("cuda:1",)}, "local", "with --ray, --devices is cpu, as often as a node has workers"),
        ({"devices": ("cpu", "cuda")}, "auto", "with --ray, --devices is cpu"),
        ({"reuse_features": "old"}, "auto", "embeddings are reused in a run on one machine: leave out --ray"),
    ],
)
def test_what_is_of_one_machine(settings: dict[str, object], address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        anyio.run(run_on_ray, ["a.fa"], Path("out"), Settings(**settings), OnRay(address))


@pytest.mark.parametrize(
    ("inputs", "out", "message"),
    [
        (["a.fa", "-"], "out", "standard input can be read only once"),
        (["a.fa"], "s3://bucket/out", "a directory that all nodes see, not a URL"),
    ],
)
def test_what_nodes_cannot_share(inputs: list[str], out: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        anyio.run(run_on_ray, inputs, out, Settings(), OnRay("auto"))


def test_without_ray_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = "--ray needs Ray: pip install 'virnuc-async[ray]'"
    with pytest.raises(UsageError, match=r"pip install 'virnuc-async\[ray\]'"), connect("local", {}):
        pass
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    assert main(["predict", "a.fa", str(tmp_path / "out"), "--ray", "local", "--quiet"]) == 64
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_sent_and_nobody_else_may_use_the_cluster_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    environment = dict.fromkeys(("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"), "")
    assert prepare_ray("auto")["OMP_WAIT_POLICY"] == "ACTIVE"
    assert {name: os.environ[name] for name in environment} == environment | {"RAY_USAGE_STATS_ENABLED": "0"}
    prepare_ray("local")
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "is no address: local, auto, HOST:PORT or ray://HOST:PORT"),
        ("host:port", "is no address"),
        ("127.0.0.1:1", "cannot be reached: .*refused"),
        ("ray://127.0.0.1:1", "cannot be reached: .*refused"),
    ],
)
def test_a_cluster_that_is_not_there(address: str, message: str) -> None:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    with pytest.raises(ClusterError, match=message), connect(address, {}):
        pass
