"""Random graphs and the exact answer the push kernel is compared with."""

import numpy as np
from hypothesis import strategies as st

from optimag_dist.types import CSR


def csr_of_arcs(num_nodes: int, arcs: list[tuple[int, int]]) -> CSR:
    """CSR of arcs as given: direction, duplicates, self loops and order within a row are kept."""
    sources = np.array([u for u, _ in arcs], np.int64)
    order = np.argsort(sources, kind="stable")
    targets = np.array([v for _, v in arcs], np.int32)
    indptr = np.zeros(num_nodes + 1, np.int64)
    np.cumsum(np.bincount(sources, minlength=num_nodes), out=indptr[1:])
    return CSR(indptr, targets[order])


def undirected_dense(csr: CSR) -> np.ndarray:
    """(n, n) float64 0/1 adjacency of the graph PPR is defined on."""
    n = csr.num_nodes
    dense = np.zeros((n, n))
    for u in range(n):
        for v in csr.indices[csr.indptr[u] : csr.indptr[u + 1]]:
            if u != v:
                dense[u, v] = dense[v, u] = 1.0
    return dense


def exact_ppr(adjacency: np.ndarray, teleport: float) -> np.ndarray:
    """(n, n) float64, row s = π_s = β (I − (1−β) Pᵀ)⁻¹ e_s; a node without neighbours keeps its walk."""
    n = len(adjacency)
    degree = adjacency.sum(1)
    transition = np.where(degree[:, None] > 0, adjacency / np.maximum(degree, 1)[:, None], np.eye(n))
    return teleport * np.linalg.inv(np.eye(n) - (1 - teleport) * transition)


def power_law(num_nodes: int, degree: int, seed: int) -> CSR:
    """Undirected preferential attachment: every new node joins ``degree`` ends of earlier edges."""
    rng = np.random.default_rng(seed)
    ends = list(range(degree))
    arcs = []
    for u in range(degree, num_nodes):
        for v in {ends[i] for i in rng.integers(0, len(ends), degree)}:
            arcs += [(u, v), (v, u)]
            ends += [u, v]
    arcs.sort()
    return csr_of_arcs(num_nodes, arcs)


@st.composite
def graphs(draw: st.DrawFn, max_nodes: int = 24) -> CSR:
    """Directed multigraphs with self loops, duplicates and isolated nodes, from one node on."""
    n = draw(st.integers(1, max_nodes))
    node = st.integers(0, n - 1)
    return csr_of_arcs(n, draw(st.lists(st.tuples(node, node), max_size=4 * n)))
