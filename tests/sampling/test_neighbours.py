"""Blocks against the adjacency they are drawn from, their distribution, and their reproducibility."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from optimag_dist.sampling.dgl_neighbours import DGLBlockSampler
from optimag_dist.sampling.neighbours import BlockSampler, append_nodes, layer_key
from optimag_dist.sampling.rows import draw_neighbours
from optimag_dist.types import CSR

GRAPH = nx.barabasi_albert_graph(200, 4, seed=1)
# Keys are fixed, so a test of fit passes always or never; this is how likely never would be for a fair sampler.
BAD_LUCK = 1e-6


def _topology(graph: nx.Graph) -> CSR:
    neighbours = [sorted(graph[v]) for v in range(len(graph))]
    indptr = np.cumsum([0] + [len(row) for row in neighbours])
    return CSR(indptr.astype(np.int64), np.concatenate([np.array(r, dtype=np.int32) for r in neighbours]))


def _keyed(topology: CSR) -> BlockSampler:
    return BlockSampler(lambda nodes, fanout, key: draw_neighbours(topology, nodes, nodes, fanout, key))


def _dgl(topology: CSR) -> DGLBlockSampler:
    pytest.importorskip("dgl", reason="DGL has no wheel for this Python")
    return DGLBlockSampler(topology)


BOTH = pytest.mark.parametrize("make", [_keyed, _dgl])


@BOTH
@pytest.mark.parametrize("fanouts", [(3, 2), (-1, -1), (1000,), (6, -1, 2)])
def test_blocks_hold_real_neighbours_up_to_the_fanout(
    make: Callable[[CSR], BlockSampler], fanouts: tuple[int, ...]
) -> None:
    seeds = np.array([0, 5, 17, 199])
    inputs, blocks = make(_topology(GRAPH)).sample(seeds, fanouts, (0, 0))
    assert inputs[: len(seeds)].tolist() == seeds.tolist()
    assert len(np.unique(inputs)) == len(inputs) == blocks[0].num_src
    assert len(blocks) == len(fanouts)
    assert blocks[-1].num_dst == len(seeds)
    assert all(inner.num_dst == outer.num_src for inner, outer in itertools.pairwise(blocks))
    for block, fanout in zip(blocks, fanouts, strict=True):
        for row in range(block.num_dst):
            drawn = inputs[block.indices[block.indptr[row] : block.indptr[row + 1]].numpy()].tolist()
            there = set(GRAPH[int(inputs[row])])
            assert set(drawn) <= there
            assert len(drawn) == len(set(drawn)) == (len(there) if fanout == -1 else min(fanout, len(there)))


@BOTH
def test_a_draw_is_a_function_of_its_key(make: Callable[[CSR], BlockSampler]) -> None:
    sampler, seeds = make(_topology(GRAPH)), np.arange(0, 200, 7)
    first, _ = sampler.sample(seeds, (3, 3), (1, 2, 3))
    between, _ = sampler.sample(seeds, (3, 3), (1, 2, 4))
    again, _ = sampler.sample(seeds, (3, 3), (1, 2, 3))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, between)


@pytest.mark.parametrize("name", ["_keyed", "_dgl"])
def test_a_new_process_draws_the_same(name: str) -> None:
    """DGL adds an id of the thread to the seed: a resumed process must still see the same batches."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "import numpy as np; import test_neighbours as t;"
        f"print(t.{name}(t._topology(t.GRAPH)).sample(np.arange(0, 200, 7), (3, 3), (1, 2, 3))[0].tolist())"
    )
    here, _ = globals()[name](_topology(GRAPH)).sample(np.arange(0, 200, 7), (3, 3), (1, 2, 3))
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == str(here.tolist())


def test_a_nodes_draw_does_not_depend_on_the_others_of_its_batch() -> None:
    draw = partial(draw_neighbours, _topology(GRAPH))
    nodes = np.random.default_rng(0).permutation(200)
    indptr, together = draw(nodes, nodes, 3, 17)
    for i, node in enumerate(nodes):
        _, alone = draw(np.array([node]), np.array([node]), 3, 17)
        assert together[indptr[i] : indptr[i + 1]].tolist() == alone.tolist()


def test_layers_and_keys_draw_apart() -> None:
    keys = [layer_key((seed, step), layer) for seed in range(9) for step in range(9) for layer in range(3)]
    assert len(set(keys)) == len(keys)
    assert max(keys) >= 2**63


@BOTH
@pytest.mark.parametrize(("degree", "fanout"), [(7, 3), (9, 1), (6, 5), (11, 2)])
def test_every_subset_is_as_likely_as_every_other(
    make: Callable[[CSR], BlockSampler], degree: int, fanout: int
) -> None:
    star = _topology(nx.star_graph(degree))
    subsets = list(itertools.combinations(range(1, degree + 1), fanout))
    draws = 40 * len(subsets)
    sampler = make(star)
    drawn = (sampler.sample(np.array([0]), (fanout,), (5, key))[0][1:] for key in range(draws))
    seen = Counter(tuple(sorted(nodes.tolist())) for nodes in drawn)
    assert set(seen) <= set(subsets)
    counts = np.array([seen[subset] for subset in subsets])
    assert (((counts - 40) ** 2) / 40).sum() < chi2.isf(BAD_LUCK, len(subsets) - 1)


def test_two_nodes_draw_independently() -> None:
    """Nodes 0 and 1 both pick one of the same five neighbours: all 25 pairs come up equally often."""
    both = _topology(nx.complete_bipartite_graph(2, 5))
    nodes, draws = np.array([0, 1]), 1000
    pairs = [tuple(draw_neighbours(both, nodes, nodes, 1, key)[1].tolist()) for key in range(draws)]
    counts = np.array([Counter(pairs)[pair] for pair in itertools.product(range(2, 7), repeat=2)])
    assert (((counts - draws / 25) ** 2) / (draws / 25)).sum() < chi2.isf(BAD_LUCK, 24)


@settings(deadline=None, max_examples=60)
@given(
    nodes=st.lists(st.integers(0, 40), unique=True, max_size=20),
    others=st.lists(st.integers(0, 40) | st.sampled_from([2**31 - 1, 2**40]), max_size=60),
)
def test_nodes_are_appended_once_in_order_of_occurrence(nodes: list[int], others: list[int]) -> None:
    numbered, rows = append_nodes(np.array(nodes, np.int64), np.array(others, np.int64))
    assert numbered.tolist() == list(dict.fromkeys([*nodes, *others]))
    assert numbered[rows].tolist() == others
