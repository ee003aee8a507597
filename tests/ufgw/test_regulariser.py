import copy
import math

import pytest
import torch
from torch import Tensor

from optimag_dist.ufgw import UFGWRegulariser, anchor_prior, cosine_cost, graph_cost, solve_ufgw

from .ufgw_oracle import explicit_structure

torch.set_num_threads(1)


def proximity(nodes: int, seed: int = 0) -> Tensor:
    walk = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 8
    return 0.5 * torch.eye(nodes, dtype=torch.float64) + 0.5 * walk / walk.sum(1, keepdim=True)


def embeddings(nodes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "text": torch.randn(nodes, 3, generator=generator, dtype=torch.float64).to(dtype),
        "image": torch.randn(nodes, 5, generator=generator, dtype=torch.float64).to(dtype),
    }


def test_loss_is_the_sum_of_the_solved_objectives_and_its_gradient_that_of_the_explicit_one():
    Z = {name: z.requires_grad_() for name, z in embeddings(6).items()}
    regulariser = UFGWRegulariser(plan="transport", alpha=0.5, rho=0.2, tau=1.0, epsilon=0.02, weight=0.3)
    loss = regulariser(Z, proximity(6))
    ours = torch.autograd.grad(loss, list(Z.values()))

    C_G = graph_cost(proximity(6))
    explicit = torch.zeros((), dtype=torch.float64)
    value = 0.0
    for z in Z.values():
        C_m = cosine_cost(z)
        solution = solve_ufgw(
            C_m.detach(), C_G, anchor_prior(C_G, 1.0), alpha=0.5, rho=0.2, epsilon=0.02, n_outer=5, n_sinkhorn=20
        )
        value += 0.3 * float(solution.objective)
        explicit = explicit + 0.3 * 0.5 * explicit_structure(C_m, C_G, solution.plan)
    assert loss.item() == pytest.approx(value, rel=1e-9)
    for mine, theirs in zip(ours, torch.autograd.grad(explicit, list(Z.values())), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


def test_absent_nodes_are_left_out_exactly():
    Z = embeddings(7)
    present = torch.tensor([True, False, True, True, True, False, True])
    Z["image"][~present] = math.nan
    Z = {name: z.requires_grad_() for name, z in Z.items()}
    regulariser = UFGWRegulariser(plan="transport", rho=0.1)
    loss = regulariser(Z, proximity(7), {"image": present})
    loss.backward()
    assert (Z["image"].grad[~present] == 0).all()
    assert all(z.grad.isfinite().all() for z in Z.values())
    found = regulariser.diagnostics()
    assert found.kept_mass["image"].isnan().tolist() == (~present).tolist()
    assert found.received_mass["image"].isnan().tolist() == (~present).tolist()
    assert not found.kept_mass["text"].isnan().any()

    # The graph is normalised over all nodes of the group, then the absent are cut out.
    C_G = graph_cost(proximity(7))
    M = anchor_prior(C_G)
    cut = solve_ufgw(
        cosine_cost(Z["image"].detach()[present]), C_G[present][:, present], M[present][:, present], n_outer=5
    )
    torch.testing.assert_close(found.kept_mass["image"][present], cut.kept_mass, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("plan", ["local", "transport"])
def test_a_modality_nobody_has_adds_nothing(plan):
    Z = {name: z.requires_grad_() for name, z in embeddings(5).items()}
    nobody = torch.zeros(5, dtype=torch.bool)
    regulariser = UFGWRegulariser(plan=plan, rho=0.1)
    loss = regulariser(Z, proximity(5), {"image": nobody})
    alone = UFGWRegulariser(plan=plan, rho=0.1)({"text": Z["text"]}, proximity(5))
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert (Z["image"].grad == 0).all()
    found = regulariser.diagnostics()
    assert found.kept_mass["image"].isnan().all()
    assert all(float(part) == 0 for part in found.parts["image"].values())


@pytest.mark.parametrize("plan", ["local", "transport"])
def test_one_node_and_collapsed_embeddings_are_finite(plan):
    for z in (torch.ones(1, 3), torch.ones(4, 3)):
        z.requires_grad_()
        loss = UFGWRegulariser(plan=plan, rho=0.1)({"text": z}, torch.eye(len(z)))
        loss.backward()
        assert loss.isfinite()
        assert z.grad.isfinite().all()


def test_diagnostics_are_detached_and_the_module_copies():
    regulariser = UFGWRegulariser(plan="transport", rho=0.1, weight=2.0)
    with pytest.raises(RuntimeError, match="call the regulariser"):
        regulariser.diagnostics()
    Z = {name: z.requires_grad_() for name, z in embeddings(6).items()}
    loss = regulariser(Z, proximity(6))
    found = regulariser.diagnostics()
    assert list(found.kept_mass) == ["text", "image"]
    assert not any(x.requires_grad for x in found.kept_mass.values())
    total = sum(sum(float(part) for part in parts.values()) for parts in found.parts.values())
    assert loss.item() == pytest.approx(2 * total, rel=1e-9)
    assert len(found.status.outcomes) == 2
    assert "alpha=0.6" in repr(copy.deepcopy(regulariser))
    assert not list(regulariser.parameters())
    assert regulariser.state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_give_the_single_precision_loss(dtype):
    Z = {name: z.to(dtype).requires_grad_() for name, z in embeddings(8).items()}
    regulariser = UFGWRegulariser(plan="transport", rho=0.1)
    reference = regulariser({name: z.detach().float() for name, z in Z.items()}, proximity(8).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = regulariser(Z, proximity(8).float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference)
    loss.backward()
    assert all(z.grad.dtype == dtype and z.grad.isfinite().all() for z in Z.values())


def test_identity_prior_is_another_problem():
    Z = embeddings(6)
    ppr, identity = (UFGWRegulariser(plan="transport", rho=0.1, prior=prior) for prior in ("ppr", "identity"))
    assert float(identity(Z, proximity(6))) != float(ppr(Z, proximity(6)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": {}}, "at least one"),
        ({"embeddings": {"text": torch.ones(4)}}, r"'text'.*\(4,\)"),
        ({"embeddings": {"text": torch.ones(3, 2)}}, r"'text'.*needed \(4, d\)"),
        ({"embeddings": {"text": torch.ones(4, 2, dtype=torch.int64)}}, "floating point"),
        ({"embeddings": {"text": torch.full((4, 2), math.inf)}}, "row 0 of 4 has NaN or infinity"),
        ({"embeddings": {"text": torch.tensor([[1.0], [0.0], [1.0], [2.0]])}}, "row 1 is zero.*`present`"),
        ({"proximity": torch.ones(4, 3)}, r"proximity.*\(4, 3\)"),
        ({"proximity": -torch.ones(4, 4)}, "proximity has a minimum of -1"),
        ({"proximity": torch.full((4, 4), math.nan)}, "proximity holds 16 NaN"),
        ({"present": {"sound": torch.ones(4, dtype=torch.bool)}}, "'sound'.*no such modality"),
        ({"present": {"text": torch.ones(4)}}, "needed bool"),
    ],
)
@pytest.mark.parametrize("plan", ["local", "transport"])
def test_bad_input_is_named(change, message, plan):
    arguments = {"embeddings": {"text": torch.rand(4, 2) + 1}, "proximity": torch.eye(4), **change}
    with pytest.raises(ValueError, match=message):
        UFGWRegulariser(plan=plan)(arguments["embeddings"], arguments["proximity"], arguments.get("present"))


@pytest.mark.parametrize(
    "option", [{"alpha": -0.1}, {"rho": 0}, {"epsilon": 0}, {"tau": 0}, {"delta": 0}, {"weight": -1}, {"prior": "x"}]
)
def test_bad_options_are_named(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        UFGWRegulariser(**option)


def test_an_outlier_among_nearly_equal_embeddings_is_solved_in_single_precision_as_in_double():
    """Its first cost is hundreds of times ρ: the mass of the next plan is far below the smallest float32."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        noise = torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        z = torch.ones(8, dtype=torch.float64) + 0.02 * noise
        z[0] = -z[0]
        z = z.to(dtype).requires_grad_()
        regulariser = UFGWRegulariser(plan="transport", rho=0.02)
        loss = regulariser({"image": z}, proximity(40).to(dtype))
        loss.backward()
        assert regulariser.diagnostics().status.log_domain.all()
        found[dtype] = loss.detach().double(), regulariser.diagnostics().kept_mass["image"].double(), z.grad.double()
    for single, double in zip(found[torch.float32], found[torch.float64], strict=True):
        assert single.isfinite().all()
        torch.testing.assert_close(single, double, rtol=2e-3, atol=2e-4)
