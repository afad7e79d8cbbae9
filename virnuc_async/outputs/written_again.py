"""Tables of a finished run, made again from its store by other rules."""

from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from virnuc_async.runs.store import open_finished
from virnuc_async.settings import CallRules

from .calls import CALLS_TABLE, call_chunks
from .table_files import TableFiles


def write_calls(directory: Path, rules: CallRules) -> Counter[tuple[str, str]]:
    """
    Write ``contig_calls.tsv`` of the finished run in *directory*; return how many have which call and tier.

    Raises:
        NoRun: there is no run in *directory*, or not all of it is scored
        DirectoryLockedError: another process is using the directory
        DamagedStore: the store is damaged
        CannotWrite: the disk is full, or the directory is read-only
    """
    tally: Counter[tuple[str, str]] = Counter()
    with closing(open_finished(directory)) as store:
        files = TableFiles(store)
        files.write(CALLS_TABLE, call_chunks(store.reader, rules, tally))
        written = store.get_meta("written")
        if written is not None:
            # Or the next session would find a file that it does not know.
            settings = written["settings"] | {"calls": str(rules)}
            known = {"settings": settings, "calls": asdict(rules), "files": files.facts()}
            store.set_meta("written", written | known)
    return tally
