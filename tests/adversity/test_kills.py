"""
Real processes, killed at any moment until one finishes: its tables are those of an undisturbed run.

KILLS=20 kills 20 times, not 200; KILLS_SEED chooses other moments.
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
from support import REPORTS, TABLES, fasta

_KILLS = int(os.environ.get("KILLS", "200"))
_SEED = int(os.environ.get("KILLS_SEED", "0"))
_TIMEOUT = 120  # seconds, for a run on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@dataclass
class Case:
    """Arguments, and the tables and the duration of an undisturbed run."""

    arguments: list[str]
    tables: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    directory = tmp_path_factory.mktemp("cases")
    rng = random.Random("courses")
    contigs = [(f"contig{n}", "".join(rng.choices("ACGT", k=rng.randint(150, 6000)))) for n in range(60)]
    (directory / "contigs.fa").write_text(fasta(contigs, width=70))
    (directory / "reads.fq.gz").write_bytes(gzip.compress(_fastq(some_reads(3000, 150, seed=1))))
    (directory / "open.fa").write_text(fasta([("open", OPEN * 20_000), ("none", "TAATTAATTAATTAA" * 9)]))
    for number in range(100):
        (directory / f"small{number:03}.fa").write_text(fasta(some_reads(2, 300, seed=number).items()))
    small = [str(path) for path in sorted(directory.glob("small*.fa"))]
    (directory / "broken.fa").write_text(fasta(contigs[:20]) + ">protein\nMKLVINGKTLKGEITIEAVKDNEEDFVQ\n")
    names = [
        [str(directory / "contigs.fa")],
        [str(directory / "reads.fq.gz"), "--embeddings"],
        [*(str(directory / f"{name}.fa") for name in ("open", "broken", "missing")), "--skip-missing"],
        small,
    ]
    return [_run_undisturbed(words, directory / f"undisturbed{number}") for number, words in enumerate(names)]


def _fastq(reads: dict[str, str]) -> bytes:
    return "".join(
        f"@{name}\n{letters}\n+\n{'I' * len(letters)}\n" for name, letters in reads.items()
    ).encode()


def _run_undisturbed(words: list[str], out: Path) -> Case:
    began = time.monotonic()
    assert _start(words, out, 1).wait(_TIMEOUT) in (0, 2)
    return Case(words, tables(out), time.monotonic() - began)


def _start(words: list[str], out: Path, devices: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "virnuc_async", "predict", *words, "--output-dir", str(out)]
    options = ["--devices", ",".join(["cpu"] * devices), "--quiet", "--esm-batch-size", "600"]
    with open(out.with_suffix(".stderr"), "ab") as stderr:
        return subprocess.Popen([*command, *options], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=stderr)


def _moments(rng: random.Random, case: Case) -> Iterator[float]:
    """Yield seconds after the start, mostly while the run works and not while Python starts."""
    while True:
        yield rng.triangular(0.1, 1.2 * case.seconds, 0.6 * case.seconds)


def _is_killed(process: "subprocess.Popen[bytes]", moment: float | None) -> bool:
    """Kill *process* at *moment* unless it has ended, or wait for its end; return whether it was killed."""
    try:
        process.wait(moment or _TIMEOUT)
    except subprocess.TimeoutExpired:
        assert moment, "the process does not end"
        process.send_signal(signal.SIGKILL)
    code = process.wait()
    assert code in (0, 2, -signal.SIGKILL), f"ended with {code}"
    return code == -signal.SIGKILL


def test_a_run_killed_at_any_moment_resumes_to_the_same_tables(cases: list[Case], tmp_path: Path) -> None:
    rng = random.Random(f"kills {_SEED}")
    kills = runs = 0
    while kills < _KILLS:
        case, out = cases[runs % len(cases)], tmp_path / f"out{runs}"
        kills_left = rng.randint(1, 8)
        runs += 1
        moments = _moments(rng, case)
        while _is_killed(
            _start(case.arguments, out, rng.choice((1, 2, 3))), next(moments) if kills_left else None
        ):
            kills, kills_left = kills + 1, kills_left - 1
        _check(out, case)
    print(f"{kills} kills in {runs} runs of {len(cases)} inputs")


def _check(out: Path, case: Case) -> None:
    found = tables(out)
    for name in TABLES:
        assert found[name] == case.tables[name], f"{name} differs in {out}"
    written = summary(out)
    assert written["finished"]
    assert written["reproducible"]
    expected = {*TABLES, *REPORTS, "summary.json", "progress.json", "run.log", "run.sqlite3"}
    expected |= {"samples.tsv"} if len(written["inputs"]) > 1 else set()
    expected |= {"failed_files.txt"} if written["counts"]["failures"] else set()
    expected |= {"merged_features.pt"} if "--embeddings" in case.arguments else set()
    assert {path.name for path in out.iterdir()} == expected
