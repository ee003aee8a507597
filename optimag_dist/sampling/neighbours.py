"""Neighbourhood sampling on the CPU, into blocks that torch computes on any device.

Draws are pure functions of (key, layer, node), so they are the same for any number of threads, from any shard of the
graph, and whether a network is computed batch by batch or layer by layer.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from optimag_dist.sampling.kernels import number_nodes
from optimag_dist.types import Block

#: (nodes (k,) int64, fanout, 64-bit key) → (k + 1,) int64 indptr and the neighbours drawn for each.
Draw = Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray]]


class BlockSampler:
    """Draws message-passing blocks by keyed draws; may be called from any thread."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def sample(
        self, seeds: np.ndarray, fanouts: Sequence[int], key: Sequence[int]
    ) -> tuple[np.ndarray, tuple[Block, ...]]:
        """The input nodes, int64, of which ``seeds``, (A,) int64 distinct, are the first, and the blocks, input side
        first, the last of which leads to ``seeds``. ``fanouts`` are per layer, input side first, -1 for all neighbours;
        ``key``, non-negative integers, determines the draw."""
        nodes = seeds
        blocks: list[Block] = []
        for layer, fanout in reversed(list(enumerate(fanouts))):
            indptr, drawn = self._draw(nodes, fanout, layer_key(key, layer))
            # The nodes so far are both the block's destinations and the first of its sources.
            nodes, rows = append_nodes(nodes, drawn)
            blocks.append(Block(torch.from_numpy(indptr), torch.from_numpy(rows), len(nodes)))
        return nodes, tuple(reversed(blocks))


def layer_key(key: Sequence[int], layer: int) -> int:
    """The 64-bit key of a layer's draws; layers count from the input side."""
    return int(np.random.SeedSequence([*key, layer]).generate_state(1, np.uint64)[0])


def append_nodes(nodes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``nodes`` (distinct, int64) followed by those ``others`` not among them, and where each of ``others`` stands."""
    room = np.empty(len(nodes) + len(others), np.int64)
    room[: len(nodes)] = nodes
    rows = np.empty(len(others), np.int64)
    count = number_nodes(room, len(nodes), others, rows)
    return room[:count], rows


def exclude_edges(
    blocks: tuple[Block, ...], degrees: np.ndarray, nodes: np.ndarray, edges: np.ndarray
) -> tuple[tuple[Block, ...], np.ndarray]:
    """Blocks over ``nodes`` (U,) int64 distinct, of which each block's sources are the first, and ``degrees`` (U,)
    int64 of these, without the arcs of ``edges`` (E, 2) int64 ids of distinct edges of the graph, in both directions.
    """
    order = np.argsort(nodes)
    places = order[np.searchsorted(nodes, edges, sorter=order).clip(max=len(nodes) - 1)]
    known = nodes[places] == edges
    degrees = degrees - np.bincount(places[known], minlength=len(nodes))
    ends = places[known.all(1)]
    gone = np.unique(np.concatenate([ends @ (len(nodes), 1), ends[:, ::-1] @ (len(nodes), 1)]))
    kept = []
    for block in blocks:
        rows = np.repeat(np.arange(block.num_dst), np.diff(block.indptr.numpy()))
        stay = ~np.isin(rows * len(nodes) + block.indices.numpy(), gone)
        indptr = np.zeros(block.num_dst + 1, np.int64)
        np.cumsum(np.bincount(rows[stay], minlength=block.num_dst), out=indptr[1:])
        kept.append(Block(torch.from_numpy(indptr), block.indices[torch.from_numpy(stay)], block.num_src))
    return tuple(kept), degrees
