"""What a container promises: it runs as any user, with a read-only root, without a home and a network."""

import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from recipe_files import Note
from running import ROOT, predict, tables
from sealed import GROUP, USER, can_seal, sealed

pytestmark = [
    pytest.mark.recipes,
    pytest.mark.skipif(not can_seal(), reason="only root can seal a process, on Linux"),
    pytest.mark.timeout(180),
]

EXAMPLE = ROOT / "docs" / "examples" / "metagenome.fa.gz"
COMMAND = ROOT / "scripts" / "virnucpro_cli.py"
SAM = "@SQ\tSN:contig_001\tLN:1957\nread\t0\tcontig_001\t1\t60\t8M\t*\t0\t0\tACGTACGT\tIIIIIIII\tNM:i:0\n"


@pytest.fixture
def out() -> Iterator[Path]:
    """Return the one directory that the sealed command may write, where everybody may pass."""
    place = Path(tempfile.mkdtemp(prefix="sealed-"))
    os.chown(place, USER, GROUP)
    yield place
    shutil.rmtree(place)


def run(out: Path, *words: str | Path, read: tuple[Path, ...] = ()) -> CompletedProcess[str]:
    """Run a command sealed; all that it may write is in *out*."""
    command = sealed(list(map(str, words)), write=[out], read=[EXAMPLE, COMMAND, *read])
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the tables of the example, computed by root with all rights."""
    out = tmp_path_factory.mktemp("plain") / "out"
    assert predict(EXAMPLE, out).code == 0
    return tables(out)


def test_it_is_sealed(out: Path) -> None:
    touched = "".join(f"touch {place}/x;" for place in ("", "/tmp", "$HOME", ROOT, out))
    done = run(out, "sh", "-c", f"id -u; id -g; {touched} ls {ROOT}; cat /proc/net/dev")
    assert done.stdout.split()[:2] == [str(USER), str(GROUP)]
    assert done.stderr.count("touch: ") == 4
    assert done.stdout.count(":") == 1, "there is a network beside the loop"
    assert "tests" not in done.stdout
    assert os.listdir(out) == ["x"]


def test_predict_gives_the_same_tables(out: Path, plain: dict[str, bytes], note: Note) -> None:
    """As ``docker run --user 12345 --read-only --network none``, and again with nothing left to do."""
    for _ in range(2):
        done = run(out, "python3", "-m", "virnuc_async", "predict", EXAMPLE, out / "run", "--devices", "cpu")
        assert done.returncode == 0, done.stderr
        assert tables(out / "run") == plain
    assert "Viral: 36 of 60 contigs" in done.stderr
    note("Containers: the program as any user, with a read-only root, no home, no network; no image")


@pytest.mark.parametrize(
    "words", [("predict", EXAMPLE, "{out}/run"), ("models", "verify", "tiny-500", "--peers")]
)
def test_no_server_is_asked(words: tuple[str | Path, ...], out: Path) -> None:
    """Not even in vain: no socket of the internet is made, by transformers neither."""
    log = out / "sockets.txt"
    command = [str(word).format(out=out) for word in words]
    trace = ("strace", "-f", "-qq", "-e", "trace=socket,connect", "-o", log)
    done = run(out, *trace, "python3", "-m", "virnuc_async", *command, "--devices", "cpu")
    assert done.returncode == 0, done.stderr
    assert "AF_INET" not in log.read_text()


def test_the_container_command_runs(out: Path, plain: dict[str, bytes]) -> None:
    words = ("python3", COMMAND, EXAMPLE, out / "sample.tsv", "--expected-length", "500", "--no-gpu")
    done = run(out, "env", "VIRNUC_ASYNC_MODEL=tiny-500", *words)
    assert done.returncode == 0, done.stderr
    assert (out / "sample.tsv").read_bytes() == plain["prediction_results.txt"]
    assert (out / "sample_highestscore.csv").exists()


def test_reads_are_labelled(out: Path) -> None:
    """The database needs a temporary directory, and there is none but the output directory."""
    assert run(out, "python3", "-m", "virnuc_async", "predict", EXAMPLE, out / "run").returncode == 0
    (out / "reads.sam").write_text(SAM)
    done = run(out, "python3", "-m", "virnuc_async", "label-reads", out / "run", "--bam", out / "reads.sam")
    assert done.returncode == 0, done.stderr
    assert (
        (out / "run" / "read_labels.tsv")
        .read_text()
        .splitlines()[1]
        .startswith("read\t8\tcontig_001\t1957\t+\t60")
    )


def test_a_classifier_is_trained(out: Path) -> None:
    """Torch's optimizers want a temporary directory, and do without."""
    records = gzip.decompress(EXAMPLE.read_bytes()).decode().split(">")[1:]
    for name, half in (("viral", records[::2]), ("nonviral", records[1::2])):
        (out / f"{name}.fa").write_text("".join(f">{record}" for record in half))
    files = ("--viral", out / "viral.fa", "--nonviral", out / "nonviral.fa")
    done = run(
        out, "python3", "-m", "virnuc_async", "train", *files, "--output", out / "model", "--devices", "cpu"
    )
    assert done.returncode == 0, done.stderr
    done = run(out, "python3", "-m", "virnuc_async", "models", "info", out / "model")
    assert done.returncode == 0, done.stderr
