"""
Real processes, killed at any moment, until one gets to its end: its tables are those of a calm run.

KILLS=20 kills fewer than 200 times; KILLS_SEED chooses other moments.
"""

import gzip
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import OPEN, ROOT, some_reads, summary, tables
from support import TABLES, fasta

_KILLS = int(os.environ.get("KILLS", "200"))
_SEED = int(os.environ.get("KILLS_SEED", "0"))
_PATIENCE = 120  # seconds that a run may take on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@dataclass
class Course:
    """An input, what a calm run makes of it, and how long that takes."""

    words: list[str]
    calm: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> list[Course]:
    place = tmp_path_factory.mktemp("courses")
    rng = random.Random("courses")
    contigs = [(f"contig{n}", "".join(rng.choices("ACGT", k=rng.randint(150, 6000)))) for n in range(60)]
    (place / "contigs.fa").write_text(fasta(contigs, width=70))
    (place / "reads.fq.gz").write_bytes(gzip.compress(_fastq(some_reads(3000, 150, seed=1))))
    (place / "open.fa").write_text(fasta([("open", OPEN * 20_000), ("none", "TAATTAATTAATTAA" * 9)]))
    for number in range(100):
        (place / f"small{number:03}.fa").write_text(fasta(some_reads(2, 300, seed=number).items()))
    small = [str(path) for path in sorted(place.glob("small*.fa"))]
    (place / "broken.fa").write_text(fasta(contigs[:20]) + ">protein\nMKLVINGKTLKGEITIEAVKDNEEDFVQ\n")
    names = [
        [str(place / "contigs.fa")],
        [str(place / "reads.fq.gz"), "--embeddings"],
        [str(place / "open.fa"), str(place / "broken.fa"), str(place / "missing.fa")],
        small,
    ]
    return [_calm(words, place / f"calm{number}") for number, words in enumerate(names)]


def _fastq(reads: dict[str, str]) -> bytes:
    return "".join(
        f"@{name}\n{letters}\n+\n{'I' * len(letters)}\n" for name, letters in reads.items()
    ).encode()


def _calm(words: list[str], out: Path) -> Course:
    began = time.monotonic()
    assert _start(words, out, 1).wait(_PATIENCE) in (0, 2)
    return Course(words, tables(out), time.monotonic() - began)


def _start(words: list[str], out: Path, devices: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "virnuc_async", "predict", *words, "--output-dir", str(out)]
    options = ["--devices", ",".join(["cpu"] * devices), "--quiet", "--esm-batch-size", "600"]
    with open(out.with_suffix(".said"), "ab") as said:
        return subprocess.Popen([*command, *options], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=said)


def _moments(rng: random.Random, course: Course) -> Iterator[float]:
    """Give seconds after the start: rather while it works than while Python begins."""
    while True:
        yield rng.triangular(0.1, 1.2 * course.seconds, 0.6 * course.seconds)


def _is_killed(process: "subprocess.Popen[bytes]", moment: float | None) -> bool:
    """Kill *process* at *moment*, unless it is done by then; without one, wait for its end."""
    try:
        process.wait(moment or _PATIENCE)
    except subprocess.TimeoutExpired:
        assert moment, "it does not end"
        process.send_signal(signal.SIGKILL)
    code = process.wait()
    assert code in (0, 2, -signal.SIGKILL), f"ended with {code}"
    return code == -signal.SIGKILL


def test_killed_at_any_moment_it_goes_on_to_the_same_tables(courses: list[Course], tmp_path: Path) -> None:
    rng = random.Random(f"kills {_SEED}")
    kills = runs = 0
    while kills < _KILLS:
        course, out = courses[runs % len(courses)], tmp_path / f"out{runs}"
        wanted = rng.randint(1, 8)
        runs += 1
        moments = _moments(rng, course)
        while _is_killed(_start(course.words, out, rng.choice((1, 2, 3))), next(moments) if wanted else None):
            kills, wanted = kills + 1, wanted - 1
        _check(out, course)
    print(f"{kills} kills in {runs} runs of {len(courses)} inputs")


def _check(out: Path, course: Course) -> None:
    found = tables(out)
    for name in TABLES:
        assert found[name] == course.calm[name], f"another {name} in {out}"
    said = summary(out)
    assert said["finished"]
    assert said["reproducible"]
    wanted = {*TABLES, "summary.json", "run.log", "run.sqlite3"}
    wanted |= {"failed_files.txt"} if said["counts"]["failures"] else set()
    wanted |= {"merged_features.pt"} if "--embeddings" in course.words else set()
    assert {path.name for path in out.iterdir()} == wanted
