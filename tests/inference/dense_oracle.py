"""A dense forward pass over a whole small graph."""

import numpy as np
import torch
from torch import Tensor

from optimag_dist.models import MultimodalModel
from optimag_dist.store import GraphStore

# Sums of up to 80 float32 terms in another order, through two layers: a few hundred roundings of 6e-8.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def dense(model: MultimodalModel, store: GraphStore, *, layers: int = 2) -> Tensor:
    """What the head sees of all nodes, by dense adjacency and the formulae of the papers."""
    n = store.num_nodes
    everyone = np.arange(n)
    adjacency = torch.zeros(n, n)
    topology = store.topology
    adjacency[np.repeat(everyone, np.diff(topology.indptr)), topology.indices.astype(np.int64)] = 1
    x = model.fusion(
        model.encode({m: torch.from_numpy(store.gather(m, everyone)).float() for m in store.modalities}),
        {m: torch.from_numpy(store.present(m).copy()) for m in store.modalities},
    )
    backbone = model.backbone
    for layer in range(layers):
        if type(backbone).__name__ == "SAGE":
            mean = adjacency @ x / adjacency.sum(1, keepdim=True).clamp(min=1)
            x = (backbone.own[layer](x) + backbone.neighbours[layer](mean)).relu()
        elif type(backbone).__name__ == "GCN":
            loops = adjacency + torch.eye(n)
            scale = loops.sum(1).rsqrt()
            x = ((scale[:, None] * loops * scale) @ backbone.layers[layer](x)).relu()
        else:
            x = backbone.layers[layer](x).relu()
    return x
