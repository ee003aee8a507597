import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from optimag_dist.ufgw import (
    AlignmentRegulariser,
    RobustRegulariser,
    UFGWRegulariser,
    anchor_cost,
    cosine_cost,
    graph_cost,
    solve_ufgw,
)
from optimag_dist.ufgw.local import estimate_trust, near_weights

from .ufgw_oracle import explicit_structure, make_regulariser

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
    regulariser = make_regulariser("ufgw", alpha=0.5, rho=0.2, tau=1.0, epsilon=0.02, weight=0.3)
    loss = regulariser(Z, proximity(6))
    ours = torch.autograd.grad(loss, list(Z.values()))

    C_G = graph_cost(proximity(6))
    explicit = torch.zeros((), dtype=torch.float64)
    value = 0.0
    for z in Z.values():
        C_m = cosine_cost(z)
        solution = solve_ufgw(
            C_m.detach(), C_G, anchor_cost(C_G, 1.0), alpha=0.5, rho=0.2, epsilon=0.02, n_outer=5, n_sinkhorn=20
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
    regulariser = make_regulariser("ufgw", rho=0.1)
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
    M = anchor_cost(C_G)
    cut = solve_ufgw(
        cosine_cost(Z["image"].detach()[present]), C_G[present][:, present], M[present][:, present], n_outer=5
    )
    torch.testing.assert_close(found.kept_mass["image"][present], cut.kept_mass, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["local", "ufgw", "robust"])
def test_a_modality_nobody_has_adds_nothing(kind):
    Z = {name: z.requires_grad_() for name, z in embeddings(5).items()}
    nobody = torch.zeros(5, dtype=torch.bool)
    regulariser = make_regulariser(kind, rho=0.1)
    loss = regulariser(Z, proximity(5), {"image": nobody})
    alone = make_regulariser(kind, rho=0.1)({"text": Z["text"]}, proximity(5))
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert (Z["image"].grad == 0).all()
    found = regulariser.diagnostics()
    assert found.kept_mass["image"].isnan().all()
    assert all(float(part) == 0 for part in found.parts["image"].values())


@pytest.mark.parametrize("kind", ["local", "ufgw", "robust"])
def test_one_node_and_collapsed_embeddings_are_finite(kind):
    for z in (torch.ones(1, 3), torch.ones(4, 3)):
        z.requires_grad_()
        loss = make_regulariser(kind, rho=0.1)({"text": z}, torch.eye(len(z)))
        loss.backward()
        assert loss.isfinite()
        assert z.grad.isfinite().all()


def test_diagnostics_are_detached_and_the_module_copies():
    regulariser = make_regulariser("ufgw", rho=0.1, weight=2.0)
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
    regulariser = make_regulariser("ufgw", rho=0.1)
    reference = regulariser({name: z.detach().float() for name, z in Z.items()}, proximity(8).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = regulariser(Z, proximity(8).float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference)
    loss.backward()
    assert all(z.grad.dtype == dtype and z.grad.isfinite().all() for z in Z.values())


def test_identity_prior_is_another_problem():
    Z = embeddings(6)
    ppr, identity = (make_regulariser("ufgw", rho=0.1, anchor=anchor) for anchor in ("ppr", "identity"))
    assert float(identity(Z, proximity(6))) != float(ppr(Z, proximity(6)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": {}}, "at least one"),
        ({"embeddings": {"text": torch.ones(4)}}, r"'text'.*\(4,\)"),
        ({"embeddings": {"text": torch.ones(3, 2)}}, r"'text'.*needed \(4, d\)"),
        ({"embeddings": {"text": torch.ones(4, 2, dtype=torch.int64)}}, "floating point"),
        ({"embeddings": {"text": torch.full((4, 2), math.inf)}}, r"'text'\]: row 0 has NaN or infinity \(4 such"),
        ({"proximity": torch.ones(4, 3)}, r"proximity.*\(4, 3\)"),
        ({"proximity": -torch.ones(4, 4)}, "proximity has a minimum of -1"),
        ({"proximity": torch.full((4, 4), math.nan)}, "proximity holds 16 NaN"),
        ({"present": {"sound": torch.ones(4, dtype=torch.bool)}}, "'sound'.*no such modality"),
        ({"present": {"text": torch.ones(4)}}, "needed bool"),
    ],
)
@pytest.mark.parametrize("kind", ["local", "ufgw", "robust"])
def test_bad_input_is_named(change, message, kind):
    arguments = {"embeddings": {"text": torch.rand(4, 2) + 1}, "proximity": torch.eye(4), **change}
    with pytest.raises(ValueError, match=message):
        make_regulariser(kind)(arguments["embeddings"], arguments["proximity"], arguments.get("present"))


@pytest.mark.parametrize(
    "option",
    [
        {"alpha": -0.1},
        {"rho": 0},
        {"epsilon": 0},
        {"tau": 0},
        {"delta": 0},
        {"weight": -1},
        {"anchor": "x"},
        {"alpha": "0.5"},
        {"rho": None},
        {"rho": [0.1, 0.1]},
        {"weight": 1j},
        {"epsilon": torch.ones(2)},
        {"n_outer": "5"},
        {"agreement": None},
    ],
)
def test_bad_options_are_named(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        make_regulariser("local" if "agreement" in option else "ufgw", **option)


def test_an_outlier_among_nearly_equal_embeddings_is_solved_in_single_precision_as_in_double():
    """Its first cost is hundreds of times ρ: the mass of the next plan is far below the smallest float32."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        noise = torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        z = torch.ones(8, dtype=torch.float64) + 0.02 * noise
        z[0] = -z[0]
        z = z.to(dtype).requires_grad_()
        regulariser = make_regulariser("ufgw", rho=0.02)
        loss = regulariser({"image": z}, proximity(40).to(dtype))
        loss.backward()
        assert regulariser.diagnostics().status.log_domain.all()
        found[dtype] = loss.detach().double(), regulariser.diagnostics().kept_mass["image"].double(), z.grad.double()
    for single, double in zip(found[torch.float32], found[torch.float64], strict=True):
        assert single.isfinite().all()
        torch.testing.assert_close(single, double, rtol=2e-3, atol=2e-4)


OF_EACH_KIND = [{"kind": "local", "differentiate": True}, {"kind": "local"}, {"kind": "ufgw"}, {"kind": "robust"}]


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("options", OF_EACH_KIND)
def test_lengths_of_embeddings_do_not_matter_at_any_scale(options, scale):
    Z = {name: z.requires_grad_() for name, z in embeddings(8, dtype=torch.float32).items()}
    scaled = {name: (z.detach().double() * scale).float().requires_grad_() for name, z in Z.items()}
    regulariser = make_regulariser(**options)
    expected, loss = regulariser(Z, proximity(8).float()), regulariser(scaled, proximity(8).float())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    expected.backward()
    loss.backward()
    for name, z in Z.items():
        found = (scaled[name].grad.double() * scale).float()
        torch.testing.assert_close(found, z.grad, rtol=2e-3, atol=2e-3 * float(z.grad.abs().max()))


def test_halves_of_any_length_are_solved():
    z, regulariser = embeddings(8)["image"].bfloat16(), make_regulariser()
    expected = regulariser({"image": z}, proximity(8).float())
    torch.testing.assert_close(regulariser({"image": z * 2.0**-100}, proximity(8).float()), expected, rtol=0, atol=0)
    tiny = {"image": (z.float() * 2.0**-10).half()}
    torch.testing.assert_close(regulariser(tiny, proximity(8).float()), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["local", "ufgw", "robust"])
def test_a_row_of_zeros_is_an_absent_node(kind):
    Z = embeddings(7)
    Z["image"][4] = 0
    Z = {name: z.requires_grad_() for name, z in Z.items()}
    present = torch.arange(7) != 4
    ours, marked = make_regulariser(kind), make_regulariser(kind)
    loss, expected = ours(Z, proximity(7)), marked(Z, proximity(7), {"image": present})
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    loss.backward()
    assert (Z["image"].grad[4] == 0).all()
    assert ours.diagnostics().kept_mass["image"].isnan().tolist() == (~present).tolist()
    assert [int(x) for x in ours.diagnostics().without_direction.values()] == [0, 1]
    assert [int(x) for x in marked.diagnostics().without_direction.values()] == [0, 0]
    nobody = {"text": Z["text"].detach(), "image": torch.zeros(7, 5, dtype=torch.float64)}
    torch.testing.assert_close(ours(nobody, proximity(7)), ours({"text": nobody["text"]}, proximity(7)))


def with_plans_held(regulariser: AlignmentRegulariser, Z: dict[str, Tensor], prox: Tensor) -> Tensor:
    """What the regulariser says, in torch's operations, on plans that were found without a gradient."""
    C, C_G = {name: cosine_cost(z) for name, z in Z.items()}, graph_cost(prox)
    total, options = torch.zeros((), dtype=torch.float64), regulariser.options
    if isinstance(regulariser, UFGWRegulariser):
        trusted, rho = [None] * len(C), options.rho
        if isinstance(regulariser, RobustRegulariser):
            costs = torch.stack([cost.detach() for cost in C.values()])
            mass = torch.full(costs.shape[:2], 1 / len(prox), dtype=torch.float64)
            near = near_weights(prox)
            kept = estimate_trust(costs, near, mass, alpha=0.6, rho=rho, agreement=options.agreement).kept
            trusted, rho = list(kept / kept.sum(1, keepdim=True)), rho * options.stiffness
        for cost, marginal in zip(C.values(), trusted, strict=True):
            found = solve_ufgw(
                cost.detach(),
                C_G,
                anchor_cost(C_G),
                mu=marginal,
                nu=marginal,
                alpha=0.6,
                rho=rho,
                epsilon=options.epsilon,
                n_outer=options.n_outer,
                n_sinkhorn=options.n_sinkhorn,
            )
            total = total + 0.6 * explicit_structure(cost, C_G, found.plan)
        return options.weight * total
    regulariser({name: z.detach() for name, z in Z.items()}, prox)
    kept = regulariser.diagnostics().kept_mass
    for name, cost in C.items():
        q = kept[name] / kept[name].sum()
        total = total + 0.6 * ((cost - C_G).square() * q[:, None] * q).sum()
    shared = kept["text"] * kept["image"]
    shared = shared / shared.sum()
    gap = ((C["text"] - C["image"]).square() * shared[:, None] * shared).sum()
    return options.weight * (total + options.consistency * gap)


@pytest.mark.parametrize(
    "options", [{"kind": "local", "consistency": 0.7}, {"kind": "ufgw", "rho": 0.2}, {"kind": "robust"}]
)
def test_second_derivatives_are_those_with_the_plan_held_fixed(options):
    Z = {name: z.requires_grad_() for name, z in embeddings(7).items()}
    generator = torch.Generator().manual_seed(5)
    along = [torch.randn(z.shape, generator=generator, dtype=z.dtype) for z in Z.values()]
    regulariser = make_regulariser(**options)

    def twice(value: Tensor) -> list[Tensor]:
        """Gradient, Hessian times a vector, and the gradient of the gradient's square."""
        slope = torch.autograd.grad(value, list(Z.values()), create_graph=True)
        inner = sum((s * a).sum() for s, a in zip(slope, along, strict=True))
        factor = torch.ones((), dtype=torch.float64, requires_grad=True)
        steep = torch.autograd.grad(value * factor, list(Z.values()), create_graph=True)
        hessian = torch.autograd.grad(inner, list(Z.values()), retain_graph=True)
        return [*slope, *hessian, *torch.autograd.grad(sum(s.square().sum() for s in steep), [*Z.values(), factor])]

    found, expected = regulariser(Z, proximity(7)), with_plans_held(regulariser, Z, proximity(7))
    for ours, theirs in zip(twice(found), twice(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9 * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_torchs_function_transforms_are_refused_in_a_sentence(transform):
    z, prox = embeddings(5)["text"], proximity(5)

    def loss(x: Tensor) -> Tensor:
        return make_regulariser()({"text": x}, prox)

    calls = {
        "grad": lambda: torch.func.grad(loss)(z),
        "vmap": lambda: torch.func.vmap(loss)(z[None]),
        "jvp": lambda: torch.func.jvp(loss, (z,), (z,)),
    }
    with pytest.raises(ValueError, match=r"embeddings\['text'\] comes from torch.func.*torch.autograd.grad"):
        calls[transform]()


def test_forward_mode_is_refused_in_a_sentence():
    z = embeddings(5)["text"]
    with forward_ad.dual_level(), pytest.raises(ValueError, match="forward-mode"):
        make_regulariser()({"text": forward_ad.make_dual(z, z)}, proximity(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": None}, "embeddings: needed a mapping"),
        ({"embeddings": torch.ones(4, 2)}, "embeddings: needed a mapping"),
        ({"embeddings": {"text": np.ones((4, 2))}}, r"'text'.*ndarray.*torch.as_tensor"),
        ({"embeddings": {"text": None}}, "'text'.*NoneType"),
        ({"embeddings": {"text": [[1.0]] * 4}}, "'text'.*list"),
        ({"embeddings": {"text": torch.eye(4).to_sparse()}}, r"'text'.*sparse_coo.*to_dense\(\)"),
        ({"embeddings": {"text": torch.ones(4, 2, dtype=torch.complex64)}}, "'text'.*complex64"),
        ({"embeddings": {"text": torch.ones(4, 2).to(torch.float8_e4m3fn)}}, r"'text'.*float8.*x.float\(\)"),
        ({"embeddings": {"text": torch.ones(4, 2, device="meta")}}, "'text'.*meta device"),
        ({"embeddings": {"text": torch.ones(4, 0)}}, r"'text'.*\(4, 0\)"),
        ({"proximity": None}, "proximity: got NoneType"),
        ({"proximity": np.eye(4)}, "proximity: got ndarray.*torch.as_tensor"),
        ({"proximity": torch.eye(4).to_sparse_csr()}, r"proximity.*sparse_csr.*to_dense\(\)"),
        ({"proximity": torch.eye(4, dtype=torch.int64)}, "proximity: got torch.int64"),
        ({"proximity": torch.eye(4, requires_grad=True)}, "proximity requires a gradient.*detach"),
        ({"proximity": torch.zeros(0, 0), "embeddings": {"text": torch.zeros(0, 2)}}, r"\(0, 0\)"),
        ({"present": [True] * 4}, "present: got list"),
        ({"present": {"text": np.ones(4, bool)}}, r"present\['text'\]: got ndarray"),
        ({"present": {"text": None}}, r"present\['text'\]: got NoneType"),
        ({"present": {"text": torch.ones(5, dtype=torch.bool)}}, r"present\['text'\].*\(5,\), needed \(4,\)"),
    ],
)
def test_what_is_no_tensor_of_the_right_kind_is_named(change, message):
    arguments = {"embeddings": {"text": torch.rand(4, 2) + 1}, "proximity": torch.eye(4), **change}
    with pytest.raises(ValueError, match=message):
        make_regulariser()(arguments["embeddings"], arguments["proximity"], arguments.get("present"))


@pytest.mark.parametrize("kind", ["local", "ufgw", "robust"])
def test_two_nodes_are_enough(kind):
    assert make_regulariser(kind)({"text": torch.eye(2)}, torch.eye(2)).isfinite()
