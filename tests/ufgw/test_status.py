"""What a solution says of itself: whether the plan is at rest, when ``tol`` stops, and what makes a plan useless.

Each sign is provoked by a problem built for it, and absent where nothing is wrong. Texts are asked for what they tell
to change, not for their wording.
"""

import math

import pytest
import torch

from optimag_dist.ufgw import REMEDIES, solve_ufgw

from .ufgw_oracle import random_costs, random_masses

torch.set_num_threads(1)


def test_status_tells_a_spent_budget_from_rest_and_tol_stops_early():
    costs = random_costs(10, 10)
    short = solve_ufgw(*costs, n_outer=1)
    assert short.status.outcome == "max_iterations"
    assert "n_outer" in short.status.remedy
    assert "max_iterations after 1 outer steps" in str(short.status)
    assert "inf" not in str(short.status)
    long = solve_ufgw(*costs, n_outer=500, tol=1e-8)
    assert long.status.converged
    assert long.status.n_outer < 500
    assert long.status.remedy == ""
    rest = solve_ufgw(*costs, n_outer=500)
    assert float((long.plan - rest.plan).abs().sum() / rest.plan.sum()) <= 1e-6


def test_slow_sinkhorn_iterations_are_not_taken_for_convergence():
    # ρ/ε = 1000: 20 iterations cover 4 % of the way, so the plan hardly moves and is still far from rest.
    costs = random_costs(16, 11)
    weights = {"rho": 1.0, "epsilon": 1e-3}
    solution = solve_ufgw(*costs, **weights, n_outer=5)
    rest = solve_ufgw(*costs, **weights, n_outer=100, n_sinkhorn=600)
    error = float((solution.plan - rest.plan).abs().sum() / rest.plan.sum())
    assert float(solution.status.change) < error / 10
    # The estimate knows the slowest mode's rate and nothing of the others.
    assert float(solution.status.distance) == pytest.approx(error, rel=0.3)
    assert solution.status.outcome == "max_iterations"


@pytest.mark.parametrize("marginal", ["kl", "kl_tensor"])
def test_a_tolerance_counts_for_the_marginals_where_rho_is_infinite(marginal):
    costs = random_costs(12, 13)
    mu, nu = random_masses(12, 0), random_masses(12, 1)
    options = {"rho": math.inf, "epsilon": 0.05, "mu": mu, "nu": nu, "marginal": marginal}
    solution = solve_ufgw(*costs, **options, n_outer=2000, n_sinkhorn=50, tol=1e-8)
    assert solution.status.converged
    assert solution.status.n_outer < 2000
    assert float(solution.status.marginal_error) <= 1e-8
    # Measured on the plan of the last step, which is the solution's.
    assert float((solution.plan.sum(1) - mu).abs().sum()) <= 1e-8 * (1 + 1e-6)
    assert float((solution.plan.sum(0) - nu).abs().sum()) <= 1e-12

    # Two iterations for a small ε: the plan hardly moves, and its rows are as far from their masses as ever.
    hasty = solve_ufgw(*costs, **{**options, "epsilon": 0.01}, alpha=0, n_outer=2, n_sinkhorn=1)
    error = float((hasty.plan.sum(1) - mu).abs().sum() / hasty.plan.sum())
    assert error > 0.1
    assert float(hasty.status.change) < 1e-3
    assert float(hasty.status.marginal_error) == pytest.approx(error, rel=1e-9)
    assert float(hasty.status.distance) == float(hasty.status.marginal_error)
    assert hasty.status.outcome == "max_iterations"


def test_a_batch_runs_until_its_slowest_problem_is_at_rest():
    quick, slow = random_costs(8, 0), random_costs(8, 1)
    rho = torch.full((2, 8), 0.1, dtype=torch.float64)
    rho[1] = 5.0
    costs = [torch.stack(x) for x in zip(quick, slow, strict=True)]
    both = solve_ufgw(*costs, rho=rho, epsilon=0.05, n_outer=500, tol=1e-6)
    alone = [solve_ufgw(*c, rho=r, epsilon=0.05, n_outer=500, tol=1e-6) for c, r in ((quick, 0.1), (slow, 5.0))]
    assert both.status.n_outer == max(one.status.n_outer for one in alone) > min(one.status.n_outer for one in alone)
    assert both.status.outcomes == ("converged", "converged")


def elsewhere(nodes: int, seed: int, **options):
    """Random costs with the graph's nodes in another order, so that partners are off the diagonal."""
    C_m, C_G, M = random_costs(nodes, seed, **options)
    order = torch.arange(nodes).roll(1)
    return C_m, C_G[order][:, order], M[:, order]


def healthy():
    return solve_ufgw(*elsewhere(12, 14))


def on_the_diagonal():
    # at distance 1 from each other, in both structures
    apart = 1 - torch.eye(8, dtype=torch.float64)
    return solve_ufgw(apart, apart, apart, alpha=0.1, rho=1.0)


def nearly_uniform():
    return solve_ufgw(*elsewhere(12, 14), epsilon=100.0, rho=10.0)


def nearly_empty():
    C_m, C_G, M = elsewhere(12, 14)
    return solve_ufgw(C_m, C_G, M + 1, alpha=0.1, rho=0.05)


def in_the_log_domain():
    C_m, C_G, M = elsewhere(6, 8, dtype=torch.float32)
    return solve_ufgw(C_m, C_G, M + 3, alpha=0, rho=0.02)


@pytest.mark.parametrize(
    ("solve", "signs", "advice"),
    [
        (healthy, [], []),
        (on_the_diagonal, ["diagonal"], ["raise tau", "alpha"]),
        (nearly_uniform, ["uniform"], ["lower epsilon"]),
        (nearly_empty, ["empty"], ["raise rho"]),
        (in_the_log_domain, ["empty", "log_domain"], ["raise rho", "raise epsilon or rho", "float64"]),
    ],
)
def test_a_useless_plan_is_warned_of_with_what_to_change(solve, signs, advice):
    status = solve().status
    assert status.healthy.all()
    found = status.signs
    assert [sign for sign in found if bool(found[sign].any()) and sign != "max_iterations"] == signs
    assert len(status.warnings) == len(signs)
    for sign, warning in zip(signs, status.warnings, strict=True):
        assert warning.startswith(REMEDIES[sign])
        assert warning in str(status)
    for words in advice:
        assert any(words in warning for warning in status.warnings)


def test_the_numbers_behind_the_signs_are_what_they_say():
    nodes = 9
    costs = random_costs(nodes, 15)
    mu, nu = 2 * random_masses(nodes, 0), random_masses(nodes, 1)
    mu[2], nu[4] = 0, 0
    solution = solve_ufgw(*costs, mu=mu, nu=nu)
    plan, status = solution.plan, solution.status
    mass = float(plan.sum())
    assert float(status.diagonal) == pytest.approx(float(plan.trace()) / mass, rel=1e-12)
    assert float(status.mass) == pytest.approx(mass / math.sqrt(float(mu.sum() * nu.sum())), rel=1e-12)
    joint = plan / mass
    independent = joint.sum(1, keepdim=True) * joint.sum(0)
    some = joint > 0
    information = float((joint[some] * (joint[some] / independent[some]).log()).sum())
    assert float(status.information) == pytest.approx(information / math.log(nodes - 1), rel=1e-9)
    # 0 and 1 at the ends of what a plan can say
    assert float(nearly_uniform().status.information) == pytest.approx(0, abs=1e-3)
    assert float(on_the_diagonal().status.information) == pytest.approx(1, abs=1e-2)


def test_warnings_of_a_batch_count_its_problems_and_its_outcome_is_the_worst():
    costs = random_costs(6, 8, dtype=torch.float32)
    M = torch.stack([costs[2], costs[2] + 3, costs[2] * 0 + 400])
    status = solve_ufgw(costs[0], costs[1], M, alpha=0, rho=0.02).status
    assert status.log_domain.tolist() == [False, True, True]
    assert status.outcomes[2] == "diverged"
    assert status.outcome == "diverged"
    assert not status.converged
    assert any("(2 of 3 problems)" in warning for warning in status.warnings)
    assert any("(1 of 3 problems)" in warning for warning in status.warnings)
    # A plan without mass has no share on its diagonal and says nothing: it is in trouble, and warned of once.
    assert not any(bool(flags[2]) for sign, flags in status.signs.items() if sign != "log_domain")


def test_an_unfinished_solve_is_a_sign_but_no_warning():
    status = solve_ufgw(*elsewhere(10, 10), n_outer=1).status
    assert status.signs["max_iterations"].tolist() == [True]
    assert not status.warnings
    assert "n_outer" in status.remedy
    assert "n_outer" in REMEDIES["max_iterations"]
    assert solve_ufgw(*elsewhere(10, 10), n_outer=500, tol=1e-3).status.signs["max_iterations"].tolist() == [False]
