"""``tables``: the files of a finished run, made again with other settings."""

import sys
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnuc_async.cli.console import status_lines
from virnuc_async.cli.environment import cache_from, temporary_dir
from virnuc_async.cli.exit_codes import DONE, INCOMPLETE
from virnuc_async.cli.options import (
    OF_REGIONS,
    add_cache_option,
    add_call_rules,
    add_pairs_option,
    add_region_rules,
    add_table_options,
    add_threshold_option,
    add_verdict_options,
    add_viral_options,
    given_rules,
    viral_fasta_from,
)
from virnuc_async.cli.parser import add_command, path, path_text
from virnuc_async.errors import UsageError
from virnuc_async.settings import CallRules, RegionRules, formats

if TYPE_CHECKING:
    from virnuc_async.outputs.written_again import Changes

_STDOUT = "-"
_EXAMPLES = """\
examples:
  python -m virnuc_async tables out/ --threshold 0.8
  python -m virnuc_async tables out/ --min-length 1000 --calls --output long/
  python -m virnuc_async tables out/ --table contigs | head
  python -m virnuc_async tables out/ --table fragments --to fragments.tsv.gz

Everything is made from run.sqlite3; nothing is computed again. What is not given stays as it was when the
files were made. Without --output and --table, the files in OUT_DIR are replaced.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    purpose = "make the tables of a finished run again, with other settings"
    parser = add_command(commands, "tables", purpose, _EXAMPLES)
    parser.add_argument("out_dir", type=path, metavar="OUT_DIR", help="the output directory of a run")
    _add_places(parser.add_argument_group("where to"))
    tables = parser.add_argument_group("tables")
    add_threshold_option(tables, None)
    add_verdict_options(tables, "as before")
    add_pairs_option(tables, None)
    add_table_options(tables, is_again=True)
    tables.add_argument(
        "--calibration",
        dest="calibrated",
        action=BooleanOptionalAction,
        help="add p_virus_calibrated and q, or omit them (default: as before)",
    )
    tables.add_argument(
        "--model",
        type=path_text,
        metavar="NAME|DIR",
        help="take the calibration from this model, which must be the run's (default: as it was then)",
    )
    add_cache_option(tables)
    calls = parser.add_argument_group("calls")
    calls.add_argument(
        "--calls",
        action=BooleanOptionalAction,
        help="also write contig_calls.tsv, or remove it; implied by the options below (default: as before)",
    )
    add_call_rules(calls, None)
    regions = parser.add_argument_group("regions")
    regions.add_argument(
        "--regions",
        action=BooleanOptionalAction,
        help="also write regions.bed and regions.gff3, or remove them; implied by the options below "
        "(default: as before)",
    )
    add_region_rules(regions, None)
    add_viral_options(parser.add_argument_group("viral sequences"))
    parser.set_defaults(run=run)


def _add_places(group: Any) -> None:
    place = group.add_mutually_exclusive_group()
    place.add_argument(
        "--output", type=path, metavar="DIR", help="write all files there, and leave those in OUT_DIR alone"
    )
    place.add_argument("--table", metavar="NAME", help="write one table and nothing else")
    group.add_argument(
        "--to",
        type=path_text,
        default=_STDOUT,
        metavar="FILE",
        help="where to write that table, compressed if the name ends with .gz or .zst "
        "(default: -, standard output)",
    )


def run(options: Namespace) -> int:
    """Write all files or one table, and return whether every input could be used."""
    if options.to != _STDOUT and options.table is None:
        raise UsageError("--to is the place of one table: name it with --table")
    changes = _changes(options)
    if options.table is not None and "viral_fasta" in changes.options:
        raise UsageError("--viral-fasta writes files of its own: not with --table")
    if options.table is not None:
        _write_one(options, changes)
        return DONE
    from virnuc_async.outputs.summary import left_out_line, tables_line
    from virnuc_async.outputs.written_again import write_tables

    options.prints_result = False
    notes: list[str] = []
    with status_lines(quiet=False, at_once=False) as report_status:
        summary = write_tables(options.out_dir, changes, options.output, report_status, notes.append)
    if viral := "".join(notes):
        print(f"viral sequences: {viral}")
    if left_out := left_out_line(summary):
        print(left_out)
    print(tables_line(summary, options.output or options.out_dir))
    return INCOMPLETE if summary.counts["failures"] else DONE


def _write_one(options: Namespace, changes: "Changes") -> None:
    from virnuc_async.outputs.formats import format_of
    from virnuc_async.outputs.written_again import find_table, packed_file, write_table

    named = formats("format", options.formats) if options.formats else ()
    if len(named) > 1:
        raise UsageError("--format: one table has one format")
    by_name = None if options.to == _STDOUT or "." in options.table else format_of(options.to)
    table = find_table(options.table, named[0] if named else by_name)
    if options.to == _STDOUT:
        write_table(options.out_dir, changes, table, sys.stdout.buffer)
    else:
        with packed_file(Path(options.to)) as file:
            write_table(options.out_dir, changes, table, file)


def _changes(options: Namespace) -> "Changes":
    from virnuc_async.models.bundle import find
    from virnuc_async.outputs.options import RULES, OutputOptions
    from virnuc_async.outputs.written_again import Changes

    rules = {**_rules(options, "calls", CallRules), **_rules(options, "regions", RegionRules, OF_REGIONS)}
    given = given_rules(OutputOptions, options)
    viral, cache = viral_fasta_from(options), cache_from(options)
    others = {name: value for name, value in given.items() if name not in RULES}
    return Changes(
        options=others | ({"viral_fasta": viral} if viral else {}),
        rules=rules,
        calibrated=options.calibrated,
        model=find(options.model, cache) if options.model else None,
        cache_dir=cache,
        temporary_dir=temporary_dir(),
    )


def _rules(options: Namespace, name: str, kind: type, prefix: str = "") -> dict[str, dict[str, Any] | None]:
    """Return the rules that are given for the tables *name*, None if they are not wanted; {}: as before."""
    is_wanted, rules = getattr(options, name), given_rules(kind, options, prefix)
    if is_wanted is False and rules:
        raise UsageError(f"--no-{name}, and rules of {name}: choose one")
    return {name: None if is_wanted is False else rules} if rules or is_wanted is not None else {}
