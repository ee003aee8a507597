"""Cuts of a Contents-like graph: as many nodes as asked, closed under directories and packages, the same every time."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from optimag_dist.store import ingest

SCRIPT = Path(__file__).parents[2] / "jobs" / "bench" / "contents.py"
PACKAGES, DIRECTORIES, FILES = 20, 60, 500
N = PACKAGES + DIRECTORIES + FILES


@pytest.fixture(scope="module")
def contents():
    spec = importlib.util.spec_from_file_location("contents", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    rng = np.random.default_rng(0)
    parent = {d: PACKAGES + int(rng.integers(0, d - PACKAGES)) for d in range(PACKAGES + 1, PACKAGES + DIRECTORIES)}
    files = np.arange(PACKAGES + DIRECTORIES, N)
    edges = [
        *parent.items(),
        *((f, rng.integers(0, PACKAGES)) for f in files),
        *((f, PACKAGES + rng.integers(0, DIRECTORIES)) for f in files),
        *((p, p + 1) for p in range(PACKAGES - 1)),
    ]
    path = tmp_path_factory.mktemp("contents") / "contents.npz"
    y = rng.integers(-1, 3, N).astype(np.int16)
    np.savez(path, edges=np.array(edges, np.int32), y=y, classes=["a", "b", "c"], kind=[PACKAGES, DIRECTORIES, FILES])
    return path


@pytest.mark.parametrize("nodes", [200, N])
def test_cut(contents, archive, tmp_path, nodes):
    store = ingest(contents.derive(archive, nodes, tmp_path / "in"), tmp_path / "store")
    again = ingest(contents.derive(archive, nodes, tmp_path / "again"), tmp_path / "store2")
    assert store.num_nodes == nodes
    assert store.content_hash == again.content_hash
    ids = np.array(store.ids(np.arange(nodes)))
    with np.load(archive) as arrays:
        edges, y = arrays["edges"], arrays["y"]
    inside = np.isin(edges, ids).all(axis=1)
    assert store.num_arcs == 2 * len(np.unique(edges[inside], axis=0))
    labels = [("a", "b", "c").index(store.classes[code]) if code >= 0 else -1 for code in store.labels]
    assert labels == y[ids].tolist()
    # A chosen file keeps its package and its directory, and that the directories above it.
    of_chosen = np.isin(edges[:, 0], ids[ids >= PACKAGES])
    assert np.isin(edges[of_chosen, 1], ids).all()
    unit = np.linalg.norm(store.gather("owner", np.arange(nodes)).astype(np.float32), axis=1)
    kind = np.searchsorted([PACKAGES, PACKAGES + DIRECTORIES], ids, side="right")
    assert np.allclose(unit[kind == 2], 1, atol=1e-2)
    assert not store.present("owner")[kind == 1].any()
    assert not store.present("path")[kind == 0].any()
