"""A tiny planted graph: communities are classes; features alone say little, the neighbourhood says the rest."""

from pathlib import Path

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from optimag_dist.ppr import PPRArtefact, PPROptions, compute_ppr
from optimag_dist.store import GraphStore, ingest

NUM_CLASSES, CLASS_SIZE = 3, 40


@pytest.fixture(scope="session")
def planted_store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """120 nodes, string ids, two modalities (every tenth node lacks the second), stored split."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    graph = nx.planted_partition_graph(NUM_CLASSES, CLASS_SIZE, 0.2, 0.01, seed=1)
    labels = np.repeat(np.arange(NUM_CLASSES), CLASS_SIZE)
    ids = [f"node/{i:03d}" for i in range(len(labels))]
    centres = {"text": rng.normal(size=(NUM_CLASSES, 16)), "image": rng.normal(size=(NUM_CLASSES, 24))}
    features = {m: c[labels] + rng.normal(scale=3.0, size=(len(labels), c.shape[1])) for m, c in centres.items()}
    image = [None if i % 10 == 3 else row.tolist() for i, row in enumerate(features["image"])]
    part = np.array(["train", "val", "test"])[rng.choice(3, size=len(labels), p=[0.4, 0.2, 0.4])]
    nodes = {
        "id": ids,
        "y": [f"class{label}" for label in labels],
        "part": part,
        "text": features["text"].tolist(),
        "image": image,
    }
    pq.write_table(pa.table(nodes), folder / "nodes.parquet")
    edges = {"a": [ids[u] for u, _ in graph.edges], "b": [ids[v] for _, v in graph.edges]}
    pq.write_table(pa.table(edges), folder / "edges.parquet")
    schema = {
        "name": "planted",
        "nodes": {"file": "nodes.parquet", "id": "id", "label": "y", "split": "part"},
        "modalities": {"text": {"column": "text"}, "image": {"column": "image"}},
        "edges": {"file": "edges.parquet", "source": "a", "target": "b"},
    }
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema))
    return ingest(folder / "schema.yaml", folder / "store")


@pytest.fixture(scope="session")
def planted_ppr(planted_store: GraphStore, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> PPRArtefact:
    return compute_ppr(planted_store, PPROptions(), tmp_path_factory.mktemp("ppr") / "artefact")


@pytest.fixture
def recipe(planted_store: GraphStore, tmp_path: Path) -> dict:
    """A run that takes a second or two."""
    return {
        "name": "toy",
        "store": str(planted_store.path),
        "out": str(tmp_path / "runs"),
        "sampling": {"groups": 2, "anchors": 12, "group_size": 32, "fanouts": [5, 5]},
        "model": {"hidden": 32, "embedding": 16, "dropout": 0.2},
        "train": {"epochs": 12, "lr": 0.01, "patience": 100, "checkpoint_every": 4},
    }
