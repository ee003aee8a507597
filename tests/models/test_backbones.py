"""Backbones on blocks against the dense formulae of their papers."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, leaky_relu

from optimag_dist.models import ModelOptions, MultimodalModel
from optimag_dist.models.backbones import (
    BACKBONES,
    GAT,
    GCN,
    MGAT,
    MLP,
    MMGCN,
    SAGE,
    MessagePassing,
    Mixture,
    check_backbone,
    make_backbone,
)
from optimag_dist.models.encoders import ConcatFusion
from optimag_dist.types import Block, InputError


@pytest.fixture
def graph() -> tuple[Tensor, Block]:
    """Adjacency (12, 12) with an isolated node, and the block that holds all of it."""
    graph = nx.gnp_random_graph(11, 0.3, seed=4)
    graph.add_node(11)
    rows = [sorted(graph[v]) for v in range(12)]
    indptr = torch.tensor(np.cumsum([0] + [len(r) for r in rows]))
    indices = torch.tensor([u for row in rows for u in row])
    return torch.tensor(nx.to_numpy_array(graph), dtype=torch.float64), Block(indptr, indices, 12)


def _linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def _settings(name: str) -> dict[str, int]:
    """Settings with which every part of a backbone takes part: all experts are chosen, whatever the input."""
    return {"num_experts": 2} if name == "mixture" else {}


def test_sage_is_own_plus_mean_of_neighbours(graph: tuple[Tensor, Block]) -> None:
    adjacency, block = graph
    model = SAGE(1, 5, 7, 2, dropout=0.0).double()
    x = torch.randn(12, 5, dtype=torch.float64)
    mean = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    expected = x
    for own, neighbours in zip(model.own, model.neighbours, strict=True):
        expected = (_linear(own, expected) + _linear(neighbours, mean @ expected)).relu()
    torch.testing.assert_close(model(x, (block, block), adjacency.sum(1)), expected)


def test_gcn_is_the_symmetrically_normalised_product(graph: tuple[Tensor, Block]) -> None:
    adjacency, block = graph
    model = GCN(1, 5, 7, 2, dropout=0.0).double()
    x = torch.randn(12, 5, dtype=torch.float64)
    with_loops = adjacency + torch.eye(12, dtype=torch.float64)
    scale = with_loops.sum(1).rsqrt()
    normalised = scale[:, None] * with_loops * scale
    expected = x
    for layer in model.layers:
        expected = (normalised @ _linear(layer, expected)).relu()
    torch.testing.assert_close(model(x, (block, block), adjacency.sum(1)), expected)


def test_gcn_on_sampled_neighbours_is_right_on_average(graph: tuple[Tensor, Block]) -> None:
    """Mean over every choice of one neighbour for node 0 equals the full sum, before the non-linearity."""
    adjacency, _ = graph
    model = GCN(1, 5, 7, 1, dropout=0.0).double()
    # All weights and inputs positive, so that the relu does nothing.
    torch.nn.init.uniform_(model.layers[0].weight, 0.1, 1.0)
    torch.nn.init.uniform_(model.layers[0].bias, 0.1, 1.0)
    neighbours = adjacency[0].nonzero().flatten()
    x = torch.rand(12, 5, dtype=torch.float64)
    degrees = adjacency.sum(1)
    indptr = torch.tensor([0, len(neighbours)])
    full = model(x, (Block(indptr, neighbours, 12),), degrees)
    ones = [model(x, (Block(torch.tensor([0, 1]), n[None], 12),), degrees) for n in neighbours]
    torch.testing.assert_close(torch.stack(ones).mean(0), full)


def _attention(adjacency: Tensor, h: Tensor, to: Tensor, of: Tensor) -> Tensor:
    """(n, width) of one head → (n, n) softmax over a row's neighbours; a row without any is zero."""
    scores = leaky_relu((h @ to)[:, None] + h @ of, 0.2)
    grown = torch.exp(scores) * (adjacency > 0)
    return grown / grown.sum(1, keepdim=True).clamp(min=1e-300)


def _dense_gat(model: GAT, adjacency: Tensor, x: Tensor) -> Tensor:
    for own, neighbours, attention in zip(model.own, model.neighbours, model.attention, strict=True):
        messages = _linear(neighbours, x).split(model.hidden // model.heads, 1)
        heard = [
            _attention(adjacency, h, *ab) @ h
            for h, *ab in zip(messages, attention.target, attention.source, strict=True)
        ]
        x = (_linear(own, x) + torch.cat(heard, 1)).relu()
    return x


@pytest.mark.parametrize(("hidden", "heads"), [(8, 4), (7, 1)])
@pytest.mark.parametrize("modalities", [1, 3])
def test_gat_is_own_plus_neighbours_by_attention(
    graph: tuple[Tensor, Block], hidden: int, heads: int, modalities: int
) -> None:
    adjacency, block = graph
    model = GAT(modalities, 5, hidden, 2, dropout=0.0).double()
    assert model.heads == heads
    x = torch.randn(12, modalities * 5, dtype=torch.float64)
    torch.testing.assert_close(model(x, (block, block), adjacency.sum(1)), _dense_gat(model, adjacency, x))


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("modalities", [1, 3])
def test_mixture_is_attention_over_what_the_chosen_experts_say(
    graph: tuple[Tensor, Block], modalities: int, top_k: int
) -> None:
    torch.manual_seed(0)
    adjacency, block = graph
    model = Mixture(modalities, 5, 8, 2, dropout=0.0, top_k=top_k).double()
    x = torch.randn(12, modalities * 5, dtype=torch.float64)
    fused, choices = torch.zeros(12, 5, dtype=torch.float64), set()
    for v in range(12):
        for z in x[v].split(5):
            scores = _linear(model.experts.gate, z)
            chosen = scores.argsort(descending=True)[:top_k].tolist()
            total = scores[chosen].exp().sum()
            for e in chosen:
                first, _, last = model.experts.experts[e]
                said = _linear(last, gelu(_linear(first, z)))
                fused[v] += scores[e].exp() / total * said / modalities
            choices.add(tuple(chosen))
    # Nodes differ in whom they ask.
    assert len(choices) > 2
    torch.testing.assert_close(model(x, (block, block), adjacency.sum(1)), _dense_gat(model, adjacency, fused))


def test_an_expert_whom_nobody_chose_has_a_gradient_of_zero() -> None:
    torch.manual_seed(0)
    model = Mixture(1, 5, 8, 1, dropout=0.0, num_experts=6, top_k=2)
    nobody = Block(torch.zeros(2, dtype=torch.int64), torch.arange(0), 1)
    model(torch.randn(1, 5), (nobody,), torch.zeros(1)).sum().backward()
    heard = [all((p.grad != 0).any() for p in expert.parameters()) for expert in model.experts.experts]
    silent = [all((p.grad == 0).all() for p in expert.parameters()) for expert in model.experts.experts]
    assert (sum(heard), sum(silent)) == (2, 4)


@pytest.mark.parametrize("top_k", [0, 5])
def test_a_mixture_cannot_ask_more_experts_than_there_are(top_k: int) -> None:
    with pytest.raises(InputError, match=f"top_k: needed 1 to num_experts=4; got {top_k}"):
        check_backbone("mixture", {"top_k": top_k})


@pytest.mark.parametrize("modalities", [1, 3])
def test_mmgcn_is_a_network_per_modality_and_their_mean(graph: tuple[Tensor, Block], modalities: int) -> None:
    adjacency, block = graph
    model = MMGCN(modalities, 5, 7, 2, dropout=0.0).double()
    x = torch.randn(12, modalities * 5, dtype=torch.float64)
    mean = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    expected = list(x.split(5, 1))
    for own, neighbours in zip(model.own, model.neighbours, strict=True):
        expected = [
            leaky_relu(_linear(own.maps[m], h) + _linear(neighbours.maps[m], mean @ h)) for m, h in enumerate(expected)
        ]
    torch.testing.assert_close(model(x, (block, block), adjacency.sum(1)), torch.stack(expected).mean(0))


@pytest.mark.parametrize("modalities", [1, 3])
def test_mgat_is_attention_with_a_gate_per_modality(graph: tuple[Tensor, Block], modalities: int) -> None:
    adjacency, block = graph
    model = MGAT(modalities, 5, 7, 2, dropout=0.0).double()
    for gate in model.gate:
        torch.nn.init.normal_(gate)  # they start at 0, where every gate is half open
    x = torch.randn(12, modalities * 5, dtype=torch.float64)
    expected = list(x.split(5, 1))
    for own, neighbours, attention, gates in zip(model.own, model.neighbours, model.attention, model.gate, strict=True):
        below, expected = expected, []
        for m, h in enumerate(below):
            message = _linear(neighbours.maps[m], h)
            counts = _attention(adjacency, message, attention.target[m], attention.source[m])
            counts = counts * torch.sigmoid((message * gates[m]) @ message.T)
            expected.append(leaky_relu(_linear(own.maps[m], h) + counts @ message))
    torch.testing.assert_close(model(x, (block, block), adjacency.sum(1)), torch.stack(expected).mean(0))


@pytest.fixture
def sampled(graph: tuple[Tensor, Block]) -> tuple[Tensor, tuple[Block, Block]]:
    """Degrees, and blocks of 12 → 6 → 3 nodes with some of the arcs; node 2 of either has none."""
    adjacency, _ = graph
    blocks = []
    for sources, destinations in ((12, 6), (6, 3)):
        rows = [adjacency[v, :sources].nonzero().flatten()[: 2 * (v != 2)] for v in range(destinations)]
        indptr = torch.tensor(np.cumsum([0] + [len(r) for r in rows]))
        blocks.append(Block(indptr, torch.cat(rows), sources))
    return adjacency.sum(1), (blocks[0], blocks[1])


PASSING = [name for name in BACKBONES if name != "mlp"]


@pytest.mark.parametrize("modalities", [1, 3])
@pytest.mark.parametrize("name", PASSING)
def test_a_backbone_is_the_composition_of_its_layers(
    name: str, modalities: int, sampled: tuple[Tensor, tuple[Block, Block]]
) -> None:
    degrees, blocks = sampled
    model = make_backbone(name, modalities, 5, 8, 2, dropout=0.0).double()
    assert isinstance(model, MessagePassing)
    x = torch.randn(12, modalities * 5, dtype=torch.float64)
    found = model(x, blocks, degrees)
    assert found.shape == (3, 8)
    below = model.layer(0, x, blocks[0], degrees)
    assert len(below) == 6
    torch.testing.assert_close(found, model.layer(1, below, blocks[1], degrees), rtol=0, atol=0)
    # Rows of a batch beyond a block's sources are not read.
    torch.testing.assert_close(found, model(torch.cat((x, x.new_full((2, x.shape[1]), torch.nan))), blocks, degrees))
    # A destination's row depends on nothing but itself and its arcs: each alone, as inference goes through a graph.
    for v in range(6):
        arcs = blocks[0].indices[blocks[0].indptr[v] : blocks[0].indptr[v + 1]]
        order = torch.cat((torch.tensor([v]), arcs))
        alone = Block(torch.tensor([0, len(arcs)]), torch.arange(1, len(order)), len(order))
        torch.testing.assert_close(model.layer(0, x[order], alone, degrees[order])[0], below[v])


@pytest.mark.parametrize("modalities", [1, 3])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_of_a_backbone_has_a_finite_gradient(
    name: str, num_layers: int, modalities: int, sampled: tuple[Tensor, tuple[Block, Block]]
) -> None:
    degrees, blocks = sampled
    model = make_backbone(name, modalities, 5, 8, num_layers, dropout=0.0, **_settings(name))
    x = torch.randn(12, modalities * 5, requires_grad=True)
    out = model(x, blocks[-num_layers:], degrees) if model.passes_messages else model(x, (), degrees)
    out.square().sum().backward()
    for parameter in (x, *model.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    # Something is learnt of every kind: no part is cut off.
    assert all((parameter.grad != 0).any() for parameter in model.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize("name", PASSING)
def test_without_any_arc_a_backbone_sees_the_nodes_themselves(name: str) -> None:
    block = Block(torch.zeros(5, dtype=torch.int64), torch.arange(0), 4)
    model = make_backbone(name, 2, 5, 8, 1, dropout=0.0)
    x = torch.randn(4, 10, requires_grad=True)
    out = model(x, (block,), torch.zeros(4))
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).any()


@pytest.mark.parametrize("name", BACKBONES)
def test_no_nodes_at_all_are_no_rows(name: str) -> None:
    nothing = Block(torch.zeros(1, dtype=torch.int64), torch.arange(0), 0)
    model = make_backbone(name, 3, 5, 8, 2, dropout=0.0)
    out = model(torch.zeros(0, 15), (nothing, nothing), torch.zeros(0))
    assert out.shape == (0, 8)
    out.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BACKBONES)
def test_autocast_changes_no_more_than_its_precision(
    name: str, dtype: torch.dtype, sampled: tuple[Tensor, tuple[Block, Block]]
) -> None:
    torch.manual_seed(0)
    degrees, blocks = sampled
    model = make_backbone(name, 3, 5, 8, 2, dropout=0.0, **_settings(name))
    x = torch.randn(12, 15).to(dtype)
    blocks = blocks if model.passes_messages else ()
    exact = model(x.float(), blocks, degrees)
    expected = torch.autograd.grad(exact.square().sum(), list(model.parameters()))
    exact = exact.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(x, blocks, degrees)
    found = torch.autograd.grad(rounded.float().square().sum(), list(model.parameters()))
    assert not torch.equal(rounded, exact)
    # A few roundings of 2^-8, of the largest number among those that are summed.
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.03 * exact.abs().max().item())
    largest = max(gradient.abs().max().item() for gradient in expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03 * largest)


@pytest.mark.parametrize("name", PASSING)
def test_gradients_repeat_bit_by_bit_on_several_threads(name: str) -> None:
    arcs, nodes = 40_000, 50
    block = Block(torch.linspace(0, arcs, nodes + 1).long(), torch.randint(nodes, (arcs,)), nodes)
    model = make_backbone(name, 2, 8, 32, 1, dropout=0.0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # some start at 0, and let no gradient through
    x = torch.randn(nodes, 16)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        once, again = (
            torch.autograd.grad(model(x, (block,), torch.ones(nodes)).square().sum(), list(model.parameters()))
            for _ in range(2)
        )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("name", ["gat", "mgat", "mixture"])
def test_attention_of_large_scores_stays_finite(name: str, graph: tuple[Tensor, Block]) -> None:
    _, block = graph
    model = make_backbone(name, 1, 5, 8, 1, dropout=0.0)
    x = (1e4 * torch.randn(12, 5)).requires_grad_()
    out = model(x, (block,), torch.zeros(12))
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_models_options_know_every_backbone(name: str, sampled: tuple[Tensor, tuple[Block, Block]]) -> None:
    model = MultimodalModel({"text": 3, "image": 4}, 2, ModelOptions.model_validate({"backbone": name}))
    assert type(model.backbone).__name__ == BACKBONES[name].partition(":")[2]


def test_mlp_ignores_the_graph() -> None:
    model = MLP(1, 5, 7, 2, dropout=0.0)
    x = torch.randn(3, 5)
    assert torch.equal(model(x, (), torch.zeros(3)), model(x, (), torch.full((3,), 9.0)))
    assert not MLP.passes_messages


def test_an_absent_modality_shows_the_learned_vector_whatever_its_row_holds() -> None:
    fusion = ConcatFusion(["text", "image"], 2)
    torch.nn.init.constant_(fusion.absent[1], 9.0)
    embeddings = {"text": torch.ones(2, 2), "image": torch.tensor([[1.0, 2.0], [torch.nan, 5.0]])}
    present = {"text": torch.tensor([True, True]), "image": torch.tensor([True, False])}
    assert fusion(embeddings, present).tolist() == [[1, 1, 1, 2], [1, 1, 9, 9]]


def test_modalities_may_be_called_like_methods_of_torch() -> None:
    names = {"type": 3, "keys": 2, "train": 4}
    model = MultimodalModel(names, num_layers=1, options=ModelOptions(backbone="mlp"))
    embeddings = model.encode({name: torch.randn(5, width) for name, width in names.items()})
    assert list(embeddings) == list(names)


def test_a_frozen_encoder_gives_every_modality_one_width_and_nothing_to_train() -> None:
    model = MultimodalModel({"text": 7, "image": 12}, 2, ModelOptions(encoder="frozen", embedding=5))
    assert not any(parameter.requires_grad for parameter in model.encoders.parameters())
    features = {"text": torch.randn(4, 7), "image": torch.randn(4, 12)}
    embeddings = model.encode(features)
    assert {name: z.shape for name, z in embeddings.items()} == {"text": (4, 5), "image": (4, 5)}
    # What is stored twice as large is the same to it.
    doubled = model.encode({name: 2 * x for name, x in features.items()})
    for name, z in embeddings.items():
        torch.testing.assert_close(z, doubled[name], atol=1e-4, rtol=1e-4)
