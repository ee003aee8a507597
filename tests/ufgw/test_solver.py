"""The solver against its definition, a generic optimiser, POT, a second implementation, closed forms, invariances.

Conventions of the oracles. POT's ``sinkhorn_unbalanced(reg_type="kl")`` minimises
⟨C, π⟩ + reg KL(π ‖ ab) + reg_m KL(π1 ‖ a) + reg_m KL(πᵀ1 ‖ b): ours at α = 0 with reg = ε, reg_m = ρ. For plain KL the
whole problem has the explicit 4-tensor objective and its stationarity conditions as its oracle, whatever ρ is given per
node or side; whole solvers elsewhere are in ``test_peers.py`` (``kl_tensor``) and ``test_ott_reference.py``.
"""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from optimag_dist.ufgw import solve_ufgw

from .ufgw_oracle import four_tensor_objective, kkt_residual, log_domain_reference, random_costs, random_masses

torch.set_num_threads(1)

WEIGHTS = [
    {"alpha": 0.6, "rho": 0.1, "epsilon": 0.01},
    {"alpha": 0.6, "rho": 1.0, "epsilon": 0.1},
    {"alpha": 0.9, "rho": 0.02, "epsilon": 0.02},
    {"alpha": 1.0, "rho": 0.1, "epsilon": 0.05},
    {"alpha": 0.0, "rho": 0.1, "epsilon": 0.05},
]


def uniform(nodes: int) -> torch.Tensor:
    return torch.full((nodes,), 1 / nodes, dtype=torch.float64)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("nodes", [4, 6])
def test_converged_plan_is_stationary_and_no_worse_than_a_generic_optimisers(nodes, weights):
    costs = random_costs(nodes, seed=nodes)
    mu = uniform(nodes)
    solution = solve_ufgw(*costs, **weights, n_outer=3000, n_sinkhorn=50, tol=1e-14)
    assert kkt_residual(solution.plan, *costs, mu, mu, weights) <= 1e-9

    def objective(log_plan: np.ndarray) -> float:
        return four_tensor_objective(np.exp(log_plan).reshape(nodes, nodes), *costs, mu.numpy(), mu.numpy(), weights)

    # From the same start, and from ours: it must find nothing lower next to it.
    starts = [np.full(nodes**2, -2 * math.log(nodes)), solution.plan.log().numpy().ravel()]
    best = min(minimize(objective, start, method="L-BFGS-B", options={"maxfun": 60_000}).fun for start in starts)
    ours = float(solution.objective)
    assert ours == pytest.approx(objective(solution.plan.log().numpy().ravel()), abs=1e-12)
    assert ours <= best + 1e-6


def vector(nodes: int, seed: int) -> torch.Tensor:
    return torch.rand(nodes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


INF = math.inf
SIX = torch.tensor([0.05, 0.5, 0.1, 2.0, 0.2, 0.1], dtype=torch.float64)
KINDS_OF_RHO = {
    "one per node": SIX,
    "one per side": (0.05, 0.7),
    "one per node and side": (SIX, SIX.flip(0)),
    "a number and one per node": (0.3, SIX),
    "some nodes pinned": SIX.where(torch.arange(6) % 2 == 0, INF),
    "one side pinned": (INF, 0.1),
    "some nodes pinned on the graph side": (0.2, SIX.where(torch.arange(6) > 1, INF)),
    "balanced": INF,
}


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("kind", KINDS_OF_RHO)
def test_a_plan_is_stationary_for_any_kind_of_rho(kind, absent, alpha):
    costs = random_costs(6, seed=20)
    mu, nu = random_masses(6, 21), random_masses(6, 22)
    rho = KINDS_OF_RHO[kind]
    if absent:
        mu[3], nu[0] = 0, 0
        if kind == "balanced":  # which needs the same mass on either side
            mu, nu = mu / mu.sum(), nu / nu.sum()
    weights = {"alpha": alpha, "rho": rho, "epsilon": 0.1}
    solution = solve_ufgw(*costs, **weights, mu=mu, nu=nu, n_outer=3000, n_sinkhorn=200, tol=1e-13)
    assert solution.status.converged
    # At rest to 1e-13 of the mass: of a small entry (1e-4 of the largest) that is 1e-9 in its logarithm, times ε and ρ.
    assert kkt_residual(solution.plan, *costs, mu, nu, weights) <= 1e-9
    sides = rho if isinstance(rho, tuple) else (rho, rho)
    for side, kept in zip(sides, (solution.kept_mass, solution.received_mass), strict=True):
        pinned = torch.as_tensor(side, dtype=torch.float64).expand(6).isinf()
        present = ~kept.isnan()
        off = (kept - 1).abs()
        assert (off[pinned & present] <= 1e-8).all()
        assert (~pinned & present).any() == (off[~pinned & present] > 1e-3).any()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_kl_tensor_plan_is_stationary_and_no_worse_than_a_generic_optimisers(weights):
    nodes = 4
    costs = random_costs(nodes, seed=nodes)
    mu, nu = random_masses(nodes, 1), random_masses(nodes, 2)
    solution = solve_ufgw(
        *costs, **weights, mu=mu, nu=nu, marginal="kl_tensor", n_outer=3000, n_sinkhorn=100, tol=1e-14
    )

    def objective(log_plan: np.ndarray) -> float:
        plan = np.exp(log_plan).reshape(nodes, nodes)
        return four_tensor_objective(plan, *costs, mu.numpy(), nu.numpy(), weights, "kl_tensor")

    here = solution.plan.log().numpy().ravel()
    assert float(solution.objective) == pytest.approx(objective(here), abs=1e-12)
    assert float(sum(solution.parts.values())) == pytest.approx(float(solution.objective), abs=1e-14)
    # Central differences with step h: rounding of 1e-16/h and a remainder of h², both near 1e-10 with their constants.
    for direction in np.eye(nodes**2):
        slope = (objective(here + 1e-5 * direction) - objective(here - 1e-5 * direction)) / 2e-5
        assert abs(slope) <= 1e-9
    best = minimize(objective, here, method="L-BFGS-B").fun
    assert float(solution.objective) <= best + 1e-9


def test_parts_sum_to_the_objective_and_are_what_they_say():
    nodes, weights = 6, WEIGHTS[0]
    costs = random_costs(nodes, seed=1)
    solution = solve_ufgw(*costs, **weights)
    assert float(sum(solution.parts.values())) == pytest.approx(float(solution.objective), abs=1e-14)
    mu = uniform(nodes).numpy()
    plan = solution.plan.numpy()
    for name, only in (("linear", {"alpha": 0.0}), ("quadratic", {"alpha": 1.0})):
        bare = four_tensor_objective(plan, *costs, mu, mu, {**only, "rho": 0.0, "epsilon": 0.0})
        weight = 0.4 if name == "linear" else 0.6
        assert float(solution.parts[name]) == pytest.approx(weight * bare, abs=1e-13)


@pytest.mark.parametrize(("rho", "epsilon"), [(0.1, 0.05), (1.0, 0.1), (0.05, 0.02)])
def test_without_structure_it_is_unbalanced_transport(rho, epsilon):
    nodes = 12
    C_m, C_G, M = random_costs(nodes, seed=2)
    generator = torch.Generator().manual_seed(0)
    mu = torch.rand(nodes, generator=generator, dtype=torch.float64) + 0.1
    nu = torch.rand(nodes, generator=generator, dtype=torch.float64) + 0.1
    mu, nu = mu / mu.sum(), nu / nu.sum()
    ours = solve_ufgw(C_m, C_G, M, alpha=0, rho=rho, epsilon=epsilon, mu=mu, nu=nu, n_outer=200, tol=1e-15).plan
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        mu.numpy(), nu.numpy(), M.numpy(), epsilon, rho, reg_type="kl", numItermax=100_000, stopThr=1e-15
    )
    # Both are contractions run until nothing moves: what remains is rounding.
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("rho", "epsilon"), [(0.1, 0.01), (1.0, 0.1), (0.1, 0.003), (0.05, 0.05)])
def test_equals_a_log_domain_implementation_step_for_step(rho, epsilon):
    C_m, C_G, M = random_costs(24, seed=3, dim=6)
    budget = {"n_outer": 6, "n_sinkhorn": 20}
    weights = {"alpha": 0.6, "rho": rho, "epsilon": epsilon}
    reference = log_domain_reference(C_m.numpy(), C_G.numpy(), M.numpy(), **weights, **budget)
    double = solve_ufgw(C_m, C_G, M, **weights, **budget)
    assert not double.status.log_domain.any()
    assert np.abs(double.plan.numpy() - reference).sum() / reference.sum() <= 1e-10

    # Rounding the costs (size ≈ 3, relative 6e-8) alone moves the logarithm of the plan by 3·6e-8/ε, and the outer
    # steps carry that on: a few times as much in all.
    single = solve_ufgw(C_m.float(), C_G.float(), M.float(), **weights, **budget)
    assert single.plan.dtype == torch.float32
    error = np.abs(single.plan.double().numpy() - reference).sum() / reference.sum()
    assert error <= 10 * 3 * 6e-8 / epsilon


@pytest.mark.parametrize(("mu", "nu"), [(1.0, 1.0), (0.5, 3.0)])
@pytest.mark.parametrize("marginal", ["kl", "kl_tensor"])
def test_one_node_has_its_closed_form(marginal, mu, nu):
    # Only the mass x moves: 0 = (1−α)M + 2αd²x + ρ log(x/μ) + ρ log(x/ν) + ε log(x/μν), and with KL(x² ‖ μ²) for
    # KL(x ‖ μ) every logarithm is multiplied by 4x.
    cost = torch.zeros(1, 1, dtype=torch.float64)
    C_G, M, weights = torch.full_like(cost, 0.7), torch.full_like(cost, 0.3), WEIGHTS[0]
    masses = {"mu": torch.full((1,), mu, dtype=torch.float64), "nu": torch.full((1,), nu, dtype=torch.float64)}
    solution = solve_ufgw(cost, C_G, M, **weights, **masses, marginal=marginal, n_outer=300, n_sinkhorn=100)
    x = float(solution.plan)
    logarithms = 0.1 * math.log(x / mu) + 0.1 * math.log(x / nu) + 0.01 * math.log(x / (mu * nu))
    logarithms *= 4 * x if marginal == "kl_tensor" else 1
    assert 0.4 * 0.3 + 2 * 0.6 * 0.49 * x + logarithms == pytest.approx(0, abs=1e-12)
    assert float(solution.kept_mass) == pytest.approx(x / mu, rel=1e-14)
    assert float(solution.received_mass) == pytest.approx(x / nu, rel=1e-14)


def test_identical_well_separated_spaces_are_matched_node_to_node():
    # d = 1 apart, C_m = C_G: the identity costs nothing, so as ε → 0 the plan tends to it and UFGW to 0.
    cost = 1 - torch.eye(5, dtype=torch.float64)
    solution = solve_ufgw(cost, cost, cost, epsilon=1e-3, rho=1.0, n_outer=200)
    np.testing.assert_allclose(solution.plan.numpy(), np.eye(5) / 5, atol=2e-3)
    # There the entropy is all that is left: ε KL(I/n ‖ 11ᵀ/n²) = ε log n, and being free to move lowers it.
    assert 0 < float(solution.objective) <= 1e-3 * math.log(5)


def test_a_large_rho_keeps_the_marginals():
    generator = torch.Generator().manual_seed(0)
    mu = torch.rand(7, generator=generator, dtype=torch.float64) + 0.5
    nu = torch.rand(7, generator=generator, dtype=torch.float64) + 0.5
    mu, nu = mu / mu.sum(), nu / nu.sum()
    solution = solve_ufgw(*random_costs(7, 4), rho=1e3, epsilon=1.0, mu=mu, nu=nu, n_outer=300)
    # Off by at most exp(|f|/ρ) − 1 with duals of the size of the cost, here below 20.
    torch.testing.assert_close(solution.kept_mass, torch.ones(7, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(solution.received_mass, torch.ones(7, dtype=torch.float64), atol=0.02, rtol=0)


@pytest.mark.parametrize("marginal", ["kl", "kl_tensor"])
def test_the_plan_of_a_growing_rho_tends_to_the_balanced_one(marginal):
    costs = random_costs(7, 4)
    options = {"epsilon": 0.1, "mu": random_masses(7, 0), "nu": random_masses(7, 1), "marginal": marginal}
    options |= {"n_outer": 500, "n_sinkhorn": 200}
    balanced = solve_ufgw(*costs, rho=math.inf, **options).plan
    for rho in (1e3, 1e6):
        # Duals of the size of the cost, up to 10, move the mass of a row by that over ρ, and the plan a few times more.
        assert float((solve_ufgw(*costs, rho=rho, **options).plan - balanced).abs().sum()) <= 10 * 10 / rho


def test_a_large_epsilon_leaves_the_product():
    nodes, epsilon = 6, 1e5
    plan = solve_ufgw(*random_costs(nodes, 5), epsilon=epsilon).plan
    # log π/μν = (f⊕g − C)/ε, every term at most the cost (< 20) over ε
    torch.testing.assert_close(plan, torch.full_like(plan, 1 / nodes**2), rtol=5 * 20 / epsilon, atol=0)


@settings(deadline=None, max_examples=25)
@given(
    nodes=st.integers(1, 9),
    seed=st.integers(0, 10_000),
    alpha=st.floats(0, 1),
    rho=st.floats(0.02, 2),
    epsilon=st.floats(0.005, 0.5),
    data=st.data(),
)
def test_order_of_the_nodes_and_absent_nodes_do_not_matter(nodes, seed, alpha, rho, epsilon, data):
    costs = random_costs(nodes, seed)
    weights = {"alpha": alpha, "rho": rho, "epsilon": epsilon, "n_outer": 4}
    plain = solve_ufgw(*costs, **weights)
    assert plain.status.healthy.all()

    # Nodes planted with no mass, and costs that would matter if they were looked at, then all shuffled.
    extra = data.draw(st.integers(0, 4))
    size = nodes + extra
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    larger = []
    for cost in costs:
        padded = torch.zeros(size, size, dtype=torch.float64)
        padded[nodes:], padded[:, nodes:] = 7.5, 7.5
        padded[:nodes, :nodes] = cost
        larger.append(padded[order][:, order])
    mass = torch.cat([uniform(nodes), torch.zeros(extra, dtype=torch.float64)])[order]
    masked = solve_ufgw(*larger, **weights, mu=mass, nu=mass)

    absent = mass == 0
    assert (masked.plan[absent] == 0).all()
    assert (masked.plan[:, absent] == 0).all()
    assert masked.kept_mass[absent].isnan().all()
    assert masked.received_mass[absent].isnan().all()
    back = torch.argsort(order)[:nodes]
    # Sums in another order: rounding 1e-16 times cost over the smallest ε, through at most 4 × 20 contractions.
    torch.testing.assert_close(masked.plan[back][:, back], plain.plan, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(masked.kept_mass[back], plain.kept_mass, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(masked.objective, plain.objective, rtol=1e-7, atol=1e-12)


def test_a_batch_is_its_members_and_shared_operands_broadcast():
    members = [random_costs(8, seed) for seed in range(3)]
    C_m = torch.stack([m[0] for m in members])
    _, C_G, M = members[0]
    mu = torch.rand(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mu[1, 2] = 0
    batch = solve_ufgw(C_m, C_G, M[None], mu=mu)
    assert batch.plan.shape == (3, 8, 8)
    assert batch.objective.shape == (3,)
    for i in range(3):
        alone = solve_ufgw(C_m[i], C_G, M, mu=mu[i])
        assert alone.plan.shape == (8, 8)
        torch.testing.assert_close(batch.plan[i], alone.plan, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(batch.objective[i], alone.objective)
        for name, part in alone.parts.items():
            torch.testing.assert_close(batch.parts[name][i], part, rtol=1e-9, atol=1e-13)
    swapped = solve_ufgw(C_m[0], torch.stack([m[1] for m in members]), M, mu=mu[0], nu=mu)
    torch.testing.assert_close(
        swapped.plan[2], solve_ufgw(C_m[0], members[2][1], M, mu=mu[0], nu=mu[2]).plan, rtol=1e-9, atol=1e-14
    )


@pytest.mark.parametrize("marginal", ["kl", "kl_tensor"])
def test_permuting_a_batch_permutes_its_answers(marginal):
    members = [random_costs(8, seed) for seed in range(4)]
    C_m, C_G, M = (torch.stack(x) for x in zip(*members, strict=True))
    mu = torch.stack([random_masses(8, seed) for seed in range(4)])
    rho = 0.1 if marginal == "kl_tensor" else vector(32, 0).view(4, 8) + 0.05
    order = torch.tensor([2, 0, 3, 1])
    plain = solve_ufgw(C_m, C_G, M, mu=mu, rho=rho, marginal=marginal)
    shuffled = solve_ufgw(
        C_m[order],
        C_G[order],
        M[order],
        mu=mu[order],
        rho=rho[order] if isinstance(rho, torch.Tensor) else rho,
        marginal=marginal,
    )
    # Problems of a batch know nothing of each other; torch's batched products may still round by their place.
    for name in ("plan", "objective", "kept_mass", "received_mass"):
        ours, theirs = getattr(shuffled, name), getattr(plain, name)[order]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)
    for name, part in plain.parts.items():
        torch.testing.assert_close(shuffled.parts[name], part[order], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("marginal", ["kl", "kl_tensor"])
def test_costs_and_weights_scaled_together_are_the_same_problem(marginal):
    C_m, C_G, M = random_costs(9, 6)
    plain = solve_ufgw(C_m, C_G, M, rho=0.2, epsilon=0.05, marginal=marginal)
    # The quadratic term goes with the square of the structures.
    t = 1.7
    scaled = solve_ufgw(t * C_m, t * C_G, t**2 * M, rho=t**2 * 0.2, epsilon=t**2 * 0.05, marginal=marginal)
    torch.testing.assert_close(scaled.plan, plain.plan, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(scaled.objective, t**2 * plain.objective, rtol=1e-9, atol=0)


def test_a_plan_does_not_depend_on_a_common_shift_of_both_structures():
    C_m, C_G, M = random_costs(9, 6)
    torch.testing.assert_close(
        solve_ufgw(C_m + 3, C_G + 3, M).plan, solve_ufgw(C_m, C_G, M).plan, rtol=1e-9, atol=1e-14
    )


@pytest.mark.parametrize("rho", [0.01, 0.1, 1.0])
def test_single_precision_stays_finite_at_a_small_epsilon(rho):
    costs = random_costs(96, 7, dim=16, dtype=torch.float32)
    solution = solve_ufgw(*costs, rho=rho, epsilon=1e-3, n_outer=5)
    assert solution.plan.isfinite().all()
    assert solution.objective.isfinite()
    assert solution.status.healthy.all()
    double = solve_ufgw(*(c.double() for c in costs), rho=rho, epsilon=1e-3, n_outer=5)
    # 3·6e-8/ε of rounding in the logarithm of the plan, times what unfinished outer steps make of it
    assert float((solution.plan - double.plan).abs().sum() / double.plan.sum()) <= 0.05
    assert float(solution.objective) == pytest.approx(float(double.objective), rel=1e-3)


def test_what_the_exponential_domain_loses_is_solved_in_the_log_domain():
    # Row mass falls as exp(−cost/ρ): here below the smallest float32, then below the smallest float64.
    costs = random_costs(6, 8, dtype=torch.float32)
    far = costs[2] + 3
    M = torch.stack([costs[2], far])
    solution = solve_ufgw(costs[0], costs[1], M, alpha=0, rho=0.02, epsilon=0.01)
    assert solution.status.log_domain.tolist() == [False, True]
    assert solution.status.outcomes[0] == "converged"
    kept = solve_ufgw(costs[0].double(), costs[1].double(), far.double(), alpha=0, rho=0.02, epsilon=0.01)
    torch.testing.assert_close(solution.plan[1].double(), kept.plan, rtol=2e-3, atol=1e-37)
    lost = solve_ufgw(costs[0], costs[1], far * 100, alpha=0, rho=0.02, epsilon=0.01)
    assert lost.status.outcome == "diverged"
    assert "raise rho" in lost.status.remedy


def test_steps_that_would_raise_the_objective_are_shortened(monkeypatch):
    # Two structures with nothing in common: with whole steps only, the plan alternates between two matchings for good.
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(12, 12, generator=generator, dtype=torch.float64) ** 12
    C_m, _, M = random_costs(12, 9, dim=2)
    C_G = -torch.log(noise + noise.T + 1e-5)
    C_G = C_G - C_G.min()
    C_G = C_G / C_G.mean()
    weights = {"alpha": 0.9, "rho": 2.0, "epsilon": 0.05}
    solution = solve_ufgw(C_m, C_G, M, **weights, n_outer=150, n_sinkhorn=100)
    assert solution.status.converged
    assert kkt_residual(solution.plan, C_m, C_G, M, uniform(12), uniform(12), weights) <= 1e-6

    monkeypatch.setattr("optimag_dist.ufgw.step._SHORTEST", 1.0)
    alternating = solve_ufgw(C_m, C_G, M, **weights, n_outer=150, n_sinkhorn=100)
    assert not alternating.status.converged
    assert float(alternating.status.change) > 1
    assert float(solution.objective) < float(alternating.objective)


def test_half_precision_and_autocast_are_computed_in_single():
    costs = random_costs(8, 12, dtype=torch.float32)
    plain = solve_ufgw(*costs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(solve_ufgw(*costs).plan, plain.plan, rtol=0, atol=0)
    assert solve_ufgw(*(c.bfloat16() for c in costs)).plan.dtype == torch.float32
