"""Small problems and plain references that the tests of the solver share."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimag_dist.ufgw import LocalRegulariser, RobustRegulariser, UFGWRegulariser

Costs = tuple[Tensor, Tensor, Tensor]


def make_regulariser(kind: str = "local", **options: Any) -> LocalRegulariser | UFGWRegulariser:
    """The regulariser of this kind with these options."""
    cls: Any = {"local": LocalRegulariser, "ufgw": UFGWRegulariser, "robust": RobustRegulariser}[kind]
    made: LocalRegulariser | UFGWRegulariser = cls(cls.options_class(**options))
    return made


def random_costs(nodes: int, seed: int, *, dim: int = 3, dtype: torch.dtype = torch.float64) -> Costs:
    """C_m from random directions, C_G and M from a random similarity that has something of C_m in it."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(nodes, dim, generator=generator, dtype=torch.float64)
    z = z / z.norm(dim=1, keepdim=True)
    C_m = (1 - z @ z.T).clamp_min(0)
    C_m = (C_m + C_m.T) / 2
    noise = torch.rand(nodes, nodes, generator=generator, dtype=torch.float64)
    C_G = C_m + 0.5 * (noise + noise.T)
    C_G.fill_diagonal_(0)
    C_m = C_m / C_m.mean() if nodes > 1 else C_m
    C_G = C_G / C_G.mean() if nodes > 1 else C_G
    return C_m.to(dtype), C_G.to(dtype), (1 - torch.exp(-C_G / 0.5)).to(dtype)


def random_masses(nodes: int, seed: int) -> Tensor:
    """Positive, of sum 1, the largest at most six times the smallest."""
    masses = torch.rand(nodes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2
    return masses / masses.sum()


def random_proximity(nodes: int, seed: int, *, density: float = 0.1) -> Tensor:
    """(N, N) float64, not symmetric, with about this share of entries: half of the mass stays, as in PPR."""
    generator = torch.Generator().manual_seed(seed)
    walk = torch.rand(nodes, nodes, generator=generator, dtype=torch.float64)
    walk = walk * (torch.rand(nodes, nodes, generator=generator) < density)
    return 0.5 * torch.eye(nodes, dtype=torch.float64) + 0.5 * walk / walk.sum(1, keepdim=True).clamp_min(1)


def random_embeddings(problems: int, nodes: int, dim: int, seed: int, *, spread: float = 1.0) -> Tensor:
    """(b, N, d) float64 around one direction: a ``spread`` of 0.1 makes the mean cosine about 0.99."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(problems, nodes, dim, generator=generator, dtype=torch.float64)
    centre = torch.ones(dim, dtype=torch.float64) if spread < 1 else torch.zeros(dim, dtype=torch.float64)
    return centre + spread * noise


def random_present(problems: int, nodes: int, seed: int) -> Tensor:
    """(b, N) bool, two nodes or more in each."""
    present = torch.rand(problems, nodes, generator=torch.Generator().manual_seed(seed)) < 0.7
    present[:, :2] = True
    return present


def four_tensor_objective(
    plan: np.ndarray,
    C_m: Tensor,
    C_G: Tensor,
    M: Tensor,
    mu: np.ndarray,
    nu: np.ndarray,
    weights: dict[str, float],
    marginal: str = "kl",
) -> float:
    """UFGW(π) by its definition, the sum over i, j, k, l written out."""
    a, b = C_m.double().numpy(), C_G.double().numpy()
    distortion = (a[:, None, :, None] - b[None, :, None, :]) ** 2  # (i, j, k, l)
    p, q = plan.sum(1), plan.sum(0)
    alpha, rho, epsilon = weights["alpha"], weights["rho"], weights["epsilon"]

    def divergence(x: np.ndarray, y: np.ndarray) -> float:
        return kl(x, y) if marginal == "kl" else kl(np.multiply.outer(x, x), np.multiply.outer(y, y))

    return float(
        (1 - alpha) * (M.double().numpy() * plan).sum()
        + alpha * np.einsum("ijkl,ij,kl->", distortion, plan, plan)
        + rho * (divergence(p, mu) + divergence(q, nu))
        + epsilon * divergence(plan, np.outer(mu, nu))
    )


def explicit_structure(C_m: Tensor, C_G: Tensor, plan: Tensor) -> Tensor:
    return torch.einsum("ijkl,ij,kl->", (C_m[:, None, :, None] - C_G[None, :, None, :]) ** 2, plan, plan)


def kl(x: np.ndarray, y: np.ndarray) -> float:
    positive = x > 0
    return float((x[positive] * np.log(x[positive] / y[positive])).sum() - x.sum() + y.sum())


def kkt_residual(
    plan: Tensor, C_m: Tensor, C_G: Tensor, M: Tensor, mu: Tensor, nu: Tensor, weights: Mapping[str, Any]
) -> float:
    """max |∂UFGW/∂π_ij| over present pairs, the gradient by its definition: 0 at a stationary point.

    The weight ρ is a number, one per node, or a pair of these. Where it is inf the mass is given, and the equations of
    that row or column hold up to a constant of its own: those that fit best are taken off.
    """
    rho = weights["rho"] if isinstance(weights["rho"], tuple) else (weights["rho"], weights["rho"])
    rho_mu, rho_nu = (torch.as_tensor(x, dtype=plan.dtype).expand(len(plan)) for x in rho)
    p, q = plan.sum(1), plan.sum(0)
    moved = torch.einsum("ijkl,kl->ij", (C_m[:, None, :, None] - C_G[None, :, None, :]) ** 2, plan)
    price_mu = torch.where(rho_mu.isinf(), 0.0, rho_mu * torch.log(p / mu))
    price_nu = torch.where(rho_nu.isinf(), 0.0, rho_nu * torch.log(q / nu))
    gradient = (
        (1 - weights["alpha"]) * M
        + 2 * weights["alpha"] * moved
        + price_mu[:, None]
        + price_nu
        + weights["epsilon"] * torch.log(plan / (mu[:, None] * nu))
    )
    rows, columns = mu > 0, nu > 0
    gradient = gradient[rows][:, columns]
    # One unknown for each pinned row or column, one equation for each pair.
    one = torch.ones_like(gradient)
    unknowns = [one * (torch.arange(len(one)) == i)[:, None] for i in rho_mu[rows].isinf().nonzero()[:, 0]]
    unknowns += [one * (torch.arange(one.shape[1]) == j) for j in rho_nu[columns].isinf().nonzero()[:, 0]]
    if unknowns:
        system = torch.stack([x.flatten() for x in unknowns], 1)
        gradient = gradient.flatten() - system @ torch.linalg.pinv(system) @ gradient.flatten()
    return float(gradient.abs().max())


def log_domain_reference(
    C_m: np.ndarray,
    C_G: np.ndarray,
    M: np.ndarray,
    *,
    alpha: float,
    rho: float,
    epsilon: float,
    n_outer: int,
    n_sinkhorn: int,
) -> np.ndarray:
    """The solver's six lines again, one problem, uniform marginals, numpy, log-sum-exp, uncentred costs.

    Line 5 by bisection on the derivative of UFGW(s·π); line 6 is left out, so it holds where every step was whole.
    """
    n = len(C_m)
    mu = np.full(n, 1 / n)
    plan, f, g = np.outer(mu, mu), np.zeros(n), np.zeros(n)

    def moved(plan: np.ndarray) -> np.ndarray:
        return (C_m**2 @ plan.sum(1))[:, None] + C_G**2 @ plan.sum(0) - 2 * C_m @ plan @ C_G

    def soft_min(x: np.ndarray) -> np.ndarray:
        top = x.max(1)
        return -epsilon * rho / (rho + epsilon) * (top + np.log(np.exp(x - top[:, None]).mean(1)))

    for _ in range(n_outer):
        cost = (1 - alpha) * M + 2 * alpha * moved(plan)
        for _ in range(n_sinkhorn):
            f = soft_min((g[None] - cost) / epsilon)
            g = soft_min((f[None] - cost.T) / epsilon)
        plan = np.exp((f[:, None] + g - cost) / epsilon) / n**2
        p, q, mass = plan.sum(1), plan.sum(0), plan.sum()
        constant = (
            ((1 - alpha) * M * plan).sum()
            + rho * (p * np.log(p / mu)).sum()
            + rho * (q * np.log(q / mu)).sum()
            + epsilon * (plan * np.log(plan * n**2)).sum()
        )
        rising = 2 * alpha * (moved(plan) * plan).sum()
        slope: Callable[[float], float] = lambda t: constant + rising * np.exp(t) + (2 * rho + epsilon) * mass * t  # noqa: E731, B023
        low, high = -50.0, 50.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (low, middle) if slope(middle) > 0 else (middle, high)
        plan = plan * np.exp(low)
    return plan
