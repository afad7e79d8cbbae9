"""What can happen to the files of a run: between its sessions, and under a running one."""

import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from support import TABLES

from virnuc_async.fileio import atomic_write
from virnuc_async.runs.output_directory import FEATURES, STORE

from .faults import Source

_PT = "merged_features.pt"
_FASTA = re.compile(rb"(>[^\n]*\n)([ACGTN]+)", re.IGNORECASE)


@dataclass
class Site:
    """The files of a scenario; a mishap changes them, and says so in *history*."""

    directory: Path
    out: Path  # where the run is now
    source: Source
    another_run: Path  # a finished run of other inputs
    rng: random.Random
    is_running: bool = False  # whether a session has begun
    renamed: int = 0  # how often
    before: Path | None = None  # where it was before it was renamed
    seconds: int = 0  # by which each change of an input is younger than the one before
    in_place: list[Path] = field(default_factory=list)  # copies of the other run in the place of this one
    history: list[str] = field(default_factory=list)

    def find_run(self) -> None:
        """Go back to where the run was, if it was renamed before a session opened it: that began it anew."""
        if self.before and self.before.exists() and self.before not in self.in_place:
            self.out = self.before
        self.before = None

    def note(self, text: str) -> None:
        self.history.append(f"  mishap: {text}")


Mishap = Callable[[Site], None]


# To the directory


def directory_is_renamed(site: Site) -> None:
    if site.out.exists():
        site.renamed += 1
        aside = site.out.with_name(f"renamed {site.renamed}")
        site.note(f"{site.out.name} becomes {aside.name}")
        site.out.rename(aside)
        site.before, site.out = site.out, aside


def directory_is_replaced(site: Site) -> None:
    """Rename the directory, and put another run in its place."""
    if site.out.exists():
        before = site.out
        directory_is_renamed(site)
        shutil.copytree(site.another_run, before)
        site.in_place.append(before)
        site.note(f"another run is in {before.name}")


def store_is_removed(site: Site) -> None:
    if (site.out / STORE).exists():
        site.note("the store is removed")
        (site.out / STORE).unlink()


def file_is_removed(site: Site) -> None:
    path = site.out / site.rng.choice((*TABLES, "summary.json", "run.log", _PT, FEATURES))
    if path.exists():
        site.note(f"{path.name} is removed")
        path.unlink()


def leftover_of_a_killed_process(site: Site) -> None:
    """Leave what a process left that was killed while it wrote."""
    boot = _boot(site.directory)
    if site.out.exists():
        path = site.out / f".contigs.tsv.{boot}-0123abcd.virnuc.partial"
        path.write_bytes(b"half a tab")
        site.note(f"{path.name} is left behind")


# To the content of files of the run


def bits_of_the_store_flip(site: Site) -> None:
    _flip(site, site.out / STORE, site.rng.randint(1, 3))


def bits_of_embeddings_flip(site: Site) -> None:
    for name in (FEATURES, _PT):
        _flip(site, site.out / name, site.rng.randint(1, 3))


def bits_of_a_table_flip(site: Site) -> None:
    _flip(site, site.out / site.rng.choice(TABLES), 1)


def file_is_cut(site: Site) -> None:
    path = site.out / site.rng.choice((*TABLES, "summary.json", STORE, _PT, FEATURES))
    size = path.stat().st_size if path.exists() else 0
    if size:
        length = site.rng.randrange(size)
        site.note(f"{path.name} is cut from {size} to {length} bytes")
        os.truncate(path, length)


def _flip(site: Site, path: Path, count: int) -> None:
    content = bytearray(path.read_bytes() if path.exists() else b"")
    if not content:
        return
    for _ in range(count):
        bit = site.rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        site.note(f"bit {bit} of {path.name} flips")
    path.write_bytes(content)


# To the inputs


def input_is_corrected(site: Site) -> None:
    """Change letters of one record of one file."""

    def corrected(content: bytes) -> bytes:
        records = [*_FASTA.finditer(content)]
        if not records:
            return content
        record = site.rng.choice(records)
        at = site.rng.randrange(*record.span(2))
        return content[:at] + site.rng.choice((b"A", b"C", b"GG", b"")) + content[at + 1 :]

    _rewrite(site, "corrected", corrected)


def input_grows(site: Site) -> None:
    """Add a record at the end of one file."""
    letters = bytes(site.rng.choices(b"ACG", k=site.rng.randint(20, 90)))
    _rewrite(site, "longer", lambda content: content.rstrip(b"\n") + b"\n>added\n" + letters + b"\n")


def input_is_replaced(site: Site) -> None:
    letters = bytes(site.rng.choices(b"ACGT", k=site.rng.randint(1, 120)))
    _rewrite(site, "replaced", lambda _: b">other\n" + letters + b"\n>last\nGCAGCAGCAGCA\n")


def _rewrite(site: Site, how: str, change: Callable[[bytes], bytes]) -> None:
    if site.source.piped is not None:
        if not site.is_running:  # else the session has its pipe
            site.source = Source(site.source.paths, change(site.source.piped))
            site.note(f"standard input is {how}")
        return
    paths = [Path(path) for path in site.source.paths if path.endswith(".fa") and Path(path).is_file()]
    path = site.rng.choice(paths)
    other = change(path.read_bytes())
    stat = path.stat()
    site.seconds += 1
    if site.rng.random() < 0.5:
        path.unlink()  # the new one is another file
    path.write_bytes(other)
    # Two changes within one tick of the clock could not be told apart by anything but their content.
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + site.seconds * 1_000_000_000))
    site.note(f"{path.name} is {how}")


BETWEEN: tuple[Mishap, ...] = (
    directory_is_renamed,
    store_is_removed,
    file_is_removed,
    leftover_of_a_killed_process,
    bits_of_the_store_flip,
    bits_of_the_store_flip,
    bits_of_the_store_flip,
    bits_of_embeddings_flip,
    bits_of_a_table_flip,
    file_is_cut,
    input_is_corrected,
    input_grows,
    input_is_replaced,
)
OF_INPUTS: tuple[Mishap, ...] = (input_is_corrected, input_grows, input_is_replaced)
DURING: tuple[Mishap, ...] = (
    directory_is_renamed,
    directory_is_replaced,
    store_is_removed,
    input_is_corrected,
    input_grows,
    input_is_replaced,
)


def _boot(directory: Path) -> str:
    """Return how the current start of this machine is called in the name of a file that is being made."""
    with atomic_write(directory / "probe"):
        (name,) = (path.name for path in directory.iterdir() if path.name.startswith(".probe."))
    (directory / "probe").unlink()
    return name.split(".")[2].split("-")[0]
