"""One graph, written in every layout, comes out of each as the same store."""

import gzip
import os
import sys
import types
import zipfile
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


def write_dgl(folder, name="g.bin", features=True, **more):
    dgl = pytest.importorskip("dgl", reason="DGL has no wheel for this Python")
    graph = dgl.graph((torch.from_numpy(BOTH[:, 0]), torch.from_numpy(BOTH[:, 1])), num_nodes=N)
    data = tensors({"label": Y, **MASKS, **({k: missing(x) for k, x in X.items()} if features else {})})
    graph.ndata.update(data | more)
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


def write_openmag(folder):
    """With a second encoder, and what generators are made from."""
    for kind, name in {"text": "text_features", "image": "image_features"}.items():
        (folder / name).mkdir()
        np.save(folder / name / f"Toy_{kind}_Qwen_Qwen2_VL_7B_Instruct_768d.npy", missing(X[kind]))
        np.save(folder / name / f"Toy_{kind}_clip_vit_large_patch14_768d.npy", X[kind] + 1)
    rows = [f'{node},"a toy, number {node}",{label}' for node, label in enumerate(Y)]
    (folder / "Toy.csv").write_text("\n".join(["id,text,label", *rows]))
    pictures = folder / "ToyImages_extracted" / "ToyImages"
    pictures.mkdir(parents=True)
    (pictures / "0.jpg").write_bytes(b"first")
    (pictures / f"{N - 1}.png").write_bytes(b"last")
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
    "openmag": (write_openmag, ["encoder=Qwen2_VL_7B"]),
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


def write_kinds(kinds):
    def write(folder: Path) -> Path:
        dgl = pytest.importorskip("dgl", reason="DGL has no wheel for this Python")
        graph = dgl.heterograph({kind: ([0], [1]) for kind in kinds})
        dgl.save_graphs(str(folder / "g.bin"), [graph])
        return folder / "g.bin"

    return write


def cut_dgl(folder: Path) -> Path:
    path = write_dgl(folder)
    path.write_bytes(path.read_bytes()[:900])
    return path


def damaged_pt(folder: Path) -> Path:
    """One byte of the features differs."""
    path = write_dictionary(folder)
    content = bytearray(path.read_bytes())
    content[content.index(X["image"][7].tobytes())] ^= 1
    path.write_bytes(bytes(content))
    return path


def garbage_pt(folder: Path) -> Path:
    (folder / "g.pt").write_bytes(b"\x80\x02}q\x00(U\x05edge_K\x00h\x07u.")
    return folder / "g.pt"


def holding(kind):
    """A file with an object of a library that need not be there."""

    def write(folder: Path) -> Path:
        module, _, name = kind.rpartition(".")
        cls = type(name, (), {"__module__": module})
        with pytest.MonkeyPatch.context() as patch:
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                stand_in = types.ModuleType(".".join(parts[:end]))
                patch.setitem(sys.modules, stand_in.__name__, stand_in)
            setattr(stand_in, name, cls)
            torch.save({"adj_t": cls()}, folder / "g.pt")
        return folder / "g.pt"

    return write


def ogb_with(file, text):
    def write(folder: Path) -> Path:
        write_ogb(folder)
        with gzip.open(folder / file, "wt") as stream:
            stream.write(text)
        return folder

    return write


def write_ogb_with_a_pipe(folder: Path) -> Path:
    write_ogb(folder)
    (folder / "split/time/train.csv.gz").unlink()
    os.mkfifo(folder / "split/time/train.csv.gz")
    return folder


def pipe(name: str):
    def write(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return write


def write_ogb_of_kinds(folder: Path) -> Path:
    write_csv(folder / "raw" / "num-node-dict.csv.gz", np.array([3]))
    return folder


def npz_with_a_lie(folder: Path) -> Path:
    """A header that says more rows than there are."""
    path = write_npz(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_more.npy", archive.read("x_image.npy").replace(b"(50, 6)", b"(90, 6)"))
    return path


def pyg_with(**changes):
    return saved("g.pt", {"edge_index": torch.from_numpy(BOTH.T.copy()), "x": torch.ones(N, 2), **changes})


def npz_with(**changes):
    return saved("g.npz", {"edges": EDGES, "x_a": X["text"], **changes})


E = {"edges": EDGES}
MANY = np.ones((N, 3), bool)
OVERLAP = {"train_mask": np.arange(N) < 9, "test_mask": np.arange(N) > 7}
BAD = {
    "mask of lists": (npz_with(train_mask=[3, 4]), [], "'train_mask': needed a mask.*called train_idx"),
    "mask of numbers": (npz_with(train_mask=np.arange(N)), [], "'train_mask', row 3: a mask .*got 2.*47 more"),
    "mask of fractions": (npz_with(val_mask=np.full(N, 0.5)), [], "'val_mask', row 1: .*got 0.5"),
    "mask with a gap": (npz_with(val_mask=np.full(N, np.nan)), [], "'val_mask', row 1: .*got nan"),
    "several masks": (npz_with(train_mask=MANY), [], r"'train_mask': 3 splits.*mask\[:, 0\]"),
    "overlap": (npz_with(**OVERLAP), [], "node 8 stands in train and in test"),
    "mask as list": (pyg_with(train_idx=torch.ones(N, dtype=int)), [], "'train_idx', row 2: node 1 is there twice"),
    "list of fractions": (pyg_with(train_idx=torch.ones(3)), [], "'train_idx': needed a list of nodes.*float32"),
    "list beyond": (npz_with(test_idx=[1, N]), [], "'test_idx', row 2: there is no node 50; they are 0 … 49"),
    "mask and list": (npz_with(val_idx=[1], val_mask=MASKS["val_mask"]), [], "'val_mask' and 'val_idx' both"),
    "gap in edges": (ogb_with("raw/edge.csv.gz", "1,2\n4,\n"), [], "edge.csv.gz, row 2: cell 2 of 2 is empty"),
    "NA in edges": (ogb_with("raw/edge.csv.gz", "1,2\nNA,4\n"), [], "edge.csv.gz, row 2: cell 1 of 2 is empty"),
    "fraction in edges": (ogb_with("raw/edge.csv.gz", "1,2\n1.5,4\n"), [], "edge.csv.gz: .*Row #2: .*'1.5'"),
    "gap in a split": (ogb_with("split/time/valid.csv.gz", "1\nnan\n"), [], "valid.csv.gz, row 2: cell 1 of 1"),
    "gap in a count": (ogb_with("raw/num-node-list.csv.gz", "nan\n"), [], "num-node-list.csv.gz, row 1: cell 1"),
    "many OGB graphs": (ogb_with("raw/num-node-list.csv.gz", "3\n4\n"), [], "size of one graph, got 2.*ogbg"),
    "a pipe in OGB": (write_ogb_with_a_pipe, [], r"train\.csv\.gz: is no regular file"),
    **{f"a pipe for {end}": (pipe(f"g.{end}"), [], rf"g\.{end}: is a pipe") for end in ("npz", "pt", "bin")},
    # What is no table at all has cells of any length, full of control characters.
    "another encoding": (
        ogb_with("raw/num-edge-list.csv.gz", "a\x01" * 9000 + "\n"),
        [],
        r"num-edge-list\.csv\.gz: cannot be read: [^\x01]{,300}…; write the file again",
    ),
    "OGB of kinds": (write_ogb_of_kinds, [], "several kinds of nodes"),
    "x twice": (pyg_with(x_x=torch.ones(N, 2)), [], "'x' and 'x_x' would both be the modality 'x'"),
    "sparse x": (pyg_with(x=torch.ones(N, 2).to_sparse()), [], "'x': needed a dense tensor, got a sparse.*to_dense"),
    "sparse edges": (pyg_with(edge_index=torch.eye(N).to_sparse()), [], "'edge_index': .*sparse.*indices"),
    "complex x": (pyg_with(x=torch.ones(N, 2, dtype=torch.cfloat)), [], "'x': needed an array of numbers, got complex"),
    "bits": (pyg_with(x=torch.empty(N, 2, dtype=torch.bits8)), [], "'x': torch.bits8 is no type"),
    "one x": (pyg_with(x=torch.ones(N)), [], r"'x': .*write array\[:, None\]"),
    "number of nodes": (pyg_with(num_nodes="many"), [], "'num_nodes': needed a whole number above 0, got 'many'"),
    "single label": (saved("g.pt", {"edge_index": torch.ones(2, 1, dtype=int), "y": torch.tensor(1)}), [], "'y'"),
    "adjacency alone": (saved("g.pt", {"adj_t": torch.eye(3).to_sparse()}), [], "no 'edge_index'.*data.adj_t.t"),
    "SparseTensor": (holding("torch_sparse.tensor.SparseTensor"), [], "SparseTensor.*data.edge_index = torch.stack"),
    "HeteroData": (holding("torch_geometric.data.hetero_data.HeteroData"), [], "one kind of nodes.*to_homogeneous"),
    "nested": (saved("g.pt", {"paper": {"x": X["text"].tolist()}}), [], "no 'edge_index'.*one kind of nodes"),
    "name /": (npz_with(**{"x_a/b": X["text"]}), [], "the name 'a/b' may hold only"),
    "name ..": (pyg_with(**{"x_..": torch.ones(N, 2)}), [], "the name '..' may hold only"),
    "name ''": (npz_with(x_=X["text"]), [], "the name '' may hold only"),
    "name id": (npz_with(x_ID=X["text"]), [], "the name 'ID' is kept"),
    "name twins": (npz_with(x_A=X["text"]), [], "differ in more than upper and lower case, got .'a', 'A'"),
    "name by option": (write_npz, ["features.b.c=g.npz"], "features"),
    "DGL name": (lambda folder: write_dgl(folder, **{"a.b": torch.ones(N, 2)}), [], "the name 'a.b' may hold only"),
    "DGL mask": (lambda folder: write_dgl(folder, val_mask=torch.full((N,), 2)), [], "'val_mask', row 1: .*got 2"),
    "DGL node types": (write_kinds([("u", "a", "v")]), [], "nodes of one type, got u, v; .*node_type_subgraph"),
    "DGL edge types": (write_kinds([("u", "a", "u"), ("u", "b", "u")]), [], "edges of one type, got a, b; .*edge_type"),
    "cut DGL": (cut_dgl, [], r"damaged or cut short \([^\n]*\); copy it again[^\n]*$"),
    "damaged pt": (damaged_pt, [], "does not match its checksum"),
    "garbage pt": (garbage_pt, [], r"cannot be read as tensors[^\n]*$"),
    "large ids": (npz_with(ids=np.arange(N, dtype=np.uint64) + 2**63), [], "'ids': the id .* 64 bits; .*astype"),
    "no Unicode": (npz_with(ids=np.array(["\ud800", *map(str, range(N - 1))])), [], "'ids': holds text"),
    "large edges": (
        npz_with(edges=np.array([[0, 2**63]], np.uint64)),
        [],
        r"row 1: the edge \[0, 92233720368",
    ),
    "fractional edges": (npz_with(edges=EDGES + 0.5), [], "edges must be integers"),
    "structured": (npz_with(x_b=np.zeros(N, "f4,f4")), [], "'x_b': needed an array of numbers"),
    "one number each": (npz_with(x_b=np.ones(N)), [], r"'x_b': .*write array\[:, None\]"),
    "large label": (npz_with(y=np.full(N, 2**63, np.uint64)), [], "'y', row 1: the label 9223372036854775808"),
    "infinite label": (npz_with(y=np.full(N, np.inf)), [], "'y', row 1: the label inf"),
    "negative label": (npz_with(y=np.full(N, -5)), [], "'y', row 1: the label is -5"),
    "class twice": (npz_with(y=Y, classes=["a", "a", "b"]), [], "'classes': a name is there twice"),
    "header lies": (npz_with_a_lie, [], r"'x_more': cannot be read: its header says \(90, 6\)"),
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
    "several graphs": (write_two_graphs, [], "needed one graph, got 2"),
    "several encoders": (write_two_encoders, [], "several encoders.*features.text=TextFeature/FILE"),
    "no such encoder": (write_openmag, ["encoder=Lama"], r"several encoders, .*\(encoder=Lama is none or several"),
    "no encoder chosen": (write_mm_graph, [], "several encoders, clip, t5vit; choose with encoder=NAME"),
    "unknown option": (write_npz, ["directd=true"], "did you mean 'directed'"),
    "missing features": (write_npz, ["features.more=none.npy"], "none.npy: no such file"),
}


def test_texts_and_pictures_beside_features_are_attributes(tmp_path):
    (tmp_path / "Toy").mkdir()
    store = ingest(write_openmag(tmp_path / "Toy"), tmp_path / "store", ["encoder=clip"], say=lambda line: None)
    assert dict(store.attributes) == {"text": "text", "picture": "image"}
    assert store.attribute("text", np.array([0, N - 1])) == ["a toy, number 0", f"a toy, number {N - 1}"]
    assert store.attribute("picture", np.array([0, 1, N - 1])) == [b"first", None, b"last"]


def test_a_table_that_is_not_of_these_nodes_is_said_and_not_used(tmp_path):
    said = []
    folder = write_openmag(tmp_path)
    (folder / "Toy.csv").write_text("id,text\n0,only one\n")
    store = ingest(folder, tmp_path / "store", ["encoder=clip"], say=said.append)
    assert dict(store.attributes) == {"picture": "image"}
    assert any(f"Toy.csv, which has 1 rows for {N} nodes" in line for line in said)


@pytest.mark.parametrize(("encoder", "clip"), [("[none, clip]", True), ("[qwen2_vl, clip]", False)])
def test_of_several_encoders_the_first_that_is_there_is_taken(tmp_path, encoder, clip):
    folder = write_openmag(tmp_path)
    # The only one needs no choice.
    next((folder / "image_features").glob("*Qwen*")).unlink()
    store = ingest(folder, tmp_path / "store", [f"encoder={encoder}"], say=lambda line: None)
    np.testing.assert_array_equal(store.gather("text", np.array([0]))[0], X["text"][0] + np.float16(clip))
    np.testing.assert_array_equal(store.gather("image", np.array([0]))[0], X["image"][0] + 1)


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


ODD = {
    "integer masks": {key: mask.astype(int) for key, mask in MASKS.items()},
    "float masks": {key: mask.astype(float) for key, mask in MASKS.items()},
    "byte masks of one column": {key: mask.astype(np.uint8)[:, None] for key, mask in MASKS.items()},
    "lists": {key.replace("val_mask", "valid_mask")[:-4] + "idx": np.flatnonzero(mask) for key, mask in MASKS.items()},
    "big-endian": {"edges": EDGES.astype(">i8"), "x_a": X["text"].astype(">f2"), "ids": np.arange(N).astype(">i4")}
    | MASKS,
    "unsigned": {"edges": EDGES.astype(np.uint64), "ids": np.arange(N).astype(np.uint64)} | MASKS,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_arrays_mean_the_same(tmp_path, name):
    store = ingest(npz_with(y=Y, **ODD[name])(tmp_path), tmp_path / "store", say=lambda line: None)
    plain = ingest(npz_with(y=Y, **MASKS)(tmp_path), tmp_path / "plain", say=lambda line: None)
    assert store.content_hash == plain.content_hash


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8])
def test_types_that_numpy_lacks(tmp_path, dtype):
    x = torch.arange(2 * N).reshape(N, 2).to(dtype)
    store = ingest(pyg_with(x=x)(tmp_path), tmp_path / "store", say=lambda line: None)
    assert np.array_equal(store.gather("x", np.arange(N)), x.float().numpy())


def write_ogb_with_years(folder: Path) -> Path:
    write_csv(folder / "raw" / "node_year.csv.gz", np.ones(N, int))
    return write_ogb(folder)


ONE, PAIRS = torch.ones(N), torch.ones(len(BOTH), 2)
WORDS = torch.ones(N, 3, dtype=torch.int64)
UNUSED = {
    "npz": (npz_with(label=Y, split=PART), "'label', 'split'"),
    "pyg": (
        pyg_with(x_names=["a", "b"], x_one=ONE, edge_attr=PAIRS),
        f"'x_names' (list), 'x_one' float32 (50,), 'edge_attr' float32 ({len(BOTH)}, 2)",
    ),
    "dgl": (
        lambda folder: write_dgl(folder, price=ONE, cube=torch.ones(N, 2, 2), words=WORDS),
        "'cube' float32 (50, 2, 2), 'price' float32 (50,), 'words' int64 (50, 3)",
    ),
    "ogb": (write_ogb_with_years, "raw/node_year.csv.gz"),
}


@pytest.mark.parametrize("layout", UNUSED)
def test_what_is_not_used_is_said(tmp_path, layout):
    write, names = UNUSED[layout]
    (tmp_path / "in").mkdir()
    lines: list[str] = []
    ingest(write(tmp_path / "in"), tmp_path / "store", say=lines.append)
    (said,) = [line.partition(": not used: ")[2] for line in lines if "not used" in line]
    assert said == names


def test_link_dataset_of_ogb_is_its_graph(tmp_path):
    write_ogb(tmp_path)
    for file in (tmp_path / "split" / "time").iterdir():
        file.unlink()
    torch.save({"edge": torch.from_numpy(EDGES)}, tmp_path / "split" / "time" / "train.pt")
    lines: list[str] = []
    store = ingest(tmp_path, tmp_path / "store", say=lines.append)
    assert store.split is None
    assert store.num_arcs == len(BOTH)
    assert any("optimag split" in line for line in lines)


def test_command_takes_a_layout_and_options(tmp_path):
    result = CliRunner().invoke(app, ["ingest", str(write_npz(tmp_path)), str(tmp_path / "store"), "name=mine"])
    assert result.exit_code == 0, result.output
    assert f"mine: {N} nodes" in result.output
