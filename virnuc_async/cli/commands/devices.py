"""``devices``: the devices of this machine, and the memory that a model takes there."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from virnuc_async.cli.console import print_table
from virnuc_async.cli.environment import cache_from
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.options import add_model_choice
from virnuc_async.cli.parser import add_command
from virnuc_async.settings import Precision, Settings

if TYPE_CHECKING:
    from virnuc_async.engine.devices import Device
    from virnuc_async.networks.shapes import Shapes

_EXAMPLES = """\
examples:
  python -m virnuc_async devices
  python -m virnuc_async devices --model virnucpro-500
  python -m virnuc_async devices --kinds
  python -m virnuc_async predict contigs.fa out/ --devices cuda:0,cuda:1

Memory is that of the model in the precision of the device: its weights, and what a batch of that many
tokens takes beside them at its peak, as computed from the model's shapes. What is not free is in use by
any process.

A CPU computes in FP32 unless told otherwise. "(or BF16)": it multiplies in BF16 as well, which is faster
with large models, and needs half the memory: --precision bf16.
"""
HEADER = (
    *("device", "model", "memory", "free", "capability", "precision", "weights", "tokens per batch"),
    *("activations", "used"),
)


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "devices", "show the devices that a run would use", _EXAMPLES)
    add_model_choice(parser)
    parser.add_argument(
        "--kinds",
        action="store_true",
        help="print the kind of each device alone, as 'plan --for-device' takes it",
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print every device, what a model takes there, and whether a run uses it by default."""
    from virnuc_async.engine.devices import available, choose
    from virnuc_async.models.bundle import find

    if options.kinds:
        print("\n".join(dict.fromkeys(device.kind for device in available() if not device.failure)))
        return DONE
    shapes = find(options.model, cache_from(options)).shapes
    used = {device.name for device in choose(Settings())}
    print_table([HEADER, *(_row(device, device.name in used, shapes) for device in available())])
    return DONE


def _row(device: "Device", is_used: bool, shapes: "Shapes") -> tuple[str, ...]:
    from virnuc_async.engine.devices import decide_budget, decide_precision
    from virnuc_async.engine.memory_account import account

    if device.failure:
        return (device.name, device.model, *"-" * (len(HEADER) - 3), f"no: {device.failure}")
    precision = decide_precision([device], Precision.AUTO)
    budget, needed = decide_budget([device], precision, None, shapes), account(shapes, precision)
    name, capability, free, activations = "cpu", "-", "-", "-"  # the CPU, as --devices takes it
    used = "yes: no GPU that CUDA can use" if is_used else "no: there are GPUs"
    if device.capability is not None:
        name, capability = device.name, "{}.{}".format(*device.capability)
        bytes_free = device.free_memory()
        free, activations = _gib(bytes_free), _gib(needed.activations(budget))
        used = (
            "yes" if needed.tokens_within(bytes_free) else "yes, but the model does not fit into what is free"
        )
    memory = f"{device.memory / 2**30:.0f} GiB"
    computes = f"{precision.upper()} (or BF16)" if device.has_native_bf16 else precision.upper()
    facts = (name, device.model, memory, free, capability, computes)
    return (*facts, _gib(needed.weights), f"{budget:,}", activations, used)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
