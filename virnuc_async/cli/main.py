"""The entry of the command line: arguments in, exit code out."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from signal import SIGINT
from typing import NoReturn

from virnuc_async.errors import VirnucError
from virnuc_async.text import escape_control_chars

from .commands import (
    calibrate,
    calls,
    completion,
    devices,
    evaluate,
    help,
    label_reads,
    merge,
    models,
    plan,
    predict,
    report,
    status,
    tables,
    train,
)
from .exit_codes import FAILED
from .parser import PROGRAM, CommandParser
from .signals import Interrupted
from .streams import ResultStream, command_streams, discard_unwritable, open_missing_streams

_INTERRUPTED = "Interrupted."
_EXAMPLES = """\
examples:
  python -m virnuc_async predict contigs.fa out/
  python -m virnuc_async predict sample1.fq.gz sample2.fa.zst reads/ out/
  zcat reads.fq.gz | python -m virnuc_async predict - out/
  python -m virnuc_async predict contigs.fa out/ --model /data/virnucpro-500 --gpus 0,1
  python -m virnuc_async train --viral viruses.fa --nonviral others.fa --output my-model/
  python -m virnuc_async evaluate --viral viruses.fa --nonviral others.fa --output evaluation/
  python -m virnuc_async models list
  python -m virnuc_async models download virnucpro-500
  python -m virnuc_async help predict

To resume a run that was interrupted, repeat the command.
"""

_COMMANDS = (
    predict,
    tables,
    report,
    calls,
    label_reads,
    train,
    evaluate,
    calibrate,
    plan,
    status,
    merge,
    models,
    devices,
)


def run(make_parser: Callable[[], CommandParser] | None = None) -> NoReturn:
    """Run the command line of this process, as the parser that is made reads it, and exit."""
    open_missing_streams()
    try:
        code = main(sys.argv[1:], make_parser)
    finally:
        discard_unwritable()
    if code > 128:
        # Interrupted while a thread may still wait for standard input: nothing wakes it up.
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str], make_parser: Callable[[], CommandParser] | None = None) -> int:
    """Run one command and return its exit code; bugs keep their traceback."""
    options = Namespace()
    with command_streams() as stdout:
        try:
            return _run((make_parser or _parser)(), arguments, options, stdout)
        except VirnucError as error:
            stdout.give_up()
            print(f"{PROGRAM}: {escape_control_chars(str(error))}", file=sys.stderr)
            return error.exit_code
        except (KeyboardInterrupt, Interrupted) as error:
            stdout.give_up()
            ended = error if isinstance(error, Interrupted) else Interrupted(SIGINT)
            print(ended.text(getattr(options, "interrupted", _INTERRUPTED)), file=sys.stderr)
            return 128 + ended.signal
        except BrokenPipeError:  # the reader of our output has had enough
            return FAILED


def _run(parser: CommandParser, arguments: Sequence[str], options: Namespace, stdout: ResultStream) -> int:
    """Run the command that *arguments* name, add its options to *options*, and return its exit code."""
    try:
        parser.parse_args(arguments, options)
    except SystemExit:  # after --help or --version
        stdout.flush()  # what cannot be written shows here, not while Python exits
        raise
    stdout.is_result = options.prints_result
    code: int = options.run(options)
    stdout.flush()
    if stdout.failure:
        print(f"{PROGRAM}: standard output: {stdout.failure}", file=sys.stderr)
    return code


def _parser() -> CommandParser:
    parser = CommandParser(
        PROGRAM,
        description="Find viral sequences in metagenomic reads and contigs, with the method of VirNucPro.",
        epilog=_EXAMPLES,
    )
    parser.set_defaults(interrupted=_INTERRUPTED, prints_result=True)
    commands = parser.add_commands("command", f"{PROGRAM} predict contigs.fa out/")
    for command in _COMMANDS:
        command.add_parser(commands)
    completion.add_parser(commands, parser)
    help.add_parser(commands, parser, "predict", "models verify")
    return parser
