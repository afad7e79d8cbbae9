"""Processes that are killed while they make a file or a directory."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from running import ROOT

# Makes a directory or a file, and waits in the middle of it for a line from standard input.
MAKER = """
import sys
from pathlib import Path
from virnuc_async import fileio
kind, path = sys.argv[1], Path(sys.argv[2])
with getattr(fileio, "atomic_" + kind)(path) as made:
    if kind == "directory":
        (made / "weights").write_bytes(bytes(9))
    else:
        made.write(bytes(9))
        made.flush()
    print("half made", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def half_made(script: str, *arguments: str | Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a process that has made something by half, and kill it in the end."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == b"half made\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
