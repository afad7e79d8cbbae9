"""``devices``: the devices of this machine."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from virnuc_async.cli.console import print_table
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.parser import add_command
from virnuc_async.settings import Precision, Settings

if TYPE_CHECKING:
    from virnuc_async.engine.devices import Device

_EXAMPLES = """\
examples:
  python -m virnuc_async devices
  python -m virnuc_async predict contigs.fa out/ --devices cuda:0,cuda:1
"""
_HEADER = ("device", "model", "memory", "capability", "precision", "tokens per batch", "used")


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "devices", "show the devices that a run would use", _EXAMPLES)
    parser.set_defaults(run=run)


def run(_: Namespace) -> int:
    """Print every device, and whether a run uses it by default."""
    from virnuc_async.engine.devices import available, choose

    used = {device.name for device in choose(Settings())}
    print_table([_HEADER, *(_row(device, device.name in used) for device in available())])
    return DONE


def _row(device: "Device", is_used: bool) -> tuple[str, ...]:
    from virnuc_async.engine.devices import decide_budget, decide_precision

    precision = decide_precision([device], Precision.AUTO)
    name, capability, used = device.name, "-", "yes"
    if device.capability is None:
        name = "cpu"  # as --devices takes it
        used = "yes: no GPU that CUDA can use" if is_used else "no: there are GPUs"
    else:
        capability = "{}.{}".format(*device.capability)
    memory, tokens = f"{device.memory / 2**30:.0f} GiB", f"{decide_budget([device], precision, None):,}"
    return (name, device.model, memory, capability, precision.upper(), tokens, used)
