"""Finished runs of real files whose scores are made up, in a moment and without a model."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.models.bundle import find
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.outputs.options import OutputOptions
from virnuc_async.outputs.output_files import FinishedRun
from virnuc_async.outputs.table_files import TableFiles
from virnuc_async.outputs.viral_files import stored_inputs, write_viral_files
from virnuc_async.runs.mate_check import verify_mates
from virnuc_async.runs.store import Store
from virnuc_async.sequences.inputs import InputVersion, read_contigs
from virnuc_async.sequences.mates import find_mates
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, form_windows

LENGTH = 500


@cache
def tokenizer() -> OrfTokenizer:
    return OrfTokenizer(find("tiny-500").tokenizer())


def finish_run(
    directory: Path, paths: Sequence[Path], p_virus: Callable[[int], float], window: int = 4096
) -> Store:
    """Return the store of a finished run of *paths*, in which record n of all has the score *p_virus(n)*."""
    store, names = Store(directory), [str(path) for path in paths]
    store.bind_run({"inputs": [[name, InputVersion.of(name).fingerprint] for name in names]}, names)
    for formed in form_windows(names, read_contigs, Cut(LENGTH, window), tokenizer()):
        store.add_window(formed)
        for batch in formed.batches(1 << 20):
            virus = np.array([p_virus(int(contig)) for contig in batch.origins[:, 0]], np.float32)
            store.add_batch(ScoredBatch(batch, "cpu:0", 0.0, np.stack((1 - virus, virus), 1), None, {}))
    store.finish()
    return store


def finished_run(store: Store, options: OutputOptions) -> FinishedRun:
    """Return the run in *store*, whose mates are those of its files' names, or neighbours."""
    mates = find_mates(store.reader.paths(), options.pairs)
    return FinishedRun(
        store.reader,
        options,
        LENGTH,
        VerdictRule(options.verdict_by, options.threshold),
        lambda reader: verify_mates(mates, reader, options.pairs, lambda: None),
        lambda run: None,  # type: ignore[arg-type,return-value]
    )


def write(store: Store, options: OutputOptions, before_each: Callable[[], None] = lambda: None) -> str:
    """Write the viral sequences of the run in *store*, and return what is said of them."""
    run, files = finished_run(store, options), TableFiles(store.directory, store.check)
    return write_viral_files(run, stored_inputs(store), files, before_each)
