"""The system calls of a run: nothing counts as done before it is on the disk, including file names."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT
from support import TABLES, final_name

from virnuc_async.runs.output_directory import FEATURES, OPENING, STORE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# The header of a journal is overwritten with zeros when it is not needed any more.
_ENDS = re.compile(r', "(\\0)+", \d+, 0$')
_CALLS = "pwrite64,write,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate"


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Return the output directory of a run with embeddings, and its system calls in order: (call, file)."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    directory = tmp_path_factory.mktemp("traced")
    out = directory / "out"
    source = golden / "upstream" / "input.fa"
    predict = [
        "predict",
        str(source),
        str(out),
        "--devices",
        "cpu",
        "--embeddings",
        "--esm-batch-size",
        "400",
    ]
    strace = ["strace", "-f", "-y", "-qq", "-e", f"trace={_CALLS}", "-o", str(directory / "trace")]
    command = [*strace, sys.executable, "-m", "virnuc_async", *predict]
    ended = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, check=False)
    if ended.returncode and b"ptrace" in ended.stderr:
        pytest.skip("tracing is not allowed here")
    assert ended.returncode == 0, ended.stderr.decode()
    return out, list(_parse((directory / "trace").read_text(), out))


def _parse(trace: str, out: Path) -> Iterator[tuple[str, str]]:
    """Yield the calls about *out* or a file in it that did something, each with the file's name."""
    inside = rf'<{re.escape(str(out))}(/[^">,)]*)?>'
    for line in trace.splitlines():
        call = re.match(r"\d+ +(\w+)\(\d+(.*)\) += \d", line)
        if call and (found := re.match(rf'{inside}(?:\(deleted\))?(?:, "([^"]*)")?', call[2])):
            name = found[1] or (f"/{found[2]}" if "at" in call[1] else "/.")
            is_end = call[1] == "pwrite64" and name.endswith("-journal") and _ENDS.search(call[2])
            yield "end" if is_end else call[1], _file_name(name.lstrip("/"))


def _file_name(name: str) -> str:
    """Return how a file is called here: a store is opened under another name, which it then loses."""
    name = re.sub(rf"^{re.escape(OPENING)}[0-9a-f]+", STORE, name)
    return name if name == final_name(name) else f"partial {final_name(name)}"


def test_a_table_is_synced_before_it_is_renamed_and_its_directory_after(
    calls: tuple[Path, list[tuple[str, str]]],
) -> None:
    _, events = calls
    for name in (*TABLES, "summary.json", "merged_features.pt"):
        partial = f"partial {name}"
        moved = next(at for at, (call, file) in enumerate(events) if "rename" in call and file == partial)
        written = max(at for at, event in enumerate(events[:moved]) if event == ("write", partial))
        assert ("fsync", partial) in events[written:moved]
        # Before anything else is written or removed.
        after = [event for event in events[moved + 1 :] if event[1] != "run.log"]
        assert after[0] == ("fsync", "."), f"{name}: {after[:3]}"


def test_embeddings_are_on_the_disk_before_their_batch_is_committed(
    calls: tuple[Path, list[tuple[str, str]]],
) -> None:
    _, events = calls
    dirty = False
    batches = 0
    for call, file in events:
        if file == FEATURES and call == "pwrite64":
            dirty = True
        elif file == FEATURES and call == "fsync":
            dirty, batches = False, batches + 1
        elif file == STORE and call == "pwrite64":
            assert not dirty
    assert batches > 3


def test_the_store_is_on_the_disk_before_its_journal_is_marked_as_empty(
    calls: tuple[Path, list[tuple[str, str]]],
) -> None:
    _, events = calls
    dirty, commits = False, 0
    for call, file in events:
        if file == STORE and call == "pwrite64":
            dirty = True
        elif file == STORE and "sync" in call:
            dirty = False
        elif file == f"{STORE}-journal" and call == "end":
            assert not dirty
            commits += 1
    assert commits > 3


def test_partial_embeddings_are_removed_after_the_final_ones_are_on_the_disk(
    calls: tuple[Path, list[tuple[str, str]]],
) -> None:
    out, events = calls
    moved = next(
        at
        for at, (call, file) in enumerate(events)
        if "rename" in call and file == "partial merged_features.pt"
    )
    gone = next(at for at, (call, file) in enumerate(events) if "unlink" in call and file == FEATURES)
    assert moved < events.index(("fsync", "."), moved) < gone
    assert not (out / FEATURES).exists()
