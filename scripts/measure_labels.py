"""How long it takes to label reads, and how much memory: ``python scripts/measure_labels.py``."""

import argparse
import random
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pysam
from measured import facts, save

from virnuc_async.cli.main import main as command
from virnuc_async.outputs.written_again import write_labels
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.settings import CallRules, LabelRules

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "metagenome.fa.gz"


def write_alignments(path: Path, reads: int) -> None:
    """Write *reads* alignments of 150 bases, in the order of their places; every tenth read has two."""
    contigs = [(contig.id.decode(), len(contig.bases)) for contig in read_contigs(str(EXAMPLE))]
    header = pysam.AlignmentHeader.from_dict(
        {"HD": {"VN": "1.6"}, "SQ": [{"SN": name, "LN": length} for name, length in contigs]}
    )
    rng = random.Random(1)
    record = pysam.AlignedSegment(header)
    record.query_sequence, record.cigarstring = "A" * 150, "5S140M5S"
    with pysam.AlignmentFile(str(path), "wb", header=header) as file:
        for _ in range(reads):
            record.query_name = f"A00123:45:HXXXXXXXX:1:1101:{rng.randrange(reads)}:1000"
            record.reference_id, record.reference_start = rng.randrange(len(contigs)), 1
            record.mapping_quality = rng.randrange(61)
            record.set_tag("NM", rng.randrange(20))
            file.write(record)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reads", type=int, default=5_000_000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as scratch:
        out, bam = Path(scratch, "out"), Path(scratch, "reads.bam")
        command(["predict", str(EXAMPLE), str(out), "--devices", "cpu", "--quiet"])
        write_alignments(bam, options.reads)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        begun = time.monotonic()
        tally = write_labels(out, str(bam), Path(scratch, "labels.tsv.gz"), CallRules(), LabelRules())
        seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "alignments": options.reads,
        "reads": tally.total(),
        "seconds": round(seconds, 1),
        "peak_bytes_before": before,
        "peak_bytes": peak,
    }
    print(found)
    if options.output:
        save(options.output, facts(arguments) | {"result": found})


if __name__ == "__main__":
    main(sys.argv[1:])
