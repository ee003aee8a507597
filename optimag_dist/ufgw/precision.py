"""Full float32 in matrix products on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep TF32 out of the products within, whatever the process has chosen for its networks.

    TF32 keeps 10 bits: a cost near 1 is then off by 1e-3, which divided by ε = 0.01 is a tenth in the logarithm of the
    plan. The products are a small part of a solve beside its sweeps over K, so little would be won.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
