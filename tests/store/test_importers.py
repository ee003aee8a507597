"""One graph, written in every layout, comes out of each as the same store."""

import gzip
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from optimag_dist.cli import app
from optimag_dist.store import ingest
from optimag_dist.types import InputError

N = 50
RNG = np.random.default_rng(0)
EDGES = np.unique(np.sort(RNG.integers(0, N, (150, 2)), axis=1), axis=0)
EDGES = EDGES[EDGES[:, 0] != EDGES[:, 1]]
BOTH = np.concatenate([EDGES, EDGES[:, ::-1]])
X = {"text": RNG.normal(size=(N, 4)).astype(np.float16), "image": RNG.normal(size=(N, 6)).astype(np.float32)}
Y = np.where(RNG.random(N) < 0.1, -1, RNG.integers(0, 3, N))
PART = RNG.integers(-1, 3, N)
MASKS = {f"{name}_mask": code == PART for code, name in enumerate(("train", "val", "test"))}


def missing(x):
    """Node 3 lacks the modality."""
    x = x.copy()
    x[3] = np.nan
    return x


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def write_npz(folder):
    np.savez(folder / "g.npz", edges=EDGES, y=Y, **{f"x_{k}": missing(x) for k, x in X.items()}, **MASKS)
    return folder / "g.npz"


def write_compressed_npz(folder):
    # A transposed array is stored column by column.
    edges = np.asfortranarray(EDGES)
    x = {f"x_{k}": np.asfortranarray(missing(x)) for k, x in X.items()}
    np.savez_compressed(folder / "g.npz", edges=edges, y=Y, **x, **MASKS, kind=[1, 2])
    return folder / "g.npz"


def write_dgl(folder, name="g.bin", features=True):
    dgl = pytest.importorskip("dgl", reason="DGL has no wheel for this Python")
    graph = dgl.graph((torch.from_numpy(BOTH[:, 0]), torch.from_numpy(BOTH[:, 1])), num_nodes=N)
    data = tensors({"label": Y, **MASKS, **({k: missing(x) for k, x in X.items()} if features else {})})
    graph.ndata.update(data)
    dgl.save_graphs(str(folder / name), [graph])
    return folder / name


def pyg_tensors():
    return tensors({"edge_index": BOTH.T.copy(), "y": Y, **{f"x_{k}": missing(x) for k, x in X.items()}, **MASKS})


def write_dictionary(folder):
    torch.save(pyg_tensors(), folder / "g.pt")
    return folder / "g.pt"


def write_data(folder):
    data = pytest.importorskip("torch_geometric.data").Data(**pyg_tensors())
    torch.save(data, folder / "g.pt")
    return folder / "g.pt"


def write_processed(folder):
    torch.save((pyg_tensors(), None, dict), folder / "g.pt")
    return folder / "g.pt"


def write_csv(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        np.savetxt(file, array, delimiter=",", fmt="%d" if array.dtype.kind == "i" else "%.9g")


def write_ogb(folder):
    """Its one matrix of features; the others are given beside it."""
    write_csv(folder / "raw" / "edge.csv.gz", EDGES)
    write_csv(folder / "raw" / "num-node-list.csv.gz", np.array([N]))
    write_csv(folder / "raw" / "num-edge-list.csv.gz", np.array([len(EDGES)]))
    write_csv(folder / "raw" / "node-feat.csv.gz", missing(X["image"]))
    write_csv(folder / "raw" / "node-label.csv.gz", np.where(Y < 0, np.nan, Y)[:, None])
    for code, part in enumerate(("train", "valid", "test")):
        write_csv(folder / "split" / "time" / f"{part}.csv.gz", np.flatnonzero(code == PART))
    np.save(folder / "text.npy", missing(X["text"]))
    return folder


def write_magb(folder):
    for kind, name in {"text": "TextFeature", "image": "ImageFeature"}.items():
        (folder / name).mkdir()
        np.save(folder / name / "Toy_encoder.npy", missing(X[kind]))
    write_dgl(folder, "ToyGraph.pt", features=False)
    return folder


def write_mm_graph(folder):
    torch.save(EDGES.tolist(), folder / "nc_edges-nodeid.pt")
    torch.save(Y.tolist(), folder / "labels-w-missing.pt")
    parts = {f"{part}_idx": np.flatnonzero(code == PART) for code, part in enumerate(("train", "val", "test"))}
    torch.save(tensors(parts), folder / "split.pt")
    halves = [missing(X["image"]), missing(X["image"]) + 1]
    torch.save(torch.from_numpy(np.concatenate(halves, axis=1)), folder / "t5vit_feat.pt")
    torch.save(torch.zeros(N, 4), folder / "clip_feat.pt")
    return folder


WRITERS = {
    "npz": (write_npz, []),
    "compressed npz": (write_compressed_npz, []),
    "dgl": (write_dgl, []),
    "dictionary": (write_dictionary, []),
    "data": (write_data, []),
    "processed": (write_processed, []),
    "ogb": (write_ogb, ["features.text=text.npy"]),
    "magb": (write_magb, []),
    "mm-graph": (write_mm_graph, ["encoder=t5vit"]),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_graph(tmp_path, layout):
    write, overrides = WRITERS[layout]
    (tmp_path / "in").mkdir()
    store = ingest(write(tmp_path / "in"), tmp_path / "store", overrides, say=lambda line: None)
    store.verify()
    assert store.num_nodes == N
    assert not store.directed
    arcs = {(int(u), v) for v in range(N) for u in store.topology.indices[slice(*store.topology.indptr[v : v + 2])]}
    assert arcs == {tuple(edge) for edge in BOTH.tolist()}
    assert [int(store.classes[code]) if code >= 0 else -1 for code in store.labels] == Y.tolist()
    assert store.split.tolist() == PART.tolist()
    assert store.ids(np.arange(3)) == [0, 1, 2]
    expected = dict(X)
    if layout == "mm-graph":
        expected = {"text": X["image"], "image": X["image"] + 1}
    names = {"feat": "image"} if layout == "ogb" else {}
    assert {names.get(name, name) for name in store.modalities} == set(expected)
    for name, modality in store.modalities.items():
        x = expected[names.get(name, name)].copy()
        x[3] = 0
        assert modality.dtype == x.dtype
        assert np.array_equal(store.gather(name, np.arange(N)), x)
        assert np.flatnonzero(~store.present(name)).tolist() == [3]


def test_one_direction_only_is_directed(tmp_path):
    data = {**pyg_tensors(), "edge_index": torch.from_numpy(EDGES.T.copy())}
    torch.save(data, tmp_path / "g.pt")
    store = ingest(tmp_path / "g.pt", tmp_path / "store")
    assert store.directed
    assert store.num_arcs == len(EDGES)
    store = ingest(tmp_path / "g.pt", tmp_path / "other", ["directed=false"])
    assert (store.directed, store.num_arcs) == (False, 2 * len(EDGES))


def test_npz_ids_names_and_classes(tmp_path):
    arrays = {"edges": [[0, 1]], "x_a": np.ones((2, 1)), "y": [1, -1], "classes": ["no", "yes"]}
    np.savez(tmp_path / "g.npz", ids=["p", "q"], names=["Älpha", "b"], **arrays)
    store = ingest(tmp_path / "g.npz", tmp_path / "store", ["name=mine"])
    assert (store.name, store.ids(np.arange(2)), store.classes) == ("mine", ["p", "q"], ("no", "yes"))
    assert store.labels.tolist() == [1, -1]
    assert store.attribute("name", np.arange(2)) == ["Älpha", "b"]


def test_link_prediction_of_mm_graph_takes_the_train_edges(tmp_path):
    link = {"source_node": torch.tensor([0, 1]), "target_node": torch.tensor([1, 2])}
    torch.save({"train": link, "test": {"source_node": [2], "target_node": [3]}}, tmp_path / "lp-edge-split-hard.pt")
    torch.save(torch.ones(4, 2), tmp_path / "clip_feat.pt")
    store = ingest(tmp_path, tmp_path.parent / "store")
    assert store.topology.indices.tolist() == [1, 0, 2, 1]
    assert store.labels is None


class _Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def write_two_encoders(folder: Path) -> Path:
    write_magb(folder)
    np.save(folder / "TextFeature" / "Toy_other.npy", X["text"])
    return folder


def saved(name, content):
    def write(folder: Path) -> Path:
        if name.endswith(".npz"):
            np.savez(folder / name, **content)
        else:
            torch.save(content, folder / name)
        return folder / name

    return write


def cut_npz(folder: Path) -> Path:
    path = write_npz(folder)
    path.write_bytes(path.read_bytes()[:-400])
    return path


def damaged_npz(folder: Path) -> Path:
    path = write_compressed_npz(folder)
    content = bytearray(path.read_bytes())
    content[300:340] = bytes(40)
    path.write_bytes(bytes(content))
    return path


def write_two_graphs(folder: Path) -> Path:
    path = write_dgl(folder)
    import dgl

    graph = dgl.load_graphs(str(path))[0][0]
    dgl.save_graphs(str(path), [graph, graph])
    return path


E = {"edges": EDGES}
BAD = {
    "no such path": (lambda folder: folder / "none.npz", [], "no such file or folder"),
    "unknown folder": (lambda folder: folder, [], "no known layout"),
    "no edges": (saved("g.npz", {"x_a": np.ones((3, 1))}), [], "no array 'edges'.*x_a"),
    "empty edges": (saved("g.npz", {"edges": np.ones((0, 2), int), "x_a": np.ones((3, 1))}), [], "no edges"),
    "transposed edges": (saved("g.npz", {"edges": EDGES.T, "x_a": np.ones((N, 1))}), [], r"shape \(edges, 2\)"),
    "no features": (saved("g.npz", {**E, "y": Y}), [], "no features.*features.NAME"),
    "rows differ": (saved("g.npz", {**E, "x_a": X["text"], "x_b": X["image"][1:]}), [], "'x_b', row 50.*49 rows"),
    "beyond": (saved("g.npz", {"edges": [[0, 1], [2, 50]], "x_a": X["text"]}), [], r"row 2: the edge \[2, 50\].*49"),
    "negative": (saved("g.npz", {"edges": [[0, -1]], "x_a": X["text"]}), [], r"row 1: the edge \[0, -1\]"),
    "partly NaN": (saved("g.npz", {**E, "x_a": np.where(np.eye(N, 4), np.nan, 1)}), [], "'x_a', row 1: .*nan"),
    "objects": (saved("g.npz", {**E, "x_a": np.array([{}] * N)}), [], "'x_a': cannot be read.*objects"),
    "no class": (saved("g.npz", {**E, "x_a": X["text"], "y": Y, "classes": ["a"]}), [], "has no class; there are 1"),
    "fraction": (saved("g.npz", {**E, "x_a": X["text"], "y": np.full(N, 0.5)}), [], "row 1: the label 0.5"),
    "ids twice": (saved("g.npz", {**E, "x_a": X["text"], "ids": [7] * N}), [], "'ids': an id is there twice"),
    "cut": (cut_npz, [], "cannot be read"),
    "damaged": (damaged_npz, [], "cannot be read"),
    "code in a pickle": (saved("g.pt", {"x": _Evil()}), [], "could run code"),
    "no dictionary": (saved("g.pt", torch.ones(3)), [], "needed a PyG Data or a dictionary"),
    "no edge_index": (saved("g.pt", {"x": torch.ones(3, 2)}), [], "no 'edge_index'"),
    "several graphs": (write_two_graphs, [], "got 2 graphs"),
    "several encoders": (write_two_encoders, [], "several encoders.*features.text=TextFeature/FILE"),
    "no encoder chosen": (write_mm_graph, [], "several encoders, clip, t5vit; choose with encoder=NAME"),
    "unknown option": (write_npz, ["directd=true"], "did you mean 'directed'"),
    "missing features": (write_npz, ["features.more=none.npy"], "none.npy: no such file"),
}


def test_a_graph_of_dgl_says_what_it_needs_where_dgl_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.bin"
    path.write_bytes((0xDD2E4FF046B4A13F).to_bytes(8, "little"))  # by which a file of dgl.save_graphs is known
    monkeypatch.setitem(sys.modules, "dgl", None)
    with pytest.raises(InputError, match=r"g\.bin: a graph saved by DGL needs DGL.*(pip|Python 3\.10 or 3\.11).*npz"):
        ingest(path, tmp_path / "store", say=lambda line: None)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", BAD)
def test_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write, overrides, words = BAD[name]
    (tmp_path / "in").mkdir()
    source = write(tmp_path / "in")
    with pytest.raises(InputError, match=words) as caught:
        ingest(source, tmp_path / "out" / "store", overrides, say=lambda line: None)
    assert str(tmp_path / "in") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_command_takes_a_layout_and_options(tmp_path):
    result = CliRunner().invoke(app, ["ingest", str(write_npz(tmp_path)), str(tmp_path / "store"), "name=mine"])
    assert result.exit_code == 0, result.output
    assert f"mine: {N} nodes" in result.output
