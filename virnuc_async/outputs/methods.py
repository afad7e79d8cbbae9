"""The methods paragraph of a run: what was done, by which versions, to be pasted into a paper."""

from collections.abc import Iterator, Mapping
from typing import Any

from virnuc_async.models.citations import DNABERT_S, ESM_2, VIRNUCPRO
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.text import plural

from .summary import Summary

# In the order in which the paragraph cites them: [1], [2], [3].
CITED = (VIRNUCPRO, ESM_2, DNABERT_S)

_PRECISIONS = {
    "fp32": "32-bit floating point",
    "bf16": "bfloat16",
    "fp16": "16-bit floating point",
    "fp8": "8-bit floating point",
}


def methods_text(summary: Summary, length: int, rule: VerdictRule) -> str:
    """Return the paragraph for the run of *summary*; *length* is what contigs were cut into, in bases."""
    counts, bundle = summary.counts, summary.bundle
    sequences, files = plural(counts["contigs"], "sequence"), plural(len(summary.inputs), "input file")
    fragments, frames = plural(counts["fragments"], "fragment"), plural(counts["orfs"], "frame")
    sentences = (
        f"Viral sequences were predicted with virnuc-async {summary.version}{_versions(summary)}, an "
        f"implementation of the VirNucPro method [1], and the model {bundle['name']} (fingerprint "
        f"{bundle['fingerprint']}).",
        f"{sequences} from {files} were cut into {fragments} of {length} bp, which were translated in six "
        "reading frames.",
        f"The {frames} without a stop codon were embedded with ESM-2 [2] (amino acids) and DNABERT-S [3] "
        f"(nucleotides) and scored by the classifier of the model{_hardware(summary)}.",
        "A fragment was considered viral if the highest viral score of its frames was at least the highest "
        f"non-viral score, and a sequence if {rule.criterion('were')}.",
        *_left_out(summary),
        f"{plural(counts['viral_contigs'], 'sequence')} met this criterion.",
        *_failed(counts["failures"]),
    )
    return " ".join(sentences)


def _versions(summary: Summary) -> str:
    names = {"python": "Python", "torch": "PyTorch"}
    known = [f"{names[name]} {text}" for name, text in summary.versions.items() if name in names]
    return f" ({', '.join(known)})" if known else ""


def _left_out(summary: Summary) -> Iterator[str]:
    if short := summary.counts.get("short_contigs", 0):
        least = plural(summary.settings["min_length"], "base")
        yield f"{plural(short, 'sequence')} of fewer than {least} were left out."


def _failed(failures: int) -> Iterator[str]:
    if failures:
        yield f"Inputs or frames that could not be processed: {failures:,}."


def _hardware(summary: Summary) -> str:
    kinds = dict.fromkeys(_kind(device) for device in summary.devices)
    precisions = dict.fromkeys(device["precision"] for device in summary.devices)
    if not kinds:
        return ""
    numbers = " and ".join(_PRECISIONS.get(precision, precision) for precision in precisions)
    return f", in {numbers} on {', '.join(kinds)}"


def _kind(device: Mapping[str, Any]) -> str:
    return str(device["kind"]) if device["kind"] != "of an earlier session" else str(device["name"])
