"""Files that change between the moment in which they are identified and that in which they are read."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from example_features import NUCLEOTIDE, PROTEIN, merged, saved
from fakes import Rules, fake_devices
from harness import PipelineHarness

from virnuc_async.errors import BadBundle, BadFeatures, InputChanged
from virnuc_async.fileio import Directory
from virnuc_async.models.bundle import Bundle
from virnuc_async.pipeline import execute
from virnuc_async.runs.feature_files import find_features
from virnuc_async.runs.plan import Plan
from virnuc_async.runs.reuse_embeddings import FeatureIndex
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.inputs import InputVersion, read_contigs, unchanged

OLD, NEW = b">old\n" + b"GCA" * 200 + b"\n", b">new\n" + b"GCC" * 200 + b"\n"


def written(path: Path, content: bytes = OLD) -> Path:
    path.write_bytes(content)
    return path


def replace_it(path: Path) -> None:
    written(path.with_name("other"), NEW).replace(path)


def rewrite_it(path: Path) -> None:
    written(path, NEW)
    os.utime(path, ns=(1, 1))


def append_to_it(path: Path) -> None:
    written(path, OLD + NEW)


def remove_it(path: Path) -> None:
    path.unlink()


def touch_it(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def copy_it(path: Path) -> None:
    written(path.with_name("other")).replace(path)


CHANGES = (replace_it, rewrite_it, append_to_it, remove_it)
each_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@each_change
def test_a_change_before_the_file_is_opened_is_noticed(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    path = written(tmp_path / "a.fa")
    read = unchanged(read_contigs, {str(path): InputVersion.of(str(path))})
    assert [contig.id for contig in read(str(path))] == [b"old"]
    change(path)
    with pytest.raises(InputChanged):
        next(read(str(path)))


@pytest.mark.parametrize("change", [touch_it, copy_it])
def test_the_same_content_is_no_change(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = written(tmp_path / "a.fa")
    read = unchanged(read_contigs, {str(path): InputVersion.of(str(path))})
    change(path)
    assert [contig.id for contig in read(str(path))] == [b"old"]


def test_a_change_while_it_is_being_opened_is_noticed_at_its_end(tmp_path: Path) -> None:
    path = written(tmp_path / "a.fa")

    def read_another(name: str) -> Iterator[Contig]:
        replace_it(path)
        yield from read_contigs(name)

    read = unchanged(read_another, {str(path): InputVersion.of(str(path))})
    with pytest.raises(InputChanged):
        list(read(str(path)))


def test_a_file_that_can_be_read_only_later_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    read = unchanged(read_contigs, {str(path): InputVersion.of(str(path))})
    written(path)
    with pytest.raises(InputChanged):
        next(read(str(path)))


def test_streams_are_not_compared(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("-", str(tmp_path / "pipe")):
        version = InputVersion.of(path)
        assert version.fingerprint == ["stream"]
        assert version.is_of(path)


class Changing(PipelineHarness):
    """Runs of two files, of which the second one changes when some file is about to be read."""

    async def run_with(self, change: Callable[[], None] | None, number: int) -> None:
        paths = [str(written(self.out / name)) for name in ("a.fa", "b.fa")]
        left = iter(range(len(paths)))

        def read(path: str) -> Iterator[Contig]:
            if next(left, None) == number and change is not None:
                change()
            yield from read_contigs(path)

        plan = Plan(tuple(paths), self.settings, self.bundle, fake_devices(1), self.window)
        await execute(plan, self.out / "out", Rules().scorer, read=read)


@pytest.mark.parametrize(
    ("change", "number"),
    # What is removed when its turn has come is a file that cannot be read, like any other.
    [(change, number) for change in CHANGES for number in (0, 1) if (change, number) != (remove_it, 1)],
)
async def test_the_run_ends_and_a_rerun_is_that_of_the_new_content(
    change: Callable[[Path], None], number: int, source: Path, bundle: Bundle, tmp_path: Path
) -> None:
    runs = Changing(source, bundle, tmp_path)
    path = tmp_path / "b.fa"
    with pytest.raises(InputChanged) as caught:
        await runs.run_with(partial(change, path), number)
    assert caught.value.path == str(path)
    written(path, NEW)
    for out in ("out", "fresh"):
        paths = (str(tmp_path / "a.fa"), str(path))
        plan = Plan(paths, runs.settings, bundle, fake_devices(1), runs.window)
        assert (await execute(plan, tmp_path / out, Rules().scorer)).finished
    assert runs.tables("out") == runs.tables("fresh")
    assert b"new_chunk_1F1" in runs.tables("out")["prediction_results.txt"]


@pytest.mark.parametrize("at", [0, 1])
def test_features_that_change_while_they_are_read_are_refused(at: int, tmp_path: Path) -> None:
    saved(tmp_path / "x_merged.pt", merged())
    (file,) = find_features(tmp_path, but_not=tmp_path / "out")

    class Index(FeatureIndex):
        def _add(self, *args: object) -> None:
            super()._add(*args)  # type: ignore[arg-type]
            touch_it(file.path)

    if at == 0:
        touch_it(file.path)
    index = Index([file], (NUCLEOTIDE, PROTEIN))
    with closing(index), pytest.raises(BadFeatures, match="it has changed since this run began"):
        list(index.read(Directory(tmp_path)))


async def test_a_model_that_is_replaced_while_it_is_loaded_is_refused(
    bench: PipelineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Bundle.check_once

    def check_and_replace(bundle: Bundle) -> None:
        real(bundle)
        path = bundle.directory / "classifier.safetensors"
        written(path.with_name("other"), path.read_bytes()).replace(path)

    monkeypatch.setattr(Bundle, "check_once", check_and_replace)
    with pytest.raises(BadBundle, match=r"classifier\.safetensors changed while the model was loaded"):
        await bench.run()
    monkeypatch.undo()
    assert (await bench.run()).finished
