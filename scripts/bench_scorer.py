"""
Measure a scorer: the time of a single read, and the throughput of many callers beside that of a run.

Parts: single (one read at a time), callers (200 callers with one read each, again and again, and
``run_pipeline`` on the same reads), service (1,000 requests to the example of a web service).
"""

import argparse
import asyncio
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from measured import facts, save, table

from virnuc_async import Scorer, Settings, run_pipeline
from virnuc_async.sequences.inputs import read_contigs

_READ = 150  # bases
_CALLERS, _EACH = 200, 25
_SINGLE = 200
_REQUESTS, _AT_ONCE = 1000, 32
_EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
_EXAMPLE, _SERVICE = _EXAMPLES / "metagenome.fa.gz", _EXAMPLES / "service"

Pair = tuple[str, str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, print a table and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", action="append", choices=tuple(_PARTS), help="only this one; can be repeated"
    )
    parser.add_argument(
        "--model", default="tiny-500", help="name or directory of a bundle (default: tiny-500)"
    )
    parser.add_argument("--devices", default="cpu", help="as predict takes them (default: cpu)")
    parser.add_argument("--repeats", type=int, default=3, help="of each part (default: 3)")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    options = parser.parse_args(arguments)
    settings = Settings(model=options.model, devices=tuple(options.devices.split(",")))
    rows: list[dict[str, Any]] = []
    for part in options.part or _PARTS:
        for repeat in range(options.repeats):
            rows.append({"part": part, "repeat": repeat, **asyncio.run(_PARTS[part](settings, repeat))})
            print(table([rows[-1]]))
    if options.output:
        save(options.output, facts(list(sys.argv[1:])) | {"model": str(settings.model), "rows": rows})


def reads(count: int, seed: int) -> list[Pair]:
    """Return reads of the example's contigs; random letters would have no ORF in half of the cases."""
    rng = random.Random(seed)
    contigs = [one.bases.decode() for one in read_contigs(str(_EXAMPLE)) if len(one.bases) > _READ]
    weights = [len(bases) for bases in contigs]
    found: list[Pair] = []
    for number, bases in enumerate(rng.choices(contigs, weights, k=count)):
        start = rng.randrange(len(bases) - _READ)
        found.append((f"read{number}", bases[start : start + _READ]))
    return found


async def measure_single(settings: Settings, seed: int) -> dict[str, Any]:
    """Return the times of single reads, one after the other."""
    async with Scorer(settings) as scorer:
        records = reads(_SINGLE, seed)
        await scorer.score(records[:5])
        return await _times([lambda record=record: scorer.score([record]) for record in records])  # type: ignore[misc]


async def measure_callers(settings: Settings, seed: int) -> dict[str, Any]:
    """Return the reads per second of many callers, and of a run on the same reads."""
    records = reads(_CALLERS * _EACH, seed)
    async with Scorer(settings) as scorer:
        await scorer.score(records[:5])
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for caller in range(_CALLERS):
                tasks.create_task(_one_by_one(scorer, records[caller::_CALLERS]))
        concurrent = len(records) / (time.perf_counter() - began)
    run = await _run(settings, records)
    return {
        "callers": _CALLERS,
        "reads": len(records),
        "callers_reads_per_second": round(concurrent, 1),
        "run_reads_per_second": round(run, 1),
        "ratio": round(concurrent / run, 3),
    }


async def _one_by_one(scorer: Scorer, records: Sequence[Pair]) -> None:
    for record in records:
        await scorer.score([record])


async def _run(settings: Settings, records: Sequence[Pair]) -> float:
    """Return the reads per second of a run, without the time in which the model is loaded."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "reads.fa")
        text = "".join(f">{name}\n{bases}\n" for name, bases in records)
        path.write_text(text)  # noqa: ASYNC240
        summary = await run_pipeline(path, Path(directory, "out"), settings)
    return len(records) / (summary.seconds["total"] - summary.seconds["load"])


async def measure_service(settings: Settings, seed: int) -> dict[str, Any]:
    """Return the times of requests to the example of a web service, of which many come at once."""
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(_SERVICE), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        try:
            address = _address(process)
            async with httpx.AsyncClient(base_url=address, timeout=120) as client:
                posts = [
                    lambda record=record: client.post("/predict", content=f">{record[0]}\n{record[1]}\n")  # type: ignore[misc]
                    for record in reads(_REQUESTS, seed)
                ]
                return {"at_once": _AT_ONCE, **await _times(posts, _AT_ONCE)}
        finally:
            process.terminate()


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://[\d.]+:\d+", line):
            return found[0]
    raise RuntimeError("the service did not start")


async def _times(calls: Sequence[Callable[[], Awaitable[Any]]], at_once: int = 1) -> dict[str, Any]:
    """Return how long the *calls* take, at most *at_once* at the same time."""
    room, seconds = asyncio.Semaphore(at_once), list[float]()

    async def timed(call: Callable[[], Awaitable[Any]]) -> None:
        async with room:
            began = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for call in calls:
            tasks.create_task(timed(call))
    total = time.perf_counter() - began
    percentiles = statistics.quantiles(seconds, n=100)
    return {
        "calls": len(calls),
        "p50_ms": round(1e3 * percentiles[49], 2),
        "p99_ms": round(1e3 * percentiles[98], 2),
        "per_second": round(len(calls) / total, 1),
    }


_PARTS: dict[str, Callable[[Settings, int], Awaitable[dict[str, Any]]]] = {
    "single": measure_single,
    "callers": measure_callers,
    "service": measure_service,
}

if __name__ == "__main__":
    main()
