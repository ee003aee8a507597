"""Neighbourhood sampling on the CPU, into blocks that torch computes on any device.

Draws are pure functions of (key, layer, node), so they are the same for any number of threads, from any shard of the
graph, and whether a network is computed batch by batch or layer by layer.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from optimag_dist.sampling.kernels import number_nodes
from optimag_dist.types import Block

#: (nodes (k,) int64, fanout, 64-bit key) → (k + 1,) int64 indptr and the neighbours drawn for each.
Draw = Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray]]


class Sampler(Protocol):
    """Draws message-passing blocks; may be called from any thread."""

    def sample(
        self, seeds: np.ndarray, fanouts: Sequence[int], key: Sequence[int]
    ) -> tuple[np.ndarray, tuple[Block, ...]]:
        """Blocks for ``seeds``.

        Args:
            seeds: (A,) int64 distinct node ids, the destinations of the last block.
            fanouts: per layer, input side first; -1 takes all neighbours.
            key: non-negative integers that determine the draw.

        Returns:
            The input nodes (int64; ``seeds`` are the first A of them) and the blocks, input side first.
        """
        ...


class BlockSampler:
    """:class:`Sampler` over keyed draws."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def sample(
        self, seeds: np.ndarray, fanouts: Sequence[int], key: Sequence[int]
    ) -> tuple[np.ndarray, tuple[Block, ...]]:
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
