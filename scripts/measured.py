"""
What belongs to a measurement: machine, versions, command and date; output as a table or JSON.

Nothing here needs the package to be installed: a checkout next to a torch of the machine's is enough.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from virnuc_async._version import __version__

_PACKAGES = ("torch", "triton", "numpy", "tokenizers", "anyio")


def facts(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the command, the date, the machine and the versions of a measurement."""
    return {
        "command": shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
            "load_at_start": round(os.getloadavg()[0], 2),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "virnuc-async": __version__,
        }
        | {name: installed(name) for name in _PACKAGES},
    }


def installed(package: str) -> str | None:
    """Return the version of an installed *package*, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write *content* as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return *rows*, which have the same keys, as a Markdown table."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([_format_value(row[name]) for name in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
