"""``calls``: which contigs are called viral, of a run that is finished."""

from argparse import Namespace
from collections import Counter
from typing import Any

from virnuc_async.cli.environment import temporary_dir
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.options import add_call_rules, fields_from
from virnuc_async.cli.parser import add_command, path
from virnuc_async.settings import CallRules

_EXAMPLES = """\
examples:
  python -m virnuc_async calls out/
  python -m virnuc_async calls out/ --min-fragments 3 --high-threshold 0.7
  python -m virnuc_async calls out/ --id-pattern '(NODE_[0-9]+)'

Writes contig_calls.tsv into the output directory of a finished run, from its run.sqlite3; nothing is
computed again. 'predict --calls' writes it at the end of a run.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "calls", "call the contigs of a finished run, with a tier each", _EXAMPLES)
    parser.add_argument("out_dir", type=path, metavar="OUT_DIR", help="the output directory of a run")
    add_call_rules(parser.add_argument_group("rules"))
    parser.set_defaults(run=run, prints_result=False)


def run(options: Namespace) -> int:
    """Write the table of calls, and print how many contigs have which call."""
    from virnuc_async.outputs.calls import CALLS, CALLS_TABLE, TIERS
    from virnuc_async.outputs.written_again import write_calls

    rules = fields_from(CallRules, options)
    tally = write_calls(options.out_dir, rules, temporary_dir())
    print(f"{options.out_dir / CALLS_TABLE}: {_describe(tally, CALLS, TIERS)}")
    return DONE


def _describe(tally: Counter[tuple[str, str]], calls: tuple[str, ...], tiers: tuple[str, ...]) -> str:
    parts = []
    for name in calls:
        of_tiers = [(tier, tally[name, tier]) for tier in tiers if tally[name, tier]]
        detail = ", ".join(f"{count:,} {tier.replace('_', ' ')}" for tier, count in of_tiers)
        parts.append(f"{sum(count for _, count in of_tiers):,} {name}" + (f" ({detail})" if detail else ""))
    return ", ".join(parts)
