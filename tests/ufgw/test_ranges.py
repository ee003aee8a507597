"""The solver where masses, ρ and ε are far from what is usual, against the objective's own derivative in float64.

At a stationary point Σ π |∂UFGW/∂π| vanishes beside the terms it is a sum of. How near an answer in floats comes is
said by its status: the tolerance asked for, or the rounding it reports. What is not at rest must say so.
"""

import math

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.ufgw import CosineCost, SparseCost, solve_ufgw

from .test_kernels import TorchForms
from .ufgw_oracle import random_costs, random_embeddings, random_proximity

torch.set_num_threads(1)


def off_rest(solution, costs, mu, nu, *, alpha, rho, epsilon, marginal):
    """Mean of |∂UFGW/∂π| over the plan, each entry as a share of the sizes of its terms."""
    plan, C_m, C_G, M, mu, nu = (x.double() for x in (solution.plan, *costs, mu, nu))
    p, q, mass = plan.sum(1), plan.sum(0), plan.sum()
    row, column = ((x > 0) * (x.clamp_min(1e-320).log() - y.log()) for x, y in ((p, mu), (q, nu)))
    entry = (plan > 0) * (plan.clamp_min(1e-320).log() - mu.log()[:, None] - nu.log())
    squares = (C_m**2 @ p)[:, None] + C_G**2 @ q
    slope = (1 - alpha) * M + 2 * alpha * (squares - 2 * C_m @ plan @ C_G)
    size = (1 - alpha) * M + 2 * alpha * squares
    if marginal == "kl_tensor":
        common = 2 * rho * ((p * row).sum() + (q * column).sum()) + 2 * epsilon * (plan * entry).sum()
        slope, size = slope + common, size + common.abs()
        rho, epsilon = 2 * mass * rho, 2 * mass * epsilon
    slope = slope + rho * (row[:, None] + column) + epsilon * entry
    size = size + rho * (row.abs()[:, None] + column.abs() + 1) + epsilon * (entry.abs() + 1)
    return float((plan * slope.abs() / size).sum() / mass)


def tens(low, high):
    return st.floats(low, high).map(lambda x: 10.0**x)


@settings(deadline=None, max_examples=40)
@given(
    nodes=st.sampled_from([1, 2, 3, 8, 17]),
    seed=st.integers(0, 10_000),
    single=st.booleans(),
    marginal=st.sampled_from(["kl", "kl_tensor"]),
    alpha=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    rho=tens(-6, 3),
    epsilon=tens(-6, 3),
    mass=tens(-6, 6),
    other_mass=st.one_of(st.none(), tens(-6, 6)),
    structured=st.booleans(),
)
def test_an_answer_is_at_rest_or_says_that_it_is_not(
    nodes, seed, single, marginal, alpha, rho, epsilon, mass, other_mass, structured
):
    dtype = torch.float32 if single else torch.float64
    costs = written = random_costs(nodes, seed, dtype=dtype)
    if structured and nodes > 2:
        C_G = SparseCost.from_proximity(random_proximity(nodes, seed).to(dtype))
        costs = CosineCost.from_embeddings(random_embeddings(1, nodes, 4, seed)[0].to(dtype)), C_G, C_G.anchor_cost()
        written = tuple(cost.dense()[0] for cost in costs)
    uneven = torch.rand(nodes, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.5
    mu = mass * uneven
    nu = mu if other_mass is None else other_mass * uneven.flip(0)
    weights = {"alpha": alpha, "rho": rho, "epsilon": epsilon, "marginal": marginal}
    tolerance = 1e-4 if single else 1e-8
    solution = solve_ufgw(*costs, **weights, mu=mu, nu=nu, n_outer=60, n_sinkhorn=30, tol=tolerance)
    status = solution.status
    assert "masses do not sum to 1" in str(status) or max(abs(float(x.sum()) - 1) for x in (mu, nu)) <= 1e-3
    if status.outcome == "diverged":
        # Of kl_tensor's plans, the empty one can be the best; its float is 0 or none.
        assert marginal == "kl_tensor"
        assert "mu sums to" in status.remedy or "raise rho" in status.remedy
        return
    assert solution.plan.isfinite().all()
    assert float(solution.plan.sum()) > 0
    assert solution.objective.isfinite()
    if status.converged:
        rough = float(status.rounding)
        told = any("rounding" in warning for warning in status.warnings)
        assert told == (rough > 0.01)
        if not told:
            # An exponent off by its rounding is ε times that in the derivative, whose terms are ρ and ε at least.
            # The distance from rest is an estimate, seen to be a hundred times too small.
            limit = 100 * tolerance + 30 * rough * epsilon / (rho + epsilon)
            assert off_rest(solution, written, mu, nu, **weights) <= limit


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_masses_of_ten_a_node_are_solved_as_the_same_problem_in_other_units(dtype, compiled):
    """With α of structure, π = t π' and masses t μ': only the structure term counts t times as much."""
    nodes, t, alpha, rho, epsilon = 24, 240.0, 0.5, 0.1, 0.01
    costs = random_costs(nodes, 0, dtype=dtype)
    ten = torch.full((nodes,), 10.0, dtype=dtype)
    options = {"n_outer": 400, "n_sinkhorn": 20, "tol": 1e-4 if dtype == torch.float32 else 1e-6}
    if compiled:
        found = solve_ufgw(*costs, mu=ten, nu=ten, alpha=alpha, rho=rho, epsilon=epsilon, **options)
    else:
        with TorchForms():
            found = solve_ufgw(*costs, mu=ten, nu=ten, alpha=alpha, rho=rho, epsilon=epsilon, **options)
    assert found.status.converged
    assert not found.status.log_domain.any()
    # s = t^((2ρ+2ε)/(2ρ+ε)): where s μ'⊗ν' costs what t μ'⊗ν' does, the two problems differ by a factor.
    s = t ** ((2 * rho + 2 * epsilon) / (2 * rho + epsilon))
    total = (1 - alpha) + alpha * s
    M, share = costs[2] * (1 - alpha) / total / (1 - alpha * s / total), alpha * s / total
    same = solve_ufgw(*costs[:2], M, alpha=share, rho=rho / total, epsilon=epsilon / total, **options)
    assert same.status.converged
    torch.testing.assert_close(found.plan / s, same.plan, rtol=0, atol=2e-3 * float(same.plan.max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tiny_epsilon_with_a_tinier_rho_is_solved(dtype):
    costs = random_costs(24, 1, dtype=dtype)
    solution = solve_ufgw(*costs, epsilon=1e-5, rho=1e-6, n_outer=300)
    weights = {"alpha": 0.6, "rho": 1e-6, "epsilon": 1e-5, "marginal": "kl"}
    mu = torch.full((24,), 1 / 24, dtype=dtype)
    assert solution.status.converged
    assert off_rest(solution, costs, mu, mu, **weights) <= 1e-4


@pytest.mark.parametrize("mass", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize(("rho", "epsilon"), [(1.0, 0.1), (20.0, 1.0)])
def test_kl_tensor_is_pots_for_any_mass(mass, rho, epsilon):
    C_m, C_G, M = random_costs(12, 3)
    mu = mass * (torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5)
    alpha = 0.6
    ours = solve_ufgw(
        C_m,
        C_G,
        M,
        mu=mu,
        nu=mu,
        rho=rho,
        epsilon=epsilon,
        marginal="kl_tensor",
        n_outer=500,
        n_sinkhorn=200,
        tol=1e-12,
    )
    theirs, _ = ot.gromov.fused_unbalanced_gromov_wasserstein(
        C_m,
        C_G,
        mu,
        mu,
        M=M,
        alpha=(1 - alpha) / alpha,
        reg_marginals=rho / alpha,
        epsilon=epsilon / alpha,
        max_iter=500,
        max_iter_ot=500,
        tol=1e-13,
        tol_ot=1e-13,
        unbalanced_solver="sinkhorn",
    )
    assert float((ours.plan - theirs).abs().sum() / theirs.sum()) <= 1e-8


def test_kl_tensor_says_that_no_mass_is_left_instead_of_a_mass_of_its_own():
    # By symmetry the plan stays uniform, and its cost is 800 times ρ.
    apart = 1 - torch.eye(2, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        C = 2 * apart.to(dtype)
        status = solve_ufgw(C, C, C, alpha=1.0, rho=3e-4, epsilon=1e-5, marginal="kl_tensor", n_outer=300).status
        assert status.outcome == "diverged"
        assert "raise rho" in status.remedy


def test_steps_below_the_rounding_are_not_taken_for_rest():
    """ρ/ε of 2e6: an iteration moves the duals by less than float32 shows, and there is all the way to go."""
    costs = random_costs(2, 149, dtype=torch.float32)
    mu, nu = torch.full((2,), 3859.0), torch.full((2,), 1190.0)
    options = {"alpha": 0.0, "rho": 47.0, "epsilon": 1.9e-5, "n_outer": 200, "n_sinkhorn": 50, "tol": 1e-4}
    assert solve_ufgw(*costs, mu=mu, nu=nu, **options).status.outcome == "max_iterations"


def test_trouble_names_the_masses_where_they_are_the_cause():
    costs = random_costs(8, 0, dtype=torch.float32)
    many = torch.full((8,), 1e18)
    status = solve_ufgw(*costs, mu=many, nu=many, rho=10.0).status
    assert status.outcome == "diverged"
    assert "mu sums to 8e+18 and nu to 8e+18" in status.remedy
    usual = solve_ufgw(*costs, n_outer=1).status
    assert "sum to" not in str(usual)
    assert math.isclose(float(usual.marginal_masses[0, 0]), 1, rel_tol=1e-6)
