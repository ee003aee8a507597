"""Fixtures that several packages' tests share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import ray
import torch

from optimag_dist.store import GraphStore, ingest

from .tables import write_tables

# Whoever is started in the background of a shell script ignores SIGINT, and so do all it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

NUM_CLASSES, CLASS_SIZE = 3, 40


@pytest.fixture(autouse=True)
def _same_draws_in_any_order() -> None:
    """What a test draws without a seed of its own does not depend on the tests before it in the process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def workers_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``$XDG_CACHE_HOME`` of Ray's workers: as if they were another host than the test's own process."""
    return tmp_path_factory.mktemp("workers-cache")


@pytest.fixture(scope="session")
def ray_session(workers_cache: Path) -> Iterator[None]:
    """One embedded Ray for the whole test run; with its dashboard, which Ray Train needs to clean up after itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(workers_cache))
        ray.init(address="local", num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def planted_store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """A tiny planted graph: communities are classes; features alone say little, the neighbourhood says the rest.

    120 nodes, string ids, two modalities (every tenth node lacks the second), stored split.
    """
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
    edges = ((ids[u], ids[v]) for u, v in graph.edges)
    return ingest(write_tables(folder, nodes, edges, centres, label="y", split="part"), folder / "store")


@pytest.fixture
def recipe(planted_store: GraphStore, tmp_path: Path) -> dict:
    """A run that takes a second or two."""
    return {
        "name": "toy",
        "store": str(planted_store.path),
        "out": str(tmp_path / "runs"),
        "sampling": {"groups": 2, "targets": 12, "group_size": 32, "fanouts": [5, 5]},
        "model": {"hidden": 32, "embedding": 16, "dropout": 0.2},
        "optim": {"lr": 0.01},
        "train": {"epochs": 12, "patience": 100},
        "checkpoint": {"every": 4},
    }
