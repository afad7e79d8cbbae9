"""The viral records of a run: byte for byte those of its inputs, or none at all."""

import gzip
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import MEMORY, SHUT, files_no_larger_than
from scored_files import finish_run, finished_run, write
from sequence_files import EACH_FORM, Form

from virnuc_async.errors import CannotWrite, LostInput
from virnuc_async.outputs.contigs import contig_chunks
from virnuc_async.outputs.options import OutputOptions
from virnuc_async.outputs.viral_sequences import Kind, file_names
from virnuc_async.runs.store import Store
from virnuc_async.sequences.decompression import decompressed
from virnuc_async.sequences.inputs import InputVersion
from virnuc_async.settings import Pairing, ViralFasta

PLAIN = OutputOptions(viral_fasta=ViralFasta(original_headers=True))
SCORED = OutputOptions(viral_fasta=ViralFasta())
ADDED = re.compile(rb" virnuc_p=[0-9.e-]+ virnuc_verdict=virus")

# Of these letters no stop codon can be made: each record has an ORF.
BASES = st.text("GCgcSNG-", max_size=40).map(lambda text: f"GCC{text}GcC")
WORDS = st.sampled_from(["", " words", "\ttab words", " > @ +x", " caf\u00e9 ", "  x=1"])
IDS = st.text("abc|_+@1", min_size=1, max_size=5)
ENDS = st.sampled_from(["\n", "\r\n", "\r\r\n"])
TEXT_ENDS = st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=1, max_size=9)


class Text(NamedTuple):
    """A record of a file, and how often its header is in it."""

    text: bytes
    headers: int = 1

    @property
    def is_fastq(self) -> bool:
        return self.text.startswith(b"@")


@st.composite
def fasta_record(draw: st.DrawFn) -> Text:
    end, bases = draw(ENDS), draw(BASES)
    cuts = sorted(draw(st.lists(st.integers(0, len(bases)), max_size=4)))
    lines = [bases[a:b] for a, b in zip([0, *cuts], [*cuts, len(bases)], strict=True)]
    return Text("".join(line + end for line in (f">{draw(IDS)}{draw(WORDS)}", *lines)).encode())


@st.composite
def fastq_record(draw: st.DrawFn) -> Text:
    end, bases, title = draw(ENDS), draw(BASES), draw(IDS) + draw(WORDS)
    repeated = draw(st.sampled_from(["", title, "other"]))
    lines = (f"@{title}", bases, f"+{repeated}", "@" * len(bases), "")
    return Text(end.join(lines).encode(), 1 + (repeated == title))


FILES = st.lists(fasta_record(), min_size=1, max_size=6) | st.lists(fastq_record(), min_size=1, max_size=6)


@contextmanager
def stored(
    directory: Path, content: Mapping[str, bytes], p_virus: Callable[[int], float], window: int = 4096
) -> Iterator[Store]:
    """Store a run of files with this *content*, in which record n of all has the score *p_virus(n)*."""
    for name, text in content.items():
        (directory / name).write_bytes(text)
    with closing(
        finish_run(directory / "out", [directory / name for name in content], p_virus, window)
    ) as store:
        yield store


def found(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "out").glob("*viral*")}


def everything(_: int) -> float:
    return 0.9


@settings(max_examples=20)
@given(st.lists(FILES, min_size=1, max_size=3), st.integers(0, 2**18 - 1), st.sampled_from([1, 3, 4096]))
def test_any_records_of_any_files(files: list[list[Text]], viral: int, window: int) -> None:
    """What is viral is as it was, in its order, and nothing else is there."""
    records = [record for file in files for record in file]
    kept = [record for number, record in enumerate(records) if viral >> number & 1]
    expected = {
        name: b"".join(record.text for record in kept if record.is_fastq == is_fastq)
        for is_fastq, name in ((False, "viral.fasta"), (True, "viral.fastq"))
        if any(file[0].is_fastq == is_fastq for file in files)
    }
    content = {f"{number}.txt": b"".join(record.text for record in file) for number, file in enumerate(files)}
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        with stored(directory, content, lambda number: 0.1 + 0.8 * (viral >> number & 1), window) as store:
            write(store, PLAIN)
            assert found(directory) == expected
            write(store, SCORED)
        scored = found(directory)
    assert {name: ADDED.sub(b"", text) for name, text in scored.items()} == expected
    assert len(ADDED.findall(b"".join(scored.values()))) == sum(record.headers for record in kept)


# CR alone, too: all records are viral, so that what is written is what was there.
@given(
    st.lists(fasta_record(), min_size=1, max_size=6),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=1, max_size=9),
    st.booleans(),
)
def test_all_records_of_a_file_with_any_line_ends(
    records: list[Text], ends: list[bytes], ended: bool
) -> None:
    lines = b"".join(record.text for record in records).replace(b"\r", b"")
    first, *others = (lines if ended else lines.rstrip(b"\n")).split(b"\n")
    content = first + b"".join(ends[at % len(ends)] + line for at, line in enumerate(others))
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as name,
        stored(Path(name), {"a.fa": content}, everything) as store,
    ):
        write(store, PLAIN)
        assert found(Path(name)) == {"viral.fasta": content}


def test_a_record_without_a_line_end_before_another(tmp_path: Path) -> None:
    content = {"a.fa": b">a\r\nGGC\r\nGG", "b.fa": b">b", "c.fa": b">c x\nGGG", "d.fq": b"@d\nGGG\n+\nIII"}
    with stored(tmp_path, content, everything) as store:
        said = write(store, SCORED)
    scores = " virnuc_p=0.9 virnuc_verdict=virus"
    assert found(tmp_path) == {
        "viral.fasta": f">a{scores}\r\nGGC\r\nGG\r\n>c x{scores}\nGGG".encode(),
        "viral.fastq": f"@d{scores}\nGGG\n+\nIII".encode(),
    }
    out = tmp_path / "out"
    assert said == f"2 records in {out / 'viral.fasta'}, 1 record in {out / 'viral.fastq'}"


def test_the_verdicts_are_those_of_the_table_of_contigs(tmp_path: Path) -> None:
    """By position: all records have one id, and the last one no ORF."""
    letters = [*(b"GCC" * (n + 1) for n in range(20)), SHUT.encode()]
    content = {"a.fa": b"".join(b">a\n%s\n" % bases for bases in letters)}
    everything, nothing = replace(SCORED, threshold=0.0), replace(SCORED, threshold=1.0, min_length=61)
    with stored(tmp_path, content, lambda number: number / 20, window=3) as store:
        for options in (SCORED, everything, replace(SCORED, threshold=1.0, min_length=40), nothing):
            write(store, options)
            run = finished_run(store, options)
            table = b"".join(contig_chunks(run.reader, run.rule, run.contigs)).splitlines()[1:]
            rows = [row for row in (line.split(b"\t") for line in table) if row[9] == b"virus"]
            lines = found(tmp_path)["viral.fasta"].splitlines()
            assert lines[::2] == [b">a virnuc_p=%s virnuc_verdict=virus" % row[7] for row in rows]
            assert [len(line) for line in lines[1::2]] == [int(row[2]) for row in rows]


def reads(*ids: str, mate: str = "", length: int = 9) -> bytes:
    return "".join(f"@{id}{mate}\n{'G' * length}\n+\n{'I' * length}\n" for id in ids).encode()


def ids(text: bytes) -> str:
    return " ".join(line[1:].split()[0].decode() for line in text.splitlines()[::4])


def test_both_mates_of_a_viral_pair(tmp_path: Path) -> None:
    """By the verdict of the pair: one of the mates may be none by itself. What has no mate has its own."""
    names = "abcd"
    content = {
        "x_R1.fq": reads(*names, mate="/1"),
        "x_R2.fq": reads(*names, mate="/2"),
        "s.fq": reads("s", "t"),
    }
    scores = [0.9, 0.1, 0.9, 0.1, *(0.9, 0.1, 0.1, 0.9), 0.9, 0.1]
    with stored(tmp_path, content, scores.__getitem__, window=3) as store:
        write(store, replace(SCORED, threshold=0.5))
        # A pair of which half of the fragments are viral is viral.
        assert {name: ids(text) for name, text in found(tmp_path).items()} == {
            "viral_R1.fastq": "a/1 c/1 d/1",
            "viral_R2.fastq": "a/2 c/2 d/2",
            "viral.fastq": "s",
        }
        assert b"@c/1 virnuc_p=0.5 virnuc_verdict=virus\n" in found(tmp_path)["viral_R1.fastq"]
        assert b"@c/2 virnuc_p=0.5 virnuc_verdict=virus\n" in found(tmp_path)["viral_R2.fastq"]
        write(store, replace(SCORED, threshold=0.6))
        assert ids(found(tmp_path)["viral_R1.fastq"]) == "a/1"
        write(store, replace(SCORED, pairs=Pairing.OFF))
        assert {name: ids(text) for name, text in found(tmp_path).items()} == {
            "viral.fastq": "a/1 c/1 a/2 d/2 s"
        }


def test_mates_of_an_interleaved_file(tmp_path: Path) -> None:
    content = {
        "x.fa": b"".join(b">%s\nGGG\n" % id for id in (b"a/1", b"a/2", b"b/1", b"b/2", b"c/1", b"c/2"))
    }
    scores = [0.9, 0.1, 0.1, 0.1, 0.1, 0.9]
    with stored(tmp_path, content, scores.__getitem__, window=2) as store:
        write(store, replace(PLAIN, pairs=Pairing.INTERLEAVED))
    assert found(tmp_path) == {
        "viral_R1.fasta": b">a/1\nGGG\n>c/1\nGGG\n",
        "viral_R2.fasta": b">a/2\nGGG\n>c/2\nGGG\n",
    }


def test_short_pairs_are_left_out_as_in_their_table(tmp_path: Path) -> None:
    """The longer mate decides."""
    one, two = reads("a", length=9) + reads("b", length=90), reads("a", "b", length=9)
    with stored(tmp_path, {"x_1.fq": one, "x_2.fq": two, "s.fq": reads("s")}, everything) as store:
        write(store, replace(SCORED, min_length=50))
    assert {name: ids(text) for name, text in found(tmp_path).items()} == {
        "viral_R1.fastq": "b",
        "viral_R2.fastq": "b",
        "viral.fastq": "",
    }


def test_the_records_before_a_break(tmp_path: Path) -> None:
    """Of mates, too: the pairs before the break are pairs, and what is behind it has its own verdict."""
    names = [f"r{number}" for number in range(300)]
    text = reads(*names)
    packed = gzip.compress(text, 0)
    content = {"x_R1.fq": packed[: len(packed) * 3 // 4], "x_R2.fq": text, "gone.fa": b"no sequence"}
    with stored(tmp_path, content, everything) as store:
        write(store, PLAIN)
        broken, whole, gone = store.reader.files()
    assert (broken.failed, whole.failed, gone.failed) == (True, False, True)
    count = broken.contigs or 0
    assert 100 < count < 300
    texts = found(tmp_path)
    assert texts["viral_R1.fastq"] == texts["viral_R2.fastq"] == reads(*names[:count])
    assert texts["viral.fastq"] == reads(*names[count:])


def test_no_record_at_all(tmp_path: Path) -> None:
    """Whatever comes next finds an empty file."""
    with stored(tmp_path, {"a.fa": b"", "b.fq": b""}, everything) as store:
        write(store, SCORED)
    assert found(tmp_path) == {"viral.fasta": b""}


def test_files_that_are_not_wanted_any_more_are_removed(tmp_path: Path) -> None:
    with stored(tmp_path, {"a.fa": b">a\nGGG\n"}, everything) as store:
        (tmp_path / "out" / "viral_R1.fastq").touch()
        write(store, SCORED)
        assert set(found(tmp_path)) == {"viral.fasta"}
        assert write(store, OutputOptions()) == ""
        assert not found(tmp_path)


@pytest.mark.parametrize(
    ("name", "fasta", "mates"),
    [
        ("v.fa", ("v.fa", "v.fastq"), ("v_R1.fa", "v_R2.fastq")),
        ("v.fna.gz", ("v.fna.gz", "v.fastq.gz"), ("v_R1.fna.gz", "v_R2.fastq.gz")),
        ("v.fq.zst", ("v.fasta.zst", "v.fq.zst"), ("v_R1.fasta.zst", "v_R2.fq.zst")),
        ("V.FASTQ", ("V.fasta", "V.FASTQ"), ("V_R1.fasta", "V_R2.FASTQ")),
        ("v", ("v.fasta", "v.fastq"), ("v_R1.fasta", "v_R2.fastq")),
        ("v.x.gz", ("v.x.fasta.gz", "v.x.fastq.gz"), ("v.x_R1.fasta.gz", "v.x_R2.fastq.gz")),
    ],
)
def test_names_of_files(name: str, fasta: tuple[str, str], mates: tuple[str, str]) -> None:
    names = file_names(name)
    assert (names[Kind(False, "")], names[Kind(True, "")]) == fasta
    assert (names[Kind(False, "_R1")], names[Kind(True, "_R2")]) == mates
    assert len(set(names.values())) == 6


@EACH_FORM
def test_compressed_by_name(form: Form, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    suffix = request.node.callspec.id
    path, text = tmp_path / f"mine.fa.{suffix}", b">a\nGGG\n" * 99
    with stored(tmp_path, {"a.fa": text}, everything) as store:
        for _ in range(2):
            write(store, replace(PLAIN, viral_fasta=ViralFasta(str(path), original_headers=True)))
    assert path.read_bytes().startswith(form.pack(b"")[:3])
    with open(path, "rb") as raw, decompressed(raw) as packed:
        assert b"".join(iter(lambda: packed.read1(1 << 20), b"")) == text
    assert sorted(tmp_path.glob("mine*")) == [path]
    assert not found(tmp_path)


# What the inputs are now


def changed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"GGG", b"GCG", 1))


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b">b\nGGG\n")


def replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed, "it has changed since it was scored"),
        (longer, "it has changed since it was scored"),
        (Path.unlink, "it cannot be read any more"),
        (replaced_by_a_directory, "it cannot be read any more"),
    ],
)
def test_an_input_that_is_not_what_it_was(
    change: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    """It is said before anything is written, whichever of the inputs it is."""
    with stored(tmp_path, {"a.fa": b">a\nGGG\n", "b.fa": b">a\nGGG\n"}, everything) as store:
        write(store, SCORED)
        before = found(tmp_path)
        change(tmp_path / "b.fa")
        with pytest.raises(LostInput) as caught:
            write(store, PLAIN)
        assert (caught.value.path, caught.value.reason) == (str(tmp_path / "b.fa"), reason)
        assert found(tmp_path) == before
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"viral.fasta", "run.sqlite3", "run.lock"}


def test_a_change_that_no_sample_of_the_file_shows(tmp_path: Path) -> None:
    """The windows know the hash of all sequences."""
    path, text = tmp_path / "a.fa", b">a\n" + SHUT.encode() * 80_000
    with stored(tmp_path, {path.name: text}, everything) as store:
        fingerprint = InputVersion.of(str(path)).fingerprint
        place = 70_000  # between the first two of 16 samples of 64 KiB
        path.write_bytes(text[:place] + b"N" + text[place + 1 :])
        assert InputVersion.of(str(path)).fingerprint == fingerprint
        with pytest.raises(LostInput, match=r"a\.fa: it has changed since it was scored\. Viral"):
            write(store, SCORED)
    assert not found(tmp_path)


def test_an_input_that_was_touched_is_the_same(tmp_path: Path) -> None:
    with stored(tmp_path, {"a.fa": b">a\nGGG\n"}, everything) as store:
        os.utime(tmp_path / "a.fa", (1, 1))
        write(store, PLAIN)
    assert found(tmp_path) == {"viral.fasta": b">a\nGGG\n"}


class Stop(Exception):
    pass


def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    def stop() -> None:
        raise Stop

    with stored(tmp_path, {"a.fa": b">a\nGGG\n"}, everything) as store:
        write(store, PLAIN)
        with pytest.raises(Stop):
            write(store, SCORED, stop)
    assert found(tmp_path) == {"viral.fasta": b">a\nGGG\n"}
    assert not list((tmp_path / "out").glob(".*partial"))


def test_a_full_disk(tmp_path: Path) -> None:
    with stored(tmp_path, {"a.fa": b">a\n" + b"GGG" * 9999}, everything) as store:
        with files_no_larger_than(9999), pytest.raises(CannotWrite, match=r"viral\.fasta"):
            write(store, PLAIN)
        assert not found(tmp_path)
        elsewhere = replace(PLAIN, viral_fasta=ViralFasta(str(tmp_path / "none" / "x.fa")))
        with pytest.raises(CannotWrite, match=r"none/x\.fa: No such file"):
            write(store, elsewhere)
