"""``models verify``: whether a model computes here what it should."""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from virnuc_async.cli.console import print_table, status_lines
from virnuc_async.cli.environment import (
    cache_from,
    do_without_compiler_cache,
    hide_other_gpus,
    place_triton_cache,
)
from virnuc_async.cli.exit_codes import DONE, FAILED
from virnuc_async.cli.options import add_device_choice, add_installed_model
from virnuc_async.cli.parser import PROGRAM, add_command
from virnuc_async.errors import UsageError
from virnuc_async.fileio import writing_to
from virnuc_async.settings import Precision, Settings

if TYPE_CHECKING:
    from virnuc_async.engine.verification import VerificationResult
    from virnuc_async.models.bundle import Bundle

_EXAMPLES = """\
examples:
  python -m virnuc_async models verify virnucpro-500
  python -m virnuc_async models verify virnucpro-500 --gpus 0,1 --precision bf16
  python -m virnuc_async models verify virnucpro-500 --peers
  python -m virnuc_async models verify my_model/ --record --devices cpu

Computes a few ORFs on every device, in every precision that the device supports, and compares the
results with the reference of the model. With --peers, ESM-2 is compared with the networks of fair-esm and
transformers instead, from the same weights.

exit codes:
  0  all results agree with the reference; of FP8 only if it was asked for
  1  some do not, or could not be computed
"""
_HEADER = ("device", "precision", "scores", "embeddings", "cosine", "length", "labels", "result")


def add_parser(actions: Any) -> None:
    """Add the action."""
    parser = add_command(
        actions, "verify", "check that a model gives the expected scores on this machine", _EXAMPLES
    )
    add_installed_model(parser)
    add_device_choice(parser, auto="auto: every precision that the device supports (default: auto)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--peers",
        action="store_true",
        help="compare ESM-2 with the networks of fair-esm and transformers, and not with the reference",
    )
    instead.add_argument(
        "--record",
        action="store_true",
        help="replace the reference of the model by what a CPU computes here in FP32",
    )
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Verify a model on each device, and print the deviations."""
    if options.peers and options.precision not in (Precision.AUTO, Precision.FP32):
        raise UsageError("--peers compares in FP32: leave out --precision, or use --precision fp32")
    hide_other_gpus(options.gpus)
    place_triton_cache(cache_from(options))
    do_without_compiler_cache()
    from virnuc_async.models.bundle import find

    bundle = find(options.name, cache_from(options))
    if options.peers:
        return _compare_with_peers(bundle, options)
    results = _verify(bundle, options)
    if not options.quiet:
        print_table([_HEADER, *map(_row, results)])
    # FP8 is used on request alone: unasked, it is shown where it is too inexact, and nothing is wrong.
    is_asked = options.precision == Precision.FP8
    wrong = [result for result in results if not result.is_right and (is_asked or not result.is_fp8)]
    for result in wrong:
        print(f"{PROGRAM}: {bundle.name} {_format_error(result)}", file=sys.stderr)
    return FAILED if wrong else DONE


def _verify(bundle: "Bundle", options: Namespace) -> "list[VerificationResult]":
    import anyio

    from virnuc_async.engine.devices import choose
    from virnuc_async.engine.verification import precisions_of, verify
    from virnuc_async.models.reference import reference_of

    results = []
    with status_lines(options.quiet) as report_status:
        report_status(f"{bundle.name}: checking its files")
        bundle.check()
        if options.record:
            report_status(f"{bundle.name}: computing its reference on a CPU in FP32")
            bundle = with_recorded_reference(bundle)
        reference = reference_of(bundle)
        report_status(f"{bundle.name}: {len(reference)} ORFs, compared with {reference.source}")
        for device in choose(Settings(devices=options.devices, gpus=options.gpus)):
            for precision in precisions_of(device, Precision(options.precision)):
                report_status(f"{device.name} in {precision.upper()}")
                results.append(anyio.run(verify, bundle, reference, device, precision))
    return results


def _compare_with_peers(bundle: "Bundle", options: Namespace) -> int:
    """Print how ESM-2 agrees with the networks of other packages on each device."""
    from virnuc_async.cli.peers_table import compare_on_devices, format_disagreements, format_rows
    from virnuc_async.engine.devices import choose

    with status_lines(options.quiet) as report_status:
        report_status(f"{bundle.name}: checking its files")
        bundle.check()
        devices = choose(Settings(devices=options.devices, gpus=options.gpus))
        results = compare_on_devices(bundle, devices, report_status)
    if not options.quiet:
        print_table(format_rows(results))
    messages = list(format_disagreements(bundle.name, results))
    for message in messages:
        print(f"{PROGRAM}: {message}", file=sys.stderr)
    return FAILED if messages else DONE


def with_recorded_reference(bundle: "Bundle") -> "Bundle":
    """Compute the reference of *bundle* on a CPU of this machine, and return it with it."""
    import anyio

    from virnuc_async.engine.verification import record

    with writing_to(bundle.directory):
        return anyio.run(record, bundle)


def _format_error(result: "VerificationResult") -> str:
    where = f"on {result.device.name} in {result.precision.upper()}"
    if result.failure:
        return f"could not be verified {where}: {result.failure}"
    if result.is_fp8:
        return f"is not exact enough {where}: runs refuse it, and use --precision bf16"
    return (
        f"does not give the expected scores {where}. Its files are intact, so the cause is the device, its "
        "driver or the build of torch; if all devices are wrong, it is the model"
    )


def _row(result: "VerificationResult") -> tuple[str, ...]:
    is_cpu = result.device.capability is None
    name = result.device.name
    columns = (name if is_cpu else f"{name} ({result.device.model})", result.precision.upper())
    found, tolerance = result.deviation, result.tolerance
    if found is None:
        return (*columns, "-", "-", "-", "-", "-", f"failed: {result.failure}")
    return (
        *columns,
        "-" if found.score is None else f"{found.score:.1e} ({tolerance.score:.0e})",
        f"{found.distance:.1e} ({tolerance.distance:.0e})",
        f"{found.cosine:.7f} ({tolerance.cosine:.7g})",
        f"{found.length:.1e} ({tolerance.length:.0e})",
        f"{found.labels} of {found.of}" if found.of else "-",
        "right" if result.is_right else "too inexact" if result.is_fp8 else "WRONG",
    )
