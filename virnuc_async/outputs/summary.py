"""``summary.json``: the facts of a run, and the line that people read at its end."""

import json
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from virnuc_async._version import __version__
from virnuc_async.fileio import Directory
from virnuc_async.models.verdict_rule import VerdictRule
from virnuc_async.runs.failure import Failure
from virnuc_async.runs.reader import FileLine
from virnuc_async.runs.session import RunSession
from virnuc_async.runs.totals import Totals
from virnuc_async.settings import Precision, Settings
from virnuc_async.text import plural

from .columns import Chunks
from .samples import status

if TYPE_CHECKING:
    from .output_files import FinishedRun


@dataclass(frozen=True, slots=True)
class Summary:
    """The facts of a run, as ``summary.json`` holds them."""

    version: str
    command: str
    settings: dict[str, Any]
    bundle: dict[str, str]
    inputs: list[dict[str, Any]]
    counts: dict[str, int]
    devices: list[dict[str, Any]]
    seconds: dict[str, float]  # of the session that wrote this
    session: dict[str, int]  # ORFs and batches that it scored, and those that earlier ones had scored
    reproducible: bool
    finished: bool
    versions: dict[str, str] = field(default_factory=dict)  # Python's and torch's, of that session

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


def summary_text(summary: Summary) -> Chunks:
    """Yield ``summary.json``."""
    yield json.dumps(summary.as_dict(), indent=2).encode() + b"\n"


def read_summary(directory: Directory) -> Summary:
    """Return the summary that the ``summary.json`` of a run holds."""
    with directory.open("summary.json") as file:
        return Summary(**json.loads(file.read()))


def summary_line(summary: Summary, out_dir: Path) -> str:
    """Format the result of a run in one line."""
    counts, session = summary.counts, summary.session
    fragments, seconds = plural(counts["fragments"], "fragment"), summary.seconds["total"]
    scored = f"{plural(counts['orfs'], 'ORF')} of {fragments} scored in {seconds:.1f} s"
    if session["orfs_before"]:
        now = f"{plural(session['orfs'], 'ORF')} scored now"
        now += f" in {seconds:.1f} s" if session["orfs"] else ""
        scored = f"{now}, {session['orfs_before']:,} before, of {fragments}"
    return f"Viral: {viral_text(summary)} ({scored}). Tables are in {out_dir}{_failed(summary, out_dir)}"


class _Kind(NamedTuple):
    """How many there are of a kind."""

    name: str
    all: int
    viral: int
    short: int  # in no table


def _kinds(summary: Summary) -> list[_Kind]:
    """Return contigs, which are all records but reads, reads, and pairs, if there are any."""
    counts = Counter(summary.counts)
    contigs, reads, pairs = (
        [counts[f"{prefix}{kind}"] for prefix in ("", "viral_", "short_")]
        for kind in ("contigs", "reads", "pairs")
    )
    contigs = [every - of_reads for every, of_reads in zip(contigs, reads, strict=True)]
    kinds = [_Kind("contig", *contigs), _Kind("read", *reads), _Kind("pair", *pairs)]
    return [kind for kind in kinds if kind.all] or kinds[:1]


def viral_text(summary: Summary) -> str:
    """Format how many of each kind are viral: 3 of 12 contigs, 40 of 900 reads."""
    shown = ((kind, plural(kind.all - kind.short, kind.name)) for kind in _kinds(summary))
    return ", ".join(f"{kind.viral:,} of {count}" for kind, count in shown)


def _failed(summary: Summary, directory: Path) -> str:
    failed = summary.counts["failures"]
    return f"; {plural(failed, 'failure')} in {directory / 'failed_files.txt'}" if failed else ""


def tables_line(summary: Summary, directory: Path) -> str:
    """Format the result of a run, whose tables were written into *directory*, without how it was scored."""
    return f"Viral: {viral_text(summary)}. Tables are in {directory}{_failed(summary, directory)}"


def left_out_line(summary: Summary) -> str:
    """Format how many records and pairs are in no table, since they are short; empty if all are in one."""
    parts = [f"{kind.short:,} of {plural(kind.all, kind.name)}" for kind in _kinds(summary) if kind.short]
    if not parts:
        return ""
    return (
        f"shorter than {plural(summary.settings['min_length'], 'base')}, and in no table: {', '.join(parts)}"
    )


def of_earlier_sessions(summary: Summary) -> Summary:
    """Return the *summary* of a run to which a session has added nothing."""
    return replace(summary, session=session_counts(summary.counts, Counter()))


def summarize(session: RunSession, command: str, run: "FinishedRun | None" = None) -> Summary:
    """
    Return the summary of *session*, whose tables of contigs and pairs are those of *run*, if there are any.

    Call it in the thread that uses the store.
    """
    store, plan = session.store, session.plan
    totals = store.reader.totals()
    counts = count_all(totals, run, session.mates.failures, session.hardware.precision)
    return Summary(
        version=__version__,
        command=command,
        settings=_settings_used(session),
        bundle={"name": plan.bundle.name, "fingerprint": plan.bundle.fingerprint},
        inputs=[input_facts(file) for file in store.reader.files()],
        counts=counts,
        devices=device_facts(session, totals),
        seconds=session_seconds(session, totals),
        session=session_counts(counts, session.scored),
        reproducible=is_reproducible(session, totals),
        finished=store.is_finished,
        versions=versions_used(),
    )


def session_seconds(session: RunSession, totals: Totals) -> dict[str, float]:
    """Return how long *session* has taken, and its run, which has *totals*, in the model."""
    return {
        "total": round(time.monotonic() - session.messages.started, 3),
        "load": round(session.messages.load_seconds, 3),
        "model": round(sum(sums[3] for sums in totals.devices.values()), 3),
    }


def is_reproducible(session: RunSession, totals: Totals) -> bool:
    """Return whether the scores of *session* are those that any other run of its kind has."""
    return not totals.is_split and session.hardware.is_uniform


def versions_used() -> dict[str, str]:
    """Return the versions of what else decides the last digits of scores."""
    return {"python": platform.python_version(), "torch": version("torch")}


def device_facts(session: RunSession, totals: Totals) -> list[dict[str, Any]]:
    """Return what each device of *session* has done; call it in the thread that uses the store."""
    return [_device_facts(session, name, *sums) for name, sums in totals.devices.items()]


def summarize_again(
    earlier: Summary, precision: Precision, calibrated: bool | None, run: "FinishedRun"
) -> Summary:
    """
    Return the *earlier* summary of a run of this *precision*, whose tables are those of *run* now.

    *calibrated* is whether the calibration of its model is used; None if it has none.
    """
    made_by = asdict(run.options) | {"verdict_threshold": run.rule.threshold}
    made_by |= {} if calibrated is None else {"calibrated": calibrated}
    settings = {name: _to_json(made_by.get(name, value)) for name, value in earlier.settings.items()}
    counts = count_all(run.reader.totals(), run, run.paired.failures, precision)
    return replace(earlier, settings=settings, counts=counts)


def count_all(
    totals: Totals, run: "FinishedRun | None", more_failures: Sequence[Failure], precision: Precision
) -> dict[str, int]:
    """Return the counts of a summary: *totals*, and what was counted while tables were made, if any were."""
    counts = {
        "contigs": totals.contigs,
        "fragments": totals.fragments,
        "orfs": totals.scores,
        "batches": totals.batches,
        "viral_contigs": run.contigs["virus"] if run else 0,
        "failures": totals.failures + len(more_failures),
    }
    if run and run.reads["records"]:
        counts |= {"reads": run.reads["records"], "viral_reads": run.reads["virus"]}
    if run and run.paired.pairs:
        counts |= {"pairs": run.paired.pairs, "viral_pairs": run.pairs["virus"]}
    if run and run.options.min_length:
        counts["short_contigs"] = totals.contigs - run.contigs.total()
        if run.reads["records"]:
            counts["short_reads"] = run.reads["short"]
        if run.paired.pairs:
            counts["short_pairs"] = run.paired.pairs - run.pairs.total()
    if precision is not Precision.FP32:
        counts["orfs_recomputed"] = totals.recomputed
    if totals.reused is not None:
        counts["orfs_reused"] = totals.reused
    return counts


def session_counts(counts: Mapping[str, int], scored: Counter[str]) -> dict[str, int]:
    """Return which of *counts* a session has *scored*, and which earlier ones had."""
    now = {key: scored[key] for key in ("orfs", "batches")}
    return now | {f"{key}_before": counts[key] - number for key, number in now.items()}


def _settings_used(session: RunSession) -> dict[str, Any]:
    used = replace(
        session.settings, precision=session.hardware.precision, tokens_per_batch=session.hardware.budget
    )
    return settings_facts(used, session.plan.verdict_rule)


def settings_facts(settings: Settings, rule: VerdictRule) -> dict[str, Any]:
    """Return what a summary has of *settings*, with verdicts by *rule*."""
    values = asdict(settings) | {"verdict_by": rule.by, "verdict_threshold": rule.threshold}
    # What has no effect, and what is of one session's machine.
    del values["compile"], values["temporary_dir"]
    return {key: _to_json(value) for key, value in values.items()}


def _device_facts(
    session: RunSession, name: str, batches: int, orfs: int, tokens: int, seconds: float
) -> dict[str, Any]:
    used = session.devices_used().get(name, {})
    return {
        "name": name,
        "kind": used.get("kind", "of an earlier session"),
        "precision": str(session.hardware.precision),
        "tokens_per_batch": session.hardware.budget,
        "batches": batches,
        "orfs": orfs,
        "tokens": tokens,
        "busy_seconds": round(seconds, 3),
        "peak_memory_bytes": used.get("peak_memory_bytes", 0),
    }


def input_facts(file: FileLine) -> dict[str, Any]:
    """Return what a summary has of an input."""
    return {"path": file.path, "contigs": file.contigs or 0, "status": status(file)}


def _to_json(value: Any) -> Any:
    """Return what JSON can hold of a setting."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
