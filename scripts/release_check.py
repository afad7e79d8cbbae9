"""
Build the wheel and the sdist, check what is in them, and run the example with each, installed alone.

``release_check.py DIST`` writes both files to DIST. It needs the packages build, hatchling and twine, and an
index for pip. Each file is installed into an environment of its own, away from the checkout; its tables must
equal those of the checkout byte for byte. Then the message without each extra, and its command with it.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from email.parser import BytesParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from range_server import RangeServer, serving

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "virnuc_async"
EXAMPLE = ROOT / "docs" / "examples" / "metagenome.fa.gz"
# Extras that no command needs, and the one of all others.
FASTER = {"gzip"}  # with it; it works without
OF_NO_COMMAND = {"all", "dev", "fuzz", "recipes", "service", "test", *FASTER}
MOST_BYTES = {".whl": 6_000_000, ".gz": 8_000_000}  # the demonstration model takes 4.8 MB
LARGEST_FILE = 4_000_000
IN_SDIST = ("README.md", "LICENSE", "CITATION.cff", "constraints.txt", "pyproject.toml")
READS = "@SQ\tSN:contig_001\tLN:1957\nread\t0\tcontig_001\t1\t60\t8M\t*\t0\t0\tACGTACGT\tIIIIIIII\tNM:i:0\n"
# What needs an extra; of the example, the directory of a finished run and a file of reads in SAM.
NEEDS: dict[str, tuple[str, ...]] = {
    "bam": ("predict", "{reads}", "{out}-bam", "--devices", "cpu"),
    "cloud": ("predict", "{url}/example.fa.gz", "{out}-cloud", "--devices", "cpu"),
    "completion": ("completion", "bash"),
    "parquet": ("predict", "{example}", "{out}-parquet", "--devices", "cpu", "--format", "parquet"),
    "ray": ("predict", "{example}", "{out}-ray", "--ray", "local", "--devices", "cpu"),
    "reads": ("label-reads", "{out}", "--bam", "{reads}"),
}


class Problem(Exception):
    """Something that must not be released."""


class Installed(NamedTuple):
    """An environment that has the program, and nothing of the checkout."""

    directory: Path

    def pip(self, *words: str | Path) -> None:
        """Install what *words* name, in the versions that the tests pass with."""
        options = ("--quiet", "--disable-pip-version-check", "--constraint", ROOT / "constraints.txt")
        # Compiling everything would take most of the time, and little of it is used.
        _run([self.directory / "bin" / "python", "-m", "pip", "install", "--no-compile", *options, *words])

    def run(self, *words: str | Path, of_checkout: bool = False) -> "subprocess.CompletedProcess[str]":
        """Run the command, of the environment or with its packages that of the checkout."""
        python = self.directory / "bin" / "python"
        command = [python, "-m", PACKAGE.name] if of_checkout else [python.with_name("virnuc-async")]
        # In the checkout, -m finds the package there first.
        return _run([*command, *words], place=ROOT if of_checkout else self.directory, check=False)


def build(dist: Path) -> list[Path]:
    """Build the sdist, and the wheel from it; it must be the wheel that the checkout gives."""
    with TemporaryDirectory() as scratch:
        words = [sys.executable, "-m", "build", "--no-isolation", ROOT, "--outdir"]
        _run([*words, dist])
        _run([*words, scratch, "--wheel"])
        (direct,) = Path(scratch).iterdir()
        if _contents(direct) != _contents(dist / direct.name):
            raise Problem("the wheel of the sdist is not the wheel of the checkout")
    return [dist / direct.name, *dist.glob(f"{'-'.join(direct.name.split('-')[:2])}.tar.gz")]


def check_contents(file: Path) -> None:
    """Check that a wheel or an sdist has what it should, and nothing large that it should not."""
    contents = _contents(file)
    wanted = {path.relative_to(ROOT).as_posix() for path in _sources()}
    if file.suffix == ".whl":
        (info,) = {name.split("/")[0] for name in contents} - {PACKAGE.name}
        wanted |= {
            f"{info}/licenses/LICENSE",
            f"{info}/METADATA",
            f"{info}/entry_points.txt",
            f"{info}/WHEEL",
        }
        unexpected = set(contents) - wanted - {f"{info}/RECORD"}
        if unexpected:
            raise Problem(f"{file.name} has {sorted(unexpected)[:3]}")
    else:
        wanted |= set(IN_SDIST)
        if any(name.startswith("tests/") for name in contents):
            raise Problem(f"{file.name} has the tests, with their data")
    if missing := wanted - set(contents):
        raise Problem(f"{file.name} has no {sorted(missing)[:3]}")
    if large := [name for name, data in contents.items() if len(data) > LARGEST_FILE]:
        raise Problem(f"{file.name} has large files: {large[:3]}")
    if file.stat().st_size > MOST_BYTES[file.suffix]:
        raise Problem(f"{file.name} has {file.stat().st_size:,} bytes")


def extras(wheel: Path) -> dict[str, list[str]]:
    """Return the packages that each extra of a command brings."""
    (metadata,) = (data for name, data in _contents(wheel).items() if name.endswith(".dist-info/METADATA"))
    message = BytesParser().parsebytes(metadata)
    required = {name: [] for name in message.get_all("Provides-Extra", []) if name not in OF_NO_COMMAND}
    for line in message.get_all("Requires-Dist", []):
        for name in required:
            if f"extra == '{name}'" in line or f'extra == "{name}"' in line:
                required[name].append(line.split(";")[0].strip())
    return required


def check_example(installed: Installed) -> Path:
    """Run the example, compare its tables with those of the checkout, and return its directory."""
    out, own = installed.directory / "example", installed.directory / "example-of-checkout"
    for directory, of_checkout in ((out, False), (own, True)):
        done = installed.run("predict", EXAMPLE, directory, "--devices", "cpu", of_checkout=of_checkout)
        if done.returncode:
            raise Problem(f"the example fails:\n{done.stderr}")
    tables = sorted(path.name for path in own.iterdir() if path.suffix in (".tsv", ".csv", ".txt"))
    if not tables:
        raise Problem("the example has no tables")
    for name in tables:
        if (out / name).read_bytes() != (own / name).read_bytes():
            raise Problem(f"{name} differs from that of the checkout")
    return out


def check_extras(installed: Installed, wheel: Path, out: Path) -> None:
    """Check the message without each extra, and that its command runs with all of them."""
    required = extras(wheel)
    if set(required) != set(NEEDS) or not all(required.values()):
        raise Problem(f"extras {required}; there are commands that need {sorted(NEEDS)}")
    reads = installed.directory / "reads.sam"
    reads.write_text(READS)
    with serving(RangeServer(EXAMPLE.read_bytes())) as url:
        commands = {
            name: [word.format(example=EXAMPLE, out=out, reads=reads, url=url) for word in words]
            for name, words in NEEDS.items()
        }
        _check_commands(installed, wheel, commands)


def _check_commands(installed: Installed, wheel: Path, commands: Mapping[str, Sequence[str]]) -> None:
    for name, words in commands.items():
        done = installed.run(*words)
        message = f"pip install 'virnuc-async[{name}]'"
        if not done.returncode or message not in done.stderr + done.stdout or "Traceback" in done.stderr:
            raise Problem(f"without the extra {name}, {' '.join(words)} says:\n{done.stderr}")
    installed.pip(f"{wheel}[all]")
    for words in commands.values():
        done = installed.run(*words, "--overwrite") if words[0] == "predict" else installed.run(*words)
        if done.returncode:
            raise Problem(f"{' '.join(words)}:\n{done.stderr}")


def _sources() -> Iterator[Path]:
    """Yield the files of the package."""
    yield from (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _contents(file: Path) -> dict[str, bytes]:
    """Return the files of a wheel, or of an sdist without its top directory."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(file) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        return {member.name.split("/", 1)[1]: archive.extractfile(member).read() for member in members}


def _run(
    words: Sequence[str | Path], *, place: Path | None = None, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    """Run a command without what the environment says of Python's paths."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(map(str, words)), cwd=place, env=environment, capture_output=True, text=True)
    if check and done.returncode:
        raise Problem(f"{' '.join(map(str, words))}:\n{done.stdout}{done.stderr}")
    return done


def main() -> None:
    """Run every check and say how long it took; the first problem ends it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dist", type=Path)
    dist: Path = parser.parse_args().dist
    start = time.monotonic()

    def report(text: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {text}", flush=True)

    files = build(dist)
    report(f"built {', '.join(file.name for file in files)}")
    _run([sys.executable, "-m", "twine", "check", "--strict", *files])
    for file in files:
        check_contents(file)
    report("metadata and contents are right")
    with TemporaryDirectory() as scratch:
        for file in files:
            installed = Installed(Path(scratch, file.suffix[1:]))
            _run([sys.executable, "-m", "venv", installed.directory])
            installed.pip(file)
            out = check_example(installed)
            report(f"{file.name} alone: the tables of the checkout")
            if file.suffix == ".whl":
                check_extras(installed, file, out)
                report("each extra: the message without it, the command with it")


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"release_check.py: {problem}")
