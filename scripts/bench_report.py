"""
Measure the report of a large run: its size, the time to make it beside the tables, and the time to open it.

The run is made up: contigs of many lengths, some of them viral, written into a store as a run writes them.
"""

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from headless import open_page
from measured import facts, save, table
from numpy.typing import NDArray

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs.options import OutputOptions
from virnuc_async.outputs.output_files import FILES, REPORT_FILES, FinishedRun
from virnuc_async.outputs.summary import Summary
from virnuc_async.outputs.table_files import TableFiles
from virnuc_async.runs.mate_check import PairedFiles
from virnuc_async.runs.store import Store
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.sequences.windows import ContigRow, FileRow, Window

LENGTH = 500  # bases of a fragment
WINDOW = 4096  # ORFs


def contig_lengths(orfs: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return lengths of contigs, as of an assembly, that have about so many ORFs: one a fragment."""
    lengths = np.exp(rng.normal(np.log(1200), 1.1, size=orfs)).astype(np.int64) + 200
    fragments = np.cumsum(-(-lengths // LENGTH))
    return lengths[: int(np.searchsorted(fragments, orfs))]


def write_store(directory: Path, orfs: int, files: int) -> Store:
    """Return the store of a finished run of about *orfs* ORFs in *files* inputs."""
    rng = np.random.default_rng(1)
    store = Store(directory)
    store.bind_run(
        {"inputs": []}, [f"/data/project/sample_{number}/contigs.fa.gz" for number in range(files)]
    )
    for window, scores in _windows(contig_lengths(orfs, rng), files, rng):
        store.add_window(window)
        for batch in window.batches(1 << 20):
            own = scores[batch.orfs - window.first]
            store.add_batch(ScoredBatch(batch, "cpu:0", 1.0, own, None, {}))
    store.finish()
    return store


def _windows(
    lengths: NDArray[np.int64], files: int, rng: np.random.Generator
) -> Iterator[tuple[Window, NDArray[np.float32]]]:
    """Yield windows with the scores of their ORFs; each ends with a contig."""
    counts = -(-lengths // LENGTH)
    borders = np.searchsorted(np.cumsum(counts), np.arange(WINDOW, counts.sum() + WINDOW, WINDOW))
    of_file = np.arange(len(lengths)) * files // len(lengths)
    first = begin = 0
    for number, end in enumerate(np.unique(np.append(borders, len(lengths))).tolist()):
        if end == begin:
            continue
        part = counts[begin:end]
        contigs = np.repeat(np.arange(begin, end), part)
        fragments = np.arange(len(contigs)) - np.repeat(np.cumsum(part) - part, part) + 1
        origins = np.column_stack((contigs, fragments, contigs % 6))
        rows = tuple(
            ContigRow(
                at,
                int(of_file[at]),
                b"NODE_%d_length_%d_cov_7.31" % (at, lengths[at]),
                int(lengths[at]),
                int(counts[at]),
            )
            for at in range(begin, end)
        )
        ends = tuple(_file_ends(of_file, begin, end, len(lengths)))
        tokens = Ragged(np.full(len(origins), 5, np.int32), np.ones(len(origins), np.int64))
        yield Window(number, first, rows, ends, origins, bytes(32), tokens, tokens), _scores(part, rng)
        first, begin = first + len(origins), end


def _file_ends(of_file: NDArray[np.int64], begin: int, end: int, total: int) -> Iterator[FileRow]:
    for at in range(begin, end):
        if at + 1 == total or of_file[at + 1] != of_file[at]:
            yield FileRow(int(of_file[at]), "", int((of_file == of_file[at]).sum()), None)


def _scores(fragments: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the scores of contigs with so many *fragments*, one in ten of them viral."""
    are_viral = np.repeat(rng.random(len(fragments)) < 0.1, fragments)
    virus = np.where(are_viral, rng.beta(6, 1, len(are_viral)), rng.beta(1, 8, len(are_viral)))
    return np.column_stack((1 - virus, virus)).astype(np.float32)


def _summary(store: Store, run: FinishedRun) -> Summary:
    totals = store.reader.totals()
    counts = {
        "contigs": totals.contigs,
        "fragments": totals.fragments,
        "orfs": totals.scores,
        "batches": totals.batches,
        "viral_contigs": run.contigs["virus"],
        "failures": 0,
    }
    inputs = [{"path": file.path, "contigs": file.contigs, "status": "read"} for file in store.reader.files()]
    bundle, session = {"name": "made up", "fingerprint": "0" * 16}, {"orfs": 0, "batches": 0}
    return Summary("0", "", {}, bundle, inputs, counts, [], {"total": 0.0}, session, True, True)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(directory: Path, orfs: int, files: int) -> dict[str, Any]:
    """Return what the tables and the report of such a run take."""
    with closing(write_store(directory, orfs, files)) as store:
        run = FinishedRun(
            store.reader,
            OutputOptions(),
            LENGTH,
            VerdictRule(),
            lambda _: PairedFiles([], 0, [], []),
            lambda run: _summary(store, run),
        )
        written, took = TableFiles(store.directory, store.check), dict[str, Any]()
        for name, wanted in (("tables", FILES), ("report", REPORT_FILES)):
            begun, cpu, peak = time.perf_counter(), time.process_time(), _peak_bytes()
            for file in wanted:
                written.make(file, run)
            took[f"{name}, s"] = round(time.perf_counter() - begun, 2)
            took[f"{name}, CPU s"] = round(time.process_time() - cpu, 2)
            took[f"{name}, bytes of memory more"] = _peak_bytes() - peak
    report = directory / "report.html"
    return {
        "ORFs": run.summary.counts["orfs"],
        "contigs": run.summary.counts["contigs"],
        "inputs": files,
        **took,
        "report, bytes": report.stat().st_size,
        **open_page(report),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orfs", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--inputs", type=int, default=20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    for orfs in options.orfs:
        with TemporaryDirectory() as scratch:
            rows.append(measure(Path(scratch), orfs, options.inputs))
    print(table(rows))
    if options.output:
        save(options.output, facts(arguments) | {"results": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
