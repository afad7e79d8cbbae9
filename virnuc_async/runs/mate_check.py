"""Which files of a run hold mates, and whether the ids of their records agree."""

import os
from collections.abc import Iterator

from anyio import from_thread

from virnuc_async.errors import Stage
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
        self._has_read_flags = False

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
                self._warn_of_mismatch(mates, compared)
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

    def verified_pairs(self, reader: RunReader) -> list[Mates]:
        """
        Return the mates whose ids agree to the last record, or to where a file breaks; warn of the others.

        Call it in a worker thread, when all records can be read by *reader*.
        """
        counts, files, verified = self._messages.counts, list(reader.files()), list[Mates]()
        status, counts.status = counts.status, "comparing the ids of mates"

        def ids(file: int) -> Iterator[bytes]:
            for block in reader.ids(file):
                from_thread.check_cancelled()
                yield from block

        self._add_mates_by_flags()
        self.failures.clear()
        for mates in self.mates:
            compared = compare(mates, ids)
            if not compared.differ:
                verified += [mates] * bool(compared.pairs)
            elif is_truncated(mates, compared, files):
                verified += [mates] * bool(compared.pairs)
                self._warn_of_truncation(mates, compared.pairs)
            elif self._plan.settings.pairs == Pairing.INTERLEAVED:
                reason = describe_mismatch(mates, compared, self._plan.paths)
                self.failures.append(Failure(self._plan.paths[mates.first], Stage.INPUT, reason))
                self._messages.log_failure(self.failures[-1])
            elif mates not in self._mismatched:
                self._warn_of_mismatch(mates, compared)
        counts.status = status
        return verified

    def _add_mates_by_flags(self) -> None:
        """Add the files of alignments whose neighbouring records should be mates, as flags say, once."""
        if self._plan.settings.pairs == Pairing.AUTO and not self._has_read_flags:
            named = {file for mates in self.mates for file in mates}
            others = ((number, path) for number, path in enumerate(self._plan.paths) if number not in named)
            found = (
                Mates(number, number) for number, path in others if os.path.isfile(path) and has_mates(path)
            )
            self.mates = sorted([*self.mates, *found])
            self._has_read_flags = True

    def _warn_of_truncation(self, mates: Mates, pairs: int) -> None:
        names = " and ".join(dict.fromkeys(self._plan.paths[file] for file in mates))
        self._log.warning("{}: {} before the break, none behind it", names, plural(pairs, "pair"))

    def _warn_of_mismatch(self, mates: Mates, compared: PairComparison) -> None:
        reason = describe_mismatch(mates, compared, self._plan.paths)
        if mates.are_interleaved:
            hint = "" if self._plan.settings.pairs == Pairing.INTERLEAVED else _COLLATE
            self._log.warning(
                "{}: {}. Its records are not paired{}", self._plan.paths[mates.first], reason, hint
            )
        else:
            self._log.warning(
                "{}. These files are not paired. 'seqkit pair' or BBTools' repair.sh sorts such files; "
                "--pairs off ignores the names of files",
                reason,
            )
        self._mismatched.add(mates)
