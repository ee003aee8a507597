"""Vectors of nodes that come in batches, each node on one rank, and are then wanted on all."""

import numpy as np
import torch
from torch import Tensor

from optimag_dist.tasks.task import sum_over_ranks
from optimag_dist.types import GroupBatch


class NodeVectors:
    """Collects a row per node.

    Args:
        nodes: (k,) int64 ascending ids.
    """

    def __init__(self, nodes: np.ndarray) -> None:
        self._nodes = torch.from_numpy(np.ascontiguousarray(nodes))
        self._rows: Tensor | None = None

    def put(self, batch: GroupBatch, vectors: Tensor) -> None:
        """(A, d) vectors of a batch's anchors."""
        if self._rows is None:
            self._rows = vectors.new_zeros(len(self._nodes), vectors.shape[1])
            self._nodes = self._nodes.to(vectors.device)
        self._rows[torch.searchsorted(self._nodes, batch.node_ids[: batch.num_anchors])] = vectors

    def of_all_ranks(self, like: Tensor) -> Tensor:
        """(k, d) on every rank; ``like`` (…, d) … is what a rank without a batch takes device and width from."""
        rows = self._rows if self._rows is not None else like.new_zeros(len(self._nodes), like.shape[0])
        # Every row is one rank's and 0 on the others.
        return sum_over_ranks(rows)
