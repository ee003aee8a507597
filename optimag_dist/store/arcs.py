"""Whether arcs are in a topology."""

import numpy as np

from optimag_dist.jit import jit
from optimag_dist.types import CSR


def contains(csr: CSR, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(k,) bool: whether each of the k arcs stands in ``csr``, whose rows ascend; O(log degree) each.

    Args:
        csr: of n rows.
        rows: (k,) int64, 0 … n − 1.
        columns: (k,) int64.
    """
    there = np.empty(len(rows), bool)
    _contains(csr.indptr, csr.indices, rows, columns, there)
    return there


@jit(nogil=True)
def _contains(indptr, indices, rows, columns, there):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        low, stop = indptr[rows[i]], indptr[rows[i] + 1]
        high = stop
        while low < high:
            middle = (low + high) // 2
            if indices[middle] < columns[i]:
                low = middle + 1
            else:
                high = middle
        there[i] = low < stop and indices[low] == columns[i]
