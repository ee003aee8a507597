"""The objective, written once, and its gradient to the modality cost.

UFGW(π) = (1−α) Σ_ij M_ij π_ij  +  α Σ_ijkl |C̄_m(i,k) − C̄_G(j,l)|² π_ij π_kl
          + ρ KL(π1 ‖ μ) + ρ KL(πᵀ1 ‖ ν)  +  ε KL(π ‖ μ⊗ν)          KL(a ‖ b) = Σ a log(a/b) − a + b
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from optimag_dist.ufgw.problem import UFGWProblem


@dataclass(frozen=True)
class ObjectiveParts:
    """The five terms, each with its weight in it, (b,) each; they sum to the objective."""

    linear: Tensor
    quadratic: Tensor
    marginal_mu: Tensor
    marginal_nu: Tensor
    entropy: Tensor

    def total(self) -> Tensor:
        return self.linear + self.quadratic + self.marginal_mu + self.marginal_nu + self.entropy

    def as_dict(self) -> dict[str, Tensor]:
        return dict(vars(self))


def evaluate(problem: UFGWProblem, plan: Tensor, linearised: Tensor) -> ObjectiveParts:
    """The terms at ``plan`` (b, N, N), given its L⊗π (b, N, N)."""
    mu, nu = problem.mu, problem.nu
    rows, columns = plan.sum(2), plan.sum(1)
    mass = rows.sum(1)
    # xlogy: 0 log 0 is 0, where p·log(p/q) is NaN once a plan underflows.
    relative = torch.xlogy(plan, plan).sum((1, 2)) - torch.xlogy(rows, mu).sum(1) - torch.xlogy(columns, nu).sum(1)
    return ObjectiveParts(
        linear=(1 - problem.alpha) * inner(problem.M, plan),
        quadratic=problem.alpha * inner(linearised, plan),
        marginal_mu=problem.rho * _kl(rows, mu),
        marginal_nu=problem.rho * _kl(columns, nu),
        entropy=problem.epsilon * (relative - mass + mu.sum(1) * nu.sum(1)),
    )


def inner(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ over the last two axes: (b, N, N), (b, N, N) → (b,)."""
    return (x * y).sum((1, 2))


def _kl(x: Tensor, reference: Tensor) -> Tensor:
    terms = torch.xlogy(x, x) - torch.xlogy(x, reference) - x + reference
    return terms.sum(1)


def structure_term(C_m: Tensor, C_G: Tensor, plan: Tensor) -> Tensor:
    """Σ_ijkl |C_m(i,k) − C_G(j,l)|² π_ij π_kl, differentiable in C_m with the plan held fixed.

    Its gradient is 2 [C_m ∘ rrᵀ − π C_G πᵀ] with r = π1.

    Args:
        C_m: (b, N, N) symmetric.
        C_G: (1 or b, N, N) symmetric, constant.
        plan: (b, N, N), constant.

    Returns:
        (b,)
    """
    value: Tensor = _StructureTerm.apply(C_m, C_G, plan)
    return value


class _StructureTerm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, C_m: Tensor, C_G: Tensor, plan: Tensor) -> Tensor:
        rows, columns = plan.sum(2), plan.sum(1)
        # As in UFGWProblem: a common shift changes nothing but the rounding.
        shift = C_G.mean((1, 2), keepdim=True)
        A, B = C_m - shift, C_G - shift
        moved = plan @ B @ plan.mT
        r_r = rows[:, :, None] * rows[:, None, :]
        ctx.save_for_backward(A, r_r, moved)
        graph_part = inner(B.square(), columns[:, :, None] * columns[:, None, :])
        return inner(A.square(), r_r) + graph_part - 2 * inner(A, moved)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        A, r_r, moved = ctx.saved_tensors  # type: ignore[attr-defined]
        return 2 * grad[:, None, None] * (A * r_r - moved), None, None
