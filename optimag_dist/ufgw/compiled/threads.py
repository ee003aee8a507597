"""Work over several threads, and what the compiler may reorder.

The threads are our own: numba's OpenMP layer kills a process that forks afterwards, as data loaders do.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

# Sums may be reordered, which is what vectorises them; inf stays inf (absent nodes, ρ = ∞).
REORDER = {"reassoc", "contract", "nsz", "arcp"}
# Below this many entries of the whole batch a second thread costs more than it brings.
_WORTH_A_THREAD = 1 << 15


def for_each_problem(work_on: Tensor, call: Callable[[int, int], object]) -> None:
    """``call(first, last)`` over the batch, on as many threads as torch may use."""
    threads = min(torch.get_num_threads(), len(work_on))
    if work_on.numel() < _WORTH_A_THREAD:
        threads = 1
    for_each_part(len(work_on), threads, lambda part, first, last: call(first, last))


def per_problem(
    work: Callable[..., object], work_on: Tensor, *operands: Tensor | float, out: Tensor | None = None
) -> Tensor:
    """``out``, (b,) by default, which ``work(first, last, *operands, out)`` writes for each part of the batch."""
    out = torch.empty(len(work_on), dtype=work_on.dtype) if out is None else out
    arrays = [x.numpy() if isinstance(x, Tensor) else x for x in (*operands, out)]
    for_each_problem(work_on, lambda first, last: work(first, last, *arrays))
    return out


def for_each_part(length: int, threads: int, call: Callable[[int, int, int], object]) -> None:
    """``call(part, first, last)`` for as many parts of ``range(length)`` as threads, each on its own."""
    bounds = [length * part // threads for part in range(threads + 1)]
    others = [_pool().submit(call, part, bounds[part], bounds[part + 1]) for part in range(1, threads)]
    call(0, 0, bounds[1])
    for other in others:
        other.result()


@lru_cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "ufgw")


# A forked child has the pool's object and none of its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
