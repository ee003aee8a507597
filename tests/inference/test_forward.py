"""Layer by layer, node by node, and the loader's own cover, against a dense pass over the whole graph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from optimag_dist.inference import forward
from optimag_dist.inference.forward import Activations, Forward
from optimag_dist.inference.trained import TrainedModel
from optimag_dist.sampling import GroupLoader, StoreRows
from optimag_dist.store import GraphStore

from .dense_oracle import CLOSE, dense

CPU = torch.device("cpu")


def layerwise(forward: Forward, num_layers: int, store: GraphStore, folder: Path, block_size: int) -> Tensor:
    blocks = np.split(np.arange(store.num_nodes), np.arange(block_size, store.num_nodes, block_size))
    outputs = [forward.fuse(block) for block in blocks]
    for layer in range(num_layers):
        files = [folder / f"{block_size}-{layer}-{i}.npy" for i in range(len(blocks))]
        for file, output in zip(files, outputs, strict=True):
            np.save(file, output.numpy())
        below = Activations(files, block_size)
        outputs = [forward.layer(layer, block, below) for block in blocks]
    return torch.cat(outputs)


@pytest.fixture(params=["sage", "gcn", "mlp"])
def trained(request: pytest.FixtureRequest, make_model) -> TrainedModel:
    return TrainedModel.open(make_model(request.param), CPU)


@torch.inference_mode()
@pytest.mark.parametrize(("rows", "arcs", "inputs"), [(16_384, 262_144, 131_072), (10, 7, 20)])
def test_full_neighbourhoods_are_exact(
    trained: TrainedModel,
    store: GraphStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    arcs: int,
    inputs: int,
) -> None:
    """With the bounds on memory far away, and so near that every chunk is cut and the hub's row exceeds them."""
    for name, value in {"_ROWS": rows, "_ARCS": arcs, "_INPUTS": inputs}.items():
        monkeypatch.setattr(forward, name, value)
    expected = dense(trained.model, store)
    assert expected.std() > 0.01
    run = Forward(trained.model, list(trained.widths), StoreRows(store), trained.eval_fanouts, 0, CPU)
    everyone = np.arange(store.num_nodes)
    torch.testing.assert_close(run.represent(everyone), expected, **CLOSE)
    if trained.model.passes_messages:
        for block_size in (83, 42, 17):
            torch.testing.assert_close(layerwise(run, 2, store, tmp_path, block_size), expected, **CLOSE)
    loader = GroupLoader(
        StoreRows(store),
        None,
        trained.config.sampling,
        seed=0,
        messages=trained.model.passes_messages,
    )
    covered = [trained.model.represent(trained.model.encode(b.features), b) for b in loader.cover(everyone, 30)]
    torch.testing.assert_close(torch.cat(covered), expected, **CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("backbone", ["sage", "gcn"])
def test_drawn_neighbours_are_the_same_layer_by_layer_and_node_by_node(
    backbone: str, store: GraphStore, make_model, tmp_path: Path
) -> None:
    trained = TrainedModel.open(make_model(backbone), CPU)
    runs = [Forward(trained.model, list(trained.widths), StoreRows(store), (3, 2), seed, CPU) for seed in (5, 5, 6)]
    first, again, other = (
        layerwise(run, 2, store, tmp_path, size) for run, size in zip(runs, (83, 10, 83), strict=True)
    )
    everyone = np.random.default_rng(0).permutation(store.num_nodes)
    torch.testing.assert_close(again, first, **CLOSE)
    torch.testing.assert_close(runs[0].represent(everyone), first[torch.from_numpy(everyone)], **CLOSE)
    assert (other - first).abs().max() > 0.01
    assert (first - dense(trained.model, store)).abs().max() > 0.01
