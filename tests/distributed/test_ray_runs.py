"""Runs on Ray are those of one machine, byte for byte, whatever is killed on the way."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import anyio
import pytest
from ray_nodes import ENVIRONMENT, ROOT, Nodes, until

from virnuc_async.distributed.ray_runner import OnRay, run_on_ray
from virnuc_async.errors import RunMismatchError, UsageError
from virnuc_async.models.bundle import find
from virnuc_async.pipeline import execute
from virnuc_async.runs.output_directory import TABLES
from virnuc_async.runs.plan import Plan
from virnuc_async.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
pytest.importorskip("ray", reason="the extra [ray] is not installed")

SETTINGS = Settings(devices=("cpu",))
SEGMENT, SEGMENTS = 50_000, 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an input of 12 segments; every fragment has a frame without a stop."""
    draw, path = random.Random(7), tmp_path_factory.mktemp("input") / "contigs.fa"
    codons = ["".join(bases) for bases in product("ACGT", repeat=3)]
    codons = [codon for codon in codons if codon not in ("TAA", "TAG", "TGA")]
    contigs = ["".join(draw.choices(codons, k=1_667))[:5_000] for _ in range(10 * SEGMENTS)]
    path.write_text("".join(f">contig{number}\n{bases}\n" for number, bases in enumerate(contigs)))
    return path


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tables of one machine."""
    out = tmp_path_factory.mktemp("expected") / "out"
    anyio.run(execute, Plan((str(source),), SETTINGS, find("tiny-500"), segment=SEGMENT), out)
    return out


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.shutdown()


def run(source: Path, out: Path, address: str, **options: Any) -> Any:
    """Run in this process."""
    on = OnRay(address, segment_bases=SEGMENT, environment=ENVIRONMENT, **options)
    return anyio.run(run_on_ray, [str(source)], out, SETTINGS, on)


def start(source: Path, out: Path, address: str) -> "subprocess.Popen[bytes]":
    """Run in another process."""
    script = Path(__file__).with_name("ray_driver.py")
    return subprocess.Popen(
        [sys.executable, script, out, address, str(SEGMENT), source],
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def done(out: Path) -> int:
    return len(list(out.glob("shards/*/shard.json")))


def assert_same(out: Path, expected: Path) -> None:
    for name in TABLES:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


def ray_processes() -> set[str]:
    """Return what Ray runs on this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "raylet" in line or "gcs_server" in line or line.startswith("ray::"):
            found.add(f"{path.parent.name} {line[:100]}")
    return found


def test_a_run_on_ray_of_this_machine_leaves_nothing_behind(
    source: Path, expected: Path, tmp_path: Path
) -> None:
    before = ray_processes()
    summary = run(source, tmp_path / "out", "local")
    assert_same(tmp_path / "out", expected)
    assert (summary.counts["contigs"], done(tmp_path / "out")) == (120, SEGMENTS)
    until(lambda: ray_processes() <= before)
    # The same again takes what is there; other settings do not.
    stored = (tmp_path / "out" / "shards" / "00003-of-00012" / "run.sqlite3").stat()
    run(source, tmp_path / "out", "local")
    assert_same(tmp_path / "out", expected)
    again = (tmp_path / "out" / "shards" / "00003-of-00012" / "run.sqlite3").stat()
    assert (stored.st_ino, stored.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    with pytest.raises(UsageError, match=r"has shards of a run in 12: choose --shards 12"):
        run(source, tmp_path / "out", "local", shards=3)
    on = OnRay("local", segment_bases=SEGMENT, environment=ENVIRONMENT)
    with pytest.raises(RunMismatchError, match=r"threshold: 0.5 -> 0.9"):
        anyio.run(run_on_ray, [str(source)], tmp_path / "out", Settings(devices=("cpu",), threshold=0.9), on)


def test_nodes_are_killed_and_added(source: Path, expected: Path, tmp_path: Path, nodes: Nodes) -> None:
    first, second = nodes.add(), nodes.add()
    out = tmp_path / "out"
    thread = Thread(target=run, args=(source, out, nodes.address))
    thread.start()
    until(lambda: done(out) >= 2)
    nodes.kill(first)
    until(lambda: done(out) >= 4)
    nodes.add()
    nodes.kill(second)
    thread.join()
    assert_same(out, expected)


def test_the_driver_is_killed_and_the_same_call_goes_on(
    source: Path, expected: Path, tmp_path: Path, nodes: Nodes
) -> None:
    nodes.add()
    out = tmp_path / "out"
    for count in (1, 4):
        driver = start(source, out, nodes.address)
        until(lambda count=count: done(out) >= count)
        driver.kill()
        driver.wait()
    assert done(out) < SEGMENTS
    run(source, out, nodes.address)
    assert_same(out, expected)


def test_the_head_is_killed_and_the_same_call_goes_on_elsewhere(
    source: Path, expected: Path, tmp_path: Path, nodes: Nodes
) -> None:
    nodes.add()
    out = tmp_path / "out"
    driver = start(source, out, nodes.address)
    until(lambda: done(out) >= 2)
    nodes.kill_head()
    nodes.shutdown()
    assert driver.wait(150) != 0
    assert done(out) < SEGMENTS
    run(source, out, "local")
    assert_same(out, expected)


def test_ctrl_c_ends_all_and_the_same_command_goes_on(source: Path, tmp_path: Path) -> None:
    before, out = ray_processes(), tmp_path / "out"
    large = tmp_path / "large.fa"
    with large.open("wb") as file:
        for number in range(4):
            file.write(source.read_bytes().replace(b">", b">%d" % number))
    plain = [sys.executable, "-m", "virnuc_async", "predict", large, "--devices", "cpu", "--output-dir"]
    words = [*plain, out, "--ray", "local"]
    command = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    until(lambda: sum(path.stat().st_size for path in out.glob("shards/*/run.sqlite3*")) > 150_000)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=90)
    assert command.returncode == 130, said
    assert said.endswith("The same command resumes this run.\n")
    until(lambda: ray_processes() <= before)
    assert not (out / "contigs.tsv").exists()
    assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == 0
    assert subprocess.run([*plain, tmp_path / "plain"], cwd=ROOT, capture_output=True).returncode == 0
    assert_same(out, tmp_path / "plain")
