"""
What a run is identified by, and how two runs differ.

An identity is what JSON can hold: a value for each setting that changes results, and a list of files
for each kind of input. A file is a list of its path, which may change, and of what identifies its
content, which may not.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from virnuc_async.sequences.files import absolute
from virnuc_async.sequences.inputs import STDIN, InputVersion

from .feature_files import FeatureFile
from .file_changes import FileChanges
from .plan import Plan, PlannedPart

Identity = Mapping[str, Any]

# Keys of earlier versions that decide nothing any more.
_RETIRED = frozenset({"compiled kernels"})

_HINTS = {"devices": " (last digits would differ: go on with the kind that it was begun on)"}


def describe_differences(old: Identity, new: Identity) -> Iterator[str]:
    """Yield a text for each key in which *new* differs from *old*; files may have other paths."""
    for key in sorted((old.keys() | new.keys()) - _RETIRED):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, list) and isinstance(after, list):
            if changes := str(FileChanges(before, after)):
                yield f"{key}: {changes}"
        else:
            yield f"{key}: {before} -> {after}{_HINTS.get(key, '')}"


def has_corrected_inputs(old: Identity, new: Identity) -> bool:
    """Return whether *new* is the run *old*, with inputs that were corrected or added to."""
    others = ({key: value for key, value in one.items() if key != "inputs"} for one in (old, new))
    return (
        not any(describe_differences(*others)) and FileChanges(old["inputs"], new["inputs"]).are_corrections
    )


def run_identity(
    plan: Plan, versions: Mapping[str, InputVersion], reused: Iterable[FeatureFile]
) -> dict[str, Any]:
    """
    Return what identifies a run of *plan*, whatever its hardware: what changes its scores.

    *versions* has what its inputs are.
    """
    return {
        "inputs": [[_location(path), versions[path].fingerprint] for path in plan.paths],
        "model": f"{plan.bundle.name} ({plan.bundle.fingerprint})",
        "ORFs per window": plan.window,
        "bases per segment": plan.segment,
        "reused features": [[file.name, file.sha256] for file in reused],
        **(_part_identity(plan.part) if plan.part else {}),
    }


def _part_identity(part: PlannedPart) -> dict[str, Any]:
    return {"plan": part.plan, "shard": part.shard, "span": part.span.to_json()}


def _location(path: str) -> str:
    return path if path == STDIN else absolute(path)
