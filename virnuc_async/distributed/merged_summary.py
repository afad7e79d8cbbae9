"""The summary of a run whose shards were scored on several machines: as that of one, and where each was."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from virnuc_async.outputs.output_files import FinishedRun
from virnuc_async.outputs.shard_file import SECONDS, ShardFile
from virnuc_async.outputs.summary import Summary, count_all, input_facts, session_counts, settings_facts
from virnuc_async.settings import Precision, Settings

from .plan import RunPlan

_ADDED = ("batches", "orfs", "tokens", "busy_seconds")  # of the sessions of a device


def summarize(plan: RunPlan, shards: Sequence[ShardFile], command: str, run: FinishedRun) -> Summary:
    """Return the summary of *run*, of all *shards* of *plan*; nothing of it depends on when it is made."""
    counts = count_all(run.reader.totals(), run, run.paired.failures, Precision(plan.precision))
    return Summary(
        version=plan.version,
        command=command,
        settings=settings_facts(plan.settings_on(Settings()), run.rule),
        bundle={"name": plan.model, "fingerprint": plan.fingerprint},
        inputs=[input_facts(file) for file in run.reader.files()],
        counts=counts,
        devices=_devices(shards),
        # Of all machines together.
        # Of all machines together.
        seconds={name: round(sum(shard.seconds[name] for shard in shards), 3) for name in SECONDS},
        session=session_counts(counts, Counter()),
        reproducible=all(shard.reproducible for shard in shards),
        finished=True,
        versions={name: _joined(shard.versions[name] for shard in shards) for name in ("python", "torch")},
    )


def _joined(versions: Iterable[str]) -> str:
    return ", ".join(sorted(set(versions)))


def _devices(shards: Iterable[ShardFile]) -> list[dict[str, Any]]:
    """Return each device of each machine once, with all that it has done."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for shard in shards:
        for device in shard.devices:
            known = found.setdefault(
                (shard.host, device["name"], device["kind"]),
                {**device, **dict.fromkeys(_ADDED, 0), "peak_memory_bytes": 0, "host": shard.host},
            )
            known |= {name: known[name] + device[name] for name in _ADDED}
            known["peak_memory_bytes"] = max(known["peak_memory_bytes"], device["peak_memory_bytes"])
    for known in found.values():
        known["busy_seconds"] = round(known["busy_seconds"], 3)
    return list(found.values())
