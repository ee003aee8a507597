"""Whole solves against POT and fugw, written by others.

Conventions. With ``marginal="kl_tensor"`` the objective is α times that of
``ot.gromov.fused_unbalanced_gromov_wasserstein`` with reg_marginals = ρ/α, epsilon = ε/α, alpha = (1−α)/α (POT gives
the quadratic term the weight 1), and that of ``fugw.solvers.dense.FUGWSolver`` with the weights as they are and F = M.
Both alternate between two plans, π and γ, that are one at rest: one of their iterations is two outer steps here. With
ρ = ∞ the problem is POT's balanced one (``ot.sinkhorn``; ``entropic_fused_gromov_wasserstein(solver="PGD")``), whose
entropy Σ π log π differs by a constant only; for ``kl_tensor`` ε KL(π⊗π ‖ ·) is 2ε KL(π ‖ ·) at mass 1.

Everything is float64 and run until nothing moves: what remains is rounding of 2e-16 · cost/ε in the logarithm of the
plan, a few 1e-15, times the number of outer steps over which it survives (at most about 100): 1e-12.
"""

import math
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from optimag_dist.ufgw import CosineCost, SparseCost, solve_ufgw

from .ufgw_oracle import Costs, random_costs, random_masses, random_proximity

torch.set_num_threads(1)

AT_REST = 1e-12
TO_REST = {"n_outer": 2000, "n_sinkhorn": 2000, "tol": 1e-14}

CASES = [
    (10, {"alpha": 0.6, "rho": 0.1, "epsilon": 0.05}),
    (32, {"alpha": 0.6, "rho": 1.0, "epsilon": 0.1}),
    (64, {"alpha": 0.6, "rho": 0.1, "epsilon": 0.01}),
    (24, {"alpha": 0.3, "rho": 0.5, "epsilon": 0.05}),
    (40, {"alpha": 0.9, "rho": 0.05, "epsilon": 0.05}),
    (12, {"alpha": 1.0, "rho": 0.2, "epsilon": 0.1}),
    (20, {"alpha": 0.6, "rho": (0.1, 0.7), "epsilon": 0.05}),
    (20, {"alpha": 0.6, "rho": (math.inf, 0.1), "epsilon": 0.05}),
]


def pair(rho: float | tuple[float, float]) -> tuple[float, float]:
    return rho if isinstance(rho, tuple) else (rho, rho)


def pot(
    costs: Costs, mu: Tensor, nu: Tensor, weights: dict[str, Any], iterations: int = 1000, inner: int = 5000
) -> tuple[np.ndarray, np.ndarray, float]:
    """π, γ and the objective in our weights after at most so many iterations, from our start: POT's own is μ⊗ν, which
    has another mass where those of μ and ν are not 1."""
    alpha = weights["alpha"]
    C_m, C_G, M = (cost.numpy() for cost in costs)
    pi, gamma, log = ot.gromov.fused_unbalanced_gromov_wasserstein(
        C_m,
        C_G,
        mu.numpy(),
        nu.numpy(),
        reg_marginals=tuple(rho / alpha for rho in pair(weights["rho"])),
        epsilon=weights["epsilon"] / alpha,
        divergence="kl",
        unbalanced_solver="sinkhorn",
        alpha=(1 - alpha) / alpha,
        M=M,
        init_pi=(torch.outer(mu, nu) / (mu.sum() * nu.sum()).sqrt()).numpy(),
        max_iter=iterations,
        tol=1e-14,
        max_iter_ot=inner,
        tol_ot=1e-16,
        log=True,
    )
    return pi, gamma, alpha * float(log["fugw_cost"])


def off(ours: Tensor, theirs: np.ndarray) -> float:
    """L1 distance over the mass."""
    return float(np.abs(ours.numpy() - theirs).sum() / theirs.sum())


@pytest.mark.parametrize(("nodes", "weights"), CASES)
def test_a_kl_tensor_solve_ends_where_pot_does(nodes, weights):
    costs = random_costs(nodes, seed=1, dim=6)
    mu, nu = random_masses(nodes, seed=2), random_masses(nodes, seed=3)
    pi, _, objective = pot(costs, mu, nu, weights)
    solution = solve_ufgw(*costs, **weights, mu=mu, nu=nu, marginal="kl_tensor", **TO_REST)
    assert solution.status.converged
    assert off(solution.plan, pi) <= AT_REST
    assert float(solution.objective) == pytest.approx(objective, rel=AT_REST)
    # Single precision has the same formulae with 6e-8 in the place of 1e-16.
    single = solve_ufgw(*(c.float() for c in costs), **weights, mu=mu.float(), nu=nu.float(), marginal="kl_tensor")
    double = solve_ufgw(*costs, **weights, mu=mu, nu=nu, marginal="kl_tensor")
    assert off(single.plan.double(), double.plan.numpy()) <= 10 * 4 * 6e-8 / weights["epsilon"]


@pytest.mark.parametrize("weights", [CASES[0][1], CASES[1][1]])
def test_a_kl_tensor_solve_of_structured_costs_ends_where_pot_does(weights):
    nodes = 40
    generator = torch.Generator().manual_seed(0)
    C_m = CosineCost.from_embeddings(torch.randn(nodes, 8, generator=generator, dtype=torch.float64))
    assert C_m.rank <= 0.75 * nodes  # so that the factor does the work
    C_G = SparseCost.from_proximity(random_proximity(nodes, seed=1))
    M = C_G.anchor_cost()
    mu, nu = random_masses(nodes, seed=2), random_masses(nodes, seed=3)
    pi, _, objective = pot((C_m.dense()[0], C_G.dense()[0], M.dense()[0]), mu, nu, weights)
    solution = solve_ufgw(C_m, C_G, M, **weights, mu=mu, nu=nu, marginal="kl_tensor", **TO_REST)
    assert off(solution.plan, pi) <= AT_REST
    assert float(solution.objective) == pytest.approx(objective, rel=AT_REST)


@pytest.mark.parametrize(("nodes", "weights"), CASES[:4])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("masses", [(1.0, 1.0), (1.5, 0.8)])
def test_kl_tensor_steps_are_those_of_pot_where_sinkhorn_runs_to_its_end(nodes, weights, iterations, masses):
    costs = random_costs(nodes, seed=1, dim=6)
    mu, nu = masses[0] * random_masses(nodes, seed=2), masses[1] * random_masses(nodes, seed=3)
    pi, gamma, _ = pot(costs, mu, nu, weights, iterations)
    # POT keeps one pair of duals for π and one for γ, each over the ε of its own step; here they are one chain. Where
    # the iterations end before Sinkhorn does, that tells; the linearised problem has but one solution.
    budget = {"mu": mu, "nu": nu, "marginal": "kl_tensor", "n_sinkhorn": 5000}
    assert off(solve_ufgw(*costs, **weights, **budget, n_outer=2 * iterations - 1).plan, gamma) <= AT_REST
    assert off(solve_ufgw(*costs, **weights, **budget, n_outer=2 * iterations).plan, pi) <= AT_REST


@pytest.mark.parametrize("inner", [1, 20])
@pytest.mark.parametrize(("nodes", "weights"), CASES[:4])
def test_the_first_kl_tensor_step_is_that_of_pot_after_any_number_of_iterations(nodes, weights, inner):
    costs = random_costs(nodes, seed=1, dim=6)
    mu, nu = random_masses(nodes, seed=2), random_masses(nodes, seed=3)
    _, gamma, _ = pot(costs, mu, nu, weights, iterations=1, inner=inner)
    first = solve_ufgw(*costs, **weights, mu=mu, nu=nu, marginal="kl_tensor", n_outer=1, n_sinkhorn=inner)
    assert off(first.plan, gamma) <= AT_REST


@pytest.mark.parametrize("inner", [10, 15, 100])
def test_a_kl_tensor_solve_recovers_from_a_first_plan_of_hardly_any_mass_as_pot_does(inner):
    # Four nodes that coincide and one opposite, against nodes all equally far apart: the first step leaves 2e-5 of the
    # mass, so that ε and ρ of the second are 5e4 times smaller. Duals carried over as they are would be that much too
    # large, and a few iterations do not make up for it; over ε, as POT and fugw carry them, they fit.
    sides = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    C_m, C_G = 1 - torch.outer(sides, sides), 1 - torch.eye(5, dtype=torch.float64)
    costs = (C_m / C_m.mean(), C_G / C_G.mean(), C_G)
    mu = torch.tensor([0.1, 0.1, 0.2, 0.2, 0.4], dtype=torch.float64)
    weights = {"alpha": 1.0, "rho": 0.05, "epsilon": 0.02}
    solution = solve_ufgw(*costs, **weights, mu=mu, nu=mu, marginal="kl_tensor", n_outer=4, n_sinkhorn=inner)
    assert solution.status.healthy.all()
    assert not solution.status.log_domain.any()
    pi, _, _ = pot(costs, mu, mu, weights, iterations=2, inner=inner)
    # With so few iterations POT's two chains of duals and our one are at slightly different places.
    assert float(solution.plan.sum()) == pytest.approx(float(pi.sum()), rel=0.01)


@pytest.mark.parametrize(("nodes", "weights"), [CASES[0], CASES[2], CASES[6]])
def test_a_kl_tensor_solve_ends_where_fugw_does(nodes, weights, monkeypatch):
    dense = pytest.importorskip("fugw.solvers.dense", reason="fugw is an optional oracle")
    monkeypatch.setattr("fugw.solvers.utils._get_progress", MagicMock())  # its progress bars know no quiet
    costs = random_costs(nodes, seed=1, dim=6)
    C_m, C_G, M = costs
    mu, nu = random_masses(nodes, seed=2), random_masses(nodes, seed=3)

    def fugw(iterations):
        solver = dense.FUGWSolver(nits_bcd=iterations, nits_uot=5000, tol_bcd=1e-14, tol_uot=1e-14)
        found = solver.solve(
            alpha=weights["alpha"],
            rho_s=pair(weights["rho"])[0],
            rho_t=pair(weights["rho"])[1],
            eps=weights["epsilon"],
            reg_mode="joint",
            divergence="kl",
            F=M,
            Ds=C_m,
            Dt=C_G,
            ws=mu,
            wt=nu,
        )
        return found["pi"].numpy(), found["gamma"].numpy(), found["loss"]["total"][-1]

    budget = {"mu": mu, "nu": nu, "marginal": "kl_tensor", "n_sinkhorn": 5000}
    pi, gamma, _ = fugw(1)
    assert off(solve_ufgw(*costs, **weights, **budget, n_outer=1).plan, gamma) <= AT_REST
    assert off(solve_ufgw(*costs, **weights, **budget, n_outer=2).plan, pi) <= AT_REST

    pi, _, objective = fugw(200)
    solution = solve_ufgw(*costs, **weights, mu=mu, nu=nu, marginal="kl_tensor", **TO_REST)
    assert off(solution.plan, pi) <= AT_REST
    assert float(solution.objective) == pytest.approx(objective, rel=AT_REST)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_balanced_without_structure_it_is_entropic_transport(epsilon):
    costs = random_costs(20, seed=1)
    mu, nu = random_masses(20, seed=2), random_masses(20, seed=3)
    weights = {"alpha": 0, "rho": math.inf, "epsilon": epsilon}
    ours = solve_ufgw(*costs, **weights, mu=mu, nu=nu, **TO_REST).plan
    theirs = ot.sinkhorn(
        mu.numpy(), nu.numpy(), costs[2].numpy(), epsilon, stopThr=1e-15, numItermax=20_000, warn=False
    )
    assert off(ours, theirs) <= AT_REST


@pytest.mark.filterwarnings("ignore:Sinkhorn did not converge")  # POT's 1e-15 is below what rounding lets it see
@pytest.mark.parametrize("marginal", ["kl", "kl_tensor"])
@pytest.mark.parametrize(("alpha", "epsilon"), [(0.6, 0.1), (0.3, 0.1), (1.0, 0.1), (0.9, 0.2)])
def test_balanced_it_is_fused_gromov_wasserstein(alpha, epsilon, marginal):
    costs = random_costs(16, seed=1, dim=6)
    mu, nu = random_masses(16, seed=2), random_masses(16, seed=3)
    half = epsilon / 2 if marginal == "kl_tensor" else epsilon
    solution = solve_ufgw(*costs, alpha=alpha, rho=math.inf, epsilon=half, mu=mu, nu=nu, marginal=marginal, **TO_REST)
    C_m, C_G, M = (cost.numpy() for cost in costs)
    theirs, log = ot.gromov.entropic_fused_gromov_wasserstein(
        M,
        C_m,
        C_G,
        mu.numpy(),
        nu.numpy(),
        epsilon=epsilon,
        symmetric=True,
        alpha=alpha,
        max_iter=500,
        tol=1e-13,
        solver="PGD",
        log=True,
        stopThr=1e-15,
        numItermax=2000,
    )
    # POT stops on the Frobenius norm of every tenth step: up to 1e-13 · N, more where the steps are slow.
    assert off(solution.plan, theirs) <= 1e-10
    bare = float(solution.parts["linear"] + solution.parts["quadratic"])
    assert bare == pytest.approx(float(log["fgw_dist"]), rel=1e-10)
