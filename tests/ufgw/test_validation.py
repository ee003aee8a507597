"""Bad input is refused with a ValueError that names it and says what was needed, before or after the solve."""

import math

import numpy as np
import pytest
import torch

from optimag_dist.ufgw import CosineCost, DenseCost, SparseCost, solve_ufgw

from .ufgw_oracle import random_costs

torch.set_num_threads(1)

TILTED = torch.ones(1, 4, 4)
TILTED[0, 1, 2] = 0.5
Z = torch.tensor([[1.0, 0.5], [0.2, 1.0], [1.0, 1.0], [-1.0, 0.3]])


def cosine(row: list[float], present: list[bool] | None = None) -> CosineCost:
    """The cost of Z with another second row."""
    z = Z.clone()
    z[1] = torch.tensor(row)
    return CosineCost.from_embeddings(z, None if present is None else torch.tensor(present))


def sparse(values: list[float], constant: float = 1.0) -> SparseCost:
    """constant − S with one entry of S in each of four rows, on the diagonal."""
    places = torch.arange(5, dtype=torch.int32)
    return SparseCost(torch.tensor([constant]), places, places[:-1], torch.tensor(values))


def hand_made(columns: list[int], indptr: tuple[int, ...] = (0, 1, 2, 3, 4), entries: int = 4) -> SparseCost:
    """1 − S with entries of ½ where told."""
    places = (torch.tensor(x, dtype=torch.int32) for x in (indptr, columns))
    return SparseCost(torch.ones(1), *places, torch.full((entries,), 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"rho": 0.0}, "rho"),
        ({"rho": math.nan}, "rho"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"n_outer": 0}, "n_outer"),
        ({"n_sinkhorn": 2.5}, "n_sinkhorn"),
        ({"tol": 0.0}, "tol"),
        ({"marginal": "l2"}, "'kl', 'kl_tensor'"),
        ({"C_m": torch.zeros(4, 3)}, "C_m.*shape"),
        ({"C_G": torch.zeros(5, 5)}, "C_G.*5 nodes"),
        ({"M": torch.zeros(2, 2, 4, 4)}, "M.*shape"),
        ({"M": torch.zeros(4, 4, dtype=torch.int64)}, "M.*int64"),
        ({"C_m": np.zeros((4, 4))}, "C_m.*ndarray"),
        ({"C_m": torch.zeros(2, 4, 4), "C_G": torch.zeros(3, 4, 4)}, "batch sizes"),
        ({"C_m": torch.full((4, 4), math.nan)}, "C_m holds 16 NaN"),
        ({"M": torch.full((4, 4), math.inf)}, "M holds"),
        ({"C_G": -torch.ones(4, 4)}, "C_G.*minimum of -1"),
        ({"C_G": TILTED[0]}, "C_G differs from its transpose"),
        ({"mu": torch.zeros(4)}, "mu: all nodes"),
        ({"nu": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "nu.*minimum of -1"),
        ({"mu": torch.tensor([1.0, math.nan, 1.0, 1.0])}, "mu holds 1 NaN"),
        ({"mu": torch.ones(5)}, "mu.*5 nodes"),
        ({"mu": torch.ones(2, 2, 4)}, r"mu.*\(2, 2, 4\)"),
        ({"mu": torch.ones(4, dtype=torch.int64)}, "mu.*int64"),
        ({"nu": [0.25] * 4}, "nu.*list"),
        ({"nu": torch.tensor([1.0, math.inf, 1.0, 1.0])}, "nu holds 1 NaN or infinite"),
        ({"nu": torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])}, "nu: all nodes of problem 1"),
        ({"C_m": cosine([math.nan, 1.0])}, "C_m: embedding 1 of problem 0 has NaN or infinity"),
        ({"C_m": cosine([math.inf, 1.0])}, "C_m: embedding 1 of problem 0 has NaN or infinity"),
        ({"C_m": CosineCost.from_embeddings(torch.zeros(4, 2))}, "C_m: no embedding has a direction"),
        ({"C_m": CosineCost.from_embeddings(torch.ones(5, 2))}, "C_G: got 4 nodes where C_m has 5"),
        ({"C_G": sparse([0.5, -0.25, 0.0, 1.0])}, "S of C_G has a minimum of -0.25"),
        ({"C_G": sparse([0.5, math.nan, 0.0, 1.0])}, "S of C_G holds 1 NaN"),
        ({"C_G": sparse([0.5, 1.25, 0.0, 1.0])}, "C_G = constant − S is negative"),
        ({"M": sparse([0.5, 0.25, 0.0, 1.0], math.inf)}, "the constant of M holds 1 NaN or infinite"),
        ({"M": sparse([0.0] * 4, -1.0)}, "the constant of M has a minimum of -1"),
        ({"M": SparseCost.all_but_self(5, dtype=torch.float32, device=torch.device("cpu"))}, "M: got 5 nodes"),
        ({"M": DenseCost(torch.full((1, 4, 4), math.nan))}, "M holds 16 NaN"),
        ({"C_G": hand_made([0, 1, 2, 4])}, "C_G: indices from 0 to 4; needed columns from 0 to 3"),
        ({"C_G": hand_made([-1, 1, 2, 3])}, "C_G: indices from -1"),
        ({"M": hand_made([0, 1, 2, 3], (0, 2, 1, 3, 4))}, "M: indptr goes from 0 to 4; needed 0 to 4 without falling"),
        ({"M": hand_made([0, 1, 2, 3], (0, 1, 2, 3, 5))}, "M: indptr goes from 0 to 5; needed 0 to 4"),
        ({"M": hand_made([0, 1, 2, 3], entries=3)}, "M: got 1 constants, an indptr of 5, 4 indices and 3 values"),
        ({"C_G": hand_made([1, 1, 2, 3])}, "C_G differs from its transpose by up to 0.5"),
        ({"rho": torch.tensor([1.0, 0.0, 1.0, 1.0])}, "^rho: 1 weights are NaN or not above 0"),
        ({"rho": math.inf, "nu": torch.full((4,), 0.5)}, r"mu sums to \[1.0\] and nu to \[2.0\] where rho=inf"),
        ({"C_G": DenseCost(TILTED)}, "C_G differs from its transpose by up to 0.5"),
        ({"rho": (0.1, 0.2, 0.3)}, "tuple of 3.*the pair"),
        ({"rho": (0.1, -0.2)}, r"rho \(nu\)=-0.2"),
        ({"rho": torch.tensor([0.1, 0.0, 0.2, 0.3])}, "1 weights are NaN or not above 0"),
        ({"rho": (0.1, torch.tensor([0.1, math.nan, -1.0, 0.3]))}, r"rho \(nu\): 2 weights are NaN or not above 0"),
        ({"rho": torch.ones(5)}, "rho: got 5 nodes"),
        ({"rho": torch.ones(4, dtype=torch.int64)}, "rho.*int64"),
        ({"rho": torch.ones(2, 4), "mu": torch.ones(3, 4)}, "batch sizes"),
        ({"rho": [0.1, 0.1]}, "rho: got a list, needed a number.*tuple"),
        ({"rho": (0.1, [0.1] * 4)}, r"rho \(nu\): got a list"),
        ({"rho": None}, "rho=None: needed a number"),
        ({"rho": 1j}, "rho=1j: needed a number"),
        ({"alpha": "0.5"}, "alpha='0.5': needed a number"),
        ({"alpha": torch.ones(2)}, "alpha=.*needed a number"),
        ({"epsilon": None}, "epsilon=None: needed a number"),
        ({"n_outer": None}, "n_outer=None: needed a number"),
        ({"tol": "small"}, "tol='small': needed a number"),
        ({"marginal": None}, "'kl', 'kl_tensor'"),
        ({"C_m": None}, "C_m: got NoneType"),
        ({"C_G": [[0.0]]}, "C_G: got list"),
        ({"M": torch.ones(4, 4).to_sparse()}, r"M: .*sparse_coo.*to_dense\(\)"),
        ({"C_m": torch.ones(4, 4, dtype=torch.complex64)}, "C_m: got torch.complex64"),
        ({"C_m": torch.ones(4, 4, device="meta")}, "C_m is on the meta device"),
        ({"mu": np.ones(4)}, "mu: got ndarray.*torch.as_tensor"),
        ({"rho": torch.ones(4), "marginal": "kl_tensor"}, "rho: got one weight per node with marginal='kl_tensor'"),
    ],
)
def test_bad_input_is_named(change, message):
    C_m, C_G, M = random_costs(4, 0, dtype=torch.float32)
    arguments = {"C_m": C_m, "C_G": C_G, "M": M, **change}
    with pytest.raises(ValueError, match=message):
        solve_ufgw(arguments.pop("C_m"), arguments.pop("C_G"), arguments.pop("M"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "^C_m holds 16 NaN"),
        ({"C_m": torch.ones(4, 4), "M": torch.full((4, 4), math.nan)}, "^M holds 16 NaN"),
        ({"C_m": torch.ones(4, 4), "C_G": cosine([math.nan, 0.0])}, "^C_G: embedding 1"),
        ({"C_m": torch.ones(4, 4), "mu": torch.zeros(4)}, "^mu: all nodes"),
        ({"C_m": torch.ones(4, 4), "rho": (0.1, 0.2, 0.3)}, "tuple of 3"),
        ({"C_m": torch.ones(4, 4), "rho": (-0.1, 0.2)}, r"rho \(mu\)=-0.1"),
        ({"C_m": torch.ones(5, 5)}, "C_G: got 4 nodes where C_m has 5"),
        ({"C_m": np.ones((4, 4))}, "C_m: got ndarray"),
    ],
)
def test_bad_input_is_named_as_the_caller_does_where_the_graph_has_the_cosine_cost(change, message):
    M = torch.ones(4, 4)
    arguments = {"C_m": torch.full((4, 4), math.nan), "C_G": CosineCost.from_embeddings(Z), "M": M, **change}
    with pytest.raises(ValueError, match=message):
        solve_ufgw(arguments.pop("C_m"), arguments.pop("C_G"), arguments.pop("M"), **arguments)


def test_an_embedding_that_nobody_is_asked_for_may_be_anything():
    _, C_G, M = random_costs(4, 0, dtype=torch.float32)
    mu = torch.tensor([0.3, 0.0, 0.3, 0.4])
    for row in ([math.nan, 1.0], [0.0, 0.0]):
        solution = solve_ufgw(cosine(row, [True, False, True, True]), C_G, M, mu=mu)
        assert solution.plan.isfinite().all()
        assert (solution.plan[1] == 0).all()
        assert solution.objective.isfinite()


def test_an_embedding_of_length_zero_takes_no_part():
    _, C_G, M = random_costs(4, 0, dtype=torch.float32)
    zero, absent = cosine([0.0, 0.0]), cosine([1.0, 1.0], [True, False, True, True])
    masses = torch.tensor([0.3, 0.2, 0.3, 0.2])
    for mu in (None, masses):
        found, expected = (solve_ufgw(cost, C_G, M, mu=mu) for cost in (zero, absent))
        torch.testing.assert_close(found.plan, expected.plan, rtol=0, atol=0)
        assert (found.plan[1] == 0).all()
        assert found.kept_mass.isnan().tolist() == [False, True, False, False]
    # On the other side only where nothing else is said of it.
    third = torch.where(torch.arange(4) == 1, 0, 1 / 3)
    torch.testing.assert_close(solve_ufgw(zero, C_G, M).plan, solve_ufgw(zero, C_G, M, mu=third, nu=third).plan)
    assert not solve_ufgw(zero, C_G, M, nu=masses).received_mass.isnan().any()
    torch.testing.assert_close(solve_ufgw(C_G, zero, M.T).plan, solve_ufgw(zero, C_G, M).plan.T)


def test_gradients_of_inputs_are_left_alone():
    costs = [x.requires_grad_() for x in random_costs(4, 0)]
    vectors = {name: torch.full((4,), 0.25, dtype=torch.float64, requires_grad=True) for name in ("mu", "nu", "rho")}
    assert not solve_ufgw(*costs, **vectors).objective.requires_grad


def test_everything_that_is_wrong_is_said_at_once():
    C_m, C_G, M = random_costs(4, 0, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"C_m holds 16 NaN.*; M has a minimum of -1.*; mu: all nodes") as raised:
        solve_ufgw(C_m * math.nan, C_G, M - M - 1, mu=torch.zeros(4))
    assert "C_G" not in str(raised.value)


def test_costs_that_are_negative_or_asymmetric_by_rounding_are_fine():
    C_m, C_G, M = random_costs(30, 1, dtype=torch.float32)
    noise = 1e-7 * torch.randn(30, 30, generator=torch.Generator().manual_seed(0))
    noisy = solve_ufgw(C_m + noise, C_G + noise.T, M + noise)
    assert noisy.status.healthy.all()


def test_a_gross_asymmetry_is_seen_wherever_it_is():
    C_m, C_G, M = random_costs(40, 2)
    for seed in range(20):
        i, j = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:2].tolist()
        tilted = C_G.clone()
        tilted[i, j] += 0.01
        with pytest.raises(ValueError, match=r"C_G differs from its transpose by up to 0.01"):
            solve_ufgw(C_m, tilted, M, n_outer=1, n_sinkhorn=1)


@pytest.mark.parametrize(
    "cost", [torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [1.0, 2.0, 0.0]]), torch.arange(16.0).reshape(4, 4)]
)
def test_an_asymmetry_of_which_some_products_know_nothing_is_seen_every_time(cost):
    # Of the first, (1, 1, 1) C = (1, 1, 1) Cᵀ; of the second, (1, −1, −1, 1) C = (1, −1, −1, 1) Cᵀ.
    M = 1 - torch.eye(len(cost))
    for seed in range(40):
        torch.manual_seed(seed)
        with pytest.raises(ValueError, match="C_G differs from its transpose"):
            solve_ufgw(M, cost, M, n_outer=1, n_sinkhorn=1)


def test_a_solve_leaves_the_callers_random_numbers_alone():
    costs = random_costs(5, 0)
    before = torch.get_rng_state()
    solve_ufgw(*costs, n_outer=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_solve_does_not_write_to_its_inputs():
    C_m, C_G, M = random_costs(6, 0)
    mu, rho = torch.full((6,), 1 / 6, dtype=torch.float64), torch.full((6,), 0.1, dtype=torch.float64)
    inputs = (C_m, C_G, M, mu, rho)
    before = [x.clone() for x in inputs]
    for _ in range(2):
        solve_ufgw(C_m, C_G, M, mu=mu, nu=mu, rho=rho)
    for x, y in zip(inputs, before, strict=True):
        assert torch.equal(x, y)


def test_a_dense_cost_without_batch_axis_is_refused_where_it_is_made():
    with pytest.raises(ValueError, match=r"DenseCost: got shape \(4, 4\), needed \(batch, N, N\)"):
        DenseCost(torch.ones(4, 4))


def test_unequal_masses_are_fine_where_one_side_is_free():
    C = random_costs(4, seed=0)
    solution = solve_ufgw(*C, rho=(math.inf, 1.0), nu=torch.full((4,), 0.5, dtype=torch.float64), n_sinkhorn=200)
    assert float(solution.plan.sum()) == pytest.approx(1)


def test_weights_may_be_tensors_of_one_number():
    C = random_costs(4, seed=0)
    expected = solve_ufgw(*C, alpha=0.5, epsilon=0.1)
    found = solve_ufgw(*C, alpha=torch.tensor(0.5), epsilon=torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(found.plan, expected.plan)
