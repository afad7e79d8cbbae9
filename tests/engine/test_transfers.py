"""Tensors on their way to a device and back; the device is the CPU, with copies all the same."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from virnuc_async.engine.transfers import HostMemory, HostTransfers, copy_to

CPU = torch.device("cpu")
TYPES = (torch.int32, torch.int64, torch.float32, torch.bool)


def plain(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def numbers(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2 if dtype is torch.bool else 100, shape, generator=random).to(dtype)


SHAPES = st.lists(st.tuples(st.sampled_from(TYPES), st.tuples(st.integers(0, 70), st.integers(1, 5))))


@given(batches=st.lists(SHAPES, max_size=4))
def test_copies_are_equal_and_stay_so_while_the_memory_is_used_again(batches: list) -> None:
    memory, all_copied = HostMemory(plain), []
    for seed, batch in enumerate(batches):
        memory.reuse()
        tensors = [numbers(dtype, shape, seed) for dtype, shape in batch]
        all_copied += zip(tensors, copy_to(CPU, tensors, memory), strict=True)
    for tensor, copied in all_copied:
        assert (copied.dtype, copied.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(copied, tensor)
        assert copied.data_ptr() % 16 == 0


@given(sizes=st.lists(st.integers(0, 3000), max_size=30))
def test_memory_of_one_batch_does_not_overlap_and_is_not_freed(sizes: list[int]) -> None:
    blocks = []

    def allocate(size: int) -> torch.Tensor:
        blocks.append(plain(size))
        return blocks[-1]

    memory = HostMemory(allocate)
    for _ in range(2):
        memory.reuse()
        taken = [memory.take(size) for size in sizes]
        for number, part in enumerate(taken):
            part.fill_(number)
        assert all(torch.equal(part, torch.full_like(part, number)) for number, part in enumerate(taken))
    assert [len(part) for part in taken] == sizes
    # A block is at least twice the one before, so that the second round needs one block at most.
    assert all(2 * len(one) <= len(next_one) for one, next_one in zip(blocks, blocks[1:], strict=False))
    count = len(blocks)
    memory.reuse()
    [memory.take(size) for size in sizes]
    assert len(blocks) <= count + 1


def test_on_the_host_nothing_is_copied() -> None:
    transfers = HostTransfers()
    transfers.begin()
    some = torch.arange(3)
    (same,) = transfers.to_device(some)
    assert same is some
    transfers.end([some, torch.zeros(0, 2)])
    seconds, (first, empty) = transfers.wait()
    assert 0 <= seconds < 10
    np.testing.assert_array_equal(first, [0, 1, 2])
    assert empty.shape == (0, 2)


@pytest.mark.parametrize("shape", [(3, 4), (0, 2), (5,)])
def test_memory_like_a_tensor(shape: tuple[int, ...]) -> None:
    like = HostMemory(plain).like(numbers(torch.int64, shape, 1))
    assert (like.dtype, like.shape) == (torch.int64, torch.Size(shape))
