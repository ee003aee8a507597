"""Which kernels do the work: numba's on the CPU, Triton's on a GPU, where they are installed; torch's own otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


@lru_cache
def _installed(name: str) -> ModuleType | None:
    try:
        return import_module(f"optimag_dist.ufgw.{name}")
    except ImportError:  # this subpackage needs torch alone; numba and Triton make it faster
        return None


def outside_graphs(function: Any) -> Any:
    """``function``, which torch.compile calls and does not trace: what it calls is compiled already."""

    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            # Imports torch's compiler, which takes seconds: not before somebody uses it.
            return torch.compiler.disable(function)(*args, **options)
        return function(*args, **options)

    return called


def triton_for(x: Tensor) -> ModuleType | None:
    """:mod:`optimag_dist.ufgw.triton_sinkhorn` where it can work on ``x``, else None."""
    return _installed("triton_sinkhorn") if x.device.type == "cuda" else None


def compiled_for(x: Tensor) -> ModuleType | None:
    """:mod:`optimag_dist.ufgw.compiled` where it can work on ``x``, else None."""
    return _installed("compiled") if x.device.type == "cpu" else None


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep TF32 out of matrix products on a GPU, whatever the process has chosen for its networks.

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
