"""Where Triton keeps what it has compiled."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from virnuc_async.errors import NoCacheDirectory
from virnuc_async.fileio import user_cache


def use_writable_cache(knobs: Any) -> None:
    """
    Set the cache directory in Triton's *knobs*: the one that the user chose, else one in ours.

    Triton's own would be ``~/.triton``, and without a home directory one that is called ``~``. If the
    directory cannot be written, as in a container that runs as any user, or no library can be loaded from
    there, as from a home mounted with ``noexec``, it is a temporary one. Where nothing at all can be
    written, it stays as it is, and no kernel compiles.
    """
    chosen = Path(knobs.cache.dir)
    if chosen == Path(os.path.expanduser("~/"), ".triton", "cache"):
        try:
            chosen = user_cache() / "triton"
        except NoCacheDirectory:
            chosen = Path()
    if not _is_usable(chosen):
        try:
            chosen = Path(tempfile.mkdtemp(prefix="virnuc-async-triton-"))
        except OSError:
            return
        atexit.register(shutil.rmtree, chosen, ignore_errors=True)
    if str(chosen) != knobs.cache.dir:
        knobs.cache.dir = str(chosen)


def _is_usable(directory: Path) -> bool:
    """Return whether compiled kernels can be written to *directory*, and loaded from there."""
    if not directory.is_absolute():
        return False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
        return not os.statvfs(directory).f_flag & os.ST_NOEXEC
    except OSError:
        return False
