"""
GPUs by the names that people have for them, so that a machine without one can be told of it.

Models, multiprocessors and memory are what ``torch.cuda.get_device_properties`` and CUDA's ``deviceQuery``
print, as public logs of people who have these cards show them (November 2026). Memory is the least that was
seen: it differs by some megabytes between drivers.
"""

from typing import NamedTuple

from .kinds import GpuKind

_MIB = 1 << 20


class KnownCard(NamedTuple):
    """A kind of GPU, and how much memory it has for all who use it."""

    kind: GpuKind
    memory: int  # bytes


def _card(model: str, capability: tuple[int, int], multiprocessors: int, mebibytes: int) -> KnownCard:
    return KnownCard(GpuKind(model, capability, multiprocessors), mebibytes * _MIB)


CARDS = {
    "T4": _card("Tesla T4", (7, 5), 40, 14_930),
    "V100-16GB": _card("Tesla V100-SXM2-16GB", (7, 0), 80, 16_130),
    "V100-32GB": _card("Tesla V100-SXM2-32GB", (7, 0), 80, 32_480),
    "A10G": _card("NVIDIA A10G", (8, 6), 80, 22_587),
    "A40": _card("NVIDIA A40", (8, 6), 84, 45_416),
    "RTX-A6000": _card("NVIDIA RTX A6000", (8, 6), 84, 48_676),
    "A100-40GB": _card("NVIDIA A100-SXM4-40GB", (8, 0), 108, 40_339),
    "A100-40GB-PCIe": _card("NVIDIA A100-PCIE-40GB", (8, 0), 108, 40_326),
    "A100-80GB": _card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 81_158),
    "A100-80GB-PCIe": _card("NVIDIA A100 80GB PCIe", (8, 0), 108, 81_038),
    "L4": _card("NVIDIA L4", (8, 9), 58, 22_491),
    "L40S": _card("NVIDIA L40S", (8, 9), 142, 45_589),
    "H100": _card("NVIDIA H100 80GB HBM3", (9, 0), 132, 81_082),
    "H100-PCIe": _card("NVIDIA H100 PCIe", (9, 0), 114, 81_008),
    "H200": _card("NVIDIA H200", (9, 0), 132, 143_156),
    "B200": _card("NVIDIA B200", (10, 0), 148, 182_631),
}


def find_card(name: str) -> KnownCard | None:
    """Return the card of this *name*, in any case, or of this model or kind; None if it is not known here."""
    wanted = name.strip().casefold()
    for short, card in CARDS.items():
        if wanted in (short.casefold(), card.kind.model.casefold(), str(card.kind).casefold()):
            return card
    return None
