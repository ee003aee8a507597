"""Unbalanced entropic transport for a fixed cost, by Sinkhorn's iterations, in two arithmetics.

    min_π ⟨C, π⟩ + ρ KL(π1 ‖ μ) + ρ KL(πᵀ1 ‖ ν) + ε KL(π ‖ μ⊗ν)          π = exp((f⊕g − C)/ε) · μ⊗ν
    f_i ← −κε log Σ_j exp((g_j − C_ij)/ε) ν_j ,   g_j ← −κε log Σ_i exp((f_i − C_ij)/ε) μ_i ,   κ = ρ/(ρ+ε)
                                                                                  (Chizat et al. 2018, Séjourné 2019)

Both functions take and return the duals f, g (b, N), 0 at absent nodes, and report per problem whether the arithmetic
held. Absent nodes have μ or ν of 0: they get exactly no mass and influence nothing.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class SinkhornResult(NamedTuple):
    """plan (b, N, N), duals f, g (b, N), healthy (b,) bool."""

    plan: Tensor
    f: Tensor
    g: Tensor
    healthy: Tensor


def sinkhorn_exp(
    cost: Tensor, f: Tensor, g: Tensor, mu: Tensor, nu: Tensor, rho: float, epsilon: float, n_iter: int
) -> SinkhornResult:
    """In the exponential domain: one ``exp`` over (b, N, N), then products with that kernel only.

    The duals are absorbed into the kernel at the start through their c-transforms, f̂ = min_j(C − g) and
    ĝ = min_i(C − f̂): whatever the duals, every row and every column of K = exp((f̂⊕ĝ − C)/ε) then has 1 as its
    maximum, so no sum below starts from an underflow.
    """
    kappa = rho / (rho + epsilon)
    info = torch.finfo(cost.dtype)
    # Entries this far below their row's maximum count for nothing, and exp into denormals is 30 times slower.
    floor = 0.92 * math.log(info.tiny)
    no_row, no_column = mu == 0, nu == 0

    f_hat = (cost - g.masked_fill(no_column, -math.inf)[:, None, :]).amin(2)
    g_hat = (cost - f_hat.masked_fill(no_row, -math.inf)[:, :, None]).amin(1)
    # The upper clamp concerns absent nodes only: their entries must be finite, for 0 · inf is not 0.
    kernel = (f_hat[:, :, None] - cost).add_(g_hat[:, None, :]).div_(epsilon).clamp_(floor, 0).exp_()

    # With u = exp((f − f̂)/ε), v likewise, and a = μu, b = νv, the two updates above read:
    row_scale = mu * torch.exp(f_hat / -(rho + epsilon))
    column_scale = nu * torch.exp(g_hat / -(rho + epsilon))
    b = nu * torch.exp((g - g_hat) / epsilon)
    for _ in range(n_iter):
        row_sum = (b[:, None, :] @ kernel.mT)[:, 0]
        a = row_scale * row_sum.pow(-kappa)
        column_sum = (a[:, None, :] @ kernel)[:, 0]
        b = column_scale * column_sum.pow(-kappa)

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
    f = torch.where(no_row, 0.0, f_hat + epsilon * torch.log(a / mu))
    g = torch.where(no_column, 0.0, g_hat + epsilon * torch.log(b / nu))
    return SinkhornResult(kernel.mul_(a[:, :, None]).mul_(b[:, None, :]), f, g, healthy)


def sinkhorn_log(
    cost: Tensor, f: Tensor, g: Tensor, mu: Tensor, nu: Tensor, rho: float, epsilon: float, n_iter: int
) -> SinkhornResult:
    """The same iterations by log-sum-exp: several times slower, and safe at any ε."""
    step = -epsilon * rho / (rho + epsilon)
    log_mu, log_nu = mu.log(), nu.log()
    kernel = cost / -epsilon
    for _ in range(n_iter):
        f = step * torch.logsumexp(kernel + (g / epsilon + log_nu)[:, None, :], 2)
        g = step * torch.logsumexp(kernel + (f / epsilon + log_mu)[:, :, None], 1)
    plan = kernel.add_((f / epsilon + log_mu)[:, :, None]).add_((g / epsilon + log_nu)[:, None, :]).exp_()
    healthy = plan.isfinite().flatten(1).all(1) & (plan.amax((1, 2)) > 0)
    return SinkhornResult(plan, torch.where(mu == 0, 0.0, f), torch.where(nu == 0, 0.0, g), healthy)
