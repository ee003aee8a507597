"""The modality cost C̄_m = (1 − ZZᵀ) / mean: known by a factor of d + 2 columns, and as a plain tensor."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from optimag_dist.ufgw.costs.base import WRITE_SQUARE_OUT_UP_TO, Cost, rows_times
from optimag_dist.ufgw.validation import check_tensor

# (C∘C)v takes 4 r² N operations by the factor, and one read of N² once the square is written out: that is worth it
# where r² is above this many N (measured: docs/ufgw.md).
_WRITE_SQUARE_OUT = 6


@dataclass(frozen=True, eq=False)
class CosineCost(Cost):
    """C̄ = (1 − ZZᵀ) / mean, known by Z: a product costs O(N² d), and the matrix is never stored.

    With z̃ = z − z̄ and s = 1/mean, C̄(i,k) = v_i + v_k − s z̃_i·z̃_k, where v = ½ − s z̃·z̄. So C̄ = Q diag(σ) Qᵀ with
    Q = [√s Z̃, (v+1)/√2, (v−1)/√2] and σ = (−1, …, −1, 1, −1): numbers near 1 however close together the embeddings lie.

    Attributes:
        directions: (b, N, d) float32 or float64, rows of unit length, 0 where absent.
        weights: (b, N) 1/n for each of the n nodes that are there, 0 for the others: whose pairs the mean runs over.
        shift: what is taken off everywhere, 0-dim or a number.
    """

    directions: Tensor
    weights: Tensor
    shift: Tensor | float = 0.0

    @staticmethod
    def from_embeddings(embeddings: Tensor, present: Tensor | None = None) -> "CosineCost":
        """The cost among the rows of ``embeddings``, differentiable in them through :attr:`directions`.

        Args:
            embeddings: (N, d) or (b, N, d) floating point, at any scale; half precision is computed in float32. A row
                of zeros has no direction: its node counts as absent.
            present: (N,) or (b, N) bool, default all. Rows of absent nodes are not read.
        """
        check_tensor("embeddings", embeddings)
        if embeddings.ndim not in (2, 3) or 0 in embeddings.shape:
            raise ValueError(
                f"embeddings: got shape {tuple(embeddings.shape)}, needed (N, d) or (batch, N, d) with at least one "
                "row and column"
            )
        z = embeddings if embeddings.ndim == 3 else embeddings[None]
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            if present is not None:
                check_tensor("present", present, what="bool")
                if present.shape not in (embeddings.shape[-2:-1], z.shape[:2]):
                    raise ValueError(
                        f"present: got shape {tuple(present.shape)}, needed {tuple(embeddings.shape[:-1])}"
                    )
                z = torch.where(present[..., None], z, 0.0)
            directions, there = to_directions(z)
            weights = there.to(z.dtype)
            return CosineCost(directions, weights / weights.sum(1, keepdim=True).clamp_min(1))

    @property
    def numbers(self) -> Tensor:
        return self.directions

    @property
    def rank(self) -> int:
        return self.directions.shape[2] + 2

    @cached_property
    def centre(self) -> Tensor:
        """z̄ (b, d)."""
        return (self.weights[:, None, :] @ self.directions.detach())[:, 0]

    @cached_property
    def _centred(self) -> Tensor:
        return (self.directions.detach() - self.centre[:, None, :]) * (self.weights > 0)[:, :, None]

    @cached_property
    def scale(self) -> Tensor:
        """s = 1/mean (b,); 0 where all directions are one up to rounding: there is no distance left to normalise."""
        # The mean of 1 − zᵀz is the variance of z, which as a sum of squares does not cancel.
        mean = (self._centred.square().sum(2) * self.weights).sum(1)
        return torch.where(mean < 16 * torch.finfo(mean.dtype).eps, 0.0, 1 / mean)

    @cached_property
    def factor(self) -> Tensor:
        """Q (b, N, d + 2)."""
        columns = self._centred * self.scale.sqrt()[:, None, None]
        top = (self.scale > 0).to(self.dtype)[:, None] - self.shift
        v = top / 2 - (self._centred @ self.centre[:, :, None])[:, :, 0] * self.scale[:, None]
        return torch.cat((columns, ((v + 1) / 2**0.5)[:, :, None], ((v - 1) / 2**0.5)[:, :, None]), 2)

    @cached_property
    def signs(self) -> Tensor:
        """σ (d + 2,)."""
        signs = self.directions.new_full((self.rank,), -1)
        signs[-2] = 1
        return signs

    @cached_property
    def signed_factor(self) -> Tensor:
        """Q diag(σ) (b, N, d + 2)."""
        return self.factor * self.signs

    def dense(self) -> Tensor:
        return self.signed_factor @ self.factor.mT

    def to(self, dtype: torch.dtype) -> "CosineCost":
        if dtype == self.dtype:  # What is cached is kept.
            return self
        return replace(self, directions=self.directions.to(dtype), weights=self.weights.to(dtype))

    def select(self, entries: Tensor) -> "CosineCost":
        if self.batch_size == 1:
            return self
        return replace(self, directions=self.directions[entries], weights=self.weights[entries])

    def shifted(self, shift: Tensor) -> "CosineCost":
        return replace(self, shift=self.shift + shift)

    def mean(self, weights: Tensor) -> Tensor:
        w = (weights[:, None, :] @ self.factor)[:, 0]
        return (w.square() * self.signs).sum(1) / weights.sum(1).square()

    def right_matmul(self, x: Tensor) -> Tensor:
        return (x @ self.signed_factor) @ self.factor.mT

    def squared_times(self, v: Tensor) -> Tensor:
        if self._square is not None:
            return rows_times(v, self._square)
        gram = self.signed_factor.mT @ (v[:, :, None] * self.signed_factor)
        return ((self.factor @ gram) * self.factor).sum(2)

    @cached_property
    def _square(self) -> Tensor | None:
        small = self.nodes <= WRITE_SQUARE_OUT_UP_TO
        return self.dense().square_() if small or self.rank**2 > _WRITE_SQUARE_OUT * self.nodes else None

    def vjp(self, slope: Tensor) -> Tensor:
        """Gradient to :attr:`directions` of a function whose derivative by C̄ is a symmetric E, the mean included,
        2s⟨E, C̄⟩ w z̄ᵀ − 2s EZ, from ``slope`` (b, N, d + 2), EQ: all that is needed of E."""
        s = self.scale[:, None, None]
        ones = ((slope[:, :, -2] - slope[:, :, -1]) / 2**0.5)[:, :, None]
        at_cost = (slope * self.signed_factor).sum((1, 2)) + self.shift * ones.sum((1, 2))
        E_Z = s.sqrt() * slope[:, :, :-2] + s * ones * self.centre[:, None, :]
        return 2 * s * (at_cost[:, None] * self.weights)[:, :, None] * self.centre[:, None, :] - 2 * E_Z


def cosine_cost(embeddings: Tensor, present: Tensor | None = None) -> Tensor:
    """Cosine distances among the rows of ``embeddings``, divided by their mean: C̄_m, as a differentiable tensor.

    The mean is part of the autograd graph. Were it a constant, shrinking every distance would lower the loss.

    Args:
        embeddings: (N, d) floating point; lengths of rows do not matter. Half precision is computed in float32.
        present: (N,) bool, default all; nodes that are absent, or whose row is zero, have costs of 0 and no part in the
            mean, which runs over all other pairs, the diagonal included.

    Returns:
        (N, N) float32 or float64, ≥ 0, mean 1 over the present pairs; all zeros where these are fewer than two nodes,
        or all point the same way (up to rounding).
    """
    check_tensor("embeddings", embeddings)
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        if present is not None:
            z = torch.where(present[:, None], z, 0.0)
        z, there = to_directions(z)
        cost = torch.where(there[:, None] & there, (1 - z @ z.T).clamp_min(0), 0.0)
        pairs = there.sum().to(cost.dtype) ** 2
        mean = cost.sum() / pairs.clamp_min(1)
        # Below the rounding of 1 − zᵀz there is no distance left to normalise.
        collapsed = mean < 16 * torch.finfo(cost.dtype).eps
        return torch.where(collapsed, 0.0, cost / torch.where(collapsed, 1.0, mean))


def cosine_costs(embeddings: Tensor, present: Tensor) -> Tensor:
    """:func:`cosine_cost` (b, N, N) of (b, N, d) and (b, N)."""
    return torch.stack([cosine_cost(z, mask) for z, mask in zip(embeddings, present, strict=True)])


def to_directions(z: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of (…, N, d) at unit length, and which nodes have one (…, N): not those of a row of zeros, which stay zeros.

    Rows are first divided by a power of two near their largest entry. That rounds nothing, and their squares neither
    underflow nor overflow: a row times 1e-30 or 1e30 has the same direction, to the last bit.
    """
    with torch.no_grad():
        peak = z.detach().abs().amax(-1, keepdim=True)
        power = torch.where(peak > 0, peak / (2 * torch.frexp(peak).mantissa), 1.0)
    # NaN is not 0: such a row is refused by name, not left out.
    return normalize(z / power, dim=-1), peak[..., 0] != 0
