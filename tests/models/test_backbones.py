"""Backbones on blocks against the dense formulae of their papers."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

from optimag_dist.models import ModelOptions, MultimodalModel
from optimag_dist.models.backbones import GCN, MLP, SAGE
from optimag_dist.models.encoders import ConcatFusion
from optimag_dist.types import Block


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


def test_sage_is_own_plus_mean_of_neighbours(graph: tuple[Tensor, Block]) -> None:
    adjacency, block = graph
    model = SAGE(5, 7, 2, dropout=0.0).double()
    x = torch.randn(12, 5, dtype=torch.float64)
    mean = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    expected = x
    for own, neighbours in zip(model.own, model.neighbours, strict=True):
        expected = (_linear(own, expected) + _linear(neighbours, mean @ expected)).relu()
    torch.testing.assert_close(model(x, (block, block), adjacency.sum(1)), expected)


def test_gcn_is_the_symmetrically_normalised_product(graph: tuple[Tensor, Block]) -> None:
    adjacency, block = graph
    model = GCN(5, 7, 2, dropout=0.0).double()
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
    model = GCN(5, 7, 1, dropout=0.0).double()
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


def test_mlp_ignores_the_graph() -> None:
    model = MLP(5, 7, 2, dropout=0.0)
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
    model = MultimodalModel(names, num_outputs=2, num_layers=1, options=ModelOptions(backbone="mlp"))
    embeddings = model.encode({name: torch.randn(5, width) for name, width in names.items()})
    assert list(embeddings) == list(names)
