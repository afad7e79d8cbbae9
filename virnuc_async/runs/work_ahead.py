"""
How much work an input is, estimated while it is read.

Work is counted in residue tokens, which is what a device takes its time for. What is not read yet is taken to
have as many tokens a byte as what was read of files of the same kind; of a kind of which nothing was read,
as many as all others, times what kinds differ by, roughly.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from virnuc_async.sequences.reading import FileKind, Place


class Work(NamedTuple):
    """An amount of work."""

    orfs: float = 0
    tokens: float = 0

    def plus(self, other: "Work") -> "Work":
        """Return the sum."""
        return Work(self.orfs + other.orfs, self.tokens + other.tokens)

    def times(self, factor: float) -> "Work":
        """Return so much of it."""
        return Work(self.orfs * factor, self.tokens * factor)


@dataclass(slots=True)
class _Bytes:
    """The bytes of the files of one kind: those ahead, those read, and the work that was in these."""

    ahead: float = 0.0
    read: float = 0.0
    work: Work = Work()


class WorkAhead:
    """
    The work of the inputs, each given as its path and its size.

    A size is None if nobody knows it, as that of a pipe: until that is read there is no estimate.
    """

    def __init__(self, files: Sequence[tuple[str, int | None]] = ()) -> None:
        self.read = Work()  # so far
        self._kinds = [FileKind.of(path) for path, _ in files]
        self._sizes = [size for _, size in files]
        self._of_kind: dict[FileKind, _Bytes] = {kind: _Bytes() for kind in self._kinds}
        for kind, size in zip(self._kinds, self._sizes, strict=True):
            self._of_kind[kind].ahead += size or 0
        self._last_unknown = max(
            (number for number, size in enumerate(self._sizes) if size is None), default=-1
        )
        self.place = Place(0)  # up to which the inputs are read
        self._pending = Work()  # read from bytes that are not counted yet
        self._is_all_read = not files

    def add(self, work: Work, end: Place, broken: Collection[int] = ()) -> None:
        """Add the *work* of what was read up to *end*; nothing more comes of the files that are *broken*."""
        self.read, self._pending = self.read.plus(work), self._pending.plus(work)
        parts = list(self._parts(end, broken))
        if any(
            self._sizes[file] is None for file in range(self.place.file, min(end.file + 1, len(self._sizes)))
        ):
            self._pending = Work()  # perhaps of what has no size
        weights = [count * self._a_byte(kind).tokens or count for kind, count in parts]
        whole = sum(weights)
        for (kind, count), weight in zip(parts, weights, strict=True):
            one = self._of_kind[kind]
            one.read, one.work = one.read + count, one.work.plus(self._pending.times(weight / whole))
        if parts:
            self._pending = Work()
        self.place = max(self.place, end)

    def end(self) -> None:
        """Note that all inputs are read."""
        self._is_all_read = True

    @property
    def has_unknown(self) -> bool:
        """Whether an input is ahead, or being read, whose size nobody knows."""
        return not self._is_all_read and self.place.file <= self._last_unknown

    def total(self) -> Work | None:
        """Return the work of all inputs, read or not; None if there is no estimate."""
        if self._is_all_read:
            return self.read
        if self.has_unknown or not any(one.read for one in self._of_kind.values()):
            return None
        total = self.read
        for kind, one in self._of_kind.items():
            total = total.plus(self._a_byte(kind).times(one.ahead))
        return total

    def _parts(self, end: Place, broken: Collection[int]) -> Iterator[tuple[FileKind, float]]:
        """Yield kind and number of the bytes up to *end* of each file; they are not ahead any more."""
        for file in range(self.place.file, min(end.file + 1, len(self._sizes))):
            size, kind = self._sizes[file] or 0, self._kinds[file]
            begin = min(self.place.offset, size) if file == self.place.file else 0.0
            stop = size if file < end.file else min(end.offset, size)
            if stop > begin:
                self._of_kind[kind].ahead -= stop - begin
                if file not in broken:
                    yield kind, stop - begin

    def _a_byte(self, kind: FileKind) -> Work:
        """Return the work that a byte of *kind* has, as far as that is known."""
        one = self._of_kind[kind]
        if one.read:
            return one.work.times(1 / one.read)
        rough = sum(other.read * of.work_a_byte for of, other in self._of_kind.items())
        work = Work()
        for other in self._of_kind.values():
            work = work.plus(other.work)
        return work.times(kind.work_a_byte / rough) if rough else Work()
