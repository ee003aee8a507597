"""Costs that know their structure against the same costs written out: products, whole solves, gradients.

Conventions. ``cosine_cost``, ``graph_cost`` and ``anchor_cost`` are the plain tensors; where a node is absent the
matrices mean nothing, so comparisons are over the present pairs. Products of N numbers near 1 are off by N roundings at
most: 1e-12 in float64 has a factor of a hundred to spare, 1e-5 in float32 one of two or more. The logarithm of a plan
is off by cost/ε of them, with costs 2αL⊗π up to about 10. Gradients are compared at one plan, with autograd through the
explicit 4-tensor objective or through ``cosine_cost`` as the other side.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from optimag_dist.ufgw import (
    CosineCost,
    DenseCost,
    SparseCost,
    anchor_cost,
    cosine_cost,
    graph_cost,
    graph_costs,
    solve_ufgw,
)
from optimag_dist.ufgw.costs import Cost
from optimag_dist.ufgw.objective import structure_term
from optimag_dist.ufgw.plan import Plan
from optimag_dist.ufgw.problem import UFGWProblem

from .ufgw_oracle import (
    explicit_structure,
    make_regulariser,
    random_costs,
    random_embeddings,
    random_masses,
    random_present,
    random_proximity,
)

torch.set_num_threads(1)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def proximities(problems: int, nodes: int, seed: int, density: float = 0.1) -> Tensor:
    return torch.stack([random_proximity(nodes, seed + i, density=density) for i in range(problems)])


def one_of_each_kind(problems: int, nodes: int, dim: int, seed: int, dtype: torch.dtype) -> dict[str, Cost]:
    z = random_embeddings(problems, nodes, dim, seed).to(dtype)
    graph = SparseCost.from_proximity(proximities(problems, nodes, seed).to(dtype))
    return {
        "cosine": CosineCost.from_embeddings(z),
        "close together": CosineCost.from_embeddings(
            random_embeddings(problems, nodes, dim, seed, spread=0.1).to(dtype)
        ),
        "sparse": graph,
        "prior": graph.anchor_cost(),
        "self": SparseCost.all_but_self(nodes, dtype=dtype, device=z.device),
        "dense": DenseCost(graph.dense()),
    }


@settings(deadline=None, max_examples=30)
@given(
    problems=st.integers(1, 3),
    nodes=st.integers(1, 30),
    dim=st.integers(1, 12),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    shift=st.floats(-1, 2),
)
def test_products_with_a_structured_cost_are_those_with_its_matrix(problems, nodes, dim, seed, dtype, shift):
    # (C∘C)v is taken by the factor or by the matrix, whichever is cheaper: both happen in this range of sizes.
    generator = torch.Generator().manual_seed(seed)
    for plain in one_of_each_kind(problems, nodes, dim, seed, dtype).values():
        for cost in (plain, plain.shifted(torch.tensor(shift, dtype=dtype))):
            matrix = cost.dense().double()
            b = cost.batch_size
            assert (b, cost.nodes, cost.dtype) == (matrix.shape[0], nodes, dtype)
            x = torch.rand(b, 5, nodes, generator=generator, dtype=torch.float64)
            v = x[:, 0].clone()
            expected = {
                "right_matmul": x @ matrix,
                "squared_times": (matrix.square() @ v[:, :, None])[:, :, 0],
                "mean": torch.einsum("bi,bij,bj->b", v, matrix, v) / v.sum(1) ** 2,
            }
            found = {
                "right_matmul": cost.right_matmul(x.to(dtype)),
                "squared_times": cost.squared_times(v.to(dtype)),
                "mean": cost.mean(v.to(dtype)),
            }
            size = max(1.0, float(matrix.abs().max()))
            if isinstance(cost, SparseCost):  # whose sums are differences of the constant's and those of S
                size = max(size, float(cost.constant.abs().max()))
            for name, product in expected.items():
                assert found[name].dtype == dtype
                limit = TOLERANCE[dtype] * size**2 * nodes
                torch.testing.assert_close(
                    found[name].double(), product, rtol=0, atol=limit, msg=lambda m, n=name: f"{n}: {m}"
                )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lowering_selecting_and_converting_a_cost_do_that_to_its_matrix(dtype):
    entries = torch.tensor([2, 0])
    for cost in one_of_each_kind(3, 9, 4, 0, dtype).values():
        matrix = cost.dense()
        shifted = cost.shifted(torch.tensor(0.7, dtype=dtype))
        tolerance = TOLERANCE[dtype] * float(matrix.max())
        torch.testing.assert_close(shifted.dense(), matrix - 0.7, rtol=0, atol=tolerance)
        again = shifted.shifted(torch.tensor(-0.7, dtype=dtype))
        torch.testing.assert_close(again.dense(), matrix, rtol=0, atol=tolerance)
        chosen = matrix[entries] if cost.batch_size == 3 else matrix
        torch.testing.assert_close(cost.select(entries).dense(), chosen, rtol=0, atol=tolerance)
        torch.testing.assert_close(
            cost.select(entries).shifted(torch.tensor(0.7, dtype=dtype)).dense(), chosen - 0.7, rtol=0, atol=tolerance
        )
        assert cost.to(torch.float64).dense().dtype == torch.float64
        # A unit vector is one up to 6e-8 in float32, and the distances of a CosineCost are over their mean.
        rounding = 1e-5 + 4 * 6e-8 * float(cost.scale.max()) if isinstance(cost, CosineCost) else 1e-5
        torch.testing.assert_close(cost.to(torch.float32).dense(), matrix.float(), rtol=0, atol=rounding)


@pytest.mark.parametrize("spread", [1.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cosine_cost_is_the_plain_one_over_the_present_pairs(dtype, spread):
    z = random_embeddings(3, 20, 4, 1, spread=spread)
    present = random_present(3, 20, 2)
    mangled = torch.where(present[:, :, None], z, math.nan).to(dtype)
    cost = CosineCost.from_embeddings(mangled * 7, present)
    for i in range(3):
        here = present[i]
        expected = cosine_cost(z[i], here)[here][:, here]
        found = cost.dense()[i][here][:, here].double()
        # Rounding z to the dtype alone moves a distance of 1 − cos by up to √(2·mean) times that, over the mean.
        lost = TOLERANCE[dtype] / spread
        torch.testing.assert_close(found, expected, rtol=0, atol=lost * float(expected.max()))
        assert float(found.mean()) == pytest.approx(1, abs=lost)
        v = torch.rand(3, 20, dtype=torch.float64) * present
        square = cost.squared_times(v.to(dtype))[i].double()[here]
        torch.testing.assert_close(square, expected.square() @ v[i][here], rtol=20 * lost, atol=0)


def test_embeddings_on_one_point_have_no_structure():
    z = torch.ones(2, 6, 3, dtype=torch.float64)
    z[1] = random_embeddings(1, 6, 3, 0)[0]
    cost = CosineCost.from_embeddings(z)
    assert (cost.dense()[0] == 0).all()
    assert (cost.squared_times(torch.rand(2, 6, dtype=torch.float64))[0] == 0).all()
    torch.testing.assert_close(cost.dense()[1], cosine_cost(z[1]), rtol=1e-12, atol=1e-12)
    E = torch.rand(2, 6, 6, dtype=torch.float64)
    assert (cost.vjp((E + E.mT) @ cost.factor)[0] == 0).all()


@settings(deadline=None, max_examples=30)
@given(
    nodes=st.integers(2, 16),
    dim=st.integers(2, 8),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([1.0, 0.3, 0.1]),
    masked=st.booleans(),
    shift=st.sampled_from([0.0, 0.7]),
)
def test_pulling_a_slope_back_is_autograd_through_the_plain_cost(nodes, dim, seed, spread, masked, shift):
    z = normalize(random_embeddings(2, nodes, dim, seed, spread=spread), dim=2).requires_grad_()
    present = random_present(2, nodes, seed) if masked else torch.ones(2, nodes, dtype=torch.bool)
    E = torch.randn(2, nodes, nodes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    E = (E + E.mT) * (present[:, :, None] & present[:, None, :])
    cost = CosineCost.from_embeddings(z, present)
    shifted = cost.shifted(torch.tensor(shift, dtype=torch.float64))
    (ours,) = torch.autograd.grad(cost.directions, z, shifted.vjp(E @ shifted.factor))
    plain = sum((E[i] * cosine_cost(z[i], present[i])).sum() for i in range(2))
    (theirs,) = torch.autograd.grad(plain, z)
    # Distances are known to 1e-16 and so is their mean 1/s, which makes it s·1e-16 of the derivative by z: that is at
    # most Σ|E| times s·√(1/s), the distance over the mean by the square root of a distance.
    limit = 10 * 1e-16 * float(cost.scale.max()) ** 1.5 * float(E.abs().sum())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=limit)


@settings(deadline=None, max_examples=30)
@given(
    problems=st.integers(1, 3),
    nodes=st.integers(1, 20),
    density=st.floats(0, 1),
    seed=st.integers(0, 1000),
    delta=st.sampled_from([1e-5, 1e-2]),
    tau=st.sampled_from([0.1, 0.5, 2.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_sparse_graph_costs_are_the_plain_ones(problems, nodes, density, seed, delta, tau, dtype):
    ppr = proximities(problems, nodes, seed, density)
    cost = SparseCost.from_proximity(ppr.to(dtype), delta)
    plain = torch.stack([graph_cost(x, delta) for x in ppr])
    assert cost.batch_size == problems
    # A distance near 0 is the difference of two logarithms of up to log 1e5, over their mean.
    tolerance = 20 * TOLERANCE[dtype]
    torch.testing.assert_close(cost.dense().double(), plain, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        cost.anchor_cost(tau).dense().double(), anchor_cost(plain, tau), rtol=0, atol=tolerance / tau
    )
    assert len(cost.values) == int((ppr + ppr.mT).count_nonzero())
    for i in range(problems):
        torch.testing.assert_close(cost.select(torch.tensor([i])).dense().double()[0], plain[i], rtol=0, atol=tolerance)


def test_graphs_that_say_nothing_cost_nothing_in_either_form():
    everybody = torch.full((5, 5), 0.2, dtype=torch.float64)
    ppr = torch.stack([torch.zeros(5, 5, dtype=torch.float64), random_proximity(5, 0), everybody])
    cost = SparseCost.from_proximity(ppr).dense()
    assert (cost[[0, 2]] == 0).all()
    torch.testing.assert_close(cost[1], graph_cost(ppr[1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("density", "kind"), [(0.02, SparseCost), (0.5, DenseCost)])
@pytest.mark.parametrize("anchor", ["ppr", "identity"])
@pytest.mark.parametrize("batched", [True, False])
def test_graph_costs_takes_the_form_that_fits_and_means_the_same(density, kind, anchor, batched):
    ppr = proximities(2, 30, 0, density)
    C_G, M = graph_costs(ppr if batched else ppr[0], delta=1e-4, tau=0.7, anchor=anchor)
    assert isinstance(C_G, kind)
    assert isinstance(M, kind)
    plain = torch.stack([graph_cost(x, 1e-4) for x in (ppr if batched else ppr[:1])])
    torch.testing.assert_close(C_G.dense(), plain, rtol=0, atol=1e-12)
    matrix = M.dense().expand_as(plain)
    torch.testing.assert_close(matrix, anchor_cost(plain, 0.7, kind=anchor), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="'ppr', 'identity'"):
        graph_costs(ppr, anchor="none")
    with pytest.raises(ValueError, match="delta"):
        graph_costs(ppr, delta=0.0)


@settings(deadline=None, max_examples=40)
@given(
    problems=st.integers(1, 3),
    shared_modality=st.booleans(),
    shared_graph=st.booleans(),
    nodes=st.integers(4, 40),
    dim=st.integers(1, 12),
    density=st.floats(0, 0.3),
    seed=st.integers(0, 1000),
    masked=st.booleans(),
    alpha=st.floats(0, 0.9),  # at 1 the first plan can be a saddle point, left to whichever side rounding says
    rho=st.sampled_from([0.05, 0.1, 1.0, math.inf]),
    epsilon=st.sampled_from([0.02, 0.1]),
    marginal=st.sampled_from(["kl", "kl_tensor"]),
    prior=st.sampled_from(["ppr", "identity"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_a_structured_solve_is_the_dense_one(
    problems,
    shared_modality,
    shared_graph,
    nodes,
    dim,
    density,
    seed,
    masked,
    alpha,
    rho,
    epsilon,
    marginal,
    prior,
    dtype,
):
    # Where both structures are shared, the batch is one of masses.
    modalities = 1 if shared_modality else problems
    z = random_embeddings(modalities, nodes, dim, seed).to(dtype).double()
    present = random_present(modalities, nodes, seed) if masked else torch.ones(modalities, nodes, dtype=torch.bool)
    masses = torch.stack([random_masses(nodes, seed + i) for i in range(problems)]) * present
    masses = masses / masses.sum(1, keepdim=True)
    ppr = proximities(1 if shared_graph else problems, nodes, seed, density).to(dtype).double()
    plain_C_m = torch.stack([cosine_cost(z[i], present[i]) for i in range(modalities)])
    plain_C_G = torch.stack([graph_cost(x) for x in ppr])
    plain_M = anchor_cost(plain_C_G, kind=prior)
    weights = {"alpha": alpha, "rho": rho, "epsilon": epsilon, "marginal": marginal, "n_outer": 4, "n_sinkhorn": 15}
    dense = solve_ufgw(plain_C_m, plain_C_G, plain_M, mu=masses, nu=masses, **weights)
    lightest = float(dense.status.mass.min())
    # Next to no mass is next to no digits.
    assume(dense.status.healthy.all() and lightest > 0.05)

    C_m = CosineCost.from_embeddings(z.to(dtype), present)
    C_G = SparseCost.from_proximity(ppr.to(dtype))
    M = C_G.anchor_cost() if prior == "ppr" else SparseCost.all_but_self(nodes, dtype=dtype, device=ppr.device)
    mu = masses.to(dtype)
    found = solve_ufgw(C_m, C_G, M, mu=mu, nu=mu, **weights)
    assert found.plan.dtype == dtype
    unit = torch.finfo(dtype).eps
    # Costs up to 10, or differences from c² where nearly all pairs of few nodes are stored, with some ten roundings
    # each, over ε (or twice ε times the mass), carried on by four outer steps.
    limit = 4 * 10 * max(10.0, float(C_G.constant.max()) ** 2) * unit / (epsilon * lightest)
    # A step this short changes the objective by less than its rounding, which then decides whether it is taken whole.
    change = float(dense.status.change.max())
    limit += change if change < 10 * unit**0.5 else 0
    assert found.status.healthy.all()
    for i in range(problems):
        error = float((found.plan[i].double() - dense.plan[i]).abs().sum() / dense.plan[i].sum())
        assert error <= limit
        assert float(found.objective[i]) == pytest.approx(float(dense.objective[i]), rel=limit, abs=limit)
        for name, part in found.parts.items():
            assert float(part[i]) == pytest.approx(float(dense.parts[name][i]), rel=limit, abs=limit)
    assert (found.plan[masses == 0] == 0).all()


def test_problems_solved_again_in_the_log_domain_are_picked_out_of_structured_costs():
    # Row mass falls as exp(−cost/ρ): with 3 more to pay, two of four problems are lost to the exponential domain.
    nodes = 24
    C_m = CosineCost.from_embeddings(random_embeddings(4, nodes, 5, 0).float())
    C_G = SparseCost.from_proximity(proximities(4, nodes, 1).float())
    prior = C_G.anchor_cost()
    M = replace(prior, constant=prior.constant + torch.tensor([0.0, 3.0, 0.0, 3.0]))
    options = {"alpha": 0.05, "rho": 0.02, "epsilon": 0.01}
    found = solve_ufgw(C_m, C_G, M, **options)
    assert found.status.log_domain.tolist() == [False, True, False, True]
    exact = solve_ufgw(C_m.to(torch.float64), C_G.to(torch.float64), M.to(torch.float64), **options)
    assert not exact.status.log_domain.any()
    # 6e-8 of a cost of 4 over ε, a few times
    error = (found.plan - exact.plan).abs().sum((1, 2)) / exact.plan.sum((1, 2))
    assert float(error.max()) <= 100 * 4 * 6e-8 / 0.01


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_dense_graph_costs_beside_a_factor_and_a_factor_beside_a_dense_prior(alpha):
    # Every combination of kinds that the two sides and the prior can come in.
    nodes = 24
    C_m = CosineCost.from_embeddings(random_embeddings(1, nodes, 4, 0)[0])
    C_G = SparseCost.from_proximity(random_proximity(nodes, 1))
    M = C_G.anchor_cost()
    plan = solve_ufgw(C_m.dense(), C_G.dense(), M.dense(), alpha=alpha).plan[0]
    for first in (C_m, C_m.dense()[0]):
        for second in (C_G, C_G.dense()[0]):
            for third in (M, M.dense()[0]):
                found = solve_ufgw(first, second, third, alpha=alpha).plan
                assert found.shape == (nodes, nodes)
                torch.testing.assert_close(found, plan, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("marginal", ["kl", "kl_tensor"])
@pytest.mark.parametrize("first", ["dense", "sparse", "cosine"])
def test_a_cosine_cost_on_the_graphs_side_is_the_same_problem(first, marginal):
    nodes, problems = 16, 2
    graph = SparseCost.from_proximity(proximities(problems, nodes, 1))
    C_G = CosineCost.from_embeddings(random_embeddings(problems, nodes, 4, 0))
    C_m = {
        "dense": graph.dense(),
        "sparse": graph,
        "cosine": CosineCost.from_embeddings(random_embeddings(problems, nodes, 3, 2)),
    }[first]
    # Nothing is the same on both sides, so that nothing can be exchanged for its counterpart unseen.
    M = torch.rand(problems, nodes, nodes, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mu, nu = (torch.stack([random_masses(nodes, seed + i) for i in range(problems)]) for seed in (4, 6))
    nu = 1.2 * nu
    nu[0, 3] = 0
    rho = (0.1, 0.4) if marginal == "kl_tensor" else (0.1, 0.05 + random_masses(nodes, 8))
    options = {"mu": mu, "nu": nu, "rho": rho, "epsilon": 0.1, "alpha": 0.3, "marginal": marginal}
    options |= {"n_outer": 2000, "n_sinkhorn": 200, "tol": 1e-13}
    matrix = C_m if isinstance(C_m, Tensor) else C_m.dense()
    expected = solve_ufgw(matrix, C_G.dense(), M, **options)
    for third in (M, DenseCost(M)):
        found = solve_ufgw(C_m, C_G, third, **options)
        assert found.status.converged
        # Both at rest, whichever side Sinkhorn begins with.
        torch.testing.assert_close(found.plan, expected.plan, rtol=1e-8, atol=1e-13)
        torch.testing.assert_close(found.objective, expected.objective, rtol=1e-10, atol=0)
        for name, part in expected.parts.items():
            torch.testing.assert_close(found.parts[name], part, rtol=1e-9, atol=1e-12)
        for name in ("kept_mass", "received_mass"):
            mine, theirs = getattr(found, name), getattr(expected, name)
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, equal_nan=True)
    alone = solve_ufgw(graph.dense()[0], CosineCost.from_embeddings(random_embeddings(1, nodes, 4, 0)[0]), M[0])
    assert alone.plan.shape == (nodes, nodes)


def at_a_plan(cost: CosineCost, C_G: Cost, M: Cost, kernel: Tensor, masses: Tensor) -> Tensor:
    """The structure term of ``cost`` at a given plan, as the regulariser asks for it."""
    rho = torch.full_like(masses[:1, :1], 0.1)
    problem = UFGWProblem.build(cost, C_G, M, masses, masses, rho, rho, alpha=0.6, epsilon=0.01)
    ones = torch.ones_like(masses)
    plan, linearised = problem.linearise(Plan(kernel.clone(), ones, ones, kernel.sum(2), kernel.sum(1)))
    healthy = torch.ones_like(problem.mu[:, 0], dtype=torch.bool)
    return structure_term(cost, problem, plan, linearised, healthy, lambda: (problem, plan))


# Eight nodes: the factor of 2 + 2 columns does the work, that of 7 + 2 is written out.
@pytest.mark.parametrize("dim", [2, 7])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_structure_term_is_its_definition_and_its_gradient_the_closed_form(dim, masked, sparse):
    nodes = 8
    z = random_embeddings(2, nodes, dim, 0).requires_grad_()
    present = random_present(2, nodes, 4) if masked else torch.ones(2, nodes, dtype=torch.bool)
    masses = present / present.sum(1, keepdim=True).double()
    kernel = torch.rand(2, nodes, nodes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kernel = kernel * present[:, :, None] * present[:, None, :]
    graph = SparseCost.from_proximity(proximities(2, nodes, 5, 0.3))
    C_G, M = (graph, graph.anchor_cost()) if sparse else (DenseCost(graph.dense()), DenseCost(graph.dense()))

    value = at_a_plan(CosineCost.from_embeddings(z, present), C_G, M, kernel, masses)
    (ours,) = torch.autograd.grad(value.sum(), z)
    for i in range(2):
        C_m, C = cosine_cost(z[i], present[i]), graph.dense()[i]
        expected = explicit_structure(C_m, C, kernel[i])
        torch.testing.assert_close(value[i], expected, rtol=1e-12, atol=0)
        (theirs,) = torch.autograd.grad(expected, z, retain_graph=True)
        torch.testing.assert_close(ours[i], theirs[i], rtol=0, atol=1e-11 * float(theirs.abs().max()))
        r = kernel[i].sum(1)
        E = 2 * (C_m.detach() * torch.outer(r, r) - kernel[i] @ C @ kernel[i].T)
        (closed,) = torch.autograd.grad((E * C_m).sum(), z)
        torch.testing.assert_close(ours[i], closed[i], rtol=0, atol=1e-11 * float(closed.abs().max()))
    assert (ours[~present] == 0).all()

    assert torch.autograd.gradcheck(
        lambda x: at_a_plan(CosineCost.from_embeddings(x, present), C_G, M, kernel, masses), z
    )


def test_a_structure_term_of_constant_embeddings_asks_for_no_gradient():
    C_m, C_G, _ = random_costs(6, 0)
    z = random_embeddings(1, 6, 2, 0)
    kernel = torch.rand(1, 6, 6, dtype=torch.float64)
    masses = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    value = at_a_plan(CosineCost.from_embeddings(z), DenseCost(C_G[None]), DenseCost(C_m[None]), kernel, masses)
    assert not value.requires_grad
    torch.testing.assert_close(value[0], explicit_structure(cosine_cost(z[0]), C_G, kernel[0]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dim", [4, 18])  # 6 and 20 columns for 24 nodes: by the factor, and written out
@pytest.mark.parametrize("density", [0.03, 0.5])  # sparse and dense graph costs
@pytest.mark.parametrize("masked", [False, True])
def test_the_regularisers_gradient_is_that_of_the_explicit_objective_at_its_plan(dim, density, masked):
    nodes = 24
    z = random_embeddings(1, nodes, dim, 0)[0].requires_grad_()
    present = random_present(1, nodes, 3)[0] if masked else torch.ones(nodes, dtype=torch.bool)
    ppr = random_proximity(nodes, 1, density=density)
    regulariser = make_regulariser("ufgw", alpha=0.5, rho=0.2, tau=1.0, epsilon=0.02, weight=0.3)
    loss = regulariser({"text": z}, ppr, {"text": present})
    (ours,) = torch.autograd.grad(loss, z)

    C_G = graph_cost(ppr)
    C_m = cosine_cost(z, present)
    mass = present / present.sum().double()
    solution = solve_ufgw(
        C_m.detach(), C_G, anchor_cost(C_G, 1.0), alpha=0.5, rho=0.2, epsilon=0.02, mu=mass, nu=mass, n_outer=5
    )
    assert loss.item() == pytest.approx(0.3 * float(solution.objective), rel=1e-9)
    (theirs,) = torch.autograd.grad(0.3 * 0.5 * explicit_structure(C_m, C_G, solution.plan), z)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * float(theirs.abs().max()))
    assert (ours[~present] == 0).all()
