"""The script that measures scans."""

import gzip
import json
from pathlib import Path

import bench_scan
from support import ROOT

from virnuc_async.sequences import decompression


def test_scans_are_measured_in_each_form(tmp_path: Path) -> None:
    fast, output = decompression.zlib_ng, tmp_path / "scan.json"
    fasta = str(ROOT / "docs" / "examples" / "metagenome.fa.gz")
    bench_scan.main(["--megabases", "0.1", "--pairs", "1", "--fasta", fasta, "--output", str(output)])
    cases = json.loads(output.read_text("utf-8"))["cases"]
    assert [case["input"] for case in cases] == [
        "FASTQ.gz",
        "FASTQ, BGZF",
        "FASTQ",
        "FASTA.gz of reads",
        "FASTA.gz of contigs",
    ]
    assert all(case["zlib, Mb/s"] > 1 and case["lowest"] == case["gain"] == case["highest"] for case in cases)
    assert decompression.zlib_ng is fast


def test_bgzf_is_gzip_in_members() -> None:
    text = bytes(range(256)) * 999
    members = b"".join(bench_scan._members(text))
    assert gzip.decompress(members) == text
    assert members.count(b"BC\x02\0") == 5  # of which the last one is empty
