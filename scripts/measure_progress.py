"""
How well the end of a run is estimated: what a run says is left, against what was left, for five inputs.

Everything but the networks is real: reading, the store, the estimate. Devices are simulated and take no time,
so that the result does not depend on the speed of the machine: work is counted in tokens, and with a steady
speed an error of the work left is that of the time left. With --timed, one more run is on the CPU with the
shipped model, and its seconds are compared.
"""

import argparse
import gzip
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import numpy as np
from measured import facts, save, table
from samples import Source, write, write_many
from simulate import Busy, Model, Simulated

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Scores
from virnuc_async.log import logger
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Intervals, Plan
from virnuc_async.runs.progress import Counts
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.settings import Settings

_SHARES = (1 / 20, 1 / 4, 1 / 2)  # of the work that is done when the estimate is looked at
_NO_TIME = Model(rate=1e12, overhead=0.0, host=0.0, depth=2)
_QUALITIES = np.frombuffer(b"#,:F", np.uint8)  # as recent sequencers round them
_Row = dict[str, Any]


class Look(NamedTuple):
    """What was estimated when so many tokens, or seconds of a run, were done."""

    done: float
    left: float


class Looking(Simulated):
    """A simulated device that looks at the estimate before each batch."""

    def __init__(self, name: str, looks: list[Look], seen: list[Counts]) -> None:
        super().__init__(name, _NO_TIME, Busy())
        self._looks, self._seen = looks, seen

    async def score(self, batch: Batch) -> Scores:
        """Score a batch, after a look."""
        if total := self._seen[-1].total():
            done = self._seen[-1].done.tokens
            self._looks.append(Look(done, total.tokens - done))
        return await super().score(batch)


def main(arguments: list[str]) -> None:
    """Measure all inputs, print a table, and write it if there is a path for it."""
    options = _parser().parse_args(arguments)
    record, bundle, source = facts(arguments), find("tiny-500"), Source.read(options.fasta)
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        rows = []
        for name, paths in _inputs(source, Path(directory), options):
            settings = Settings(bundle.directory, tokens_per_batch=options.tokens_per_batch)
            plan = Plan(
                tuple(map(str, paths)), settings, bundle, (Device("simulated:0", "simulated", 1 << 40),)
            )
            rows.append({"input": name, **_work(plan, Path(directory) / f"out {name}")})
            print(rows[-1], file=sys.stderr, flush=True)
        print(table(rows))
        timed = []
        if options.timed:
            path = Path(directory) / "timed.fa"
            write(path, source, "contigs", int(options.timed * 1e6))
            timed = list(_timed(path, bundle, Path(directory) / "out timed"))
            print(f"\n{table(timed)}")
    if options.output:
        save(options.output, {**record, "simulated": rows, "timed on the CPU": timed})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--megabases", type=float, default=100, help="of each input; of reads a fifth")
    add("--files", type=int, default=2000, help="of the input of many files")
    add("--tokens-per-batch", type=int, default=16_384, help="of the simulated devices")
    add("--timed", type=float, default=0, help="megabases of contigs of a run on the CPU (default: none)")
    add("--fasta", type=Path, default=Path("docs/examples/metagenome.fa.gz"), help="what input is made of")
    add("--work", type=Path, help="where input and runs are written (default: the temporary directory)")
    add("--output", type=Path, help="JSON file to write")
    return parser


def _inputs(source: Source, work: Path, options: argparse.Namespace) -> Iterator[tuple[str, Sequence[Path]]]:
    """Yield name and files of each input."""
    bases, count = int(options.megabases * 1e6), options.files
    contigs, reads = work / "contigs.fa", work / "reads.fq.gz"
    _write_reads(reads, source, bases // 5)
    yield "reads, FASTQ.gz", [reads]
    write(contigs, source, "contigs", bases)
    yield "contigs, FASTA", [contigs]
    files = work / "many"
    files.mkdir()
    # A contig of these has a kilobase or so.
    yield f"{count:,} files of contigs", write_many(files, source, count, max(1, round(bases / count / 900)))
    one = work / "one.fa"
    with open(one, "wb") as file:
        file.write(b">one\n")
        file.writelines(contig.bases + b"\n" for contig in read_contigs(str(contigs)))
    yield "one contig, FASTA", [one]
    yield "contigs, FASTA, then reads, FASTQ.gz", [contigs, reads]


def _write_reads(path: Path, source: Source, bases: int) -> None:
    """Write reads whose qualities are four, most of them the best, as recent sequencers give them."""
    plain, rng = path.with_suffix(".fa"), np.random.default_rng(0)
    write(plain, source, "reads", bases)
    with gzip.open(path, "wb", compresslevel=6) as file:
        for contig in read_contigs(str(plain)):
            picked = rng.choice(4, len(contig.bases), p=(0.01, 0.03, 0.06, 0.9))
            quality = _QUALITIES[picked].tobytes()
            file.write(b"@%b/1\n%b\n+\n%b\n" % (contig.id, contig.bases, quality))
    plain.unlink()


def _work(plan: Plan, out: Path) -> _Row:
    """Return what was estimated to be left, over what was left, at each of the shares of the work."""
    looks: list[Look] = []
    seen: list[Counts] = []

    def scorer(device: Device, _: Bundle, __: object, ___: bool) -> Looking:
        return Looking(device.name, looks, seen)

    with _counts_in(seen):
        anyio.run(partial(execute, plan, out, scorer))
    whole = seen[-1].done.tokens
    return {
        "MB": round(sum(Path(path).stat().st_size for path in plan.paths) / 1e6, 1),
        "ORFs": seen[-1].read,
        "windows": -(-seen[-1].read // plan.window),
        **{f"at {share:.0%}": _ratio(looks, share, whole) for share in _SHARES},
    }


def _ratio(looks: Sequence[Look], share: float, whole: float) -> str:
    look = next(look for look in looks if look.done >= share * whole)
    return f"{look.left / (whole - look.done):.0%}"


class _counts_in:
    """Add the counts of a run that reports its progress to a list."""

    def __init__(self, seen: list[Counts]) -> None:
        self._seen = seen

    def __enter__(self) -> None:
        self._sink = logger.add(
            lambda message: self._seen.append(message.record["extra"]["counts"]),
            filter=lambda record: "counts" in record["extra"],
            level=0,
        )

    def __exit__(self, *_: object) -> None:
        logger.remove(self._sink)


def _timed(path: Path, bundle: Bundle, out: Path) -> Iterator[_Row]:
    """Yield the seconds that were left, estimated and true, of a run on the CPU."""
    looks: list[tuple[float, float, float]] = []  # share, clock, seconds left
    ended = 0.0

    def look(message: Any) -> None:
        nonlocal ended
        counts, now = message.record["extra"]["counts"], time.monotonic()
        left = counts.seconds_left(now)
        if counts.share is not None and left is not None and not counts.is_all_done:
            looks.append((counts.share, now, left))
            ended = now

    sink = logger.add(look, filter=lambda record: "counts" in record["extra"], level=0)
    plan = Plan((str(path),), Settings(bundle.directory), bundle, intervals=Intervals(progress=0.1))
    try:
        anyio.run(partial(execute, plan, out))
    finally:
        logger.remove(sink)
    for share in _SHARES:
        _, then, left = next(look for look in looks if look[0] >= share)
        yield {"of the work": f"{share:.0%}", "left, estimated, s": left, "left, true, s": ended - then}


if __name__ == "__main__":
    main(sys.argv[1:])
