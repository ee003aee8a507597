"""Transport between what trust leaves of nodes, against the trust and the solver by themselves."""

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from optimag_dist.ufgw import RobustOptions, UFGWSolution, anchor_cost, cosine_cost, graph_cost, solve_ufgw
from optimag_dist.ufgw.local import estimate_trust, near_weights

from .ufgw_oracle import explicit_structure, make_regulariser, random_embeddings, random_present, random_proximity

torch.set_num_threads(1)

NAMES = ("text", "image", "sound")


def _named(each: Tensor) -> dict[str, Tensor]:
    return dict(zip(NAMES, each, strict=False))


def _transported(cost: Tensor, graph: Tensor, anchor: Tensor, trusted: Tensor, given: RobustOptions) -> UFGWSolution:
    """What the solver by itself finds between trusted marginals."""
    return solve_ufgw(
        cost.detach(),
        graph,
        anchor,
        mu=trusted,
        nu=trusted,
        alpha=given.alpha,
        rho=given.rho * given.stiffness,
        epsilon=given.epsilon,
        n_outer=given.n_outer,
        n_sinkhorn=given.n_sinkhorn,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"rho": 0.1, "stiffness": 5.0, "agreement": 0.0, "alpha": 0.5, "weight": 0.3}])
def test_kept_mass_is_trust_times_what_transport_keeps_of_trusted_marginals(options: dict, masked: bool) -> None:
    nodes = 12
    z, proximity = random_embeddings(3, nodes, 4, seed=0).requires_grad_(), random_proximity(nodes, 0, density=0.4)
    present = random_present(3, nodes, 0) if masked else torch.ones(3, nodes, dtype=torch.bool)
    regulariser = make_regulariser("robust", **options)
    loss = regulariser(_named(z), proximity, _named(present))
    (gradient,) = torch.autograd.grad(loss, z)

    given = regulariser.options
    C = torch.stack([cosine_cost(x, mask) for x, mask in zip(z, present, strict=True)])
    mass = present.double() / present.sum(1, keepdim=True)
    # Trust is asked of the neighbourhood, as the kind that moves no mass does.
    trust = estimate_trust(
        C.detach(), near_weights(proximity), mass, alpha=given.alpha, rho=given.rho, agreement=given.agreement
    ).kept
    C_G = graph_cost(proximity)
    total, value = torch.zeros((), dtype=torch.float64), 0.0
    for m, there in enumerate(present):
        # Who is absent is cut out of the problem.
        cost, graph, anchor = (x[there][:, there] for x in (C[m], C_G, anchor_cost(C_G, given.tau)))
        trusted = trust[m, there] / trust[m, there].sum()
        found = _transported(cost, graph, anchor, trusted, given)
        kept = regulariser.diagnostics().kept_mass[NAMES[m]]
        assert kept.isnan().tolist() == (~there).tolist()
        torch.testing.assert_close(kept[there], trust[m, there] * found.kept_mass, rtol=1e-7, atol=1e-12)
        value += given.weight * float(found.objective)
        total = total + given.weight * given.alpha * explicit_structure(cost, graph, found.plan)
    assert float(loss.detach()) == pytest.approx(value, rel=1e-7)
    # Trust and plan held fixed.
    (expected,) = torch.autograd.grad(total, z)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))
    assert (gradient[~present] == 0).all()


@pytest.mark.parametrize("marginals", [0.2, 1e6])
def test_where_everybody_is_trusted_it_is_the_published_problem(marginals: float) -> None:
    z, proximity = random_embeddings(2, 10, 4, seed=1), random_proximity(10, 1, density=0.4)
    huge, steps = 1e9, {"n_outer": 5, "n_sinkhorn": 20, "epsilon": 0.03}
    robust = make_regulariser("robust", rho=huge, stiffness=marginals / huge, agreement=0.0, **steps)
    published = make_regulariser("ufgw", rho=marginals, **steps)
    loss, expected = (each(_named(z), proximity) for each in (robust, published))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for name, kept in published.diagnostics().kept_mass.items():
        torch.testing.assert_close(robust.diagnostics().kept_mass[name], kept, rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_finite_differences_with_trust_and_plan_held_fixed() -> None:
    z, proximity = random_embeddings(1, 6, 3, seed=2)[0], random_proximity(6, 2, density=0.5)
    regulariser = make_regulariser("robust", weight=1.0)
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(regulariser({"text": leaf}, proximity), leaf)
    given, C_G = regulariser.options, graph_cost(proximity)
    mass = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    trust = estimate_trust(
        cosine_cost(z)[None], near_weights(proximity), mass, alpha=given.alpha, rho=given.rho, agreement=0.6
    ).kept[0]
    trusted = trust / trust.sum()
    plan = _transported(cosine_cost(z), C_G, anchor_cost(C_G, given.tau), trusted, given).plan
    step = 1e-5
    for i in range(z.numel()):
        moved = torch.zeros_like(z).flatten()
        moved[i] = step
        ahead, behind = (
            float(given.alpha * explicit_structure(cosine_cost(x), C_G, plan))
            for x in (z + moved.view_as(z), z - moved.view_as(z))
        )
        assert float(gradient.flatten()[i]) == pytest.approx((ahead - behind) / (2 * step), rel=1e-4, abs=1e-7)


def test_it_finds_planted_conflicts_at_least_as_well_as_the_mismatch_with_neighbours() -> None:
    """On graphs like those that the package plants by default; where a node's whole neighbourhood is of its class, the
    mismatch alone leaves little to be found."""
    size, classes, degree, homophily = 32, 8, 6, 0.7
    edges = degree * homophily / size, degree * (1 - homophily) / (size * (classes - 1))
    found: dict[str, list[float]] = {"kept": [], "mismatch": []}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        graph = nx.planted_partition_graph(classes, size, *edges, seed=seed)
        adjacency, labels = nx.to_numpy_array(graph), np.repeat(np.arange(classes), size)
        walk = adjacency / adjacency.sum(1, keepdims=True).clip(1)
        ppr = 0.15 * np.linalg.inv(np.eye(len(walk)) - 0.85 * walk)
        # Near entries only, as an artefact has.
        ppr[ppr < np.sort(ppr, 1)[:, [-32]]] = 0
        Z, conflicts = {}, {}
        for name in NAMES[:2]:
            conflicts[name] = rng.random(len(labels)) < 0.3
            shown = np.where(conflicts[name], (labels + rng.integers(1, classes, len(labels))) % classes, labels)
            centres = rng.normal(size=(classes, 32))
            Z[name] = torch.tensor(centres[shown] + 0.5 * rng.normal(size=(len(labels), 32)))
        regulariser = make_regulariser("robust")
        regulariser(Z, torch.tensor(ppr))
        near, reached = ppr * (1 - np.eye(len(ppr))), adjacency.any(1)
        for name, flags in conflicts.items():
            unit = torch.nn.functional.normalize(Z[name], dim=1).numpy()
            mismatch = (near * (1 - unit @ unit.T)).sum(1) / near.sum(1).clip(1e-12)
            kept = regulariser.diagnostics().kept_mass[name].numpy()
            for way, doubt in (("kept", -kept), ("mismatch", mismatch)):
                bad, good = doubt[flags & reached], doubt[~flags & reached]
                found[way].append(mannwhitneyu(bad, good).statistic / (len(bad) * len(good)))
    assert np.mean(found["kept"]) > 0.95
    assert np.mean(found["kept"]) >= np.mean(found["mismatch"])
