"""A small graph with what can go wrong in it, and models on it as fits leave them."""

from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

from optimag_dist.models import MultimodalModel
from optimag_dist.options import validate_options
from optimag_dist.store import GraphStore, ingest
from optimag_dist.tasks.node_classification import ClassifierHead
from optimag_dist.train import checkpoint
from optimag_dist.train.options import VariantConfig

from ..tables import write_tables

NUM_NODES = 83
CLASSES = ["ant", "bee", "cat", "dog"]

MakeStore = Callable[..., GraphStore]
MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    def make(seed: int = 0, width: int = 9) -> GraphStore:
        """String ids in no order, a hub, three isolated nodes; every fifth node lacks ``image``."""
        folder = tmp_path_factory.mktemp("store")
        rng = np.random.default_rng(seed)
        graph = nx.barabasi_albert_graph(NUM_NODES - 3, 2, seed=seed)
        graph.add_edges_from((0, v) for v in range(1, NUM_NODES - 3, 2))
        ids = [f"n{i}" for i in rng.permutation(NUM_NODES)]
        image = [None if i % 5 == 2 else rng.normal(size=7).tolist() for i in range(NUM_NODES)]
        nodes = {
            "id": ids,
            "label": [CLASSES[i % 4] if i % 3 else None for i in range(NUM_NODES)],
            "text": rng.normal(size=(NUM_NODES, width)).tolist(),
            "image": image,
        }
        edges = ((ids[u], ids[v]) for u, v in graph.edges)
        return ingest(write_tables(folder, nodes, edges, ("text", "image"), label="label"), folder / "store")

    return make


@pytest.fixture(scope="session")
def store(make_store: MakeStore) -> GraphStore:
    return make_store()


@pytest.fixture(scope="session")
def make_model(store: GraphStore, tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    def make(backbone: str = "sage", seed: int = 0) -> Path:
        """A fit's directory with the ``model.pt`` of a model of two layers and random weights."""
        directory = tmp_path_factory.mktemp("fit")
        data = {
            "model": {"backbone": backbone, "hidden": 11, "embedding": 5},
            "sampling": {"fanouts": [4, 3]},
        }
        config = validate_options(VariantConfig, data, "test")
        torch.manual_seed(seed)
        widths = {name: modality.width for name, modality in store.modalities.items()}
        columns = {name: store.columns(name) for name in widths}
        model = MultimodalModel(widths, 2, config.model, columns=columns)
        head = ClassifierHead(model, len(CLASSES))
        for absent in model.fusion.absent:
            torch.nn.init.normal_(absent)
        # With torch's own small weights all nodes would be much alike, and one class win everywhere.
        for weight in (p for module in (model, head) for p in module.parameters() if p.ndim == 2):
            torch.nn.init.normal_(weight, std=0.5)
        state = {
            "model": model.state_dict(),
            "heads": {"": head.state_dict()},
            "config": config.model_dump(mode="json"),
            "widths": widths,
            "classes": CLASSES,
            "store": store.content_hash,
        }
        checkpoint.save(directory / "model.pt", state)
        return directory

    return make
