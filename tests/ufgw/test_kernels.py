"""The compiled CPU kernels against torch's own operations, and against definitions in float64.

Conventions. ``torch_forms`` takes the kernels away, as on a machine without numba; whole solves and single kernels must
then come out the same. Both do the same sums in another order, so single kernels are compared at N roundings of their
largest term; a plan, whose logarithm carries cost/ε roundings through a few outer steps, at 400 of those
(``test_structured.py`` has the same). Sizes are chosen around what the kernels count in: 4 rows, 16 columns, 64 lanes.
"""

import importlib
import math
import multiprocessing
import sys
import threading

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.ufgw import CosineCost, DenseCost, SparseCost, compiled, solve_ufgw
from optimag_dist.ufgw.compiled import elementary, threads
from optimag_dist.ufgw.objective import moments
from optimag_dist.ufgw.plan import Plan
from optimag_dist.ufgw.problem import UFGWProblem
from optimag_dist.ufgw.sinkhorn import Entropic, sinkhorn_exp, sinkhorn_log
from optimag_dist.ufgw.step import best_scale, step_length

from .ufgw_oracle import random_costs, random_embeddings, random_masses, random_present, random_proximity

torch.set_num_threads(1)

SIZES = [1, 2, 3, 5, 17, 64, 65, 130]
DTYPES = [torch.float64, torch.float32]


class TorchForms:
    """Within it the package finds no compiled kernels, as on a machine without numba."""

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name, module in list(sys.modules.items()):
            if name.startswith("optimag_dist.ufgw.") and hasattr(module, "compiled_for"):
                self.patch.setattr(module, "compiled_for", lambda x: None)

    def __exit__(self, *_):
        self.patch.undo()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rows_are_shared(monkeypatch):
    # ``compiled.sinkhorn`` is the function, not the module it is from
    monkeypatch.setattr(importlib.import_module("optimag_dist.ufgw.compiled.sinkhorn"), "_SHARED_FROM", 1)


def structured(problems, nodes, seed, dtype, shared_graph=True):
    """A cosine cost, a sparse graph cost and its prior, and masses of the nodes that are there."""
    present = random_present(problems, nodes, seed) if nodes > 2 else torch.ones(problems, nodes, dtype=torch.bool)
    z = random_embeddings(problems, nodes, max(1, nodes // 3), seed).to(dtype)
    ppr = torch.stack([random_proximity(nodes, seed + i) for i in range(1 if shared_graph else problems)])
    C_G = SparseCost.from_proximity(ppr.to(dtype))
    masses = present / present.sum(1, keepdim=True).to(dtype)
    return (CosineCost.from_embeddings(z, present), C_G, C_G.anchor_cost()), masses


def assert_same_solution(ours, theirs, limit):
    # A step this short changes the objective by less than its rounding, which then decides whether it is taken whole.
    change = float(theirs.status.change.max())
    limit += change if change < 10 * torch.finfo(theirs.plan.dtype).eps ** 0.5 else 0
    error = (ours.plan - theirs.plan).abs().sum((-2, -1)) / theirs.plan.sum((-2, -1))
    assert float(error.max()) <= limit
    compared = {"objective": (ours.objective, theirs.objective)}
    compared |= {name: (part, theirs.parts[name]) for name, part in ours.parts.items()}
    names = ("healthy", "log_domain", "diagonal", "information", "mass", "change", "marginal_error", "distance")
    compared |= {name: (getattr(ours.status, name), getattr(theirs.status, name)) for name in names}
    compared |= {name: (getattr(ours, name), getattr(theirs, name)) for name in ("kept_mass", "received_mass")}
    for name, (x, y) in compared.items():
        torch.testing.assert_close(x, y, rtol=limit, atol=limit, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nodes", SIZES)
def test_whole_solves_are_the_same_without_the_compiled_kernels(nodes, dtype):
    epsilon = 0.05
    limit = 400 * torch.finfo(dtype).eps / epsilon
    generator = torch.Generator().manual_seed(nodes)
    per_node = (torch.rand(3, nodes, generator=generator, dtype=dtype) + 0.05, 0.1)
    some_pinned = per_node[0].clone()
    some_pinned[:, ::2] = math.inf
    dense = [torch.stack(x) for x in zip(*(random_costs(nodes, seed, dtype=dtype) for seed in range(3)), strict=True)]
    masses = torch.stack([random_masses(nodes, seed) for seed in range(3)]).to(dtype)
    problems = [(dense, masses)]
    problems += [structured(3, nodes, seed, dtype, shared_graph=shared) for seed, shared in ((0, True), (1, False))]
    for costs, mu in problems:
        for options in (
            {"rho": 0.1},
            {"rho": 0.1, "marginal": "kl_tensor"},
            {"rho": per_node},
            {"rho": some_pinned, "n_outer": 2},
            {"rho": math.inf, "n_outer": 2},
            {"rho": math.inf, "marginal": "kl_tensor"},
            {"rho": 1.0, "alpha": 0.0},
            {"rho": 0.3, "alpha": 1.0},
        ):
            # Another node is absent on the other side; where masses are given, their sum is the same on both.
            nu = mu.roll(1, 1)
            options = {"mu": mu, "nu": nu, "epsilon": epsilon, "n_outer": 4, "n_sinkhorn": 10, **options}
            ours = solve_ufgw(*costs, **options)
            with TorchForms():
                theirs = solve_ufgw(*costs, **options)
            assert_same_solution(ours, theirs, limit)


@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rounding_does_not_decide_the_length_of_a_step(nodes, seed):
    # On a line directions are ±1, so that nodes coincide and mass moved between them changes nothing quadratic; and a
    # pinned problem that is not yet feasible may have to rise. The step is then the same whatever the last digits.
    generator = torch.Generator().manual_seed(nodes)
    rho = torch.rand(3, nodes, generator=generator, dtype=torch.float64) + 0.05
    rho[:, ::2] = math.inf
    costs, mu = structured(3, nodes, seed, torch.float64, shared_graph=False)
    for n_sinkhorn in (10, 100):
        options = {"mu": mu, "nu": mu, "rho": rho, "epsilon": 0.05, "n_outer": 4, "n_sinkhorn": n_sinkhorn}
        ours = solve_ufgw(*costs, **options)
        with TorchForms():
            theirs = solve_ufgw(*costs, **options)
        assert_same_solution(ours, theirs, 400 * 2.2e-16 / 0.05)


def test_what_the_compiled_kernels_lose_is_solved_in_the_log_domain_as_well():
    costs = random_costs(6, 8, dtype=torch.float32)
    M = torch.stack([costs[2], costs[2] + 3, costs[2]])
    ours = solve_ufgw(costs[0], costs[1], M, alpha=0, rho=0.02, epsilon=0.01)
    with TorchForms():
        theirs = solve_ufgw(costs[0], costs[1], M, alpha=0, rho=0.02, epsilon=0.01)
    assert ours.status.log_domain.tolist() == theirs.status.log_domain.tolist() == [False, True, False]
    torch.testing.assert_close(ours.plan, theirs.plan, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_exp_and_log_are_those_of_numpy_over_their_whole_range(dtype):
    @numba.njit
    def exp_each(x):
        out = np.empty_like(x)
        for i in range(len(x)):
            out[i] = elementary.exp(x[i])
        return out

    @numba.njit
    def log_each(x):
        out = np.empty_like(x)
        for i in range(len(x)):
            out[i] = elementary.log(x[i])
        return out

    info = np.finfo(dtype)
    rng = np.random.default_rng(0)
    low, high = float(np.log(float(info.tiny))), 0.99 * float(np.log(float(info.max)))
    x = np.concatenate((rng.uniform(low, high, 20_000), rng.uniform(-1, 1, 20_000), [low * (1 - 1e-6)])).astype(dtype)
    found = exp_each(x)
    assert found.dtype == dtype
    # One rounding in the polynomial's last step, half another before it, r being exact.
    exact = np.exp(x.astype(np.longdouble))
    assert float(np.abs(found / exact - 1).max()) <= info.eps
    assert exp_each(np.zeros(1, dtype))[0] == 1

    x = np.exp(rng.uniform(low, high, 20_000))
    x = np.concatenate((x, rng.uniform(0.5, 2, 20_000), [float(info.tiny), float(info.max)])).astype(dtype)
    x = x[x != 1]
    found, exact = log_each(x), np.log(x.astype(np.longdouble))
    assert found.dtype == dtype
    # Relative also near 1, where the logarithm is near 0; a quotient and a polynomial in its square, of 2 at most.
    assert float((np.abs(found - exact) / np.abs(exact)).max()) <= 2 * info.eps
    assert log_each(np.ones(1, dtype))[0] == 0


def entropic_problem(problems, nodes, dtype, seed):
    """Cost, its additions, duals to start from, weights per node with pinned ones, absent nodes."""
    generator = torch.Generator().manual_seed(seed)
    cost = 2 * torch.rand(problems, nodes, nodes, generator=generator, dtype=torch.float64) - 0.5
    x, y, f, g = (torch.rand(problems, nodes, generator=generator, dtype=torch.float64) - 0.5 for _ in range(4))
    mu, nu, rho_mu, rho_nu = (
        torch.rand(problems, nodes, generator=generator, dtype=torch.float64) + 0.1 for _ in range(4)
    )
    rho_mu[:, 1::5] = math.inf
    rho_nu[:, 2::5] = math.inf
    mu[:, 3::4], nu[:, 1::4] = 0, 0
    if nodes > 1:
        cost[:, 3::4] = 300.0  # must not count, and would underflow if it did
    f, g = f * (mu > 0), g * (nu > 0)
    epsilon = torch.linspace(0.05, 0.2, problems, dtype=torch.float64)
    inputs = (t.to(dtype) for t in (cost, x, y, f, g))
    return *inputs, Entropic(*(t.to(dtype) for t in (mu, nu, rho_mu, rho_nu, epsilon)))


def of_plan(result):
    return result.plan.kernel * result.plan.a[:, :, None] * result.plan.b[:, None, :]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_iter", [1, 2, 9])
@pytest.mark.parametrize("nodes", [*SIZES, 63, 128, 131])
def test_sinkhorn_is_the_same_in_all_three_forms(nodes, n_iter, dtype):
    cost, x, y, f, g, entropic = entropic_problem(3, nodes, dtype, nodes)
    ours = sinkhorn_exp(cost.clone(), x, y, f, g, entropic, n_iter)
    with TorchForms():
        theirs = sinkhorn_exp(cost.clone(), x, y, f, g, entropic, n_iter)
    logs = sinkhorn_log(cost.clone(), x, y, f, g, entropic, n_iter)
    # The logarithm of a plan holds cost/ε roundings, with costs up to 2 that count and ε from 0.05 on; every exp and
    # sum adds its own.
    limit = (100 + nodes) * torch.finfo(dtype).eps
    for other in (theirs, logs):
        assert ours.healthy.tolist() == other.healthy.tolist() == [True] * 3
        assert ours.iterations.tolist() == [n_iter] * 3
        torch.testing.assert_close(
            of_plan(ours), of_plan(other), rtol=20 * limit, atol=limit * float(of_plan(logs).max())
        )
        for name in ("f", "g"):
            torch.testing.assert_close(getattr(ours, name), getattr(other, name), rtol=0, atol=limit)
        for name in ("rows", "columns"):
            torch.testing.assert_close(getattr(ours.plan, name), getattr(other.plan, name), rtol=20 * limit, atol=limit)
    assert (of_plan(ours)[entropic.mu == 0] == 0).all()
    torch.testing.assert_close(of_plan(ours).sum(2), ours.plan.rows, rtol=limit, atol=0)
    # After an update of g a pinned column has its mass, whatever the rows.
    kept = entropic.rho_nu.isinf()
    torch.testing.assert_close(of_plan(ours).sum(1)[kept], entropic.nu[kept], rtol=20 * limit, atol=0)


def test_sinkhorn_stops_each_problem_when_it_stands_still():
    cost, x, y, f, g, entropic = entropic_problem(2, 20, torch.float64, 0)
    rho = torch.full_like(entropic.rho_mu, 0.1)
    rho[1] = 10.0  # slow: 10/0.2 iterations per digit and more
    entropic = entropic._replace(rho_mu=rho, rho_nu=rho)
    full = sinkhorn_exp(cost.clone(), x, y, f, g, entropic, 5000)
    early = sinkhorn_exp(cost.clone(), x, y, f, g, entropic, 5000, 1e-6)
    assert early.iterations[0] < early.iterations[1] < 5000
    error = (of_plan(early) - of_plan(full)).abs().sum((1, 2)) / of_plan(full).sum((1, 2))
    assert float(error.max()) > 0
    # What one iteration moves by 1e-6 moves by κ²/(1 − κ²) times that in all those to come; both sides of it.
    kappa = rho[:, 0] / (rho[:, 0] + entropic.epsilon)
    assert (error <= 2 * 1e-6 / (1 - kappa**2)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nodes", SIZES)
def test_single_kernels_are_their_definitions(nodes, dtype):
    problems, width = 3, 7
    generator = torch.Generator().manual_seed(nodes)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    limit = {"rtol": 8 * (1 + nodes) ** 0.5 * torch.finfo(dtype).eps, "atol": 0.0}
    K, other = rand(problems, nodes, nodes), rand(problems, nodes, nodes)
    a, b, other_a, other_b = (rand(problems, nodes) for _ in range(4))
    a[:, 1::3] = 0
    plan = (K * a[:, :, None] * b[:, None, :]).double()
    theirs = (other * other_a[:, :, None] * other_b[:, None, :]).double()

    found = compiled.distance(K, a, b, other, other_a, other_b)
    torch.testing.assert_close(found.double(), (plan - theirs).abs().sum((1, 2)), **limit)

    for shared in (True, False):
        ppr = torch.stack([random_proximity(nodes, seed) for seed in range(1 if shared else problems)])
        cost = SparseCost.from_proximity(ppr.to(dtype))
        S = (cost.constant[:, None, None] - cost.dense()).double()
        constant = cost.constant.double()[:, None]
        entries = cost.indptr, cost.indices, cost.values
        found = compiled.sparse_inner(K, a, b, *entries)
        torch.testing.assert_close(found.double(), (S * plan).sum((1, 2)), rtol=limit["rtol"], atol=limit["rtol"])

        lowered = K.clone()
        compiled.subtract_sparse(lowered, *entries, 0.4)
        expected = K.double() - 0.4 * S
        torch.testing.assert_close(lowered.double(), expected, rtol=limit["rtol"], atol=limit["rtol"] * float(S.max()))

        # Differences of sums of up to constant · N: N roundings of that.
        room = 4 * (1 + nodes) ** 0.5 * torch.finfo(dtype).eps * nodes * max(float(constant.max()), 1e-30)
        count = 1 if shared else problems
        v, x = rand(count, nodes), rand(count, width, nodes)
        expected = constant * v.double().sum(1, keepdim=True) - (v.double()[:, None] @ S)[:, 0]
        found = compiled.sparse_times(v, *entries, cost.constant)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=room)
        expected = constant[:, :, None] * x.double().sum(2, keepdim=True) - x.double() @ S
        found = compiled.sparse_right_matmul(x, *entries, cost.constant)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=room)
        if shared:
            found = compiled.sparse_right_matmul(rand(problems, width, nodes), *entries, cost.constant)
            assert found.shape == (problems, width, nodes)

    product = K.clone()
    moment = compiled.multiply_out(product, a, b)
    torch.testing.assert_close(product.double(), plan, rtol=4 * torch.finfo(dtype).eps, atol=0)
    expected = torch.xlogy(product.double(), product.double())
    room = limit["rtol"] * float(expected.abs().sum((1, 2)).max())
    torch.testing.assert_close(moment.double(), expected.sum((1, 2)), rtol=0, atol=room)


def random_plan(problem, generator):
    """A plan on the present nodes, and the linearisation that goes with it."""
    K, a, b = (
        torch.rand(*shape, generator=generator, dtype=torch.float64).to(problem.mu.dtype)
        for shape in (problem.mu.shape + problem.mu.shape[1:], problem.mu.shape, problem.mu.shape)
    )
    a, b = a * problem.mu, b * problem.nu
    rows, columns = a * (K @ b[:, :, None])[:, :, 0], b * (a[:, None] @ K)[:, 0]
    return problem.linearise(Plan(K, a, b, rows, columns))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [True, False])
@pytest.mark.parametrize("nodes", [3, 17, 65])
def test_moments_and_step_lengths_are_the_same_in_both_forms_and_their_definitions(nodes, factor, dtype):
    (C_m, C_G, M), mu = structured(3, nodes, 0, dtype)
    if not factor:
        C_m = DenseCost(C_m.dense())
    generator = torch.Generator().manual_seed(nodes)
    rho_mu, rho_nu = (0.05 + torch.rand(3, nodes, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    rho_mu[1, 0] = math.inf
    problem = UFGWProblem.build(C_m, C_G, M, mu, mu.roll(1, 1), rho_mu, rho_nu, alpha=0.6, epsilon=0.05)
    before, at = random_plan(problem, generator)
    plan, linearised = random_plan(problem, generator)
    f, g = (torch.randn(3, nodes, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))

    ours = moments(problem, at, f, g, plan, linearised)
    with TorchForms():
        theirs = moments(problem, at, f, g, plan, linearised)

    def written_out(x):
        return (x.kernel * x.a[:, :, None] * x.b[:, None, :]).double()

    A, B = (C.dense().double().expand(3, -1, -1) for C in (problem.A, problem.B))
    P, earlier, r, c = written_out(plan), written_out(before), plan.rows.double(), plan.columns.double()

    def interaction(x, y):
        distortion = (A[:, :, None, :, None] - B[:, None, :, None, :]) ** 2
        return torch.einsum("bijkl,bij,bkl->b", distortion, x, y)

    free_mu = torch.where(rho_mu.isinf(), 0.0, rho_mu).double()
    relative_mu = torch.xlogy(r, r) - torch.xlogy(r, problem.mu.double())
    relative_nu = torch.xlogy(c, c) - torch.xlogy(c, problem.nu.double())
    expected = {
        "mass": P.sum((1, 2)),
        "duals": (P * (f[:, :, None] + g[:, None, :])).sum((1, 2)),
        "penalty": (free_mu * relative_mu).sum(1) + (rho_nu.double() * relative_nu).sum(1),
        "penalised": (free_mu * r).sum(1) + (rho_nu.double() * c).sum(1),
    }
    if nodes <= 17:
        expected |= {"own": interaction(P, P), "across": interaction(earlier, P)}
    # Differences of sums whose terms are the squares of costs up to 4, in N roundings.
    limit = 100 * torch.finfo(dtype).eps * nodes**0.5
    for name, mine, other in zip(ours._fields, ours, theirs, strict=True):
        size = float(plan.mass.max()) * (1 if name in ("mass", "penalised") else 16)
        torch.testing.assert_close(mine, other, rtol=limit, atol=limit * size, msg=lambda m, n=name: f"{n}: {m}")
        if name in expected:
            torch.testing.assert_close(
                mine.double(), expected[name], rtol=limit, atol=limit * size, msg=lambda m, n=name: f"{n}: {m}"
            )

    quadratic = problem.alpha * moments(problem, at, f, g, before, at).own
    whole = torch.full_like(quadratic, math.inf)
    for value in (whole, whole.neg(), torch.zeros_like(whole), whole.neg().clamp(min=-1e-3)):
        step = step_length(problem, ours, value, quadratic)
        with TorchForms():
            other = step_length(problem, theirs, value, quadratic)
        for name, mine, its in zip(step._fields, step, other, strict=True):
            if name != "fine":
                torch.testing.assert_close(mine, its, rtol=100 * limit, atol=limit, msg=lambda m, n=name: f"{n}: {m}")
        assert step.fine.tolist() == other.fine.tolist()
        assert float(step.scale[1]) == 1  # pinned
        if value is whole:
            assert (step.share == 1).all()


def test_entropy_counts_what_underflows_as_nothing():
    kernel = torch.tensor([[[0.5, 1e-44], [0.0, 1.0]]])
    one = torch.ones(1, 2)
    moment = compiled.multiply_out(kernel.clone(), one, one)
    assert float(moment) == pytest.approx(0.5 * math.log(0.5), rel=1e-6)
    moment = compiled.multiply_out(kernel.clone(), torch.zeros(1, 2), one)
    assert float(moment) == 0


@settings(deadline=None, max_examples=50)
@given(
    log_scale=st.floats(-12, 6),
    rising=st.one_of(st.just(0.0), st.floats(1e-3, 10)),
    curve=st.floats(1e-2, 3),
)
def test_the_best_scale_is_the_root_of_its_equation_in_both_forms(log_scale, rising, curve):
    constant = -(rising * math.exp(log_scale) + curve * log_scale)
    sums = importlib.import_module("optimag_dist.ufgw.compiled.sums")
    scale, found = best_scale(*(torch.tensor(x, dtype=torch.float64) for x in (constant, rising, curve)))
    # The root is known as well as the left side is: a few roundings of its largest term over its slope.
    slope = rising * math.exp(log_scale) + curve
    limit = 1e-15 * (10 + 10 * (abs(constant) + rising + curve * abs(log_scale)) / slope)
    assert sums._best_scale(constant, rising, curve) == pytest.approx(log_scale, abs=limit)
    assert float(found) == pytest.approx(log_scale, abs=limit)
    assert float(scale) == pytest.approx(math.exp(float(found)), rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problems", [2, 5])
def test_two_threads_give_the_answer_of_one(problems, dtype, two_threads):
    nodes = 150
    assert problems * nodes**2 >= threads._WORTH_A_THREAD
    costs, mu = structured(problems, nodes, 0, dtype)
    options = {"mu": mu, "nu": mu, "epsilon": 0.05, "n_outer": 3, "n_sinkhorn": 5}
    both = solve_ufgw(*costs, **options)
    torch.set_num_threads(1)
    # torch's own products may block their sums in another way.
    assert_same_solution(both, solve_ufgw(*costs, **options), 400 * torch.finfo(dtype).eps / 0.05)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_iter", [1, 6])
@pytest.mark.parametrize("nodes", [2, 3, 9, 66])
def test_rows_shared_between_threads_give_the_answer_of_one(nodes, n_iter, dtype, two_threads, rows_are_shared):
    cost, x, y, f, g, entropic = entropic_problem(1, nodes, dtype, nodes)
    both = sinkhorn_exp(cost.clone(), x, y, f, g, entropic, n_iter)
    torch.set_num_threads(1)
    one = sinkhorn_exp(cost.clone(), x, y, f, g, entropic, n_iter)
    limit = 20 * (100 + nodes) * torch.finfo(dtype).eps
    assert both.healthy.tolist() == one.healthy.tolist() == [True]
    torch.testing.assert_close(of_plan(both), of_plan(one), rtol=limit, atol=limit * float(of_plan(one).max()))
    torch.testing.assert_close(both.f, one.f, rtol=0, atol=limit)
    torch.testing.assert_close(both.plan.columns, one.plan.columns, rtol=limit, atol=0)


def test_work_is_dealt_out_once_and_to_as_many_threads_as_torch_may_use(two_threads):
    seen = []

    def note(first, last):
        seen.append((first, last, threading.current_thread().name))

    big = torch.empty(5, threads._WORTH_A_THREAD)
    threads.for_each_problem(big, note)
    assert sorted(x[:2] for x in seen) == [(0, 2), (2, 5)]
    assert sum(name.startswith("ufgw") for _, _, name in seen) == 1
    seen.clear()
    threads.for_each_problem(torch.empty(5, 3), note)
    assert [x[:2] for x in seen] == [(0, 5)]
    torch.set_num_threads(1)
    seen.clear()
    threads.for_each_problem(big, note)
    assert seen == [(0, 5, threading.current_thread().name)]


def test_an_error_in_a_thread_is_not_lost(two_threads):
    def fail(first, last):
        if first:
            raise RuntimeError("in the second part")

    with pytest.raises(RuntimeError, match="second part"):
        threads.for_each_problem(torch.empty(2, threads._WORTH_A_THREAD), fail)


def in_a_forked_child(work):
    """What ``work`` returns there; the test fails if the child hangs or dies."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: send.send(work()))
    child.start()
    try:
        assert receive.poll(30), "the child hangs or died"
        found = receive.recv()
    finally:
        child.join(5)
        if child.is_alive():
            child.kill()
            child.join()
    assert child.exitcode == 0
    return found


def test_a_forked_child_has_threads_of_its_own(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "_WORTH_A_THREAD", 1)
    cost, x, y, f, g, entropic = entropic_problem(2, 12, torch.float64, 0)
    operands = (x, y, f, g, *entropic, 5)
    expected = compiled.sinkhorn(cost.clone(), *operands)
    copy = cost.clone()

    # Kernels alone: torch's own products do not survive a fork with more than one thread.
    def kernels():
        names = []
        threads.for_each_problem(copy, lambda first, last: names.append(threading.current_thread().name))
        return names, [t.numpy() for t in compiled.sinkhorn(copy, *operands)]

    names, found = in_a_forked_child(kernels)
    assert sum(name.startswith("ufgw") for name in names) == 1
    for mine, theirs in zip(expected, found, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


def test_a_forked_child_solves_after_its_parent_did_with_two_threads(two_threads):
    nodes = 150
    assert 2 * nodes**2 >= threads._WORTH_A_THREAD
    costs, mu = structured(2, nodes, 0, torch.float64)
    options = {"mu": mu, "nu": mu, "epsilon": 0.05, "n_outer": 2, "n_sinkhorn": 5}
    expected = solve_ufgw(*costs, **options).plan

    def solve_again():
        torch.set_num_threads(1)  # as torch's loaders do in their workers
        return solve_ufgw(*costs, **options).plan.numpy()

    np.testing.assert_allclose(in_a_forked_child(solve_again), expected.numpy(), rtol=1e-9, atol=1e-15)
