"""
Pictures of what a terminal shows in the middle of a run, at 40, 80 and 140 columns, as SVG files.

The run is a real one, of the shipped model on the CPU; the pictures are what it showed half way.
"""

import argparse
import io
import re
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text
from samples import Source, write

from virnuc_async.cli.progress_bars import RunView, styled
from virnuc_async.log import PROGRESS, logger
from virnuc_async.models.bundle import find
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Intervals, Plan
from virnuc_async.settings import Settings

_WIDTHS = (40, 80, 140)
_COMMAND = "python -m virnuc_async predict sample_1.fa sample_2.fa out/ --devices cpu,cpu"
# Without the fonts that rich would fetch from elsewhere: a reader's own are as good.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


class Camera:
    """A sink that takes a picture of each width, once so much of the work is done."""

    def __init__(self, directory: Path, work: Path, share: float) -> None:
        self.pictures: list[Path] = []
        self._directory, self._work, self._share = directory, f"{work}/", share
        self._messages: list[Text] = []

    def __call__(self, message: Any) -> None:
        """See one record."""
        counts = message.record["extra"].get("counts")
        if counts is None:
            self._messages.append(styled(message.replace(self._work, ""), message.record["level"].name))
        elif counts.is_scoring and counts.share >= self._share and not self.pictures:
            self.pictures = [self._take(counts, width) for width in _WIDTHS]

    def _take(self, counts: Any, width: int) -> Path:
        console = Console(file=io.StringIO(), record=True, width=width, force_terminal=True)
        view = RunView()
        view.counts = counts
        console.print(Text(f"$ {_COMMAND}", "bold"))
        for text in self._messages:
            console.print(text)  # wrapped here: a terminal does it by itself
        console.print(view)
        path = self._directory / f"progress-{width}.svg"
        svg = console.export_svg(title="virnuc-async", code_format=_FORMAT, unique_id=f"progress-{width}")
        path.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), "utf-8")
        return path


def main(arguments: Sequence[str]) -> None:
    """Run, and print where the pictures are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("docs/pictures"), help="directory of the pictures")
    add("--megabases", type=float, default=1.5, help="of contigs in each of two files")
    add("--share", type=float, default=0.55, help="of the work that is done then")
    add("--fasta", type=Path, default=Path("docs/examples/metagenome.fa.gz"), help="what input is made of")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        for picture in _run(options, work):
            print(picture)


def _run(options: argparse.Namespace, work: Path) -> list[Path]:
    source, paths = Source.read(options.fasta), [work / "sample_1.fa", work / "sample_2.fa"]
    for seed, path in enumerate(paths):
        write(path, source, "contigs", int(options.megabases * 1e6), seed)
    bundle = find("tiny-500")
    settings = Settings(bundle.directory, devices=("cpu", "cpu"))
    plan = Plan(tuple(map(str, paths)), settings, bundle, intervals=Intervals(progress=0.05, devices=2.0))
    camera = Camera(options.output, work, options.share)
    sink = logger.add(camera, format=_format, level="INFO", catch=False)
    try:
        anyio.run(partial(execute, plan, work / "out"))
    finally:
        logger.remove(sink)
    return camera.pictures


def _format(record: Any) -> str:
    is_quiet = record["level"].name in ("INFO", PROGRESS)
    return "{message}" if is_quiet else "{level.name}: {message}"


if __name__ == "__main__":
    main(sys.argv[1:])
