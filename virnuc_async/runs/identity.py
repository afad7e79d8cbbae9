"""
What a run is identified by, and how two runs differ.

An identity is what JSON can hold: a value for each setting that changes results, and a list of files
for each kind of input. A file is a list of its path, which may change, and of what identifies its
content, which may not.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from virnuc_async.sequences.inputs import STDIN, fingerprint
from virnuc_async.settings import Precision

from .feature_files import FeatureFile
from .plan import Plan

Identity = Mapping[str, Any]

_MAX_NAMED = 3  # files in a message


def describe_differences(old: Identity, new: Identity) -> Iterator[str]:
    """Yield a text for each key in which *new* differs from *old*; files may have other paths."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, list) and isinstance(after, list):
            if [content for _, *content in before] == [content for _, *content in after]:
                continue
            yield f"{key}: {_describe_files(dict(_by_path(before)), dict(_by_path(after)))}"
        else:
            yield f"{key}: {before} -> {after}"


def _by_path(files: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the path and the content of each file; a path that is given several times is numbered."""
    seen: Counter[str] = Counter()
    for path, *content in files:
        seen[path] += 1
        yield (path if seen[path] == 1 else f"{path} (no. {seen[path]})"), content


def _describe_files(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changes = [f"{path} was added" for path in new if path not in old]
    changes += [f"{path} was removed" for path in old if path not in new]
    changed = [path for path in new if path in old and old[path] != new[path]]
    changes += [f"{path} {'has changed' if any(new[path]) else 'cannot be read now'}" for path in changed]
    text = ", ".join(changes[:_MAX_NAMED]) or "the same files in another order"
    return text + (f" and {len(changes) - _MAX_NAMED} more" if len(changes) > _MAX_NAMED else "")


def run_identity(
    plan: Plan, precision: Precision, budget: int, reused: Iterable[FeatureFile]
) -> dict[str, Any]:
    """Return what identifies a run of *plan*: whatever changes its results."""
    kinds = sorted({device.kind for device in plan.devices})
    calibration = plan.calibration
    return {
        "inputs": [_location_and_fingerprint(path) for path in plan.paths],
        "model": f"{plan.bundle.name} ({plan.bundle.fingerprint})",
        "calibration": calibration.fingerprint if calibration else None,
        "devices": kinds[0] if len(kinds) == 1 else "of several kinds",
        "precision": precision,
        "tokens per batch": budget,
        "ORFs per window": plan.window,
        "compiled kernels": plan.compiled,
        "threshold": plan.settings.threshold,
        "embeddings": plan.settings.embeddings,
        "reused features": [[file.name, file.sha256] for file in reused],
    }


def _location_and_fingerprint(path: str) -> list[Any]:
    """Return where a file is, which may change, and the fingerprint of its content, which may not."""
    return [path if path == STDIN else os.path.abspath(path), fingerprint(path)]
