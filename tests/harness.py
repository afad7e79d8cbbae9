"""The pipeline on fake devices."""

from pathlib import Path

from fakes import Rules, fake_devices
from support import TABLES

from virnuc_async.models.bundle import Bundle
from virnuc_async.outputs.summary import Summary
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Intervals, Plan
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.orfs import open_frames
from virnuc_async.settings import Settings


class PipelineHarness:
    """Runs the pipeline on fake devices; a small budget and window, so that there is much to do."""

    def __init__(self, source: Path, bundle: Bundle, out: Path) -> None:
        self.source, self.bundle, self.out = source, bundle, out
        self.settings = Settings(tokens_per_batch=400)
        self.window = 15
        self.copies = 1
        self.intervals = Intervals()

    async def run(self, rules: Rules | None = None, devices: int = 1, out: str = "out") -> Summary:
        paths = (str(self.source),) * self.copies
        plan = Plan(
            paths, self.settings, self.bundle, fake_devices(devices), self.window, intervals=self.intervals
        )
        return await execute(plan, self.out / out, (rules or Rules()).scorer)

    def tables(self, out: str = "out") -> dict[str, bytes]:
        return {name: (self.out / out / name).read_bytes() for name in TABLES}

    def orfs(self) -> dict[str, int]:
        """The id of every ORF with its number of tokens, by the slow way."""
        lengths = {}
        for contig in read_contigs(str(self.source)):
            for number, (start, end) in enumerate(cut(len(contig.bases), self.bundle.length), 1):
                for orf in open_frames(contig.bases[start:end], [(0, end - start)]):
                    lengths[f"{contig.id.decode()}_chunk_{number}{orf.frame.name}"] = len(orf.protein) + 2
        return lengths
