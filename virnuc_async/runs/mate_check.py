"""Which files of a run hold mates, and whether the ids of their records agree."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from anyio import from_thread

from virnuc_async.errors import Stage
from virnuc_async.sequences.files import is_regular
from virnuc_async.sequences.inputs import Reader, has_mates
from virnuc_async.sequences.mates import (
    Mates,
    PairComparison,
    check_first_records,
    compare,
    describe_mismatch,
    find_mates,
    is_truncated,
)
from virnuc_async.settings import Pairing
from virnuc_async.text import plural

from .failure import Failure
from .messages import RunMessages
from .plan import Plan
from .reader import RunReader

_COLLATE = "; 'samtools collate -o OUT.bam IN.bam' makes neighbours of mates"
_MAX_NAMED = 3  # pairs of files in the log


class PairedFiles(NamedTuple):
    """The files whose ids agree to the last record, and what is to be said of the others."""

    mates: list[Mates]
    pairs: int  # of records
    failures: list[Failure]  # of files that should be interleaved and are not
    warnings: list[tuple[Mates, str]]


def verify_mates(
    all_mates: Iterable[Mates], reader: RunReader, pairing: Pairing, before_each: Callable[[], None]
) -> PairedFiles:
    """
    Return which of *all_mates* agree to the last record, or to where a file breaks, as *reader* has them.

    *before_each* is called before each part of a file.
    """
    paths, files, found = reader.paths(), list(reader.files()), PairedFiles([], 0, [], [])

    def ids(file: int) -> Iterator[bytes]:
        for block in reader.ids(file):
            before_each()
            yield from block

    for mates in all_mates:
        compared = compare(mates, ids)
        is_broken = is_truncated(mates, compared, files)
        if not compared.differ or is_broken:
            found.mates.extend([mates] * bool(compared.pairs))
            found = found._replace(pairs=found.pairs + compared.pairs)
        if is_broken:
            found.warnings.append((mates, _truncation(mates, compared.pairs, paths)))
        elif compared.differ and pairing == Pairing.INTERLEAVED:
            reason = describe_mismatch(mates, compared, paths)
            found.failures.append(Failure(paths[mates.first], Stage.INPUT, reason))
        elif compared.differ:
            found.warnings.append((mates, _mismatch(mates, compared, paths, pairing)))
    return found


def mates_by_flags(mates: Iterable[Mates], files: Iterable[int]) -> list[Mates]:
    """Return *mates* with the *files* of alignments whose neighbouring records are mates, as flags say."""
    named = {file for pair in mates for file in pair}
    return sorted([*mates, *(Mates(number, number) for number in files if number not in named)])


def find_pairs(
    reader: RunReader,
    pairing: Pairing,
    flagged: Iterable[int] | None,
    before_each: Callable[[], None] = lambda: None,
) -> PairedFiles:
    """
    Return which files of the finished run that *reader* reads are paired.

    *flagged* are files of alignments, as for :func:`mates_by_flags`; None: they are looked at again.
    *before_each* is as for :func:`verify_mates`.
    """
    paths = reader.paths()
    mates = find_mates(paths, pairing)
    if pairing == Pairing.AUTO:
        mates = mates_by_flags(mates, files_with_mates(paths) if flagged is None else flagged)
    return verify_mates(mates, reader, pairing, before_each)


def files_with_mates(paths: Sequence[str]) -> list[int]:
    """Return which of *paths*, by number, are alignments whose first read has a mate, by its flags."""
    return [number for number, path in enumerate(paths) if is_regular(path) and has_mates(path)]


class MateCheck:
    """
    The files of *plan* that are named as mates, and what their ids say.

    ``mates`` are found by the names of files; ``failures`` are files that should be interleaved and
    are not.
    """

    def __init__(self, plan: Plan, messages: RunMessages) -> None:
        self.mates: list[Mates] = find_mates(plan.paths, plan.settings.pairs)
        self.failures: list[Failure] = []
        self._plan = plan
        self._messages = messages
        self._log = messages.log
        self._mismatched: set[Mates] = set()  # that were warned of

    @cached_property
    def flagged(self) -> list[int]:
        """The files of alignments whose neighbouring records should be mates, as flags say."""
        return files_with_mates(self._plan.paths)

    def log_pairing(self, read: Reader) -> None:
        """
        Log which files are paired, and warn of those whose first records disagree.

        It is better known before days are spent on scoring. Call it in a worker thread.
        """
        self._add_mates_by_flags()
        for mates in self.mates:
            from_thread.check_cancelled()
            compared = check_first_records(mates, self._plan.paths, read)
            if compared.differ:
                self._warn(mates, _mismatch(mates, compared, self._plan.paths, self._plan.settings.pairs))
        paired = [mates for mates in self.mates if mates not in self._mismatched]
        if paired and self._plan.settings.pairs == Pairing.INTERLEAVED:
            self._log.info("neighbouring records of each file are paired")
            return
        for mates in paired[:_MAX_NAMED]:
            first, second = (self._plan.paths[file] for file in mates)
            if mates.are_interleaved:
                self._log.info("{}: neighbouring records are paired, as their flags say", first)
            else:
                self._log.info("{} and {} are paired", first, second)
        if len(paired) > _MAX_NAMED:
            self._log.info("{} of files are paired, too", plural(len(paired) - _MAX_NAMED, "more pair"))

    def verify(self, reader: RunReader) -> PairedFiles:
        """
        Return the mates whose ids agree to the last record, or to where a file breaks; warn of the others.

        Call it in a worker thread, when all records can be read by *reader*.
        """
        counts = self._messages.counts
        status, counts.status = counts.status, "comparing the ids of mates"
        self._add_mates_by_flags()
        found = verify_mates(self.mates, reader, self._plan.settings.pairs, from_thread.check_cancelled)
        self.failures = found.failures
        for failure in found.failures:
            self._messages.log_failure(failure)
        for mates, text in found.warnings:
            if mates not in self._mismatched:
                self._warn(mates, text)
        counts.status = status
        return found

    def _add_mates_by_flags(self) -> None:
        if self._plan.settings.pairs == Pairing.AUTO:
            self.mates = mates_by_flags(self.mates, self.flagged)

    def _warn(self, mates: Mates, text: str) -> None:
        self._log.warning("{}", text)
        self._mismatched.add(mates)


def _truncation(mates: Mates, pairs: int, paths: Sequence[str]) -> str:
    names = " and ".join(dict.fromkeys(paths[file] for file in mates))
    return f"{names}: {plural(pairs, 'pair')} before the break, none behind it"


def _mismatch(mates: Mates, compared: PairComparison, paths: Sequence[str], pairing: Pairing) -> str:
    reason = describe_mismatch(mates, compared, paths)
    if mates.are_interleaved:
        hint = "" if pairing == Pairing.INTERLEAVED else _COLLATE
        return f"{paths[mates.first]}: {reason}. Its records are not paired{hint}"
    return (
        f"{reason}. These files are not paired. 'seqkit pair' or BBTools' repair.sh sorts such files; "
        "--pairs off ignores the names of files"
    )
