"""Edges cut out of sampled blocks, against the dense adjacency."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.sampling.neighbours import BlockSampler, append_nodes, exclude_edges
from optimag_dist.sampling.rows import draw_neighbours
from optimag_dist.types import CSR, Block


def _graph(rng: np.random.Generator, n: int, density: float) -> np.ndarray:
    """(n, n) bool, symmetric, without self loops."""
    upper = np.triu(rng.random((n, n)) < density, 1)
    return upper | upper.T


def _without(adjacency: np.ndarray, edges: np.ndarray) -> np.ndarray:
    left = adjacency.copy()
    left[edges[:, 0], edges[:, 1]] = left[edges[:, 1], edges[:, 0]] = False
    return left


def _sampler(adjacency: np.ndarray) -> BlockSampler:
    csr = CSR(np.concatenate([[0], np.cumsum(adjacency.sum(1))]), np.nonzero(adjacency)[1].astype(np.int32))
    return BlockSampler(lambda nodes, fanout, key: draw_neighbours(csr, nodes, nodes, fanout, key))


def _rows(block: Block, nodes: np.ndarray) -> list[list[int]]:
    """Each destination's sources, as ids in the order of the block."""
    sources = nodes[block.indices.numpy()].tolist()
    return [sources[start:stop] for start, stop in pairwise(block.indptr.tolist())]


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 14),
    density=st.floats(0, 1),
    share=st.floats(0, 1),
    fanouts=st.lists(st.sampled_from([-1, 1, 2, 4]), min_size=1, max_size=3),
)
def test_exactly_the_arcs_of_the_edges_vanish(
    seed: int, n: int, density: float, share: float, fanouts: list[int]
) -> None:
    """Targets are few and in any order, and seeds that no block needs follow, so edges end within and without."""
    rng = np.random.default_rng(seed)
    adjacency = _graph(rng, n, density)
    edges = np.argwhere(np.triu(adjacency))
    edges = edges[rng.random(len(edges)) < share]
    turned = rng.random(len(edges)) < 0.5
    edges[turned] = edges[turned, ::-1]
    left = _without(adjacency, edges)

    order = rng.permutation(n)
    targets, seeds = order[: rng.integers(1, n + 1)], order[: rng.integers(1, n + 1)]
    inputs, blocks = _sampler(adjacency).sample(targets, fanouts, (seed,))
    nodes, _ = append_nodes(inputs, seeds)
    before = [_rows(block, nodes) for block in blocks]
    found, degrees = exclude_edges(blocks, adjacency.sum(1)[nodes], nodes, edges)

    assert np.array_equal(degrees, left.sum(1)[nodes])
    for rows, block, whole in zip(before, found, blocks, strict=True):
        assert _rows(block, nodes) == [[s for s in row if left[nodes[i], s]] for i, row in enumerate(rows)]
        assert (block.num_dst, block.num_src) == (whole.num_dst, whole.num_src)


def test_where_all_neighbours_are_drawn_it_is_the_graph_without_the_edges() -> None:
    rng = np.random.default_rng(0)
    adjacency = _graph(rng, 40, 0.2)
    edges = np.argwhere(np.triu(adjacency))[::3]
    nodes, blocks = _sampler(adjacency).sample(np.arange(40), [-1, -1], (0,))
    found, _ = exclude_edges(blocks, adjacency.sum(1)[nodes], nodes, edges)
    _, expected = _sampler(_without(adjacency, edges)).sample(np.arange(40), [-1, -1], (0,))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.indptr.tolist() == theirs.indptr.tolist()
        assert ours.indices.tolist() == theirs.indices.tolist()


def test_an_edge_that_leaves_the_batch_costs_the_end_within_its_degree() -> None:
    """Of the path 0–1–2–3–4 the batch has 1 and what it draws, 0 and 2."""
    path = np.abs(np.subtract.outer(np.arange(5), np.arange(5))) == 1
    nodes, blocks = _sampler(path).sample(np.array([1]), [-1], (0,))
    assert nodes.tolist() == [1, 0, 2]
    for edges, row, left in (([[3, 2], [3, 4]], [0, 2], [2, 1, 1]), ([[0, 1], [2, 3]], [2], [1, 0, 1])):
        found, degrees = exclude_edges(blocks, np.array([2, 1, 2]), nodes, np.array(edges))
        assert _rows(found[0], nodes) == [row]
        assert degrees.tolist() == left
