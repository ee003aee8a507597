"""Simple regularisers over the same groups and the same PPR, for comparison: what does transport bring beyond them?

Each is held at the same share of the encoders' gradient as the default. They tell no kept mass.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

# Temperature of InfoNCE.
_TEMPERATURE = 0.2


class _OverNeighbours(nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, embeddings: Mapping[str, Tensor], proximity: Tensor, present: Mapping[str, Tensor]) -> Tensor:
        near = 0.5 * (proximity + proximity.mT)
        near = near - torch.diag_embed(near.diagonal())
        value = near.new_zeros(())
        for name, z in embeddings.items():
            there = present[name]
            value = value + self.of_one(normalize(z[there], dim=1), near[there][:, there])
        return self.weight * value

    def of_one(self, z: Tensor, near: Tensor) -> Tensor:
        """Of directions (N, d) and symmetric PPR (N, N) with an empty diagonal."""
        raise NotImplementedError


class CosinePull(_OverNeighbours):
    """PPR-weighted mean distance of neighbours."""

    def of_one(self, z: Tensor, near: Tensor) -> Tensor:
        return (near * (1 - z @ z.mT)).sum() / near.sum().clamp_min(1e-12)


class LaplacianSmoothing(_OverNeighbours):
    """Quadratic form of the symmetrically normalised Laplacian."""

    def of_one(self, z: Tensor, near: Tensor) -> Tensor:
        scaled = z * near.sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
        differences = (scaled[:, None] - scaled[None]).square().sum(-1)
        return 0.5 * (near * differences).sum() / max(len(z), 1)


class InfoNCE(_OverNeighbours):
    """PPR neighbours are positives, the rest of the group negatives."""

    def of_one(self, z: Tensor, near: Tensor) -> Tensor:
        likeness = z @ z.mT / _TEMPERATURE
        likeness = likeness.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
        log_share = likeness.log_softmax(1).masked_fill(near == 0, 0.0)
        return -(near * log_share).sum() / near.sum().clamp_min(1e-12)
