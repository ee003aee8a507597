"""Memory is used again only once nothing refers to it."""

import gc

import numpy as np
import torch

from optimag_dist.sampling.rows import RecycledMemory


def test_memory_comes_back_when_the_last_view_of_it_goes() -> None:
    memory = RecycledMemory()
    first = memory.empty((4, 8))
    first[:] = 1.0
    tensor = torch.from_numpy(first)[1:, 2:].t()
    address = first.ctypes.data
    del first
    gc.collect()
    second = memory.empty((4, 8))
    second[:] = 2.0
    assert second.ctypes.data != address
    assert (tensor == 1.0).all()
    del tensor
    gc.collect()
    again = memory.empty((2, 16))
    assert again.ctypes.data == address
    assert again.shape == (2, 16)
    assert again.flags.writeable
    assert (second == 2.0).all()


def test_memory_that_is_too_small_is_not_used() -> None:
    memory = RecycledMemory()
    memory.empty((2, 2))
    large = memory.empty((50, 3))
    large[:] = np.arange(150).reshape(50, 3)
    assert large.sum() == 150 * 149 / 2
    assert memory.empty((0, 3)).shape == (0, 3)
