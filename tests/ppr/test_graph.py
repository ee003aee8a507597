"""Symmetrisation against a dense adjacency matrix."""

import numpy as np
from hypothesis import given, settings

from optimag_dist.ppr import symmetrise
from optimag_dist.store.csr import graph_hash, is_symmetric
from optimag_dist.types import CSR

from .ppr_oracle import csr_of_arcs, graphs, undirected_dense


@settings(deadline=None, max_examples=80)
@given(graphs())
def test_symmetrise_gives_the_simple_undirected_graph(csr: CSR) -> None:
    result = symmetrise(csr)
    np.testing.assert_array_equal(undirected_dense(csr), undirected_dense(result))
    for v in range(csr.num_nodes):
        row = result.indices[result.indptr[v] : result.indptr[v + 1]]
        assert (np.diff(row) > 0).all()
        assert v not in row
    assert result.num_arcs == int(undirected_dense(csr).sum())
    assert is_symmetric(result)
    assert symmetrise(result) is result


@settings(deadline=None, max_examples=80)
@given(graphs())
def test_symmetric_exactly_when_nothing_would_change(csr: CSR) -> None:
    result = symmetrise(csr)
    unchanged = np.array_equal(csr.indptr, result.indptr) and np.array_equal(csr.indices, result.indices)
    assert is_symmetric(csr) == unchanged


def test_hash_follows_the_adjacency_alone() -> None:
    path = csr_of_arcs(3, [(0, 1), (1, 0), (1, 2), (2, 1)])
    assert graph_hash(path) == graph_hash(CSR(path.indptr.copy(), path.indices.astype(np.int64)))
    others = [
        csr_of_arcs(4, [(0, 1), (1, 0), (1, 2), (2, 1)]),
        csr_of_arcs(3, [(0, 1), (1, 0), (0, 2), (2, 0)]),
        csr_of_arcs(3, [(0, 1), (1, 0)]),
    ]
    assert len({graph_hash(csr) for csr in [path, *others]}) == 4
