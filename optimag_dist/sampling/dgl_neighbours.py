"""Neighbourhood sampling by DGL, into the same blocks as :mod:`optimag_dist.sampling.neighbours`.

DGL seeds its generator with the user's seed plus an id of the calling thread, and splits the draw over its OpenMP
threads; its fused sampler also carries state from call to call. So that a batch is a function of its key all the same,
it samples on one thread of its own, unfused, with one OpenMP thread.
"""

import functools
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from optimag_dist.dgl_package import import_dgl
from optimag_dist.sampling.neighbours import BlockSampler
from optimag_dist.types import CSR, Block


def load_dgl() -> Any:
    """The module ``dgl``, or an InputError."""
    return import_dgl("sampling.sampler=dgl", "take sampling.sampler=keyed, the default")


@functools.cache
def _dgl_thread() -> ThreadPoolExecutor:
    """The one thread of this process that calls DGL's random generator."""
    dgl = load_dgl()
    return ThreadPoolExecutor(1, thread_name_prefix="dgl", initializer=dgl.utils.set_num_threads, initargs=(1,))


class DGLBlockSampler(BlockSampler):
    """A :class:`~optimag_dist.sampling.neighbours.BlockSampler` that has DGL draw from the in-CSR ``topology`` (row v
    holds the neighbours v hears from) of the whole graph, on this host."""

    def __init__(self, topology: CSR) -> None:
        # DGL wants one integer type for both arrays; 32 bits halve the bytes and fit all but the largest graphs.
        fits = topology.num_arcs < 2**31 and topology.num_nodes < 2**31
        dtype = np.int32 if fits else np.int64
        indptr, indices = _as_tensor(topology.indptr, dtype), _as_tensor(topology.indices, dtype)
        self._id_type = indptr.dtype
        self._graph = load_dgl().graph(
            ("csc", (indptr, indices, torch.empty(0, dtype=indptr.dtype))), num_nodes=topology.num_nodes
        )

    def sample(
        self, seeds: np.ndarray, fanouts: Sequence[int], key: Sequence[int]
    ) -> tuple[np.ndarray, tuple[Block, ...]]:
        return _dgl_thread().submit(self._sample, seeds, fanouts, key).result()

    def _sample(
        self, seeds: np.ndarray, fanouts: Sequence[int], key: Sequence[int]
    ) -> tuple[np.ndarray, tuple[Block, ...]]:
        dgl = load_dgl()
        dgl.seed(int(np.random.SeedSequence(list(key)).generate_state(1)[0] >> 1))
        sampler = dgl.dataloading.NeighborSampler(list(fanouts), fused=False)
        inputs, _, drawn = sampler.sample_blocks(self._graph, torch.from_numpy(seeds).to(self._id_type))
        parts = [(*block.adj_tensors("csc")[:2], block.num_src_nodes()) for block in drawn]
        blocks = tuple(Block(indptr.long(), indices.long(), num_src) for indptr, indices, num_src in parts)
        return inputs.numpy().astype(np.int64), blocks


def _as_tensor(indices: np.ndarray, dtype: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        # The array is a read-only memory map, and DGL only reads it; a copy would undo the map.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(indices, dtype=dtype))
