"""How the files that a run is given differ from those that it was begun with."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_MAX_NAMED = 3  # files in a message
_STREAM = ["stream"]  # in the place of a fingerprint

Files = Sequence[Sequence[Any]]  # each a path and what identifies its content, as in an identity


@dataclass(frozen=True, slots=True)
class FileChanges:
    """How *new* inputs differ from the *old* ones; whatever is only moved or touched does not differ."""

    old: Files
    new: Files

    def __str__(self) -> str:
        """Return a text for people; empty if the content is the same, in the same order."""
        return "" if _contents(self.old) == _contents(self.new) else describe_files(self.old, self.new)

    @property
    def are_corrections(self) -> bool:
        """Whether it can be the same run: an old input is among the new ones, and none was lost."""
        old, new = dict(_by_path(self.old)), dict(_by_path(self.new))
        # What could be read before and cannot be now may come back, and its results with it.
        is_lost = any(_is_known(old[path]) and not _is_known(new[path]) for path in old.keys() & new.keys())
        return not is_lost and (bool(old.keys() & new.keys()) or self.share_content)

    @property
    def share_content(self) -> bool:
        """Whether a file with the content of an old one is among the new ones, under any name."""
        return bool(_fingerprints(self.old) & _fingerprints(self.new))

    def is_same_file(self, number: int) -> bool:
        """Whether input *number* is where it was, with the content that it had."""
        return number < min(len(self.old), len(self.new)) and self.old[number] == self.new[number]


def describe_files(old: Files, new: Files) -> str:
    """Format how two lists of files differ, in one line."""
    before, after = dict(_by_path(old)), dict(_by_path(new))
    changes = [f"{path} was added" for path in after if path not in before]
    changes += [f"{path} was removed" for path in before if path not in after]
    changed = [path for path in after if path in before and before[path] != after[path]]
    changes += [f"{path} {_describe_change(before[path], after[path])}" for path in changed]
    text = ", ".join(changes[:_MAX_NAMED]) or "the same files in another order"
    return text + (f" and {len(changes) - _MAX_NAMED} more" if len(changes) > _MAX_NAMED else "")


def _describe_change(before: Sequence[Any], after: Sequence[Any]) -> str:
    if not _is_known(after):
        return "cannot be read now"
    return "has changed" if _is_known(before) else "can be read now"


def _contents(files: Files) -> list[Sequence[Any]]:
    return [content for _, *content in files]


def _is_known(content: Sequence[Any]) -> bool:
    return any(content)


def _fingerprints(files: Files) -> set[str]:
    """Return what identifies the content of each file that has such a thing: a stream has none."""
    return {repr(content) for content in _contents(files) if _is_known(content) and content != [_STREAM]}


def _by_path(files: Files) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the path and the content of each file; a path that is given several times is numbered."""
    seen: Counter[str] = Counter()
    for path, *content in files:
        seen[path] += 1
        yield (path if seen[path] == 1 else f"{path} (no. {seen[path]})"), content
