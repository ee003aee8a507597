"""Layer by layer, of all nodes or a few, in memory or in a file, against a dense pass over the whole graph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimag_dist import layerwise
from optimag_dist.inference.driver import Activations
from optimag_dist.inference.trained import TrainedModel
from optimag_dist.layerwise import LayerwiseForward
from optimag_dist.sampling import LocalSource, MaskedRows
from optimag_dist.store import GraphStore

from .dense_oracle import CLOSE, dense

CPU = torch.device("cpu")


def by_files(forward: LayerwiseForward, num_layers: int, store: GraphStore, folder: Path, block_size: int) -> Tensor:
    """All nodes' states, block by block with files between the layers, as ``optimag embed`` computes them."""
    blocks = np.split(np.arange(store.num_nodes), np.arange(block_size, store.num_nodes, block_size))
    outputs = [forward.fuse(block) for block in blocks]
    for layer in range(num_layers):
        files = [folder / f"{block_size}-{layer}-{i}.npy" for i in range(len(blocks))]
        for file, output in zip(files, outputs, strict=True):
            np.save(file, output.numpy())
        below = Activations(files, block_size).gather
        outputs = [forward.layer(layer, block, below) for block in blocks]
    return torch.cat(outputs)


@pytest.fixture(params=["sage", "gcn", "mlp"])
def trained(request: pytest.FixtureRequest, make_model) -> TrainedModel:
    return TrainedModel.open(make_model(request.param), CPU)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("rows", "arcs", "in_memory"), [(8_192, 131_072, 2 << 30), (10, 7, 2 << 30), (10, 7, 200)], ids=str
)
def test_full_neighbourhoods_are_exact(
    trained: TrainedModel,
    store: GraphStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    arcs: int,
    in_memory: int,
) -> None:
    """With the bounds far away, so near that every chunk is cut and the hub's row exceeds them, and with tables in
    files."""
    for name, value in {"_ROWS": rows, "_ARCS": arcs, "_IN_MEMORY": in_memory}.items():
        monkeypatch.setattr(layerwise, name, value)
    expected = dense(trained.model, store)
    assert expected.std() > 0.01
    forward = LayerwiseForward(trained.model, LocalSource(store), store.num_nodes, trained.fanouts(None))
    everyone = np.random.default_rng(0).permutation(store.num_nodes)
    torch.testing.assert_close(forward.states(everyone), expected[torch.from_numpy(everyone)], **CLOSE)
    few = everyone[:3]
    torch.testing.assert_close(forward.states(few), expected[torch.from_numpy(few)], **CLOSE)
    if trained.model.passes_messages:
        for block_size in (83, 42, 17):
            torch.testing.assert_close(by_files(forward, 2, store, tmp_path, block_size), expected, **CLOSE)


class Layerless(nn.Module):
    """A user's backbone that can only be run as a whole."""

    passes_messages = True

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.whole = [backbone]

    def forward(self, x: Tensor, blocks, degrees: Tensor) -> Tensor:
        return self.whole[0](x, blocks, degrees)


@torch.inference_mode()
@pytest.mark.parametrize("inputs", [131_072, 20])
def test_a_backbone_without_layers_goes_by_neighbourhoods(
    inputs: int, store: GraphStore, make_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise, "_INPUTS", inputs)
    model = TrainedModel.open(make_model("sage"), CPU).model
    expected = dense(model, store)
    model.backbone = Layerless(model.backbone)
    forward = LayerwiseForward(model, LocalSource(store), store.num_nodes, (-1, -1))
    torch.testing.assert_close(forward.states(np.arange(store.num_nodes)), expected, **CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("fanouts", [(-1, -1), (2, 1)])
def test_a_few_nodes_need_their_own_neighbourhood_and_no_more(
    fanouts: tuple[int, int], store: GraphStore, make_model
) -> None:
    read: list[int] = []

    class Counting(LocalSource):
        def features(self, modality: str, nodes: np.ndarray) -> np.ndarray:
            read.extend(nodes.tolist() if modality == "text" else [])
            return super().features(modality, nodes)

    model = TrainedModel.open(make_model("sage"), CPU).model
    rows = Counting(store)
    forward = LayerwiseForward(model, rows, store.num_nodes, fanouts, seed=3)
    nodes = np.array([77, 41])
    forward.states(nodes)
    needed = set(nodes.tolist())
    for layer in (1, 0):
        drawn = rows.neighbours(np.array(sorted(needed)), fanouts[layer], layerwise.layer_key((3,), layer))[1]
        needed |= set(drawn.tolist())
    assert sorted(read) == sorted(needed)
    assert 2 < len(needed) < store.num_nodes


@torch.inference_mode()
def test_a_mask_is_a_graph_in_which_the_nodes_lack_the_modality(store: GraphStore, make_model) -> None:
    model = TrainedModel.open(make_model("gcn"), CPU).model
    nodes = np.arange(0, store.num_nodes, 3)
    masks = [{}, *({m: np.arange(store.num_nodes) % 2 == 0} for m in store.modalities)]
    forward = LayerwiseForward(model, LocalSource(store), store.num_nodes, (-1, -1))
    states = forward.masked_states(nodes, masks)
    assert states.shape == (len(nodes), 3, 11)
    for place, mask in enumerate(masks):
        masked = LayerwiseForward(model, MaskedRows(LocalSource(store), mask), store.num_nodes, (-1, -1))
        torch.testing.assert_close(states[:, place], masked.states(nodes), **CLOSE)
    assert not torch.allclose(states[:, 0], states[:, 1], atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("backbone", ["sage", "gcn"])
def test_draws_do_not_depend_on_what_else_is_asked_for(
    backbone: str, store: GraphStore, make_model, tmp_path: Path
) -> None:
    trained = TrainedModel.open(make_model(backbone), CPU)
    runs = [LayerwiseForward(trained.model, LocalSource(store), store.num_nodes, (3, 2), seed=s) for s in (5, 5, 6)]
    first, again, other = (
        by_files(run, 2, store, tmp_path, size) for run, size in zip(runs, (83, 10, 83), strict=True)
    )
    everyone = np.random.default_rng(0).permutation(store.num_nodes)
    torch.testing.assert_close(again, first, **CLOSE)
    torch.testing.assert_close(runs[0].states(everyone), first[torch.from_numpy(everyone)], **CLOSE)
    torch.testing.assert_close(runs[0].states(everyone[:5]), first[torch.from_numpy(everyone[:5])], **CLOSE)
    assert (other - first).abs().max() > 0.01
    assert (first - dense(trained.model, store)).abs().max() > 0.01
