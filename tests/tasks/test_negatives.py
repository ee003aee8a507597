"""Drawn negatives against the graph's dense adjacency, and their frequencies against the distribution they promise.

Frequencies are compared at six standard deviations of a binomial, with fixed seeds.
"""

from functools import partial
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.artefact import artefact_key, block_name, write_block
from optimag_dist.ppr.topk import push_sources
from optimag_dist.store.csr import contains
from optimag_dist.tasks.negatives import no_edges, ppr_hard_negatives
from optimag_dist.types import CSR, InputError


def csr_of(adjacency: np.ndarray) -> CSR:
    """(n, n) bool."""
    indptr = np.concatenate([[0], np.cumsum(adjacency.sum(1))])
    return CSR(indptr, np.nonzero(adjacency)[1].astype(np.int32))


def adjacency_of(graph: nx.Graph) -> np.ndarray:
    return nx.to_numpy_array(graph, nodelist=range(len(graph))) > 0


def artefact_of(topology: CSR, folder: Path, *, eps: float = 1e-5, k: int = 16) -> PPRArtefact:
    """As ``compute_ppr`` writes one, without its workers."""
    folder.mkdir(exist_ok=True)
    options, n = PPROptions(eps=eps, k=k), topology.num_nodes
    rows = push_sources(topology, np.arange(n), teleport=options.teleport, eps=eps, k=k)
    key = artefact_key("graph", options)
    arrays = rows.indptr, rows.indices, rows.values, rows.bounds
    checksum = write_block(folder / block_name(0), key, 0, *arrays)
    PPRArtefact.finish(folder, n, options, "graph", [checksum])
    return PPRArtefact.open(folder)


def assert_frequencies(counts: np.ndarray, draws: int, probability: float | np.ndarray) -> None:
    deviation = np.sqrt(draws * probability * (1 - probability))
    assert np.abs(counts - draws * probability).max() < 6 * np.max(deviation)


# -- membership --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(0, 1), st.sampled_from([np.int32, np.int64]))
def test_contains_is_the_dense_adjacency(seed: int, n: int, share: float, dtype: type) -> None:
    adjacency = np.random.default_rng(seed).random((n, n)) < share
    csr = csr_of(adjacency)
    rows, columns = np.divmod(np.arange(n * n), n)
    assert np.array_equal(contains(CSR(csr.indptr, csr.indices.astype(dtype)), rows, columns), adjacency.ravel())


# -- hard --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph() -> np.ndarray:
    """A ring of cliques: PPR stays near, and a node's own clique is no negative."""
    return adjacency_of(nx.convert_node_labels_to_integers(nx.ring_of_cliques(12, 5)))


def test_hard_negatives_are_stored_entries_that_are_no_neighbours(graph: np.ndarray, tmp_path: Path) -> None:
    csr = csr_of(graph)
    ppr = artefact_of(csr, tmp_path)
    sources = np.array([7, 0, 31, 7, 59])
    drawn = ppr_hard_negatives(ppr, sources, partial(contains, csr), 4, np.random.default_rng(0))
    assert (drawn.shape, drawn.dtype) == ((5, 4), np.int64)
    for source, row in zip(sources, drawn, strict=True):
        _, stored, _ = ppr.rows(np.array([source]))
        free = {int(v) for v in stored if v != source and not graph[source, v]}
        assert len(free) >= 4
        assert len(set(row.tolist())) == 4
        assert set(row.tolist()) <= free


def test_hard_negatives_take_every_such_entry_alike(graph: np.ndarray, tmp_path: Path) -> None:
    csr = csr_of(graph)
    ppr = artefact_of(csr, tmp_path)
    draws, source = 20_000, 12
    _, stored, _ = ppr.rows(np.array([source]))
    free = [v for v in stored if v != source and not graph[source, v]]
    drawn = ppr_hard_negatives(ppr, np.full(draws, source), partial(contains, csr), 3, np.random.default_rng(1))
    assert_frequencies(np.bincount(drawn.ravel(), minlength=60)[free], draws, 3 / len(free))


def test_where_too_few_are_near_uniform_ones_follow(tmp_path: Path) -> None:
    # Two triangles and six nodes alone: nothing but the triangle is stored, and one is all that is free there.
    adjacency = adjacency_of(nx.disjoint_union_all([nx.path_graph(3), nx.cycle_graph(3), nx.empty_graph(6)]))
    csr = csr_of(adjacency)
    ppr = artefact_of(csr, tmp_path)
    draws = 4000
    drawn = ppr_hard_negatives(
        ppr, np.repeat([0, 3, 11], draws), partial(contains, csr), 3, np.random.default_rng(2)
    ).reshape(3, draws, 3)
    # 0 is two steps from 2.
    assert set(drawn[0, :, 0].tolist()) == {2}
    for rows, taken in ((drawn[0, :, 1:], [0, 1]), (drawn[1], [3, 4, 5]), (drawn[2], [11])):
        counts = np.bincount(rows.ravel(), minlength=12)
        assert counts[taken].sum() == 0
        others = np.setdiff1d(np.arange(12), taken)
        assert_frequencies(counts[others], rows.size, 1 / len(others))


def test_the_last_free_node_of_a_hub_is_found_and_none_is_told(tmp_path: Path) -> None:
    # A hub of 399 leaves, and one node beyond: uniform draws would need 400 tries.
    star = adjacency_of(nx.disjoint_union(nx.star_graph(399), nx.empty_graph(1)))
    ppr = artefact_of(csr_of(star), tmp_path / "star")
    drawn = ppr_hard_negatives(ppr, np.array([0, 0]), partial(contains, csr_of(star)), 2, np.random.default_rng(3))
    assert drawn.tolist() == [[400, 400]] * 2
    complete = adjacency_of(nx.complete_graph(6))
    ppr = artefact_of(csr_of(complete), tmp_path / "complete")
    with pytest.raises(InputError, match="node 4 is linked with every other node"):
        ppr_hard_negatives(ppr, np.array([4]), partial(contains, csr_of(complete)), 1, np.random.default_rng(3))


def test_the_generator_alone_decides(graph: np.ndarray, tmp_path: Path) -> None:
    csr = csr_of(graph)
    ppr = artefact_of(csr, tmp_path)
    first, again, other = (
        ppr_hard_negatives(ppr, np.arange(60), partial(contains, csr), 12, np.random.default_rng(seed))
        for seed in (5, 5, 6)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# -- in batch ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.booleans())
def test_in_batch_pairs_are_negatives_unless_they_are_edges_or_one_node(seed: int, n: int, directed: bool) -> None:
    rng = np.random.default_rng(seed)
    adjacency = rng.random((n, n)) < 0.4
    np.fill_diagonal(adjacency, False)
    adjacency[0, 1] = True
    if not directed:
        adjacency |= adjacency.T
    arcs = np.argwhere(adjacency)
    # With repetitions, so that targets are shared.
    edges = arcs[rng.integers(0, len(arcs), 9)]
    mask = no_edges(edges[:, 0], np.tile(edges[:, 1], (len(edges), 1)), partial(contains, csr_of(adjacency)))
    for i, (source, _) in enumerate(edges):
        for j, (_, target) in enumerate(edges):
            assert mask[i, j] == (not adjacency[source, target] and source != target)
    assert not mask.diagonal().any()
