"""Exit codes 130 and 143: interrupted, killed and concurrent runs."""

import io
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from running import Ran, log, predict, rows, some_reads, start, summary, tables, wait_until
from support import fasta


def pipe_all_but_the_end(reads: bytes, process: "subprocess.Popen[bytes]", out: Path) -> None:
    """Pipe *reads* and wait for a batch; the pipe stays open, so that the run cannot end by itself."""
    assert process.stdin
    process.stdin.write(reads[:-500])
    process.stdin.flush()
    wait_until(lambda: " batch 0." in log(out), process)


# No share of the work: nobody knows how much comes from a pipe.
KEPT = r"Interrupted: ([\d,]+) ORFs are kept\. The same command resumes this run\."


def assert_says_what_is_kept(out: Path, stderr: str, why: str) -> None:
    said = re.search(rf"\n{KEPT}\n$", stderr)
    assert said
    end = f"WARNING  {why}; {said[1]} ORFs are kept, and the same command resumes"
    assert log(out).splitlines()[-1].endswith(end)
    progress = json.loads((out / "progress.json").read_text())
    assert (progress["state"], progress["orfs"]["done"]) == ("interrupted", int(said[1].replace(",", "")))
    assert progress["orfs"]["done"] == summary(out)["counts"]["orfs"] > 0


def assert_resumes(ended: Ran) -> None:
    assert ended.code == 0
    kept = re.search(r"^resuming after ([\d,]+) ORFs of an earlier session$", ended.err, re.MULTILINE)
    assert kept
    assert int(kept[1].replace(",", "")) > 0


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGUSR2, 143)],
)
def test_interrupted_run_resumes(
    number: signal.Signals, code: int, reads: bytes, undisturbed: dict[str, bytes], tmp_path: Path, out: Path
) -> None:
    with start("predict", "-", out, "--devices", "cpu,cpu", stderr=tmp_path / "stderr") as process:
        pipe_all_but_the_end(reads, process, out)
        process.send_signal(number)
        assert process.wait() == code
    stderr = (tmp_path / "stderr").read_text()
    assert "Stopping after the current batches ...\n" in stderr
    assert_says_what_is_kept(out, stderr, f"interrupted by {number.name}")
    assert not summary(out)["finished"]
    assert not (out / "prediction_results.txt").exists()
    assert_resumes(predict("-", out, "--devices", "cpu,cpu", stdin=reads))
    assert tables(out) == undisturbed
    assert summary(out)["finished"]
    assert summary(out)["reproducible"]


def test_a_run_of_limited_time_resumes(
    reads: bytes, undisturbed: dict[str, bytes], tmp_path: Path, out: Path
) -> None:
    words = ("predict", "-", out, "--devices", "cpu,cpu")
    with start(*words, "--max-seconds", "7", stderr=tmp_path / "stderr") as process:
        pipe_all_but_the_end(reads, process, out)
        assert process.wait() == 143
    stderr = (tmp_path / "stderr").read_text()
    assert_says_what_is_kept(out, stderr, "interrupted by --max-seconds 7")
    # More time than is needed changes nothing.
    assert_resumes(predict("-", out, "--devices", "cpu,cpu", "--max-seconds", "1000", stdin=reads))
    assert tables(out) == undisturbed


@pytest.mark.parametrize("text", ["0", "-1", "soon", "inf", "nan"])
def test_a_time_that_makes_no_sense(text: str, out: Path) -> None:
    ended = predict("in.fa", out, f"--max-seconds={text}")
    assert ended.code == 64
    assert f"argument --max-seconds: expected a number of seconds above 0, not '{text}'" in ended.err


def test_second_signal_stops_at_once(
    reads: bytes, undisturbed: dict[str, bytes], tmp_path: Path, out: Path
) -> None:
    with start("predict", "-", out, "--devices", "cpu", stderr=tmp_path / "stderr") as process:
        pipe_all_but_the_end(reads, process, out)
        # Both are pending when it wakes up, in either order: the second one ends it before the first.
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            process.send_signal(number)
        assert process.wait() in (130, 143)
    stderr = (tmp_path / "stderr").read_text()
    assert "Stopping after the current batches ...\n" in stderr
    assert re.search(rf"\n{KEPT}\n$", stderr)
    assert re.search(r"WARNING  interrupted by (SIGINT and SIGTERM|SIGTERM and SIGINT)\n$", log(out))
    assert_resumes(predict("-", out, stdin=reads))
    assert tables(out) == undisturbed


def test_directory_of_a_running_process_is_locked(
    reads: bytes, undisturbed: dict[str, bytes], tmp_path: Path, out: Path
) -> None:
    with start("predict", "-", out, "--devices", "cpu", stderr=tmp_path / "stderr") as process:
        pipe_all_but_the_end(reads, process, out)
        for more in ((), ("--overwrite",), ("--repair",)):
            ended = predict("-", out, *more, stdin=reads)
            assert ended.code == 1
            assert f"{out}: process {process.pid} on {os.uname().nodename} (since " in ended.err
            assert ended.err.endswith(" is writing there. Wait for it to end, or choose another directory\n")
        assert process.stdin
        process.stdin.write(reads[-500:])
        process.stdin.close()
        assert process.wait() == 0
    assert tables(out) == undisturbed


def test_run_of_a_killed_process_is_taken_over(
    reads: bytes, undisturbed: dict[str, bytes], tmp_path: Path, out: Path
) -> None:
    with start("predict", "-", out, "--devices", "cpu,cpu", stderr=tmp_path / "stderr") as process:
        pipe_all_but_the_end(reads, process, out)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    followed = predict("-", out, "--devices", "cpu,cpu,cpu", stdin=reads)
    assert_resumes(followed)
    assert re.search(
        rf"^taking over from process {process.pid} on \S+ \(since .*\), which has ended$", followed.err, re.M
    )
    assert tables(out) == undisturbed


def test_run_with_reused_features_is_taken_over(tmp_path: Path, out: Path) -> None:
    """There are features of the first reads; the others, with other names, are in a later window."""
    first = fasta(some_reads(300, 30).items()).encode()
    others = [(name.upper(), bases) for name, bases in some_reads(100, 30, seed=1).items()]
    reads = first + fasta([*(("short", "AC") for _ in range(9000)), *others]).encode()
    assert predict("-", tmp_path / "old", "--embeddings", stdin=first).code == 0
    words = ("--reuse-features", tmp_path / "old")
    assert predict("-", tmp_path / "calm", *words, stdin=reads).code == 0
    with start("predict", "-", out, *words, "--devices", "cpu,cpu", stderr=tmp_path / "stderr") as process:
        pipe_all_but_the_end(reads, process, out)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not [path.name for path in out.iterdir() if "features" in path.name]
    assert_resumes(predict("-", out, *words, "--devices", "cpu,cpu,cpu", stdin=reads))
    assert tables(out) == tables(tmp_path / "calm")
    orfs = len(rows(tmp_path / "old" / "prediction_results.txt")) - 1
    assert summary(out)["counts"]["orfs_reused"] == orfs > 1000


class Interrupting(io.BytesIO):
    """A standard input that interrupts the process where it would wait for more."""

    def __init__(self, content: bytes, out: Path) -> None:
        super().__init__(content)
        self.out = out
        self.is_over = threading.Event()

    def readinto(self, buffer: Any) -> int:
        if count := super().readinto(buffer):
            return count
        while " batch 0." not in log(self.out):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)
        self.is_over.wait()
        return 0


def test_piped_input_must_be_the_same_when_resumed(
    reads: bytes, undisturbed: dict[str, bytes], out: Path
) -> None:
    stdin = Interrupting(reads[:-500], out)
    assert predict("-", out, stdin=stdin).code == 130
    stdin.is_over.set()
    for other in (reads.replace(b"read7\n", b"READ7\n"), reads[:100]):
        ended = predict("-", out, stdin=other)
        assert ended.code == 1
        assert f"{out}: contains a different run: the sequences have changed" in ended.err
        assert ended.err.endswith("Use another directory, or --overwrite\n")
    assert_resumes(predict("-", out, stdin=reads))
    assert tables(out) == undisturbed
