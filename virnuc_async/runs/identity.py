"""
What a run is identified by, and how two runs differ.

An identity is what JSON can hold: a value for each setting that changes results, and a list of files
for each kind of input. A file is a list of its path, which may change, and of what identifies its
content, which may not.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
