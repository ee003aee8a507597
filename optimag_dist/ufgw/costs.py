"""Costs of the transport problem: within a modality, within the graph, and between the two.

    C_m = 1 − Z_m Z_mᵀ ;  C̄_m = C_m / mean(C_m)                     cosine_cost
    C_G = −log(½(Π_B + Π_Bᵀ) + δ), shifted to min 0, over its mean    graph_cost
    M   = 1 − exp(−C̄_G / τ)                                         anchor_prior   (arXiv 2601.22856)

All are dense (N, N). Nothing here reads a value back from the device.
"""

from typing import Literal

import torch
from torch import Tensor

from optimag_dist.ufgw.checks import require_positive

AnchorKind = Literal["ppr", "identity"]


def cosine_cost(embeddings: Tensor, present: Tensor | None = None) -> Tensor:
    """Cosine distances among the rows of ``embeddings``, divided by their mean: C̄_m.

    The mean is part of the autograd graph. Were it a constant, shrinking every distance would lower the loss.

    Args:
        embeddings: (N, d) floating point; rows need not have unit length. Half precision is computed in float32.
        present: (N,) bool, default all. The mean runs over all pairs of present nodes, the diagonal included; costs
            of pairs with an absent node are 0 and mean nothing, since absent nodes carry no mass.

    Returns:
        (N, N) float32 or float64, non-negative, mean 1 over the present pairs. All zeros where the embeddings of the
        present nodes point the same way (up to rounding), or where fewer than two are present.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        if present is not None:
            z = torch.where(present[:, None], z, 0.0)
        z = torch.nn.functional.normalize(z, dim=1)
        cost = (1 - z @ z.T).clamp_min(0)
        pairs = torch.as_tensor(float(cost.numel()), dtype=cost.dtype, device=cost.device)
        if present is not None:
            cost = torch.where(present[:, None] & present, cost, 0.0)
            pairs = present.sum().to(cost.dtype) ** 2
        mean = cost.sum() / pairs.clamp_min(1)
        # Below the rounding of 1 − zᵀz there is no distance left to normalise.
        collapsed = mean < 16 * torch.finfo(cost.dtype).eps
        return torch.where(collapsed, 0.0, cost / torch.where(collapsed, 1.0, mean))


def graph_cost(proximity: Tensor, delta: float = 1e-5) -> Tensor:
    """Distance of nodes in the graph from their personalised PageRank: C̄_G.

    Args:
        proximity: (N, N) PPR among the nodes (Π_B), non-negative, not necessarily symmetric.
        delta: floor under PPR; it sets how far apart unconnected nodes are. Rejection needs a small one.

    Returns:
        (N, N) symmetric, minimum 0, mean 1 over all pairs; all zeros where every pair is equally close.

    Raises:
        ValueError: ``delta`` is not above 0.
    """
    require_positive(delta=delta)
    with torch.autocast(proximity.device.type, enabled=False):
        ppr = proximity.to(torch.promote_types(proximity.dtype, torch.float32))
        cost = -torch.log(0.5 * (ppr + ppr.T) + delta)
        cost = cost - cost.min()
        mean = cost.mean()
        return cost / torch.where(mean > 0, mean, 1.0)


def anchor_prior(C_G: Tensor, tau: float = 0.5, *, kind: AnchorKind = "ppr") -> Tensor:
    """Cost of sending a node's modality side to another node's graph side: M.

    Args:
        C_G: (N, N) normalised graph cost.
        tau: width; a small one forces the mass to the diagonal. Not used by ``identity``.
        kind: ``ppr``: 1 − exp(−C̄_G/τ).  ``identity``: 0 on the diagonal, 1 elsewhere.

    Raises:
        ValueError: ``tau`` is not above 0, or an unknown ``kind``.
    """
    if kind == "identity":
        return 1 - torch.eye(C_G.shape[-1], dtype=C_G.dtype, device=C_G.device)
    if kind != "ppr":
        raise ValueError(f"anchor prior {kind!r}: needed one of 'ppr', 'identity'")
    require_positive(tau=tau)
    return -torch.expm1(-C_G / tau)
