"""The objective, written once, and its gradient to the modality's embeddings.

    UFGW(π) = (1−α) Σ_ij M_ij π_ij  +  α Σ_ijkl |C̄_m(i,k) − C̄_G(j,l)|² π_ij π_kl  +  penalties
    kl         Σ_i ρ_i kl(r_i, μ_i) + Σ_j ρ_j kl(c_j, ν_j) + ε KL(π ‖ μ⊗ν)
    kl_tensor  ρ KL(r⊗r ‖ μ⊗μ) + ρ KL(c⊗c ‖ ν⊗ν) + ε KL(π⊗π ‖ (μ⊗ν)⊗(μ⊗ν))      (Séjourné, Vialard & Peyré 2021)

with r = π1, c = πᵀ1 and kl(x, y) = x log(x/y) − x + y. A mass that ρ = ∞ pins costs nothing here: the solver keeps it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimag_dist.ufgw.backend import compiled_for
from optimag_dist.ufgw.costs import CosineCost, cosine_costs
from optimag_dist.ufgw.plan import Plan
from optimag_dist.ufgw.problem import Linearised, UFGWProblem


def evaluate(problem: UFGWProblem, plan: Plan, linearised: Linearised, log_moment: Tensor) -> dict[str, Tensor]:
    """The five terms at ``plan`` (multiplied out), weighted, (b,) each, that sum to the objective; from its L⊗π and
    Σ π log π (b,)."""
    mu, nu = problem.mu, problem.nu
    relative = log_moment - torch.xlogy(plan.rows, mu).sum(1) - torch.xlogy(plan.columns, nu).sum(1)
    total = mu.sum(1) * nu.sum(1)
    mass = plan.mass
    tensor_kl = 2 * mass * relative - mass.square() + total.square()
    entropy = tensor_kl if problem.tensor_kl else relative - mass + total
    return {
        "linear": (1 - problem.alpha) * plan.inner(problem.M),
        "quadratic": problem.alpha * problem.interaction(linearised, plan, linearised),
        "marginal_mu": _marginal(plan.rows, mu, problem.rho_mu, problem.tensor_kl),
        "marginal_nu": _marginal(plan.columns, nu, problem.rho_nu, problem.tensor_kl),
        "entropy": problem.epsilon * entropy,
    }


class Moments(NamedTuple):
    """What the solver's steps need of a plan π that solved the cost linearised at π₀, (b,) each: its mass; ⟨L⊗π, π⟩ and
    the size of the numbers that this is a difference of; ⟨L⊗π₀, π⟩; ⟨f⊕g, π⟩; Σ_i ρ_i r_i log(r_i/μ_i) + Σ_j ρ_j c_j
    log(c_j/ν_j) without the pinned nodes; and Σ_i ρ_i r_i + Σ_j ρ_j c_j likewise."""

    mass: Tensor
    own: Tensor
    own_size: Tensor
    across: Tensor
    duals: Tensor
    penalty: Tensor
    penalised: Tensor


def moments(problem: UFGWProblem, at: Linearised, f: Tensor, g: Tensor, plan: Plan, linearised: Linearised) -> Moments:
    """Of ``plan`` (multiplied out if A is dense) and its L⊗π, with the duals f, g (b, N) of the cost linearised ``at``
    another."""
    if compiled := compiled_for(f):
        weights = (problem.mu, problem.nu, problem.rho_mu, problem.rho_nu)
        cores = (at.rows, at.columns, at.core, linearised.rows, linearised.columns, linearised.core)
        moved = plan.kernel if linearised.reduced is None else linearised.reduced
        return Moments(*compiled.moments(plan.rows, plan.columns, f, g, *weights, *cores, moved))
    rho_mu, rho_nu = free(problem.rho_mu), free(problem.rho_nu)
    penalty = (rho_mu * relative_entropy(plan.rows, problem.mu)).sum(1)
    return Moments(
        mass=plan.mass,
        own=problem.interaction(linearised, plan, linearised),
        own_size=(linearised.rows * plan.rows).sum(1) + (linearised.columns * plan.columns).sum(1),
        across=problem.interaction(at, plan, linearised),
        duals=(f * plan.rows).sum(1) + (g * plan.columns).sum(1),
        penalty=penalty + (rho_nu * relative_entropy(plan.columns, problem.nu)).sum(1),
        penalised=(rho_mu * plan.rows).sum(1) + (rho_nu * plan.columns).sum(1),
    )


def relative_entropy(x: Tensor, reference: Tensor) -> Tensor:
    """Entrywise x log(x/reference), 0 where x is."""
    # xlogy: 0 log 0 is 0, where x·log x is NaN.
    return torch.xlogy(x, x) - torch.xlogy(x, reference)


def free(rho: Tensor) -> Tensor:
    """The weights with 0 in the place of inf: what a pinned mass is charged for."""
    return torch.where(rho.isinf(), 0.0, rho)


def _marginal(x: Tensor, reference: Tensor, rho: Tensor, tensor_kl: bool) -> Tensor:
    relative = relative_entropy(x, reference)
    if not tensor_kl:
        return (free(rho) * (relative - x + reference)).sum(1)
    mass, total = x.sum(1), reference.sum(1)
    return free(rho[:, 0]) * (2 * mass * relative.sum(1) - mass.square() + total.square())


def structure_term(
    cost: CosineCost,
    problem: UFGWProblem,
    plan: Plan,
    linearised: Linearised,
    healthy: Tensor,
    again: Callable[[], tuple[UFGWProblem, Plan]],
) -> Tensor:
    """Σ_ijkl |C̄_m(i,k) − C̄_G(j,l)|² π_ij π_kl (b,), differentiable in ``cost.directions`` with the plan held fixed.

    Its derivative by C̄_m is E = 2 [C̄_m ∘ rrᵀ − π C̄_G πᵀ]. Only EQ is formed, with Q the (N, d+2) factor of the cost,
    so the way back to the embeddings costs one more product of N² d, and autograd stores (N, d) numbers.

    Args:
        cost: the modality cost that ``problem`` was made from.
        plan, linearised: multiplied out, and its L⊗π.
        healthy: (b,) bool; where not, the gradient is 0.
        again: finds problem and plan once more, for second derivatives: no plan is kept for those who want none.
    """
    directions = cost.directions
    with torch.no_grad():
        value = problem.interaction(linearised, plan, linearised)
        if not directions.requires_grad:
            return value
        shifted = problem.A if isinstance(problem.A, CosineCost) else cost.shifted(problem.shift)
        Q, r = shifted.factor, plan.rows[:, :, None]
        if linearised.reduced is not None:
            moved = linearised.core * shifted.signs[:, None]
        else:
            moved = problem.B.right_matmul(Q.mT @ plan.kernel)
        own = r * (shifted.signed_factor @ (Q.mT @ (r * Q)))
        gradient = shifted.vjp(2 * (own - plan.kernel @ moved.mT))
        gradient = torch.where(healthy[:, None, None], gradient, 0.0)
    weights = cost.weights

    def written_out(x: Tensor) -> Tensor:
        with torch.no_grad():
            problem, plan = again()
            r = torch.where(healthy[:, None], plan.rows, 0.0)
            moved = torch.where(healthy[:, None, None], problem.B.right_matmul(plan.kernel) @ plan.kernel.mT, 0.0)
        C = cosine_costs(x, weights > 0) - problem.shift
        return (C.square() * r[:, :, None] * r[:, None, :] - 2 * C * moved).sum((1, 2))

    return with_gradient(directions, value, gradient, written_out)


def with_gradient(x: Tensor, value: Tensor, gradient: Tensor, written_out: Callable[[Tensor], Tensor]) -> Tensor:
    """``value`` (b,) as a function of ``x`` (b, …) whose ``gradient`` (b, …) is known already; ``written_out`` is the
    same in torch's operations, up to what does not depend on x: the way that second derivatives take."""
    attached: Tensor = _WithGradient.apply(x, value, gradient, written_out)
    return attached


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Tensor, gradient: Tensor, written_out: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x, gradient)
        ctx.written_out = written_out
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, gradient = ctx.saved_tensors
        # With create_graph the answer is differentiated itself; ``gradient`` would count as constant in x.
        if torch.is_grad_enabled():
            (slope,) = torch.autograd.grad(ctx.written_out(x), x, grad, create_graph=True)
            return slope, None, None, None
        return grad[:, None, None] * gradient, None, None, None
