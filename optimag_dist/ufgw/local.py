"""The plan that leaves all mass where it is: trust in a node comes from its neighbourhood, alignment from its group.

Trust: how much of its mass node i keeps in modality m, r_m(i) = k_m(i) μ_m(i), minimises over r

    α Σ_ik C̄_m(i,k) W̄(i,k) r_i r_k  +  γ Σ_i w_i x_m(i) r_i  +  2ρ Σ_i w_i kl(r_i, μ_i)
    W̄ = √(½(Π_B + Π_Bᵀ)) off the diagonal, over its mean;    w_i = Σ_k W̄(i,k) μ_k
    x_m(i) = mean over m' of Σ_k |C̄_m(i,k) − C̄_m'(i,k)|² t_k / Σ_k t_k,    t = k_m k_m'

so that k = exp(−(α s + ½ γ x)/ρ), where s is the mean distance to the neighbours, weighted by W̄ and by what they keep
themselves: a conflicting neighbour counts for little. In the published problem every node is compared with all nodes of
the group, and what conflicts with a few neighbours drowns among hundreds of pairs that say nothing; and what mass is
moved elsewhere instead of being given up says nothing either (docs/evidence.md). x is the cycle m → G → m' → m.

Aligned: with the plan diag(q), q = r/Σr, the structure term of the objective and what the modalities say of each other

    α Σ_ik |C̄_m(i,k) − C̄_G(i,k)|² q_i q_k  +  σ Σ_{m'} |C̄_m(i,k) − C̄_m'(i,k)|² q'_i q'_k,    q' = t/Σt, pairs once

r is divided by its sum because mass falls everywhere, for reasons that tell no node from another.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from optimag_dist.ufgw.costs import CosineCost, Cost, cosine_costs
from optimag_dist.ufgw.objective import with_gradient

# A node with hardly a neighbour in its group counts as if it had this share of the mean weight of neighbours.
_LEAST_WEIGHT = 0.1
_ITERATIONS = 16
_TOL = 5e-3
_NEARLY_EMPTY = 0.02


@dataclass(frozen=True, eq=False)
class TrustEstimate:
    """What is kept, and why; b modalities, N nodes.

    Attributes:
        kept: (b, N) k in [0, 1], 0 where a node lacks the modality.
        mismatch, disagreement: (b, N) s, mean distance to the neighbours; and x, squared distance from the other
            modalities, 0 where there is none.
        change: (b,) how far the last iteration moved k, the largest entry.
    """

    kept: Tensor
    mismatch: Tensor
    disagreement: Tensor
    change: Tensor


@dataclass(frozen=True, eq=False)
class LocalStatus:
    """How the estimate of trust ended, (b,) each, on the device.

    Attributes:
        change, mass: see :class:`TrustEstimate`, and the mean of what is kept.
        healthy: bool, the modality has distances to estimate_trust by, and they are finite.
    """

    change: Tensor
    mass: Tensor
    healthy: Tensor

    @property
    def signs(self) -> dict[str, Tensor]:
        """Name → (b,) bool: ``empty``, nearly all mass is given up; ``not_converged``, trust was still moving."""
        return {
            "empty": self.healthy & (self.mass < _NEARLY_EMPTY),
            "not_converged": self.healthy & (self.change > _TOL),
        }

    def __str__(self) -> str:
        count, settled = len(self.mass), int((self.healthy & (self.change <= _TOL)).sum())
        masses = ", ".join(f"{mass:.2f}" for mass in self.mass.tolist())
        return f"{settled} of {count} modalities settled; mass kept {masses}"


def near_weights(proximity: Tensor) -> Tensor:
    """W̄ (N, N) of PPR among the nodes: symmetric, ≥ 0, mean 1; all zeros where no pair is connected."""
    weights = (0.5 * (proximity + proximity.mT)).sqrt()
    weights = weights - torch.diag_embed(weights.diagonal())
    mean = weights.mean()
    return weights / torch.where(mean > 0, mean, 1.0)


def estimate_trust(
    C: Tensor, weights: Tensor, marginal: Tensor, *, alpha: float, rho: float, agreement: float
) -> TrustEstimate:
    """k by majorisation: with D ≥ 0, rᵀDr ≤ Σ_i (Dr')_i r_i² / r'_i, so that every iteration lowers the objective at x.
    The bound's minimum has log k + A k + B = 0, A = α s'/(ρ k'), B = γ x/(2ρ). x follows at half the pace.

    ``C`` is C̄ (b, N, N), ``weights`` W̄ (N, N), ``marginal`` μ (b, N), 0 where a node lacks the modality, and
    ``agreement`` γ.
    """
    modalities = len(C)
    near = C * weights
    w = (marginal @ weights).clamp_min(_LEAST_WEIGHT)
    present = marginal > 0
    across = {(m, o): (C[m] - C[o]).square() for m, o in _pairs(modalities)} if agreement > 0 else {}
    both = {pair: (present[pair[0]] & present[pair[1]]).to(C.dtype) for pair in across}
    others = torch.zeros_like(marginal)
    for (m, o), mask in both.items():
        others[m] += mask
        others[o] += mask
    # An absent node keeps 0, and 1/kept, squared in backward, has to stay finite.
    least = torch.finfo(C.dtype).tiny ** 0.25
    kept = present.to(C.dtype)
    mismatch, x, change = torch.zeros_like(kept), torch.zeros_like(kept), torch.zeros_like(kept[:, 0])
    for step in range(_ITERATIONS):
        # From the left, which batched products of one row do several times faster than of one column.
        mismatch = (((kept * marginal)[:, None, :] @ near)[:, 0] / w).clamp_min(0)
        found = torch.zeros_like(kept)
        for (m, o), squared in across.items():
            gap = (_shares(kept[m] * kept[o]) @ squared) * both[m, o]
            found[m] += gap
            found[o] += gap
        x = x.lerp(found / others.clamp_min(1), 0.5 if step else 1.0)
        floor = agreement * x / (2 * rho)
        rising = alpha / rho * mismatch / kept.clamp_min(least) * torch.exp(-floor)
        last, kept = kept, present * torch.exp(_root(rising) - floor)
        change = (kept - last).abs().amax(1)
    return TrustEstimate(kept, mismatch, x, change)


def alignment(cost: CosineCost, C_G: Cost, trust: TrustEstimate, marginal: Tensor) -> Tensor:
    """Σ_ik |C̄_m(i,k) − C̄_G(i,k)|² q_i q_k (b,), differentiable in ``cost.directions`` with q held fixed."""
    with torch.no_grad():
        q = _shares(trust.kept * marginal)
        value, gradient = _distortion(cost, C_G, q)

    def written_out(x: Tensor) -> Tensor:
        return by_autograd(cosine_costs(x, marginal > 0), C_G.dense(), trust, marginal)[0]

    return with_gradient(cost.directions, value, gradient, written_out)


def consistency(cost: CosineCost, trust: TrustEstimate) -> Tensor:
    """Σ_m' Σ_ik |C̄_m(i,k) − C̄_m'(i,k)|² q'_i q'_k (b,), each pair of modalities half at either; differentiable
    likewise, on both sides."""
    modalities = cost.batch_size
    with torch.no_grad():
        value = cost.directions.new_zeros(modalities)
        gradient = torch.zeros_like(cost.directions)
        for step in range(1, modalities):
            entries = torch.arange(modalities, device=value.device).roll(step)
            other = cost.select(entries)
            # A modality whose embeddings all point the same way adds nothing, so it may not pull at the other either.
            worth = (cost.scale > 0) & (other.scale > 0)
            q = _shares(trust.kept * trust.kept[entries]) * worth[:, None]
            of_pair, slope = _distortion(cost, other, q)
            value += 0.5 * of_pair
            gradient += slope

    def written_out(x: Tensor) -> Tensor:
        C = cosine_costs(x, cost.weights > 0)
        return by_autograd(C, C, trust, cost.weights)[1]

    return with_gradient(cost.directions, value, gradient, written_out)


def by_autograd(C: Tensor, C_G: Tensor, trust: TrustEstimate, marginal: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`alignment` and :func:`consistency` (b,) of written-out costs, differentiable in all of it, k included."""
    q = _shares(trust.kept * marginal)
    aligned = _weighted((C - C_G).square(), q)
    consistent, worth = torch.zeros_like(aligned), C.flatten(1).any(1)
    for m, o in _pairs(len(C)):
        shared = _shares(trust.kept[m] * trust.kept[o]) * (worth[m] & worth[o])
        half = 0.5 * _weighted((C[m] - C[o]).square()[None], shared[None])[0]
        consistent = consistent + half * ((torch.arange(len(C)) == m) | (torch.arange(len(C)) == o)).to(half)
    return aligned, consistent


def _weighted(squared: Tensor, q: Tensor) -> Tensor:
    """(b, N, N), (b, N) → Σ_ik q_i q_k squared(i,k) (b,)."""
    return ((squared @ q[:, :, None])[:, :, 0] * q).sum(1)


def _root(rising: Tensor) -> Tensor:
    """u ≤ 0 with u + rising · e^u = 0, by Newton's iteration; the left side is rising and convex in u."""
    # The root is −W(a) with Lambert's W, and W(a) ≤ log(1 + a): a start below it, the first step leads above
    u = -torch.log1p(rising)
    for _ in range(4):
        grown = rising * torch.exp(u)
        u = u - (u + grown) / (1 + grown)
    return u


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((m, o) for m in range(count) for o in range(m))


def _shares(x: Tensor) -> Tensor:
    # Backward divides by the square of the sum.
    return x / x.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)


def _distortion(cost: CosineCost, other: Cost, q: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_ik |A(i,k) − B(i,k)|² q_i q_k (b,) of a cosine cost A and a cost B, and its gradient to A's directions.

    The derivative by A is E = 2 (A − B) ∘ qqᵀ. With A = QσQᵀ only EQ is formed: no (N, N) matrix where B has structure.
    """
    # Both have a mean near 1; without it there are small numbers to square.
    one = q.new_ones(())
    A, B = cost.shifted(one), other.shifted(one)
    weighted = q[:, :, None] * A.factor
    own = A.signed_factor @ (A.factor.mT @ weighted)
    across = B.right_matmul(weighted.mT).mT
    difference = own - across
    # ⟨A, A⟩ − ⟨A, B⟩ under q, with what is left of ⟨B, B⟩ and ⟨A, B⟩.
    product = (q[:, :, None] * A.signed_factor * difference).sum((1, 2))
    rest = (q * B.squared_times(q)).sum(1) - (q[:, :, None] * A.signed_factor * across).sum((1, 2))
    gradient = A.vjp(2 * q[:, :, None] * difference)
    value = (product + rest).clamp_min(0)
    # Where the value is none, the regulariser leaves it out; NaN times nothing would still be NaN.
    return value, torch.where(value.isfinite()[:, None, None], gradient, 0.0)
