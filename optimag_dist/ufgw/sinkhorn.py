"""Unbalanced entropic transport for a fixed cost, by Sinkhorn's iterations, in two arithmetics.

    min_π ⟨C, π⟩ + Σ_i ρ_i kl(r_i, μ_i) + Σ_j ρ_j kl(c_j, ν_j) + ε KL(π ‖ μ⊗ν)      r = π1, c = πᵀ1
    π = exp((f⊕g − C)/ε) · μ⊗ν
    f_i ← −κ_i ε log Σ_j exp((g_j − C_ij)/ε) ν_j ,   κ_i = ρ_i/(ρ_i+ε) (1 for ρ = ∞), and g likewise
                                                                                  (Chizat et al. 2018, Séjourné 2019)

Both functions take and return the duals f, g (b, N), 0 at absent nodes, and report per problem whether the arithmetic
held. Absent nodes have μ or ν of 0: they get exactly no mass and influence nothing. The cost comes as a matrix and two
vectors, C = cost + x⊕y, so that what is constant along rows or columns is never added to N² numbers; the memory of the
matrix becomes the kernel of the plan.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from optimag_dist.ufgw.backend import compiled_for, triton_for
from optimag_dist.ufgw.plan import Plan


class Entropic(NamedTuple):
    """What the problem has beside its cost: mu, nu, rho_mu, rho_nu (b, N) contiguous, epsilon (b,)."""

    mu: Tensor
    nu: Tensor
    rho_mu: Tensor
    rho_nu: Tensor
    epsilon: Tensor


class SinkhornResult(NamedTuple):
    """plan, duals f, g (b, N), healthy (b,) bool, iterations (b,) done; lost (b,), the logarithm of what the plan was
    divided by so as to be within the numbers that there are, or None where it is as it came out."""

    plan: Plan
    f: Tensor
    g: Tensor
    healthy: Tensor
    iterations: Tensor
    lost: Tensor | None = None


def sinkhorn_exp(
    cost: Tensor, x: Tensor, y: Tensor, f: Tensor, g: Tensor, entropic: Entropic, n_iter: int, tol: float = 0.0
) -> SinkhornResult:
    """In the exponential domain: one ``exp`` over (b, N, N), then products with that kernel only.

    The duals are absorbed into the kernel at the start through their c-transforms, f̂ = min_j(C − g) and ĝ = min_i(C −
    f̂): whatever the duals, every row and every column of K = exp((f̂⊕ĝ − C)/ε) then has 1 as its maximum, so no sum
    below starts from an underflow.

    Args:
        cost, x, y: (b, N, N) contiguous, overwritten, and (b, N) added to its rows and columns.
        f, g: (b, N) duals to start from.
        tol: stop a problem once an iteration changes no entry of its scaling by more than this share. Used by the
            compiled kernels only: anywhere else, asking costs more than iterating.
    """
    if compiled := compiled_for(cost):
        f, g, a, b, rows, columns, healthy, iterations = compiled.sinkhorn(cost, x, y, f, g, *entropic, n_iter, tol)
        return SinkhornResult(Plan(cost, a, b, rows, columns), f, g, healthy, iterations)
    mu, nu, rho_mu, rho_nu, _ = entropic
    epsilon = entropic.epsilon[:, None]
    kappa_mu, kappa_nu = 1 / (1 + epsilon / rho_mu), 1 / (1 + epsilon / rho_nu)
    info = torch.finfo(cost.dtype)
    # Entries this far below their row's maximum count for nothing, and exp into denormals is 30 times slower.
    floor = 0.92 * math.log(info.tiny)
    no_row, no_column = mu == 0, nu == 0

    row_low = (cost + (y - g).masked_fill(no_column, math.inf)[:, None, :]).amin(2)
    column_low = (cost - row_low.masked_fill(no_row, -math.inf)[:, :, None]).amin(1)
    f_hat, g_hat = row_low + x, column_low + y
    # The upper clamp concerns absent nodes only: their entries must be finite, for 0 · inf is not 0.
    kernel = cost.neg_().add_(row_low[:, :, None]).add_(column_low[:, None, :]).div_(epsilon[:, :, None])
    kernel = kernel.clamp_(floor, 0).exp_()

    # With u = exp((f − f̂)/ε), v likewise, and a = μu, b = νv, the two updates above read:
    row_scale = mu * torch.exp(-f_hat / (rho_mu + epsilon))
    column_scale = nu * torch.exp(-g_hat / (rho_nu + epsilon))
    b = nu * torch.exp((g - g_hat) / epsilon)
    if triton := triton_for(kernel):
        a, b, row_sum, column_sum = triton.iterate(kernel, b, row_scale, column_scale, kappa_mu, kappa_nu, n_iter)
    else:
        for _ in range(n_iter):
            row_sum = (b[:, None, :] @ kernel.mT)[:, 0]
            a = row_scale * row_sum.pow(-kappa_mu)
            column_sum = (a[:, None, :] @ kernel)[:, 0]
            b = column_scale * column_sum.pow(-kappa_nu)

    # The clamp was harmless if all it could have added to a sum is below that sum's rounding.
    clamped = math.exp(floor) / info.eps
    healthy = (
        ((row_sum > clamped * b.sum(1, keepdim=True)) | no_row).all(1)
        & ((column_sum > clamped * a.sum(1, keepdim=True)) | no_column).all(1)
        & ((a > 0) | no_row).all(1)
        & ((b > 0) | no_column).all(1)
        & a.isfinite().all(1)
        & b.isfinite().all(1)
    )
    f = torch.where(no_row, 0.0, f_hat + epsilon * log_ratio(a, mu))
    g = torch.where(no_column, 0.0, g_hat + epsilon * log_ratio(b, nu))
    rows = a * (b[:, None, :] @ kernel.mT)[:, 0]
    iterations = torch.full_like(entropic.epsilon, n_iter)
    return SinkhornResult(Plan(kernel, a, b, rows, b * column_sum), f, g, healthy, iterations)


def sinkhorn_log(
    cost: Tensor, x: Tensor, y: Tensor, f: Tensor, g: Tensor, entropic: Entropic, n_iter: int, tol: float = 0.0
) -> SinkhornResult:
    """The same iterations by log-sum-exp: several times slower, and safe at any ε. ``tol`` is not used."""
    mu, nu, rho_mu, rho_nu, _ = entropic
    epsilon = entropic.epsilon[:, None]
    step_mu, step_nu = -epsilon / (1 + epsilon / rho_mu), -epsilon / (1 + epsilon / rho_nu)
    log_mu, log_nu = mu.log(), nu.log()
    kernel = cost.add_(x[:, :, None]).add_(y[:, None, :]).div_(-epsilon[:, :, None])
    for _ in range(n_iter):
        f = step_mu * torch.logsumexp(kernel + (g / epsilon + log_nu)[:, None, :], 2)
        g = step_nu * torch.logsumexp(kernel + (f / epsilon + log_mu)[:, :, None], 1)
    # The first costs can be so far above ρ that the whole plan underflows. How heavy it is to be is decided by the
    # solver's next line, from inner products that have to be numbers: so it gets one of mass 1.
    # After an update of g its columns have the mass ν exp(−g/ρ).
    log_mass = torch.logsumexp(log_nu - g / rho_nu, 1, keepdim=True)
    out_of_range = (log_mass.abs() > -math.log(torch.finfo(f.dtype).tiny) / 2) & log_mass.isfinite()
    lost = torch.where(out_of_range, log_mass, 0.0)
    f = f - epsilon * lost
    plan = kernel.add_((f / epsilon + log_mu)[:, :, None]).add_((g / epsilon + log_nu)[:, None, :]).exp_()
    healthy = plan.isfinite().flatten(1).all(1) & (plan.amax((1, 2)) > 0)
    return SinkhornResult(
        Plan(plan, torch.ones_like(mu), torch.ones_like(nu), plan.sum(2), plan.sum(1)),
        torch.where(mu == 0, 0.0, f),
        torch.where(nu == 0, 0.0, g),
        healthy,
        torch.full_like(entropic.epsilon, n_iter),
        lost[:, 0],
    )


def log_ratio(x: Tensor, y: Tensor) -> Tensor:
    """log(x/y) of positive numbers, also where x/y leaves the numbers that there are."""
    ratio = x / y
    inside = (ratio >= torch.finfo(x.dtype).tiny) & ratio.isfinite()
    return torch.where(inside, torch.log(ratio), torch.log(x) - torch.log(y))
