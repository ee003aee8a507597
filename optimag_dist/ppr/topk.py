"""Top-k personalised PageRank of a set of sources on one machine."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numba import config

from optimag_dist.ppr.push import PushedRows, Workspace, push_top_k
from optimag_dist.store.csr import row_pointers, symmetrise
from optimag_dist.types import CSR, InputError

# Sources a thread takes at a time: some milliseconds of work, so that an expensive source holds nobody up for long.
_CHUNK = 128


@dataclass(frozen=True)
class TopK:
    """Rows of PPR: ``indptr`` (S + 1,) int64; ``indices`` and ``values`` (entries,) int32 and float32, falling within a
    row; ``bounds`` (S,) float32: 0 ≤ π_s(v) − value(v) ≤ bound·deg(v), at most eps. Pushes done and arcs read by them.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    bounds: np.ndarray
    pushes: int
    arcs: int


def ppr_topk(
    indptr: np.ndarray,
    indices: np.ndarray,
    sources: np.ndarray,
    *,
    teleport: float = 0.15,
    eps: float = 1e-4,
    k: int = 32,
    num_threads: int | None = None,
    assume_symmetric: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k largest entries of personalised PageRank for each source.

    π_s = β Σ_t (1−β)^t e_s (D⁻¹A)^t, β = ``teleport``, on the undirected graph of the input: reverse arcs are added,
    self loops and duplicates dropped. A walk at a node without neighbours stays there, so π_s(s) = 1 for such a node.

    Forward push (Andersen, Chung & Lang 2006; top-k as in PPRGo, Bojchevski et al. 2020) leaves an estimate p and a
    residual r with r(v) ≤ eps·deg(v). The entries kept are the largest of p + βr, for which

        0 ≤ π_s(v) − value(v) ≤ eps·deg(v)

    up to float64 rounding in the sums; the value is then rounded *down* to float32, which may add 2⁻²³·value on the
    right. Which nodes come first is decided on these float32 values. The result does not depend on the number of
    threads or on which other sources are asked for.

    Args:
        indptr: (n + 1,) integers.
        indices: (m,) integers, neighbours of node i at ``indices[indptr[i]:indptr[i + 1]]`` in any order.
        sources: (S,) integers, node ids in any order, repetitions allowed.
        teleport, eps, k: see :class:`~optimag_dist.ppr.PPROptions`; a row is shorter where push reaches fewer nodes.
        num_threads: default: the cores this process may use.
        assume_symmetric: trust that the graph is undirected, without self loops and duplicates (saves an O(m) check).

    Returns:
        ``(indptr, indices, values)``: (S + 1,) int64, (entries,) int32, (entries,) float32. Row i belongs to
        ``sources[i]``, falls in value, ties rise in node id, and contains the source itself.

    Raises:
        InputError: an option outside its range, an inconsistent CSR, or a source that is no node.
    """
    if not (isinstance(teleport, Real) and 0 < teleport < 1):
        raise InputError(f"teleport: needed a probability strictly between 0 and 1, got {teleport!r}")
    if not (isinstance(eps, Real) and 0 < eps < np.inf):
        raise InputError(f"eps: needed a positive number, got {eps!r}")
    if not (isinstance(k, Integral) and k >= 1):
        raise InputError(f"k: needed at least 1 entry per row, got {k!r}")
    if num_threads is not None and not (isinstance(num_threads, Integral) and num_threads >= 1):
        raise InputError(f"num_threads: needed at least 1, got {num_threads!r}")
    csr = _check_csr(indptr, indices)
    source_ids = check_node_ids(sources, csr.num_nodes, "sources")
    if not assume_symmetric:
        csr = symmetrise(csr)
    rows = push_sources(csr, source_ids, teleport=teleport, eps=eps, k=k, num_threads=num_threads)
    return rows.indptr, rows.indices, rows.values


def check_node_ids(node_ids: np.ndarray, num_nodes: int, name: str = "node_ids") -> np.ndarray:
    """``node_ids`` as (N,) int64; ``InputError`` unless they are a vector of integers in [0, num_nodes)."""
    ids = _integers(name, node_ids)
    _check_nodes(name, ids, num_nodes)
    return ids.astype(np.int64, copy=False)


def _check_csr(indptr: np.ndarray, indices: np.ndarray) -> CSR:
    indptr, indices = _integers("indptr", indptr), _integers("indices", indices)
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
        raise InputError(f"indptr: needed 0 to len(indices) = {len(indices)}, got {indptr[0]} to {indptr[-1]}")
    _check_nodes("indices", indices, num_nodes)
    return CSR(indptr, np.ascontiguousarray(indices, dtype=np.int32))


def _check_nodes(name: str, ids: np.ndarray, num_nodes: int) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= num_nodes):
        place = int(np.flatnonzero((ids < 0) | (ids >= num_nodes))[0])
        raise InputError(f"{name}[{place}] = {ids[place]} is no node of a graph with {num_nodes} nodes")


def _integers(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name}: needed a vector of integers: {error}") from error
    # An empty list has numpy's default dtype, float64: no neighbours at all is a valid graph.
    if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
        raise InputError(f"{name}: needed a vector of integers, got {array.dtype} of shape {array.shape}")
    return array


def push_sources(
    csr: CSR, sources: np.ndarray, *, teleport: float, eps: float, k: int, num_threads: int | None = None
) -> TopK:
    """:func:`ppr_topk` on a graph known to be symmetric and for sources known to be nodes; nothing is checked."""
    # One signature for arrays from memory, from a memory map and from Ray's object store: one compilation.
    indptr, indices, sources = (read_only(array) for array in (csr.indptr, csr.indices, sources))
    rows = PushedRows.allocate(len(sources), min(k, csr.num_nodes))
    graph, teleport, eps = (indptr[:-1], indptr[1:], indices), float(teleport), float(eps)
    nothing_missing = np.empty(0, np.int32)
    chunks = itertools.count(0, _CHUNK)

    def work(_: int) -> tuple[int, int]:
        space = Workspace.allocate(np.diff(indptr))
        pushes = arcs = 0
        # next() on the shared counter is atomic: every chunk goes to exactly one thread.
        while (start := next(chunks)) < len(sources):
            part = slice(start, start + _CHUNK)
            done = push_top_k(*graph, sources[part], teleport, eps, space, nothing_missing, rows.part(part))
            pushes, arcs = pushes + done[0], arcs + done[1]
        return pushes, arcs

    # Threads of our own and not numba's: its OpenMP layer kills a process that forks afterwards, as data loaders do.
    available = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    wanted = min(num_threads or available, max(1, -(-len(sources) // _CHUNK)))
    if wanted == 1:
        done = [work(0)]
    else:
        with ThreadPoolExecutor(wanted) as pool:
            done = list(pool.map(work, range(wanted)))
    pushes, arcs = (sum(counts) for counts in zip(*done, strict=True))
    return pack(rows, pushes, arcs)


def pack(rows: PushedRows, pushes: int, arcs: int) -> TopK:
    kept = np.arange(rows.nodes.shape[1]) < rows.sizes[:, None]
    return TopK(row_pointers(rows.sizes), rows.nodes[kept], rows.values[kept], rows.bounds, pushes, arcs)


def read_only(array: np.ndarray) -> np.ndarray:
    """A view that numba types alike wherever the array comes from."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
