"""Downloads as processes of their own: interrupted, killed, and two at the same time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from golden_models import download, requested_files
from running import ROOT, run, wait_until
from serving import Server, hangs_after

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/models"]
from functools import partial
from golden_models import golden_files
from virnuc_async.models import published
from virnuc_async.cli import main as cli
from virnuc_async.models.import_checkpoint import CheckpointPaths
models = Path("tests/data/golden/upstream/models")
parts = CheckpointPaths(models / "esm2_t3_tiny.pt", models / "dnabert", models / "classifier.pth")
published.MODELS["virnucpro-500"] = partial(golden_files, parts, 500)
cli.run()
"""

PROTEIN = "/dl.fbaipublicfiles.com/fair-esm/models/esm2.pt"


def start_download(server: Server, log: Path, cache: Path) -> "subprocess.Popen[bytes]":
    words = ("models", "download", "virnucpro-500", "--mirror", server.url, "--cache-dir", str(cache.parent))
    with open(log, "wb") as file:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, *words], cwd=ROOT, stderr=file)


def test_ctrl_c_ends_a_download_that_can_be_resumed(server: Server, cache: Path, tmp_path: Path) -> None:
    server.faults[PROTEIN] = [hangs_after(2_000)]
    process = start_download(server, tmp_path / "log", cache)
    part = cache / ".download" / "esm2.pt.part"
    wait_until(lambda: part.is_file() and part.stat().st_size == 2_000, process)
    time.sleep(0.2)  # written is not yet counted
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert time.monotonic() - started < 5
    assert (tmp_path / "log").read_text() == "Interrupted. The same command resumes the download.\n"
    assert download(server, "virnucpro-500").code == 0
    assert server.ranges(PROTEIN) == [None, "bytes=2000-646326"]


def test_a_killed_download_leaves_no_model(server: Server, cache: Path, tmp_path: Path) -> None:
    server.faults[PROTEIN] = [hangs_after(2_000)]
    process = start_download(server, tmp_path / "log", cache)
    wait_until(lambda: (cache / ".download" / "esm2.pt.part").is_file(), process)
    process.kill()
    process.wait()
    assert "no model 'virnucpro-500' here" in run("models", "info", "virnucpro-500").err
    assert download(server, "virnucpro-500").code == 0
    assert os.listdir(cache) == ["virnucpro-500"]


def test_two_downloads_at_the_same_time(server: Server, cache: Path, tmp_path: Path) -> None:
    server.faults[PROTEIN] = [hangs_after(2_000)]
    process = start_download(server, tmp_path / "log", cache)
    wait_until(lambda: (cache / ".download" / "esm2.pt.part").is_file(), process)
    ended = download(server, "virnucpro-500")
    assert ended.code == 1
    assert "another process is downloading into" in ended.err
    server.released.set()  # the first one is disconnected, and resumes
    assert process.wait() == 0
    assert download(server, "virnucpro-500").code == 0
    assert requested_files(server).count("500.pth") == 1
