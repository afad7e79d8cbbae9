"""The commands of the documents, run page by page in a directory that has what they name."""

import gzip
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pysam
import pytest
from running import ROOT, Ran, run
from support import fasta
from test_documented_commands import PAGES, commands
from tiny_models import write_toys

from virnuc_async.models.bundle import find

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# What needs a GPU, a server, the files of a published model, an image, or a scheduler.
_NOT_HERE = (
    "download",
    "import",
    "--gpus",
    "cuda:0",
    "auto/100",
    "/opt/virnuc-async/share/virnuc-async/metagenome.fa.gz",
)
_MODELS = ("virnucpro-500", "my-model", "my-tiny")
_SYNTAX = {"FILE", "DIR", "INPUT", "OUT_DIR", "COMMAND", "RUN", "RUN_DIR"}


def contigs(seed: int, count: int = 4) -> str:
    rng = random.Random(seed)
    return fasta([(f"contig{seed}_{at}", "".join(rng.choices("ACGT", k=900))) for at in range(count)])


def reads(mate: str, count: int = 6) -> str:
    rng = random.Random(mate)
    sequences = ("".join(rng.choices("ACGT", k=150)) for _ in range(count))
    return "".join(f"@read{at}/{mate}\n{bases}\n+\n{'I' * 150}\n" for at, bases in enumerate(sequences))


def interleaved() -> str:
    pairs = zip(*(reads(mate).split("@")[1:] for mate in "12"), strict=True)
    return "".join(f"@{read}" for pair in pairs for read in pair)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with every file that a command of the documents names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIRNUC_ASYNC_CACHE_DIR", str(tmp_path / "cache"))
    for name in (
        "contigs.fa",
        "sample1.fa",
        "sample2.fa",
        "more/a.fa",
        "samples/s1.fa",
        "samples/s2.fa",
        "x",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(contigs(len(name)))
    Path("and_more.fa.zst").write_bytes(zstd.compress(contigs(1).encode()))
    for mate in "12":
        for name in (f"reads_R{mate}.fq.gz", f"sample_R{mate}.fq.gz"):
            Path(name).write_bytes(gzip.compress(reads(mate).encode()))
        Path(f"sample_{mate}.fq").write_text(reads(mate))
    Path("sample.fq.gz").write_bytes(gzip.compress(interleaved().encode()))
    Path("docs/examples").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "examples" / "metagenome.fa.gz", "docs/examples")
    _write_labelled()
    _write_alignments()
    for name in _MODELS:
        for directory in (Path(name), Path("cache") / "models" / name):
            shutil.copytree(find("tiny-500").directory, directory)
    return tmp_path


def _write_labelled() -> None:
    for seed, names in enumerate([("viruses", "others"), ("new_viruses", "new_others"), ("new_v", "new_n")]):
        toys = write_toys(Path(f"toys{seed}"), count=120, seed=seed)
        for name, path in zip(names, toys, strict=True):
            shutil.copy(path, f"{name}.fa")
    for name in ("bacteria", "human"):
        records = Path("others.fa").read_text().split(">")[1:]
        half = records[:60] if name == "bacteria" else records[60:]
        Path(f"{name}.fa").write_text("".join(f">{record}" for record in half))
    for name, source in (("v", "viruses.fa"), ("n", "others.fa")):
        Path(name).mkdir()
        shutil.copy(source, name)
    ids = [line[1:].split()[0] for path in ("viruses.fa", "others.fa") for line in _headers(path)]
    for name in ("clusters.tsv", "groups.tsv"):
        rows = (f"{id}\t{id[0]}{int(id[1:]) // 2 % 10}\n" for id in ids)
        Path(name).write_text("".join(rows))


def _headers(path: str) -> list[str]:
    return [line for line in Path(path).read_text().splitlines() if line.startswith(">")]


def _write_alignments() -> None:
    header = pysam.AlignmentHeader.from_references([_headers("contigs.fa")[0][1:]], [900])
    with pysam.AlignmentFile("reads_to_contigs.bam", "wb", header=header) as file:
        read = pysam.AlignedSegment(header)
        read.query_name, read.query_sequence, read.cigarstring = "read", "ACGT" * 20, "80M"
        read.reference_id, read.reference_start, read.mapping_quality = 0, 5, 60
        read.set_tag("NM", 0)
        file.write(read)


def can_run_here(words: list[str]) -> bool:
    named = {*_NOT_HERE, *_SYNTAX} & {*words}
    return not named and not any("://" in word for word in words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_do_what_they_say(page: Path, place: Path) -> None:
    assert run("predict", "contigs.fa", "out/").code == 0
    assert run("predict", "contigs.fa", "old_run/", "--embeddings").code == 0
    for words in commands(page):
        if can_run_here(words):
            done = _again_if_another(words, lambda words=words: _run(words))
            assert done.code == 0, f"{' '.join(words)}\n{done.err}"


def _run(words: list[str]) -> Ran:
    text = interleaved() if "interleaved" in words else contigs(9)
    return run(*words, stdin=text.encode() if "-" in words else b"")


def _again_if_another(words: list[str], attempt: Callable[[], Ran]) -> Ran:
    """Return what *attempt* gives; a page begins another run in a directory that an earlier one had used."""
    if words[0] in ("train", "evaluate"):
        shutil.rmtree(words[words.index("--output") + 1], ignore_errors=True)
    done = attempt()
    if done.code == 1 and words[0] == "predict":
        shutil.rmtree(next(word for word in words if word.rstrip("/") in ("out", "results")))
        done = attempt()
    return done
