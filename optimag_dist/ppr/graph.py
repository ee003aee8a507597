"""Validation of the graph PPR runs on."""

from typing import Any

import numpy as np

from optimag_dist.types import CSR, InputError


def as_array(name: str, values: Any) -> np.ndarray:
    """``values`` as an array.

    Raises:
        InputError: they cannot be one, such as lists of different lengths.
    """
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name}: needed a vector of integers: {error}") from error


def check_csr(indptr: np.ndarray, indices: np.ndarray) -> CSR:
    """``indptr`` and ``indices`` as a CSR with int64 ``indptr`` and int32 ``indices``.

    Raises:
        InputError: not integer vectors, no node, more than 2³¹ − 2 nodes, ``indptr`` not rising from 0 to m, or an
            index outside [0, n).
    """
    indptr, indices = as_array("indptr", indptr), as_array("indices", indices)
    for name, array in (("indptr", indptr), ("indices", indices)):
        # An empty list has numpy's default dtype, float64: no neighbours at all is a valid graph.
        if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
            raise InputError(f"{name}: needed a vector of integers, got {array.dtype} of shape {array.shape}")
    num_nodes = len(indptr) - 1
    if num_nodes < 1:
        raise InputError("indptr: needed n + 1 entries with n ≥ 1 nodes, got an empty graph")
    if num_nodes >= np.iinfo(np.int32).max:
        raise InputError(f"the graph has {num_nodes} nodes; the push kernel addresses at most {2**31 - 2}")
    indptr = indptr.astype(np.int64, copy=False)
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if len(falls):
        row = int(falls[0])
        raise InputError(f"indptr: falls from {indptr[row]} to {indptr[row + 1]} at row {row}; it must not fall")
    if indptr[0] != 0 or indptr[-1] != len(indices):
        raise InputError(
            f"indptr: needed to run from 0 to len(indices) = {len(indices)}, got {indptr[0]} to {indptr[-1]}"
        )
    if len(indices) and (indices.min() < 0 or indices.max() >= num_nodes):
        place = int(np.flatnonzero((indices < 0) | (indices >= num_nodes))[0])
        raise InputError(f"indices[{place}] = {indices[place]} is no node of a graph with {num_nodes} nodes")
    return CSR(indptr, np.ascontiguousarray(indices, dtype=np.int32))
