"""Kinds of devices without a device: the same text, precision and size of batches as with one."""

import pytest
from gpus import GIB, Gpu, Machine
from running import python

from virnuc_async.engine.devices import Device, choose, decide_budget, decide_precision
from virnuc_async.engine.kinds import GpuKind, budget_within, is_cpu_kind, native_precision
from virnuc_async.engine.known_cards import CARDS, find_card
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape, Shapes
from virnuc_async.settings import Precision, Settings

# ESM-2 3B and DNABERT-S, as published.
PUBLISHED = Shapes(
    ProteinShape(36, 2560, 40), NucleotideShape(12, 768, 12, 3072, 4096), ClassifierShape(3328, 512)
)


@pytest.mark.parametrize("name", CARDS)
def test_a_known_card_is_of_the_kind_that_a_device_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (model, (major, minor), cores), memory = CARDS[name]
    gpu = Gpu("aa", model, major, minor, memory, memory, cores, reports_memory=True)
    Machine([gpu], [gpu]).install(monkeypatch)
    (device,) = choose(Settings(devices=("cuda:0",)))
    assert str(CARDS[name].kind) == device.kind
    precision = decide_precision([device], Precision.AUTO)
    assert native_precision((major, minor)) == precision
    assert budget_within(memory, precision, PUBLISHED) == decide_budget([device], precision, None, PUBLISHED)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("H200", "NVIDIA H200 (capability 9.0, 132 multiprocessors)"),
        ("h200", "NVIDIA H200 (capability 9.0, 132 multiprocessors)"),
        ("t4", "Tesla T4 (capability 7.5, 40 multiprocessors)"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB PCIe (capability 8.0, 108 multiprocessors)"),
        ("A100-80GB", "NVIDIA A100-SXM4-80GB (capability 8.0, 108 multiprocessors)"),
    ],
)
def test_cards_by_name_and_by_kind(name: str, kind: str) -> None:
    found = find_card(name)
    assert found is not None
    assert str(found.kind) == kind
    assert find_card(kind) == found
    assert GpuKind.parse(kind) == found.kind


def test_what_is_no_card() -> None:
    for name in ("A100", "", "cpu", "NVIDIA H200 (capability 9.0, 1 multiprocessor)"):
        assert find_card(name) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("X (capability 8.9)", GpuKind("X", (8, 9))),
        ("X Y (capability 10.0, 1 multiprocessor)", GpuKind("X Y", (10, 0), 1)),
        ("A100 MIG 3g.40gb (capability 8.0, 42 multiprocessors)", GpuKind("A100 MIG 3g.40gb", (8, 0), 42)),
        ("X", None),
        (" (capability 8.9)", None),
        ("X (capability 8)", None),
        ("CPU (AVX2)", None),
    ],
)
def test_kinds_as_text(text: str, kind: GpuKind | None) -> None:
    assert GpuKind.parse(text) == kind
    assert kind is None or str(kind) == text


def test_kinds_of_cpus() -> None:
    assert is_cpu_kind("CPU (AVX512, oneDNN AVX512_CORE_AMX)")
    assert is_cpu_kind(Device("cpu:0", "CPU (AVX2)", GIB).kind)
    assert not any(map(is_cpu_kind, ("CPU", "cpu", "CPU ()", "X (capability 8.9)")))


def test_they_are_known_without_torch() -> None:
    script = "import sys, virnuc_async.engine.known_cards; print('torch' in sys.modules)"
    assert python(script) == "False\n"
