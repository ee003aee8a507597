"""Neighbourhood sampling by DGL on the CPU, into blocks that torch computes on any device.

DGL seeds its generator with the user's seed plus an id of the calling thread, and splits the draw over its OpenMP
threads; its fused sampler also carries state from call to call. So that a batch is a pure function of its key, all
sampling of a process happens on one thread of its own (:func:`sampling_thread`), unfused, with one OpenMP thread.
"""

import functools
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dgl
import numpy as np
import torch

from optimag_dist.types import CSR, Block


@functools.cache
def sampling_thread() -> ThreadPoolExecutor:
    """The one thread of this process that calls DGL's random generator."""
    return ThreadPoolExecutor(1, thread_name_prefix="sampling", initializer=dgl.utils.set_num_threads, initargs=(1,))


class BlockSampler:
    """Draws message-passing blocks from a topology (in-CSR: row v holds the neighbours v hears from)."""

    def __init__(self, topology: CSR) -> None:
        # DGL wants one integer type for both arrays; 32 bits halve the bytes and fit all but the largest graphs.
        fits = topology.num_arcs < 2**31 and topology.num_nodes < 2**31
        dtype = np.int32 if fits else np.int64
        indptr = _as_tensor(topology.indptr, dtype)
        indices = _as_tensor(topology.indices, dtype)
        self._id_type = indptr.dtype
        self._graph = dgl.graph(
            ("csc", (indptr, indices, torch.empty(0, dtype=indptr.dtype))), num_nodes=topology.num_nodes
        )

    def sample(
        self, seeds: np.ndarray, fanouts: Sequence[int], key: Sequence[int]
    ) -> tuple[np.ndarray, tuple[Block, ...]]:
        """Blocks for ``seeds``; call it on :func:`sampling_thread`.

        Args:
            seeds: (A,) distinct node ids, the destinations of the last block.
            fanouts: per layer, input side first; -1 takes all neighbours.
            key: non-negative integers that determine the draw.

        Returns:
            The input nodes (int64; ``seeds`` are the first A of them) and the blocks, input side first.
        """
        dgl.seed(int(np.random.SeedSequence(list(key)).generate_state(1)[0] >> 1))
        sampler = dgl.dataloading.NeighborSampler(list(fanouts), fused=False)
        inputs, _, blocks = sampler.sample_blocks(self._graph, torch.from_numpy(seeds).to(self._id_type))
        return inputs.numpy().astype(np.int64), tuple(_to_block(block) for block in blocks)


def _to_block(block: Any) -> Block:
    indptr, indices, _ = block.adj_tensors("csc")
    return Block(indptr.long(), indices.long(), block.num_src_nodes())


def _as_tensor(indices: np.ndarray, dtype: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        # The array is a read-only memory map, and DGL only reads it; a copy would undo the map.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(indices, dtype=dtype))
