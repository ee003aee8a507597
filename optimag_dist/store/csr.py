"""Adjacency as CSR: looking arcs up, checking and copying rows, and the undirected graph of a directed one."""

import hashlib

import numpy as np

from optimag_dist.jit import jit
from optimag_dist.types import CSR

_HASH_CHUNK = 1 << 22


def row_pointers(sizes: np.ndarray) -> np.ndarray:
    """(n + 1,) int64 ``indptr`` of rows of ``sizes`` (n,)."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def arc_places(csr: CSR, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(k,) int64: where in ``csr.indices`` each arc ``rows[i]``, ``columns[i]`` (both (k,) int64) stands or would
    stand; rows of ``csr`` ascend; O(log degree) each."""
    places = np.empty(len(rows), np.int64)
    _find(csr.indptr, csr.indices, rows, columns, places)
    return places


def contains(csr: CSR, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(k,) bool: whether each of the k arcs stands in ``csr``; arguments as of :func:`arc_places`."""
    places = arc_places(csr, rows, columns)
    there = places < csr.indptr[rows + 1]
    there[there] = csr.indices[places[there]] == columns[there]
    return there


def check_rows(csr: CSR, num_nodes: int) -> None:
    """Raise ValueError unless ``indptr`` runs from 0 to the end and every row holds nodes, strictly ascending."""
    if csr.indptr[0] != 0 or csr.indptr[-1] != len(csr.indices):
        raise ValueError(f"rows from {csr.indptr[0]} to {csr.indptr[-1]}, needed 0 to {len(csr.indices)}")
    row = _bad_row(csr.indptr, csr.indices, num_nodes)
    if row >= 0:
        raise ValueError(f"row {row} does not hold nodes in ascending order")


@jit(nogil=True)
def copy_rows(indptr, indices, rows, out_indptr, places, out):  # type: ignore[no-untyped-def]
    """Copy row ``rows[i]`` of a CSR to ``out`` from ``out_indptr[places[i]]`` on."""
    for i in range(len(rows)):
        to = out_indptr[places[i]]
        for e in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[to] = indices[e]
            to += 1


def is_symmetric(csr: CSR) -> bool:
    """Whether every arc has its reverse, rows are strictly ascending and no node is its own neighbour."""
    return bool(_is_symmetric(csr.indptr, csr.indices))


def symmetrise(csr: CSR) -> CSR:
    """The undirected graph of ``csr``: reverse arcs added; self loops and duplicates dropped; rows ascending. A graph
    that already is all that is returned as it came, without a copy."""
    if is_symmetric(csr):
        return csr
    incoming = _transpose(csr.indptr, csr.indices)
    outgoing = _transpose(*incoming)
    indptr = np.zeros_like(csr.indptr)
    _merge_rows(*outgoing, *incoming, indptr, np.empty(0, np.int32), False)
    np.cumsum(indptr, out=indptr)
    indices = np.empty(indptr[-1], np.int32)
    _merge_rows(*outgoing, *incoming, indptr, indices, True)
    return CSR(indptr, indices)


def graph_hash(csr: CSR) -> str:
    """SHA-256 of the adjacency, the same for int32 and int64 indices."""
    digest = hashlib.sha256()
    for array, dtype in ((csr.indptr, np.dtype("<i8")), (csr.indices, np.dtype("<i4"))):
        digest.update(len(array).to_bytes(8, "little"))
        for start in range(0, len(array), _HASH_CHUNK):
            digest.update(np.ascontiguousarray(array[start : start + _HASH_CHUNK], dtype=dtype).data)
    return digest.hexdigest()


@jit(nogil=True)
def _find(indptr, indices, rows, columns, places):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        low, high = indptr[rows[i]], indptr[rows[i] + 1]
        while low < high:
            middle = (low + high) // 2
            if indices[middle] < columns[i]:
                low = middle + 1
            else:
                high = middle
        places[i] = low


@jit(nogil=True)
def _bad_row(indptr, indices, num_nodes):  # type: ignore[no-untyped-def]
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        if not 0 <= start <= stop <= len(indices):
            return row
        last = -1
        for e in range(start, stop):
            node = np.int64(indices[e])
            if node <= last or node >= num_nodes:
                return row
            last = node
    return -1


@jit(nogil=True)
def _is_symmetric(indptr, indices):  # type: ignore[no-untyped-def]
    # Rows are visited in ascending order, so the reverse arcs of ascending rows must turn up one after the other.
    cursor = indptr[:-1].copy()
    for u in range(len(indptr) - 1):
        for e in range(indptr[u], indptr[u + 1]):
            v = indices[e]
            if v == u or (e > indptr[u] and indices[e - 1] >= v):
                return False
            if cursor[v] == indptr[v + 1] or indices[cursor[v]] != u:
                return False
            cursor[v] += 1
    return True


@jit(nogil=True)
def _transpose(indptr, indices):  # type: ignore[no-untyped-def]
    n = len(indptr) - 1
    out_indptr = np.zeros(n + 1, np.int64)
    for v in indices:
        out_indptr[v + 1] += 1
    for v in range(n):
        out_indptr[v + 1] += out_indptr[v]
    cursor = out_indptr[:-1].copy()
    out_indices = np.empty(len(indices), np.int32)
    for u in range(n):
        for e in range(indptr[u], indptr[u + 1]):
            v = indices[e]
            out_indices[cursor[v]] = u
            cursor[v] += 1
    return out_indptr, out_indices


@jit(nogil=True)
def _merge_rows(indptr, indices, other_indptr, other_indices, out_indptr, out_indices, fill):  # type: ignore[no-untyped-def]
    """Union of two CSRs with ascending rows; without ``fill`` only row sizes, into ``out_indptr[1:]``."""
    for u in range(len(indptr) - 1):
        a, a_stop = indptr[u], indptr[u + 1]
        b, b_stop = other_indptr[u], other_indptr[u + 1]
        start = out_indptr[u] if fill else 0
        size = 0
        last = -1
        while a < a_stop or b < b_stop:
            if b == b_stop or (a < a_stop and indices[a] <= other_indices[b]):
                v = indices[a]
                a += 1
            else:
                v = other_indices[b]
                b += 1
            if v != u and v != last:
                if fill:
                    out_indices[start + size] = v
                size += 1
                last = v
        if not fill:
            out_indptr[u + 1] = size
