"""What a layer launches on a GPU, counted without one; the tables of the documentation are these numbers."""

import json

import launches
import pytest
import torch
from support import ROOT

from virnuc_async.networks.attention import triton_kernel
from virnuc_async.networks.packing import positions

# Numbers of tokens and of rows that are 1, odd, and divisible by 16: Triton would compile for each of them.
NINE_SHAPES = ([2], [3], [16], [17, 15], [168] * 2, [168] * 16, [1026, 52, 2], [33] * 7, [168] * 97 + [88])


def test_the_tables_of_the_documentation_are_what_a_layer_launches():
    found = list(launches.rows())
    written = json.loads((ROOT / "docs/benchmarks/launches.json").read_text())
    assert written == {"tokens": launches.TOKENS, "rows": found}
    assert launches.table(found) in (ROOT / "docs/explanation/performance.md").read_text()


def test_a_layer_of_esm2_3b_launches_at_most_11_kernels_that_move_at_most_1_7_gb():
    cost = launches.cost_of_layer("ESM-2 3B", "BF16", "kernels")
    assert cost.launches <= 11
    assert cost.bytes <= 1.7e9


@pytest.mark.parametrize(("name", "precision", "way"), [case for case in launches.CASES if "kernels" in case])
def test_a_process_compiles_each_kernel_once_for_batches_of_nine_shapes(name, precision, way):
    network = launches.encoder(name, 1, precision)
    launches.prepare(network, precision, way)
    found = []
    for attention in (network.attention, triton_kernel):
        network.attention = attention
        for lengths in NINE_SHAPES:
            with torch.inference_mode(), launches.recorded() as launched:
                network(launches.batch("meta", lengths))
            found += [launch for launch in launched if launch.variant]
    variants = {(launch.name, launch.variant) for launch in found}
    # FP8 quantizes by one kernel what attention gives, and what GELU is computed of.
    assert len(variants) == len({launch.name for launch in found}) + (precision == "FP8")


def test_views_cost_nothing_and_products_have_no_elementwise_traffic():
    x, weight = torch.empty(4, 6, device="meta"), torch.empty(8, 6, device="meta")
    with torch.inference_mode(), launches.recorded() as found:
        y = torch.nn.functional.linear(x.view(2, 2, 6)[:1].transpose(0, 1).reshape(2, 6), weight)
        y.chunk(2, dim=1)[0].mul_(y.new_ones(2, 1))
    kinds = [(launch.name, launch.kind, launch.bytes) for launch in found]
    assert kinds == [
        ("mm", "product", 4 * (2 * 6 + 8 * 6 + 2 * 8)),
        ("new_ones", "elementwise", 4 * 2),
        ("mul_", "elementwise", 4 * (2 * 4 + 2 + 2 * 4)),
    ]


def test_what_is_broadcast_is_read_once():
    x, row = torch.empty(100, 8, device="meta"), torch.empty(8, device="meta")
    with launches.recorded() as found:
        _ = x + row.expand(100, 8)
    assert [launch.bytes for launch in found] == [4 * (800 + 8 + 800)]


def test_a_copy_that_the_host_waits_for_is_an_error():
    x = torch.empty(3, device="meta")
    with launches.recorded(), pytest.raises(launches.HostWaits, match="copy_ from meta to cpu"):
        torch.empty(3).copy_(x)
    with launches.recorded() as found:
        torch.zeros(3).to("meta", non_blocking=True)
        positions(launches.batch("meta", [5, 3]))
    assert "_to_copy" in [launch.name for launch in found]
