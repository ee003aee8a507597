"""Which kernels do the work: numba's on the CPU, Triton's on a GPU, where they are installed; torch's own otherwise."""

from functools import lru_cache
from types import ModuleType

from torch import Tensor


@lru_cache
def _compiled() -> ModuleType | None:
    try:
        from optimag_dist.ufgw import compiled
    except ImportError:  # this subpackage needs torch alone; numba makes it faster
        return None
    return compiled


@lru_cache
def _sweep() -> ModuleType | None:
    try:
        from optimag_dist.ufgw import sweep
    except ImportError:
        return None
    return sweep


def sweep_for(x: Tensor) -> ModuleType | None:
    """:mod:`optimag_dist.ufgw.sweep` where it can work on ``x``, else None."""
    return _sweep() if x.device.type == "cuda" else None


def compiled_for(x: Tensor) -> ModuleType | None:
    """:mod:`optimag_dist.ufgw.compiled` where it can work on ``x``, else None."""
    return _compiled() if x.device.type == "cpu" else None
