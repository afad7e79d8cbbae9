"""
Simulate a run on a cluster, in virtual time: which share of the GPUs' time scores, and what takes the rest.

Every option takes several values, separated by commas; every combination of them is simulated. ``--studies``
simulates those of docs/scale.md instead. No GPU exists here: the speed of one, and of its storage, are
assumptions, which the options show beside what was measured (cluster_model.py has the model).
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from cluster_model import Outcome, Parameters, Simulation, Spent
from measured import facts, save, table

# Each study: what is varied, in every combination. The rest is as the parameters have it.
STUDIES: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "seeds": {"segment_megabases": (64.0, 16.0), "seed": range(10)},
    "GPUs": {"gpus": (1, 10, 100, 300, 1000, 3000, 10_000)},
    "segments": {"gpus": (100, 1000, 10_000), "segment_megabases": (4.0, 8.0, 16.0, 32.0, 64.0)},
    "shards": {"gpus": (10, 100, 1000), "segments_per_shard": (1, 4, 12, 100)},
    "bandwidth": {"gpus": (100, 1000, 10_000), "bandwidth": (1.0, 5.0, 20.0, 100.0)},
    "format": {"gpus": (10, 100, 1000), "files": (1, 16, 128), "format": ("gzip", "bgzf")},
    "gzip": {"gpus": (10, 100), "files": (1, 16), "segments_per_shard": (12, 127), "format": ("gzip",)},
    "losses": {
        "segments_per_shard": (1, 12),
        "losses_per_hour": (0.0, 0.01, 0.05, 0.2, 1.0),
        "store": ("scratch", "shared"),
    },
    "tables": {"gpus": (10, 100, 1000), "tables": ("text", "parquet")},
    "workers": {"gpus": (100, 1000), "segments_per_shard": (1, 13), "workers": ("kept", "job")},
    "speed": {"orfs_per_second": (162.0, 809.0, 2026.0), "gpus": (100, 1000)},
    "commits": {"gpus": (100, 1000, 10_000), "operations": (2000.0, 20_000.0), "store": ("shared",)},
    "5 GB": {"orfs": (67e6,), "gigabytes": (5.0,), "files": (2,), "gpus": (1, 10, 30, 100)},
}


def main(arguments: list[str]) -> None:
    """Simulate every combination, print a table for each study, and write the results."""
    options = _parser().parse_args(arguments)
    chosen = {one.name: getattr(options, one.name) for one in fields(Parameters)}
    base = Parameters(**{name: values[0] for name, values in chosen.items()})
    varied = {name: values for name, values in chosen.items() if len(values) > 1}
    studies = STUDIES if options.studies else {"": varied or {"gpus": (base.gpus,)}}
    points = []
    for name, study in studies.items():
        rows = [{"study": name} | point for point in _points(base, study)]
        points += rows
        print(*([f"\n**{name}**\n"] if name else []), table([_row(row, study) for row in rows]), sep="\n")
    if options.output:
        record = {"simulated": True, **facts(arguments), "parameters": _described(base)}
        save(options.output, record | {"points": points})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for one in fields(Parameters):
        about = f"{one.metadata['unit']} (default {one.default}; {one.metadata['source']})"
        name = "--" + one.name.replace("_", "-")
        parser.add_argument(name, type=_reader(one), default=[one.default], help=about.replace("%", "%%"))
    parser.add_argument("--studies", action="store_true", help="simulate the studies of docs/scale.md")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def _reader(one: Field[Any]) -> Any:
    """Return what reads the values of a parameter."""
    kind, choices = type(one.default), one.metadata.get("choices")

    def values(text: str) -> list[Any]:
        found = [kind(word) for word in text.split(",")]
        if choices and not set(found) <= set(choices):
            raise argparse.ArgumentTypeError(f"one of {', '.join(choices)}, not {text!r}")
        return found

    return values


def _points(base: Parameters, study: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*study.values()):
        changed = dict(zip(study, values, strict=True))
        yield changed | simulate(replace(base, **changed))


def simulate(parameters: Parameters) -> dict[str, Any]:
    """Return what a run with *parameters* takes."""
    began = time.process_time()
    outcome = Simulation(parameters).run()
    whole = sum(outcome.spent.values())
    shares = {task.value: outcome.spent[task] / whole for task in Spent}
    return {
        "shards": parameters.shards,
        "done": outcome.done,
        "set_aside": outcome.set_aside,
        "lost_gpus": outcome.losses,
        "scoring_gpu_hours": outcome.spent[Spent.SCORING] / 3600,
        "held_gpu_hours": outcome.held / 3600,
        "plan_minutes": parameters.plan_seconds / 60,
        "shards_minutes": outcome.seconds / 60,
        "merge_minutes": parameters.merge_seconds / 60,
        "efficiency": outcome.efficiency,
        "efficiency_of_held": outcome.efficiency_of_held,
        "repeated_orfs": outcome.repeated_orfs,
        "copied_terabytes": outcome.storage_bytes / 1e12,
        "shares": shares,
        "limit": _limit(outcome),
        "events": outcome.events,
        "cpu_seconds": time.process_time() - began,
    }


def _limit(outcome: Outcome) -> str:
    """Return what takes most of the time in which nothing is scored."""
    return max((task for task in Spent if task is not Spent.SCORING), key=outcome.spent.__getitem__).value


def _row(point: Mapping[str, Any], study: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    limit = point["limit"]
    return {name.replace("_", " "): point[name] for name in study} | {
        "shards": point["shards"],
        "plan, min": point["plan_minutes"],
        "shards, min": point["shards_minutes"],
        "merge, min": point["merge_minutes"],
        "efficiency": f"{point['efficiency']:.1%}",
        "of GPUs held": f"{point['efficiency_of_held']:.1%}",
        "GPUs lost": point["lost_gpus"],
        "set aside": len(point["set_aside"]),
        "largest loss": f"{limit}, {point['shares'][limit]:.1%}",
    }


def _described(base: Parameters) -> dict[str, Any]:
    """Return each parameter with its value, unit and source."""
    values = asdict(base)
    return {
        one.name: {
            "value": values[one.name],
            "unit": one.metadata["unit"],
            "source": one.metadata["source"] if values[one.name] == one.default else "chosen",
        }
        for one in fields(Parameters)
    }


if __name__ == "__main__":
    main(sys.argv[1:])
