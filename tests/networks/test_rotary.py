"""Rotary positions: the published formula, and the same bits for any number of threads."""

import pytest
import torch
from torch.testing import assert_close

from virnuc_async.networks.rotary import complex_angles, rotary_angles, rotate_halves, rotate_interleaved

SHAPES = [(1, 4, 16), (37, 20, 16), (2043, 4, 16), (1999, 20, 24), (1024, 20, 32), (777, 40, 64)]


def interleaved(qkv: torch.Tensor) -> torch.Tensor:
    """Return *qkv* (T, 3, H, D) with the numbers of each pair as neighbours."""
    return torch.stack(qkv.chunk(2, dim=-1), -1).flatten(-2)


@pytest.mark.parametrize(("tokens", "heads", "width"), SHAPES)
def test_both_orders_are_rotated_alike_by_any_number_of_threads(tokens: int, heads: int, width: int) -> None:
    random = torch.Generator().manual_seed(1)
    qkv = torch.randn(tokens, 3, heads, width, generator=random)
    at = torch.arange(tokens) % 167
    turns = complex_angles(at, width)
    expected = interleaved(rotate_halves(qkv, rotary_angles(at, width)))
    alone = rotate_interleaved(interleaved(qkv), turns)
    assert_close(alone, expected, rtol=0, atol=1e-6)
    try:
        for threads in range(2, 17):
            torch.set_num_threads(threads)
            assert torch.equal(rotate_interleaved(interleaved(qkv), turns), alone), threads
    finally:
        torch.set_num_threads(1)
