"""
Measure what a run keeps and writes, by ORF: its store, its tables as text and as Parquet, and their CPU time.

Everything but the networks is real; the scores of an ORF are made of its residues, as different from each
other as real ones. Flushed writes are counted with strace, where there is one.
"""

import argparse
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from measured import facts, save, table
from samples import Source, write

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Scores
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.outputs.written_again import Changes, write_tables
from virnuc_async.pipeline import execute
from virnuc_async.runs.output_directory import STORE
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Format, Precision, Settings

_NAMES = {  # of records: as short as samples.py makes them, or as long as those of a sequencing machine
    "short": b">",
    "Illumina": b">A01234:123:HXXXXXXXX:1:1101:12345:",
}
_FLUSHES = ("fsync", "fdatasync", "sync_file_range", "msync")
_CHUNK = 1 << 24


class Instant:
    """A scorer that takes no time; scores depend on all residues of an ORF, and on nothing else."""

    depth = 2

    def __init__(self, device: Device, *_: Any) -> None:
        self.name = device.name

    def peak_memory(self) -> int:
        return 0

    async def load(self) -> None:
        """Load nothing."""

    async def warm_up(self, tokens: int) -> None:
        """Accept any number of tokens."""

    async def close(self) -> None:
        """Free nothing."""

    async def score(self, batch: Batch) -> Scores:
        lengths, ids = batch.residues.lengths, batch.residues.ids
        places = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        logits = np.add.reduceat(np.sin(ids * 1.7 + places), np.cumsum(lengths) - lengths) - 2
        virus = 1 / (1 + np.exp(-logits))
        scores = np.stack([1 - virus, virus], 1).astype(np.float32)
        return Scores(batch, scores, np.zeros(len(batch), np.int64), None, 1e-3, scores[:0])


def main(arguments: list[str]) -> None:
    """Run each combination, print a table, and write the results."""
    options = _parser().parse_args(arguments)
    if options.run_only:
        _run(options.run_only[0], options.run_only[1], options)
        return
    record, rows = facts(arguments), []
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        for kind in options.kinds:
            for names in options.names:
                for bases in options.megabases:
                    found = measure(Path(directory) / "run", (kind, names), int(bases * 1e6), options)
                    rows.append({"kind": kind, "names": names} | found)
                    print(rows[-1], file=sys.stderr, flush=True)
        is_traced = options.traced_megabases and shutil.which("strace")
        flushes = _flushes(Path(directory), options) if is_traced else None
    print(table([{name: row[name] for name in row if name != "files"} for row in rows]))
    print(f"flushed writes a batch: {flushes or 'not counted'}")
    if options.output:
        save(options.output, {**record, "rows": rows, "flushes": flushes})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kinds", type=lambda text: text.split(","), default=["reads", "contigs"])
    add("--names", type=lambda text: text.split(","), default=list(_NAMES))
    add("--megabases", type=lambda text: [float(word) for word in text.split(",")], default=[12.5, 125.0])
    add("--traced-megabases", type=float, default=2.0, help="0: do not count flushed writes")
    add("--tokens-per-batch", type=int, default=16_384)
    add("--model", default="tiny-500", help="the bundle whose tokenizer and fragment length are used")
    add("--fasta", type=Path, default=Path("docs/examples/metagenome.fa.gz"))
    add("--work", type=Path, help="where input and runs are written (default: the temporary directory)")
    add("--run-only", type=Path, nargs=2, metavar=("FILE", "OUT"), help=argparse.SUPPRESS)
    add("--output", type=Path, help="JSON file to write")
    return parser


def measure(place: Path, records: tuple[str, str], bases: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a run on *bases* bases in *records* (kind, names) keeps in *place*, which is removed."""
    place.mkdir()
    file, out = place / "in.fa", place / "out"
    _write(file, Source.read(options.fasta), *records, bases)
    wrote, began = _written_bytes(), time.process_time()
    orfs, batches = _run(file, out, options)
    took, wrote = time.process_time() - began, _written_bytes() - wrote
    found: dict[str, Any] = {
        "ORFs": orfs,
        "records": file.read_bytes().count(b">"),
        "batches": batches,
        "store, bytes/ORF": (out / STORE).stat().st_size / orfs,
        "of it scores": _blob_bytes(out / STORE) / orfs,
        "run, CPU us/ORF": 1e6 * took / orfs,
        "run writes, bytes/ORF": wrote / orfs,
    }
    for form in (Format.TSV, Format.PARQUET):
        made = place / form.value
        changes = Changes({"formats": (form,), "report": False})
        began = time.process_time()
        write_tables(out, changes, made)
        took = time.process_time() - began
        sizes = {file.name: file.stat().st_size for file in made.iterdir() if file.suffix != ".json"}
        found[f"{form.value}, bytes/ORF"] = sum(sizes.values()) / orfs
        found[f"{form.value}, CPU us/ORF"] = 1e6 * took / orfs
        found.setdefault("files", {})[form.value] = sizes
    shutil.rmtree(place)
    return found


def _write(path: Path, source: Source, kind: str, names: str, bases: int) -> None:
    """Write records of *kind* whose names begin as those of *names* do."""
    write(path, source, kind, bases, 1)
    short = path.rename(path.with_suffix(".short"))
    with open(short, "rb") as read, open(path, "wb") as file:
        while chunk := read.read(_CHUNK):
            file.write(chunk.replace(b">", _NAMES[names]))
    short.unlink()


def _run(file: Path, out: Path, options: argparse.Namespace) -> tuple[int, int]:
    """Return the ORFs and the batches of a run on *file*."""
    bundle: Bundle = find(options.model)
    settings = Settings(bundle.directory, tokens_per_batch=options.tokens_per_batch, report=False)
    plan = Plan((str(file),), settings, bundle, (Device("simulated:0", "simulated", 1 << 40),))
    counts = anyio.run(partial(execute, plan, out, _scorer)).counts
    return counts["orfs"], counts["batches"]


def _scorer(device: Device, _: Bundle, __: Precision, ___: bool) -> Instant:
    return Instant(device)


def _blob_bytes(store: Path) -> int:
    """Return the bytes of the pages with the scores of batches."""
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as database:
        query = "SELECT sum(pgsize) FROM dbstat WHERE name = 'batches'"
        return int(database.execute(query).fetchone()[0] or 0)


def _written_bytes() -> int:
    """Return how many bytes this process has handed to the system to write."""
    return int(re.findall(r"wchar: (\d+)", Path("/proc/self/io").read_text())[0])


def _flushes(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return how often a run flushes what it writes to the disk, per batch, without its start and its end."""
    counts = []
    for part in (1, 2):  # the difference is that of the batches
        file, log = directory / f"traced-{part}.fa", directory / f"trace-{part}"
        bases = int(part * options.traced_megabases * 1e6)
        write(file, Source.read(options.fasta), "reads", bases, 1)
        traced = ["strace", "-f", "-qq", "-e", f"trace={','.join(_FLUSHES)}", "-o", str(log)]
        own = [sys.executable, __file__, "--fasta", str(options.fasta), "--run-only", str(file)]
        subprocess.run([*traced, *own, str(directory / f"traced {part}")], check=True)
        with closing(sqlite3.connect(directory / f"traced {part}" / STORE)) as database:
            batches = database.execute("SELECT count(*) FROM batches").fetchone()[0]
        calls = re.findall(rf"({'|'.join(_FLUSHES)})\(", log.read_text())
        counts.append({"batches": batches, **{name: calls.count(name) for name in _FLUSHES}})
    more = counts[1]["batches"] - counts[0]["batches"]
    return {name: (counts[1][name] - counts[0][name]) / more for name in _FLUSHES}


if __name__ == "__main__":
    main(sys.argv[1:])
