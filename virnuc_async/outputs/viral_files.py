"""Where the viral sequences are written: beside the tables, or to files that a user names."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from virnuc_async.errors import UsageError
from virnuc_async.fileio import Directory, atomic_write, writing_to
from virnuc_async.runs.originals import Originals
from virnuc_async.runs.output_directory import VIRAL_FILES, is_written_name
from virnuc_async.runs.store import Store
from virnuc_async.sequences.decompression import packed_by_name
from virnuc_async.sequences.inputs import STDIN, is_stream
from virnuc_async.settings import ViralFasta
from virnuc_async.text import plural

from .options import OutputOptions
from .table_files import TableFiles
from .viral_sequences import Kind, ViralFiles, file_names, write_viral_sequences

if TYPE_CHECKING:
    from .output_files import FinishedRun

_KEY = "viral sequences"  # in the store: what files somewhere else were left as
_OPTION = "--viral-fasta"

ViralFacts = Mapping[str, list[int]]  # size and time of a file, by its path
Inputs = Sequence[Sequence[Any]]  # path and fingerprint of each


def require_files(inputs: Sequence[str]) -> None:
    """
    Check that *inputs* can be read again when a run is finished.

    Raises:
        UsageError: one can be read only once
    """
    for path in inputs:
        if is_stream(path):
            what = "standard input" if path == STDIN else f"the pipe {path}"
            raise UsageError(
                f"{_OPTION} reads the inputs again in the end, and {what} can be read only once. "
                "Write it to a file first, and name that as the input"
            )


def require_place(place: ViralFasta, inputs: Sequence[str], out_dir: Path) -> None:
    """
    Check that a run of *inputs* into *out_dir* may have files at *place*.

    Raises:
        UsageError: it is no place for a file, or an input or a table is there
    """
    if place.file is None:
        return
    file = Path(place.file)
    if file.is_dir():
        raise UsageError(f"{_OPTION} {file}: it is a directory, not the name of a file")
    if not file.parent.is_dir() and file.parent != Path(os.path.abspath(out_dir)):
        raise UsageError(f"{_OPTION} {file}: there is no directory {file.parent}")
    if is_written_name(file.name) and os.path.realpath(file.parent) == os.path.realpath(out_dir):
        what = "a run writes a file of this name. Leave it out, or choose another"
        raise UsageError(f"{_OPTION} {file}: {what}")
    for there in viral_facts(place):
        if any(os.path.exists(path) and os.path.samefile(path, there) for path in inputs):
            raise UsageError(f"{_OPTION}: {there} is an input")


def require_free(known: ViralFacts, place: ViralFasta | None, overwrite: bool) -> None:
    """
    Check that files at *place*, if it is not beside the tables, are not there or as they are *known*.

    Raises:
        UsageError: there is another file, which *overwrite* would replace
    """
    for path, facts in viral_facts(place).items() if not overwrite else ():
        if facts[0] and known.get(path) != facts:
            raise UsageError(
                f"{_OPTION}: {path} is there already, and this run has not written it. Choose another name, "
                "or delete it"
            )


def are_as_written(known: ViralFacts, place: ViralFasta | None) -> bool:
    """Return whether files at *place*, unless that is beside the tables, are as they are *known*."""
    return place is None or place.file is None or viral_facts(place) == known


def kept_viral_facts(store: Store) -> ViralFacts:
    """Return what *store* knows of viral sequences that are not beside the tables."""
    return store.get_meta(_KEY) or {}


def keep_viral_facts(store: Store, place: ViralFasta | None) -> None:
    """Make *store* know what is at *place*, if that is not beside the tables."""
    if place is not None and place.file is not None:
        store.set_meta(_KEY, viral_facts(place))


def stored_inputs(store: Store) -> Inputs:
    """Return path and fingerprint of each input of the run in *store*."""
    inputs: Inputs = store.get_meta("identity")["inputs"]
    return inputs


def options_left(options: OutputOptions, directory: Directory) -> OutputOptions:
    """
    Return the *options* that files in *directory* were made by, as they go on.

    Viral sequences beside the tables stay in step with them; whoever deletes them wants none. Somewhere else
    they are the user's.
    """
    stays = options.viral_fasta is not None and options.viral_fasta.file is None
    if stays and any(directory.is_file(name) for name in VIRAL_FILES):
        return options
    return replace(options, viral_fasta=None)


def check_originals(run: "FinishedRun", inputs: Inputs) -> None:
    """
    Check that the *inputs* of *run*, if they are needed again, are there: before any file is replaced.

    Raises:
        LostInput: one is not, or is not what was scored
    """
    if run.options.viral_fasta is not None:
        with closing(Originals(run.reader, inputs)) as originals:
            originals.check()


def write_viral_files(
    run: "FinishedRun", inputs: Inputs, files: TableFiles, before_each: Callable[[], None]
) -> str:
    """
    Write the viral sequences of *run* where its options say, *files* being where its tables are.

    They are read from its *inputs*.

    Return how many are in which file; remove what is not wanted beside the tables. *before_each* may raise to
    stop; then, and after any other error, everything is as it was.

    Raises:
        LostInput: an input is not there, or not what was scored
        CannotWrite: a file cannot be written
    """
    place, written, text = run.options.viral_fasta, set[str](), ""
    if place is not None:
        beside = place.file is None
        open_file = files.new_file if beside else partial(_new_file, Path(place.file or "").parent)
        with ExitStack() as opened, closing(Originals(run.reader, inputs)) as originals:

            def open_packed(name: str) -> BinaryIO:
                return opened.enter_context(packed_by_name(opened.enter_context(open_file(name)), name))

            viral = ViralFiles(_names(place), open_packed, place.original_headers)
            write_viral_sequences(run, originals, viral, before_each)
        where = files.place if beside else Path(place.file or "").parent
        counts = viral.counts.items()
        text = ", ".join(f"{plural(count, 'record')} in {where / name}" for name, count in counts)
        written = set(viral.counts) if beside else set()
    for name in VIRAL_FILES:
        if name not in written and files.directory.stat(name) is not None:
            files.remove(name)
    return text


def _names(place: ViralFasta) -> Mapping[Kind, str]:
    return file_names(os.path.basename(place.file or "viral"))


def viral_facts(place: ViralFasta | None) -> dict[str, list[int]]:
    """Return size and time of each file at *place*, if that is not beside the tables."""
    found: dict[str, list[int]] = {}
    if place is not None and place.file is not None:
        for name in _names(place).values():
            path = os.path.join(os.path.dirname(place.file), name)
            with suppress(OSError):
                stat = os.stat(path)
                found[path] = [stat.st_size, stat.st_mtime_ns]
    return found


@contextmanager
def _new_file(directory: Path, name: str) -> Iterator[BinaryIO]:
    with writing_to(directory / name), atomic_write(directory / name) as file:
        yield file
