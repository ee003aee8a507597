"""The plan that leaves mass where it is, against its definition written out, another minimiser, and closed forms.

Conventions. ``kept`` k is what nodes keep, ``present`` who has a modality, μ uniform over these. Where a node is absent
C̄ means nothing and k is 0. The trust iterates a fixed number of times, so that where it is compared with a minimum
the tolerance is that of the iterations, and 1e-6 with twenty-five times as many.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from optimag_dist.ufgw import (
    REMEDIES,
    CosineCost,
    DenseCost,
    LocalRegulariser,
    SparseCost,
    cosine_cost,
    graph_cost,
    local,
)
from optimag_dist.ufgw.costs import Cost
from optimag_dist.ufgw.local import TrustEstimate, alignment, consistency, estimate_trust, near_weights

from .ufgw_oracle import make_regulariser, random_embeddings, random_present, random_proximity

torch.set_num_threads(1)

NAMES = ("text", "image", "sound")
# A node with less weight of neighbours than this is judged as if it had it; part of the objective.
LEAST_WEIGHT = 0.1


def masses(present: Tensor) -> Tensor:
    return present.double() / present.sum(1, keepdim=True).clamp_min(1)


def random_problem(
    seed: int, *, modalities: int = 2, nodes: int = 24, masked: bool = True, density: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """C̄ (b, N, N), W̄, μ and who is present."""
    z = random_embeddings(modalities, nodes, 4, seed)
    present = random_present(modalities, nodes, seed) if masked else torch.ones(modalities, nodes, dtype=torch.bool)
    C = torch.stack([cosine_cost(x, mask) for x, mask in zip(z, present, strict=True)])
    return C, near_weights(random_proximity(nodes, seed, density=density)), masses(present), present


def objective(C: Tensor, weights: Tensor, marginal: Tensor, kept: Tensor, alpha: float, rho: float) -> Tensor:
    """(b,) α Σ C̄ W̄ r r + 2ρ Σ w kl(r, μ), the sums written out; what is judged by at γ = 0."""
    r = kept * marginal
    w = (marginal @ weights).clamp_min(LEAST_WEIGHT)
    divergence = torch.where(r > 0, r * kept.clamp_min(1e-300).log() - r + marginal, marginal)
    return alpha * torch.einsum("bik,ik,bi,bk->b", C, weights, r, r) + 2 * rho * (w * divergence).sum(1)


def minimised(C: Tensor, weights: Tensor, marginal: Tensor, alpha: float, rho: float) -> np.ndarray:
    """(N,) k of one modality by L-BFGS-B over log k."""
    present = (marginal > 0).numpy()
    mu = marginal.numpy()[present]
    near = (C * weights).numpy()[present][:, present]
    w = (marginal @ weights).clamp_min(LEAST_WEIGHT).numpy()[present]

    def value_and_slope(log_kept: np.ndarray) -> tuple[float, np.ndarray]:
        k = np.exp(log_kept)
        pulled = near @ (k * mu)
        value = alpha * (k * mu) @ pulled + 2 * rho * (w * mu * (k * log_kept - k + 1)).sum()
        return value, k * mu * (2 * alpha * pulled + 2 * rho * w * log_kept)

    found = minimize(
        value_and_slope,
        np.zeros(len(mu)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-700, 0)] * len(mu),
        options={"ftol": 1e-16, "gtol": 1e-13, "maxiter": 5000, "maxcor": 30},
    )
    kept = np.zeros(len(present))
    kept[present] = np.exp(found.x)
    return kept


@contextmanager
def iterations(count: int) -> Iterator[None]:
    with mock.patch.object(local, "_ITERATIONS", count):
        yield


def weighted(squared: Tensor, q: Tensor) -> Tensor:
    return torch.einsum("ik,i,k->", squared, q, q)


def shares(x: Tensor) -> Tensor:
    return x / x.sum().clamp_min(1e-300)


def dense_terms(C: list[Tensor], C_G: Tensor, kept: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """(b,) alignment and consistency by their formulae."""
    aligned = [weighted((c - C_G).square(), shares(k * mu)) for c, k, mu in zip(C, kept, masses(present), strict=True)]
    consistent = [
        sum((0.5 * weighted((C[m] - C[o]).square(), shares(kept[m] * kept[o])) for o in range(len(C)) if o != m), 0.0)
        for m in range(len(C))
    ]
    return torch.stack(aligned), torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in consistent])


def dense_loss(regulariser: LocalRegulariser, Z: list[Tensor], proximity: Tensor, present: Tensor) -> Tensor:
    """The value with what was kept in the last call held fixed, through plain tensors."""
    kept = torch.stack(list(regulariser.diagnostics().kept_mass.values())).nan_to_num(0)
    C = [cosine_cost(z, mask) for z, mask in zip(Z, present, strict=True)]
    aligned, consistent = dense_terms(C, graph_cost(proximity, regulariser.options.delta), kept, present)
    options = regulariser.options
    return options.weight * (options.alpha * aligned + options.consistency * consistent).sum()


def named(z: Tensor) -> dict[str, Tensor]:
    return dict(zip(NAMES, z, strict=False))


def call(regulariser: LocalRegulariser, z: Tensor, proximity: Tensor, present: Tensor | None = None) -> Tensor:
    return regulariser(named(z), proximity, None if present is None else named(present))


def kept_of(regulariser: LocalRegulariser) -> Tensor:
    return torch.stack(list(regulariser.diagnostics().kept_mass.values()))


def fully_connected(nodes: int, seed: int = 0) -> Tensor:
    """PPR in which all nodes are each other's neighbours, some nearer than others."""
    return random_proximity(nodes, seed, density=1.1)


# What is judged.


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("rho", "tolerance"), [(1.0, 1e-3), (0.5, 1e-3), (0.3, 5e-3)])
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_kept_minimises_the_objective(seed: int, rho: float, tolerance: float, masked: bool) -> None:
    C, weights, marginal, present = random_problem(seed, masked=masked)
    expected = np.stack([minimised(c, weights, mu, 0.6, rho) for c, mu in zip(C, marginal, strict=True)])
    found = estimate_trust(C, weights, marginal, alpha=0.6, rho=rho, agreement=0.0)
    np.testing.assert_allclose(found.kept.numpy(), expected, rtol=0, atol=tolerance)
    with iterations(400):
        found = estimate_trust(C, weights, marginal, alpha=0.6, rho=rho, agreement=0.0)
    np.testing.assert_allclose(found.kept.numpy(), expected, rtol=0, atol=1e-6)
    assert (found.kept[~present] == 0).all()
    assert (expected[present.numpy()] < 0.9).any()  # there was something to be judged


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    nodes=st.integers(2, 20),
    masked=st.booleans(),
    density=st.floats(0.05, 1.0),
    alpha=st.floats(0.05, 1.0),
    rho=st.floats(0.02, 3.0),
)
def test_the_objective_never_rises_from_iteration_to_iteration(
    seed: int, nodes: int, masked: bool, density: float, alpha: float, rho: float
) -> None:
    C, weights, marginal, present = random_problem(seed, nodes=nodes, masked=masked, density=density)
    last = objective(C, weights, marginal, present.double(), alpha, rho)
    for count in range(1, 9):
        with iterations(count):
            kept = estimate_trust(C, weights, marginal, alpha=alpha, rho=rho, agreement=0.0).kept
        value = objective(C, weights, marginal, kept, alpha, rho)
        assert (value <= last * (1 + 1e-9) + 1e-12).all()
        last = value


def test_at_rest_kept_mass_mismatch_and_disagreement_are_those_of_their_definitions() -> None:
    C, weights, marginal, present = random_problem(3, modalities=3)
    alpha, rho, agreement = 0.6, 0.8, 0.7
    with iterations(300):
        found = estimate_trust(C, weights, marginal, alpha=alpha, rho=rho, agreement=agreement)
    k, mask = found.kept, present.double()
    w = (marginal @ weights).clamp_min(LEAST_WEIGHT)
    s = torch.einsum("bik,ik,bk->bi", C, weights, k * marginal) / w
    gap, others = torch.zeros_like(k), torch.zeros_like(k)
    for m in range(3):
        for o in range(3):
            if o != m:
                both = mask[m] * mask[o]
                gap[m] += both * ((C[m] - C[o]).square() @ shares(k[m] * k[o]))
                others[m] += both
    x = gap / others.clamp_min(1)
    torch.testing.assert_close(found.disagreement * mask, x, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.mismatch * mask, s * mask, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(k, mask * torch.exp(-(alpha * s + agreement * x / 2) / rho), rtol=1e-7, atol=1e-9)
    assert (x[present] > 0).any()
    assert float(found.change.max()) < 1e-10


def test_near_weights_are_symmetric_without_a_diagonal_and_of_mean_one() -> None:
    proximity = random_proximity(9, 0, density=0.4)
    weights = near_weights(proximity)
    both = (0.5 * (proximity + proximity.T)).sqrt()
    both.fill_diagonal_(0)
    torch.testing.assert_close(weights, both / both.mean(), rtol=1e-14, atol=0)
    assert (near_weights(torch.eye(4)) == 0).all()


# Values and gradients.


def graph_of(kind: str, proximity: Tensor) -> Cost:
    return SparseCost.from_proximity(proximity) if kind == "sparse" else DenseCost(graph_cost(proximity)[None])


@pytest.mark.parametrize("kind", ["sparse", "dense"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("modalities", "nodes", "dim", "spread"), [(2, 24, 4, 1.0), (3, 30, 18, 0.1), (2, 530, 3, 1.0)]
)
def test_alignment_and_consistency_are_the_dense_formulae(
    kind: str, masked: bool, modalities: int, nodes: int, dim: int, spread: float
) -> None:
    z = random_embeddings(modalities, nodes, dim, 1, spread=spread)
    present = random_present(modalities, nodes, 2) if masked else torch.ones(modalities, nodes, dtype=torch.bool)
    proximity = random_proximity(nodes, 3, density=0.05)
    kept = torch.rand(modalities, nodes, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * present
    trust = TrustEstimate(kept, kept, kept, kept[:, 0])
    cost = CosineCost.from_embeddings(z, present)
    aligned, consistent = dense_terms(
        [cosine_cost(x, mask) for x, mask in zip(z, present, strict=True)], graph_cost(proximity), kept, present
    )
    found = alignment(cost, graph_of(kind, proximity), trust, masses(present))
    torch.testing.assert_close(found, aligned, rtol=1e-10, atol=0)
    torch.testing.assert_close(consistency(cost, trust), consistent, rtol=1e-10, atol=0)
    # What the automatic way computes, too.
    both = local.by_autograd(cost.dense(), graph_cost(proximity), trust, masses(present))
    torch.testing.assert_close(torch.stack(both), torch.stack([aligned, consistent]), rtol=1e-10, atol=0)


@pytest.mark.parametrize("density", [0.05, 0.8])  # sparse and dense graph costs
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_the_gradient_is_that_of_the_dense_formula_with_kept_mass_held_fixed(
    density: float, masked: bool, modalities: int
) -> None:
    nodes = 20
    z = random_embeddings(modalities, nodes, 5, 0).requires_grad_()
    present = random_present(modalities, nodes, 5) if masked else torch.ones(modalities, nodes, dtype=torch.bool)
    proximity = random_proximity(nodes, 1, density=density)
    regulariser = make_regulariser(alpha=0.7, consistency=0.4, weight=0.3)
    loss = call(regulariser, z, proximity, present)
    expected = dense_loss(regulariser, list(z), proximity, present)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    (ours,) = torch.autograd.grad(loss, z)
    (theirs,) = torch.autograd.grad(expected, z)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * float(theirs.abs().max()))
    assert (ours[~present] == 0).all()


@pytest.mark.parametrize("options", [{"consistency": 0.5}, {"agreement": 0.0, "rho": 0.1}, {"rho": math.inf}])
def test_differentiated_the_gradient_is_that_of_the_whole_value(options: dict) -> None:
    z = random_embeddings(2, 7, 3, 0).requires_grad_()
    proximity, present = random_proximity(7, 1, density=0.6), random_present(2, 7, 4)
    regulariser = make_regulariser(differentiate=True, **options)
    assert torch.autograd.gradcheck(lambda x: call(regulariser, x, proximity, present), z)


def test_differentiating_changes_the_gradient_but_neither_value_nor_diagnostics() -> None:
    z = random_embeddings(2, 16, 4, 0).requires_grad_()
    proximity, present = random_proximity(16, 1, density=0.4), random_present(2, 16, 2)
    found = []
    for differentiate in (False, True):
        regulariser = make_regulariser(consistency=0.5, differentiate=differentiate)
        loss = call(regulariser, z, proximity, present)
        assert not any(x.requires_grad for x in regulariser.diagnostics().kept_mass.values())
        assert not any(x.requires_grad for p in regulariser.diagnostics().parts.values() for x in p.values())
        found.append((loss, kept_of(regulariser), *torch.autograd.grad(loss, z)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-12, equal_nan=True)
    assert float((found[0][2] - found[1][2]).abs().max()) > 1e-3 * float(found[0][2].abs().max())


def test_the_loss_is_the_weighted_sum_of_the_parts() -> None:
    regulariser = make_regulariser(consistency=0.5, weight=2.0)
    loss = call(regulariser, random_embeddings(3, 12, 4, 0), random_proximity(12, 1))
    parts = regulariser.diagnostics().parts
    assert list(parts) == list(NAMES)
    assert all(float(part[name]) > 0 for part in parts.values() for name in ("structure", "consistency"))
    assert loss.item() == pytest.approx(2 * sum(float(x) for part in parts.values() for x in part.values()), rel=1e-12)


# Closed forms.


@pytest.mark.parametrize("differentiate", [False, True])
def test_an_infinite_rho_keeps_everything(differentiate: bool) -> None:
    z, present = random_embeddings(2, 12, 4, 0).requires_grad_(), random_present(2, 12, 1)
    regulariser = make_regulariser(weight=1.0, rho=math.inf, agreement=5.0, differentiate=differentiate)
    loss = call(regulariser, z, random_proximity(12, 0), present)
    loss.backward()
    assert (kept_of(regulariser)[present] == 1).all()
    assert z.grad.isfinite().all()
    expected = dense_terms(
        [cosine_cost(x, m) for x, m in zip(z, present, strict=True)],
        graph_cost(random_proximity(12, 0)),
        present.double(),
        present,
    )[0]
    torch.testing.assert_close(loss, 0.6 * expected.sum(), rtol=1e-10, atol=0)


def test_a_node_whose_neighbours_have_its_own_embedding_is_kept_fully() -> None:
    z = random_embeddings(1, 8, 4, 0)
    z[:, 1:4] = 2 * z[:, :1]  # longer, the same direction
    proximity = torch.eye(8, dtype=torch.float64)
    for i, j in ((0, 1), (0, 2), (0, 3), (3, 4), (4, 5), (5, 6), (6, 7)):
        proximity[i, j] = proximity[j, i] = 0.1
    regulariser = make_regulariser(agreement=0.0)
    call(regulariser, z, proximity)
    kept = kept_of(regulariser)[0]
    torch.testing.assert_close(kept[:3], torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (kept[3:] < 0.99).all()


def test_a_node_in_the_opposite_direction_keeps_least() -> None:
    z = random_embeddings(1, 20, 6, 0, spread=0.3)
    z[:, 7] = -z[:, 7]
    for options in ({"agreement": 0.0}, {}, {"rho": 1.0}):
        regulariser = make_regulariser(**options)
        call(regulariser, z, fully_connected(20))
        kept = kept_of(regulariser)[0]
        assert int(kept.argmin()) == 7
        assert float(kept[7]) < 0.5 * float(kept.sort().values[1])


def test_agreement_counts_against_a_node_whose_modalities_disagree() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(2, 6, dtype=torch.float64)
    of_class = torch.arange(16) % 2
    z = centres[of_class] + 0.1 * torch.randn(2, 16, 6, generator=generator, dtype=torch.float64)
    z[1, 3] = centres[1 - of_class[3]]
    # All are neighbours of all, so that the graph says nothing of classes.
    kept = {}
    for agreement in (0.0, 0.3, 1.2):
        regulariser = make_regulariser(agreement=agreement)
        call(regulariser, z, fully_connected(16))
        kept[agreement] = kept_of(regulariser)
    for m in range(2):
        assert kept[0.0][m, 3] > kept[0.3][m, 3] > kept[1.2][m, 3]
        assert int(kept[1.2][m].argmin()) == 3
        others = kept[1.2][m][torch.arange(16) != 3]
        assert float(kept[1.2][m, 3]) < 0.3 * float(others.median())


def test_one_modality_disagrees_with_nobody() -> None:
    C, weights, marginal, _ = random_problem(0, modalities=1)
    found = estimate_trust(C, weights, marginal, alpha=0.6, rho=0.3, agreement=1.2)
    assert (found.disagreement == 0).all()
    without = estimate_trust(C, weights, marginal, alpha=0.6, rho=0.3, agreement=0.0)
    assert torch.equal(found.kept, without.kept)


def test_equal_modalities_agree() -> None:
    z = random_embeddings(1, 12, 4, 0).expand(2, -1, -1)
    loud, quiet = make_regulariser(agreement=3.0, consistency=1.0), make_regulariser(agreement=0.0)
    loss, without = (call(regulariser, z, random_proximity(12, 0)) for regulariser in (loud, quiet))
    torch.testing.assert_close(loss, without, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kept_of(loud), kept_of(quiet), rtol=1e-12, atol=0)


def test_the_order_of_nodes_and_modalities_does_not_matter() -> None:
    z, present = random_embeddings(3, 18, 4, 0).requires_grad_(), random_present(3, 18, 1)
    proximity = random_proximity(18, 2, density=0.3)
    order, other = torch.randperm(18, generator=torch.Generator().manual_seed(3)), torch.tensor([2, 0, 1])
    regulariser = make_regulariser(consistency=0.5)
    loss = call(regulariser, z, proximity, present)
    kept = kept_of(regulariser)
    (gradient,) = torch.autograd.grad(loss, z)
    shuffled = z.detach()[other][:, order].requires_grad_()
    moved = call(regulariser, shuffled, proximity[order][:, order], present[other][:, order])
    torch.testing.assert_close(moved, loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(kept_of(regulariser), kept[other][:, order], rtol=1e-9, atol=1e-12, equal_nan=True)
    (of_moved,) = torch.autograd.grad(moved, shuffled)
    torch.testing.assert_close(of_moved, gradient[other][:, order], rtol=1e-8, atol=1e-12)


def test_lengths_of_embeddings_do_not_matter() -> None:
    z, proximity = random_embeddings(2, 14, 4, 0), random_proximity(14, 1)
    lengths = torch.logspace(-3, 3, 28, dtype=torch.float64).view(2, 14, 1)
    regulariser = make_regulariser(consistency=0.5)
    plain = call(regulariser, z, proximity)
    kept = kept_of(regulariser)
    torch.testing.assert_close(call(regulariser, lengths * z, proximity), plain, rtol=1e-10, atol=0)
    torch.testing.assert_close(kept_of(regulariser), kept, rtol=1e-9, atol=1e-12)


# Who is absent, and who has nothing to say.


@pytest.mark.parametrize("differentiate", [False, True])
@pytest.mark.parametrize("rho", [0.02, 0.1, 0.3])
def test_absent_nodes_are_left_out(differentiate: bool, rho: float) -> None:
    z = random_embeddings(2, 20, 6, 0)
    present = random_present(2, 20, 1)
    proximity = random_proximity(20, 2, density=0.4)
    found = []
    for filling in (math.nan, 3.0):
        filled = torch.where(present[:, :, None], z, filling).requires_grad_()
        regulariser = make_regulariser(rho=rho, consistency=0.3, differentiate=differentiate)
        loss = call(regulariser, filled, proximity, present)
        loss.backward()
        diagnostics = regulariser.diagnostics()
        assert diagnostics.status.healthy.all()
        assert loss.item() > 0
        assert kept_of(regulariser).isnan().tolist() == (~present).tolist()
        received = torch.stack(list(diagnostics.received_mass.values()))
        assert torch.equal(received.nan_to_num(-1), kept_of(regulariser).nan_to_num(-1))
        assert filled.grad.isfinite().all()
        assert (filled.grad[~present] == 0).all()
        assert (filled.grad[present] != 0).any()
        found.append((loss, filled.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("differentiate", [False, True])
def test_a_modality_nobody_has_adds_nothing(differentiate: bool) -> None:
    z, proximity = random_embeddings(2, 10, 4, 0).requires_grad_(), random_proximity(10, 1)
    present = torch.ones(2, 10, dtype=torch.bool)
    present[1] = False
    regulariser = make_regulariser(consistency=0.5, differentiate=differentiate)
    loss = call(regulariser, z, proximity, present)
    alone = call(make_regulariser(differentiate=differentiate), z[:1], proximity)
    torch.testing.assert_close(loss, alone, rtol=1e-12, atol=0)
    (ours,) = torch.autograd.grad(loss, z)
    (theirs,) = torch.autograd.grad(alone, z)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert (ours[1] == 0).all()
    diagnostics = regulariser.diagnostics()
    assert diagnostics.kept_mass["image"].isnan().all()
    assert all(float(part) == 0 for part in diagnostics.parts["image"].values())
    assert diagnostics.status.healthy.tolist() == [True, False]


@pytest.mark.parametrize("modalities", [1, 2])
def test_where_no_two_nodes_are_connected_everything_is_kept(modalities: int) -> None:
    z = random_embeddings(modalities, 9, 4, 0).requires_grad_()
    regulariser = make_regulariser(agreement=0.0)
    loss = call(regulariser, z, 0.4 * torch.eye(9, dtype=torch.float64))
    loss.backward()
    assert (kept_of(regulariser) == 1).all()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("differentiate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_embeddings_of_one_direction_add_nothing(differentiate: bool, dtype: torch.dtype) -> None:
    z = random_embeddings(2, 10, 4, 0).to(dtype)
    z[1] = torch.linspace(1, 2, 10)[:, None].to(dtype) * torch.ones(4, dtype=dtype)
    z.requires_grad_()
    proximity = random_proximity(10, 1, density=0.5).to(dtype)
    options = {"consistency": 0.5, "differentiate": differentiate}
    regulariser = make_regulariser(**options)
    loss = call(regulariser, z, proximity)
    diagnostics = regulariser.diagnostics()
    assert diagnostics.status.healthy.tolist() == [True, False]
    assert all(float(part) == 0 for part in diagnostics.parts["image"].values())
    assert float(diagnostics.parts["text"]["consistency"]) == 0
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()

    only = make_regulariser(**options)
    assert call(only, z[1:], proximity).item() == 0
    assert kept_of(only).isfinite().all()


@pytest.mark.parametrize("differentiate", [False, True])
def test_the_gradient_beside_a_collapsed_modality_is_that_of_the_value(differentiate: bool) -> None:
    """With everything kept the value is that of the formula; its gradient must not hold what the value leaves out."""
    proximity, collapsed = random_proximity(8, 1, density=0.5), torch.ones(1, 8, 3, dtype=torch.float64)
    z = random_embeddings(1, 8, 3, 0).requires_grad_()
    regulariser = make_regulariser(rho=math.inf, consistency=0.5, differentiate=differentiate)
    assert torch.autograd.gradcheck(lambda x: call(regulariser, torch.cat((x, collapsed)), proximity), z)


# Options, precision, signs.


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"rho": 0}, "rho"),
        ({"rho": -0.1}, "rho"),
        ({"rho": math.nan}, "rho"),
        ({"agreement": -1}, "agreement"),
        ({"agreement": math.nan}, "agreement"),
        ({"agreement": math.inf}, "agreement"),
        ({"consistency": -1}, "consistency"),
        ({"consistency": math.nan}, "consistency"),
        ({"weight": math.inf}, "weight"),
        ({"differentiate": 1}, "differentiate=1: needed True or False"),
    ],
)
def test_bad_options_are_named(option: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_regulariser(**option)


def test_it_says_which_options_its_plan_uses() -> None:
    assert "agreement=1.25" in repr(make_regulariser(agreement=1.25))
    assert "epsilon" not in repr(make_regulariser())
    assert "epsilon=0.01" in repr(make_regulariser("ufgw"))
    assert "agreement" not in repr(make_regulariser("ufgw"))


@pytest.mark.parametrize("differentiate", [False, True])
@pytest.mark.parametrize("rho", [0.05, 0.3])
def test_single_precision_gives_what_double_gives(differentiate: bool, rho: float) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        z = random_embeddings(2, 60, 8, 0, spread=0.5).to(dtype).requires_grad_()
        present = random_present(2, 60, 1)
        regulariser = make_regulariser(rho=rho, consistency=0.5, differentiate=differentiate)
        loss = call(regulariser, z, random_proximity(60, 2).to(dtype), present)
        loss.backward()
        assert loss.dtype == dtype
        scale = float(z.grad.abs().max())
        found.append((loss.detach().double(), kept_of(regulariser).double(), z.grad.double() / scale))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("differentiate", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_give_the_single_precision_loss(dtype: torch.dtype, differentiate: bool) -> None:
    z = random_embeddings(2, 12, 4, 0).to(dtype).requires_grad_()
    regulariser = make_regulariser(consistency=0.5, differentiate=differentiate)
    reference = call(regulariser, z.detach().float(), random_proximity(12, 1).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = call(regulariser, z, random_proximity(12, 1).float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference)
    loss.backward()
    assert z.grad.dtype == dtype
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("differentiate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [1e-2, 1e-3, 1e-5])
def test_a_tiny_rho_is_finite_and_told_of(rho: float, dtype: torch.dtype, differentiate: bool) -> None:
    z = random_embeddings(2, 200, 8, 0).to(dtype).requires_grad_()
    regulariser = make_regulariser(rho=rho, differentiate=differentiate)
    loss = call(regulariser, z, fully_connected(200).to(dtype))
    loss.backward()
    status = regulariser.diagnostics().status
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    assert status.healthy.all()
    assert float(status.mass.max()) < 0.02
    assert status.signs["empty"].all()


def test_no_node_keeps_more_than_all_by_rounding() -> None:
    """Distances among equal embeddings are rounded, some of them below 0, and a small ρ multiplies that."""
    z = random_embeddings(1, 5, 16, 0).repeat_interleave(20, 1).float()
    blocks = torch.block_diag(*[torch.full((20, 20), 0.05)] * 5)
    regulariser = make_regulariser(rho=1e-5, agreement=0.0)
    call(regulariser, z, blocks)
    kept = kept_of(regulariser)[0]
    assert (kept <= 1).all()
    assert (kept > 0.5).all()


def test_what_cannot_be_judged_adds_neither_value_nor_gradient() -> None:
    z = random_embeddings(2, 12, 4, 0).float().requires_grad_()
    regulariser = make_regulariser(rho=1e-42, consistency=0.5)
    loss = call(regulariser, z, fully_connected(12).float())
    loss.backward()
    assert not regulariser.diagnostics().status.healthy.any()
    assert loss.item() == 0
    assert (z.grad == 0).all()


def test_signs_are_absent_where_nothing_is_wrong_and_each_has_a_remedy() -> None:
    regulariser = make_regulariser(rho=1.0)
    call(regulariser, random_embeddings(2, 30, 6, 0), random_proximity(30, 1))
    status = regulariser.diagnostics().status
    assert set(status.signs) == {"empty", "not_converged"}
    assert set(status.signs) <= set(REMEDIES)
    assert not any(flags.any() for flags in status.signs.values())
    expected = kept_of(regulariser).mean(1)
    torch.testing.assert_close(status.mass, expected, rtol=1e-12, atol=0)
    with iterations(1):
        call(regulariser, random_embeddings(2, 30, 6, 0), random_proximity(30, 1))
    assert regulariser.diagnostics().status.signs["not_converged"].all()
    assert float(regulariser.diagnostics().status.change.min()) > 5e-3
