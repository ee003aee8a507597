"""Costs as plain tensors: any matrix, the graph cost and the anchor cost."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from optimag_dist.ufgw.costs.base import WRITE_SQUARE_OUT_UP_TO, Cost, rows_times
from optimag_dist.ufgw.validation import check_tensor, require_positive

AnchorCostKind = Literal["ppr", "identity"]
_BLOCK = 128


@dataclass(frozen=True, eq=False)
class DenseCost(Cost):
    """Any cost, written out: (b, N, N) floating point."""

    values: Tensor

    def __post_init__(self) -> None:
        check_tensor("DenseCost", self.values)
        if self.values.ndim != 3 or self.values.shape[1] != self.values.shape[2]:
            raise ValueError(f"DenseCost: got shape {tuple(self.values.shape)}, needed (batch, N, N); x[None] adds one")

    @property
    def numbers(self) -> Tensor:
        return self.values

    def dense(self) -> Tensor:
        return self.values

    def to(self, dtype: torch.dtype) -> "DenseCost":
        return DenseCost(self.values.to(dtype))

    def select(self, entries: Tensor) -> "DenseCost":
        return self if self.batch_size == 1 else DenseCost(self.values[entries])

    def shifted(self, shift: Tensor) -> "DenseCost":
        return DenseCost(self.values - shift)

    def mean(self, weights: Tensor) -> Tensor:
        return (rows_times(weights, self.values) * weights).sum(1) / weights.sum(1).square()

    def right_matmul(self, x: Tensor) -> Tensor:
        return x @ self.values[0] if self.batch_size == 1 else x @ self.values

    def squared_times(self, v: Tensor) -> Tensor:
        if self.nodes <= WRITE_SQUARE_OUT_UP_TO:
            return rows_times(v, self._square)
        # Block by block: the square as a whole would be another N² numbers.
        out = torch.zeros_like(v)
        for part, rows in zip(v.split(_BLOCK, 1), self.values.split(_BLOCK, 1), strict=True):
            out += rows_times(part, rows.square())
        return out

    @cached_property
    def _square(self) -> Tensor:
        return self.values.square()


def graph_cost(proximity: Tensor, delta: float = 1e-5) -> Tensor:
    """Distance of nodes in the graph from their personalised PageRank, as a tensor: C̄_G.

    ``proximity`` is (N, N) PPR among the nodes (Π_B), non-negative, not necessarily symmetric; ``delta`` > 0 the floor
    under it, which sets how far apart unconnected nodes are. Rejection needs a small one. Returns (N, N) symmetric,
    minimum 0, mean 1 over all pairs; all zeros where every pair is equally close.
    """
    require_positive(delta=delta)
    check_tensor("proximity", proximity)
    with torch.autocast(proximity.device.type, enabled=False):
        ppr = proximity.to(torch.promote_types(proximity.dtype, torch.float32))
        cost = -torch.log(0.5 * (ppr + ppr.T) + delta)
        cost = cost - cost.min()
        mean = cost.mean()
        return cost / torch.where(mean > 0, mean, 1.0)


def anchor_cost(C_G: Tensor, tau: float = 0.5, *, kind: AnchorCostKind = "ppr") -> Tensor:
    """Cost of sending a node's modality side to another node's graph side, as a tensor: M of (N, N) or (b, N, N)
    normalised C̄_G.

    ``kind`` is ``ppr``: 1 − exp(−C̄_G/τ), where a small width τ > 0 forces the mass to the diagonal; or ``identity``: 0
    on the diagonal, 1 elsewhere.
    """
    check_kind(kind)
    if kind == "identity":
        return (1 - torch.eye(C_G.shape[-1], dtype=C_G.dtype, device=C_G.device)).expand_as(C_G)
    require_positive(tau=tau)
    return -torch.expm1(-C_G / tau)


def check_kind(kind: str) -> None:
    if kind not in ("ppr", "identity"):
        raise ValueError(f"anchor cost {kind!r}: needed one of 'ppr', 'identity'")
