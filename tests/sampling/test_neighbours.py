"""Blocks against the adjacency they are drawn from, and their reproducibility."""

import subprocess
import sys

import networkx as nx
import numpy as np
import pytest

from optimag_dist.sampling.neighbours import BlockSampler, sampling_thread
from optimag_dist.types import CSR

GRAPH = nx.barabasi_albert_graph(200, 4, seed=1)


def _topology(graph: nx.Graph) -> CSR:
    neighbours = [sorted(graph[v]) for v in range(len(graph))]
    indptr = np.cumsum([0] + [len(row) for row in neighbours])
    return CSR(indptr.astype(np.int64), np.concatenate([np.array(r, dtype=np.int32) for r in neighbours]))


def _sample(seeds: np.ndarray, fanouts: tuple[int, ...], key: tuple[int, ...]) -> tuple:
    sampler = BlockSampler(_topology(GRAPH))
    return sampling_thread().submit(sampler.sample, seeds, fanouts, key).result()


@pytest.mark.parametrize("fanouts", [(3, 2), (-1, -1), (1000,)])
def test_blocks_hold_real_neighbours_up_to_the_fanout(fanouts: tuple[int, ...]) -> None:
    seeds = np.array([0, 5, 17, 199])
    inputs, blocks = _sample(seeds, fanouts, (0, 0))
    assert inputs[: len(seeds)].tolist() == seeds.tolist()
    assert len(blocks) == len(fanouts)
    assert blocks[0].num_src == len(inputs)
    assert blocks[-1].num_dst == len(seeds)
    for block, fanout in zip(blocks, fanouts, strict=True):
        assert block.num_src <= len(inputs)
        for row in range(block.num_dst):
            drawn = inputs[block.indices[block.indptr[row] : block.indptr[row + 1]].numpy()].tolist()
            there = set(GRAPH[int(inputs[row])])
            assert set(drawn) <= there
            assert len(drawn) == len(set(drawn)) == (len(there) if fanout == -1 else min(fanout, len(there)))


def test_a_draw_is_a_function_of_its_key() -> None:
    seeds = np.arange(0, 200, 7)
    first, _ = _sample(seeds, (3, 3), (1, 2, 3))
    between, _ = _sample(seeds, (3, 3), (1, 2, 4))
    again, _ = _sample(seeds, (3, 3), (1, 2, 3))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, between)


def test_a_new_process_draws_the_same() -> None:
    """DGL adds an id of the thread to the seed: a resumed process must still see the same batches."""
    program = (
        "import sys; sys.path.insert(0, 'tests/sampling'); import numpy as np; import test_neighbours as t;"
        "print(t._sample(np.arange(0, 200, 7), (3, 3), (1, 2, 3))[0].tolist())"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == str(_sample(np.arange(0, 200, 7), (3, 3), (1, 2, 3))[0].tolist())
