"""numba compilation, kept on disk where it can be."""

from collections.abc import Callable
from typing import Any

from numba import extending, njit

# numba annotates the function an intrinsic is made of, not the one that compiled code calls.
intrinsic: Any = extending.intrinsic


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with its disk cache, so that not every Ray worker compiles again.

    A read-only installation without a writable home has no place for the cache, which numba reports when the function
    is decorated; such a process compiles for itself.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:
            return njit(**options)(function)

    return decorate
