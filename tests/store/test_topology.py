"""The out-of-core in-CSR against sets and scipy, for windows from one row to all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix

from optimag_dist.store.topology import build_topology


@st.composite
def edge_lists(draw):
    n = draw(st.integers(2, 40))
    node = st.integers(0, n - 1)
    return n, draw(st.lists(st.tuples(node, node), min_size=1, max_size=120))


def in_batches(edges, size):
    array = np.array(edges, np.int64).reshape(-1, 2)
    return [(array[i : i + size, 0], array[i : i + size, 1]) for i in range(0, len(array), size)]


@pytest.mark.parametrize("directed", [False, True, None])
@settings(deadline=None)
@given(graph=edge_lists(), batch=st.integers(1, 130), window=st.integers(1, 300))
def test_equals_sets(tmp_path_factory, directed, graph, batch, window):
    n, edges = graph
    scratch = tmp_path_factory.mktemp("scratch")
    told = []
    built = build_topology(in_batches(edges, batch), n, directed, scratch, window, told.append)
    proper = [(u, v) for u, v in edges if u != v]
    arcs = set(proper) | (set() if directed in (True, None) else {(v, u) for u, v in proper})
    if not arcs:
        assert built is None
        return
    rows = [sorted(u for u, v in arcs if v == row) for row in range(n)]
    indptr, indices = built.csr.indptr, built.csr.indices
    assert (indptr.dtype, indices.dtype) == (np.int64, np.int32)
    assert [indices[indptr[v] : indptr[v + 1]].tolist() for v in range(n)] == rows
    assert built.self_loops == len(edges) - len(proper)
    distinct = {frozenset(edge) for edge in proper} if directed is False else arcs
    assert built.duplicates == len(proper) - len(distinct)
    assert sum(told) == len(proper) * (2 if directed is False else 1)
    symmetric = all((v, u) in arcs for u, v in arcs)
    assert built.directed == (not symmetric if directed is None else directed)
    assert [path.name for path in scratch.iterdir()] == ["indices.bin"]


def test_long_rows_and_many_windows_equal_scipy(tmp_path):
    """A hub with more neighbours than the window holds; rows long enough for the library's sort."""
    rng = np.random.default_rng(0)
    n, m = 3000, 40_000
    sources, targets = rng.integers(0, n, m), (rng.random(m) ** 3 * n).astype(np.int64)
    built = build_topology(in_batches(np.stack([sources, targets], 1), 7001), n, False, tmp_path, window_arcs=500)
    proper = sources != targets
    u, v = np.r_[sources[proper], targets[proper]], np.r_[targets[proper], sources[proper]]
    expected = coo_matrix((np.ones(len(u)), (v, u)), (n, n)).tocsr()
    expected.sort_indices()
    assert np.array_equal(built.csr.indptr, expected.indptr)
    assert np.array_equal(built.csr.indices, expected.indices)
    assert np.diff(expected.indptr).max() > 500
