"""The in-CSR of a stream of edges, built out of core.

    stage 1   the edges without self loops go to a file of (source, target) pairs; the arcs of every row are counted
    stage 2   rows are taken in windows whose arcs fit a buffer: the pairs are read through, the window's arcs are put
              into their rows (a counting sort), each row is sorted, repeats are dropped, the rest is appended to a file

Reading the pairs once per window costs less than scattering into a mapped file larger than memory: everything on disk
is sequential. Memory: 32 bytes per node and the buffer, however many edges there are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optimag_dist.jit import jit
from optimag_dist.store.csr import is_symmetric
from optimag_dist.types import CSR

# 268 MB of int32: a graph of thirty million edges needs one window.
WINDOW_ARCS = 1 << 26
_PAIRS = "pairs.bin"
_INDICES = "indices.bin"
_READ_PAIRS = 1 << 22


@dataclass(frozen=True)
class BuiltTopology:
    """The topology and what was left out of it: row v of ``csr`` holds the sources u of the arcs u→v, ascending, mapped
    from a file. Dropped were ``self_loops``, and as ``duplicates`` edges of which an earlier one says the same.
    ``directed`` is as asked for; where that was left open, whether some arc has no opposite."""

    csr: CSR
    self_loops: int
    duplicates: int
    directed: bool


def build_topology(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    num_nodes: int,
    directed: bool | None,
    scratch: Path,
    window_arcs: int = WINDOW_ARCS,
    sorted_arcs: Callable[[int], object] = lambda arcs: None,
) -> BuiltTopology | None:
    """Build the in-CSR of ``num_nodes`` nodes from batches of (sources, targets), both (k,) int64 node ids, read once;
    None when every edge joins a node to itself.

    Args:
        directed: False stores every edge both ways; None takes the edges as they are and finds out whether they come
            in both directions.
        scratch: folder for the pairs (removed) and for the indices, which the result maps.
        window_arcs: size of the buffer in arcs; one row that is longer gets a longer one.
        sorted_arcs: told how many arcs have been sorted since the last call.
    """
    dtype = np.dtype(np.int32 if num_nodes < 2**31 else np.int64)
    both_ways = directed is False
    degree = np.zeros(num_nodes, np.int64)
    num_edges = num_pairs = 0
    pairs = scratch / _PAIRS
    try:
        with pairs.open("wb") as file:
            for sources, targets in batches:
                block = np.empty((len(sources), 2), dtype)
                kept = _stage(sources, targets, both_ways, block, degree)
                file.write(block[:kept].data)
                num_edges += len(sources)
                num_pairs += kept
        if num_pairs == 0:
            return None
        starts = np.zeros(num_nodes + 1, np.int64)
        np.cumsum(degree, out=starts[1:])
        with (scratch / _INDICES).open("wb") as file:
            first = 0
            while first < num_nodes:
                last = int(np.searchsorted(starts, starts[first] + window_arcs, side="right")) - 1
                last = max(last, first + 1)
                begins = starts[first : last + 1] - starts[first]
                arcs = np.empty(begins[-1], dtype)
                place = begins[:-1].copy()
                with pairs.open("rb") as staged:
                    while len(ends := np.fromfile(staged, dtype, 2 * _READ_PAIRS)):
                        _scatter(ends.reshape(-1, 2), first, last, both_ways, place, arcs)
                kept = _sort_rows(begins, arcs, degree[first:last])
                file.write(arcs[:kept].data)
                sorted_arcs(len(arcs))
                first = last
    finally:
        pairs.unlink(missing_ok=True)
    np.cumsum(degree, out=starts[1:])
    csr = CSR(starts, np.memmap(scratch / _INDICES, dtype, mode="r"))
    kept_edges = csr.num_arcs // 2 if both_ways else csr.num_arcs
    if directed is None:
        directed = not is_symmetric(csr)
    return BuiltTopology(csr, num_edges - num_pairs, num_pairs - kept_edges, directed)


@jit(nogil=True)
def _stage(sources, targets, both_ways, block, degree):  # type: ignore[no-untyped-def]
    kept = 0
    for i in range(len(sources)):
        u, v = sources[i], targets[i]
        if u != v:
            block[kept, 0] = u
            block[kept, 1] = v
            kept += 1
            degree[v] += 1
            if both_ways:
                degree[u] += 1
    return kept


@jit(nogil=True)
def _scatter(block, first, last, both_ways, place, arcs):  # type: ignore[no-untyped-def]
    for i in range(len(block)):
        u, v = block[i, 0], block[i, 1]
        if first <= v < last:
            arcs[place[v - first]] = u
            place[v - first] += 1
        if both_ways and first <= u < last:
            arcs[place[u - first]] = v
            place[u - first] += 1


@jit(nogil=True)
def _sort_rows(begins, arcs, degree):  # type: ignore[no-untyped-def]
    """Sort each row, drop repeats and close the gaps in place; the rows' new lengths go to ``degree``."""
    kept = 0
    for row in range(len(degree)):
        begin, end = begins[row], begins[row + 1]
        if end - begin > 24:
            arcs[begin:end].sort()
        else:
            for i in range(begin + 1, end):
                arc = arcs[i]
                j = i - 1
                while j >= begin and arcs[j] > arc:
                    arcs[j + 1] = arcs[j]
                    j -= 1
                arcs[j + 1] = arc
        start = kept
        for i in range(begin, end):
            if kept == start or arcs[i] != arcs[kept - 1]:
                arcs[kept] = arcs[i]
                kept += 1
        degree[row] = kept - start
    return kept
