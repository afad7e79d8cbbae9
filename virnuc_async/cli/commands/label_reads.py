"""``label-reads``: which reads are viral, by the contigs that they are aligned to."""

from argparse import Namespace
from functools import partial
from typing import Any

from virnuc_async.cli.environment import temporary_dir
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.options import add_call_rules, add_field, fields_from
from virnuc_async.cli.parser import add_command, path, path_text
from virnuc_async.settings import CallRules, LabelRules

_EXAMPLES = """\
examples:
  python -m virnuc_async label-reads out/ --bam reads_to_contigs.bam
  python -m virnuc_async label-reads out/ --bam reads_to_contigs.bam --output labels.tsv.gz

Writes a table with a line for each read that is aligned to a contig: where it lies, whether it is mapped
well, and what its contig is called in a finished run. Align with a program that writes NM tags, such as
minimap2 or BWA. Needs: pip install 'virnuc-async[reads]'
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    purpose = "label reads by the calls of the contigs that they are aligned to"
    parser = add_command(commands, "label-reads", purpose, _EXAMPLES)
    parser.add_argument("out_dir", type=path, metavar="OUT_DIR", help="the output directory of a run")
    parser.add_argument(
        "--bam",
        type=partial(path_text, what="the alignments"),
        required=True,
        metavar="FILE",
        help="the reads, aligned to the contigs of the run: BAM, CRAM or SAM, in any order",
    )
    parser.add_argument(
        "--output",
        type=path,
        metavar="FILE",
        help="the table, compressed if its name ends with .gz or .zst (default: OUT_DIR/read_labels.tsv)",
    )
    mapping = parser.add_argument_group("a read is mapped well")
    for name, kind, what in (
        ("min_mapping_quality", int, "from this mapping quality on"),
        ("min_identity", float, "from this identity on, in percent of the alignment"),
        ("min_coverage", float, "if this much of it is aligned, in percent of the read"),
    ):
        add_field(mapping, LabelRules(), name, kind, what)
    add_call_rules(parser.add_argument_group("rules of calls"))
    parser.set_defaults(run=run, prints_result=False)


def run(options: Namespace) -> int:
    """Write the table, and print how many reads have which call."""
    from virnuc_async.outputs.written_again import write_labels

    output = options.output or options.out_dir / "read_labels.tsv"
    rules, label_rules = fields_from(CallRules, options), fields_from(LabelRules, options)
    tally = write_labels(options.out_dir, options.bam, output, rules, label_rules, temporary_dir())
    counts = ", ".join(f"{count:,} {call}" for call, count in tally.most_common())
    print(f"{output}: {counts or 'no read is aligned'}")
    return DONE
