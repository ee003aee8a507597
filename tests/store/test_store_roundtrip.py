"""What goes in comes out: against dictionaries, sets and networkx."""

import pickle
import re
import tempfile
from pathlib import Path

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.store import GraphStore, ingest
from optimag_dist.store.layout import ATTRIBUTE_ROWS, BATCH_ROWS
from optimag_dist.types import InputError

# Any text a CSV cell can hold and give back: no control characters, not empty (an empty cell is a missing value).
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=6)
IDS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=12, unique=True),
    st.lists(TEXT, min_size=2, max_size=12, unique=True),
    st.lists(st.sampled_from(["007", "7", "0", "-0", "+1", "1", "a,b", 'q"q', "é", "1e3"]), min_size=2, unique=True),
)


@st.composite
def graphs(draw):
    ids = draw(IDS)
    index = st.integers(0, len(ids) - 1)
    edges = draw(st.lists(st.tuples(index, index), min_size=1, max_size=30))
    loop_free = draw(st.tuples(index, index).filter(lambda e: e[0] != e[1]))
    number = st.floats(-1e6, 1e6, width=32)
    row = st.none() | st.tuples(number, number)
    rows = draw(st.lists(row, min_size=len(ids) - 1, max_size=len(ids) - 1))
    labels = draw(st.lists(st.sampled_from([None, "x", "y", "ü"]), min_size=len(ids) - 1, max_size=len(ids) - 1))
    return ids, [*edges, loop_free], [(0.5, -2.0), *rows], ["x", *labels]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("directed", [False, True])
@settings(deadline=None, max_examples=30)
@given(graph=graphs())
def test_everything_comes_back(write_graph, ending, directed, graph):
    ids, edges, rows, labels = graph
    features = [None if r is None else f"{r[0]!r} {r[1]!r}" if ending == "csv" else list(r) for r in rows]
    with tempfile.TemporaryDirectory() as folder:
        schema = write_graph(
            Path(folder) / "in",
            {"id": ids, "x": features, "y": labels, "extra": range(len(ids))},
            {"src": [ids[u] for u, _ in edges], "dst": [ids[v] for _, v in edges]},
            {"m": {"column": "x"}},
            ending=ending,
            directed=directed,
            label="y",
        )
        store = ingest(schema, Path(folder) / "store", say=lambda line: None)
        n = len(ids)
        everyone = np.arange(n)
        if ending == "csv" and all(re.fullmatch("0|-?[1-9][0-9]{0,17}", str(i)) for i in ids):
            # A CSV has no types: cells that are all plain integers are integers, whoever wrote them.
            ids = [int(i) for i in ids]
        assert store.num_nodes == n
        assert store.ids(everyone) == ids
        assert np.array_equal(store.lookup(reversed(ids)), everyone[::-1])

        graph = nx.DiGraph() if directed else nx.Graph()
        graph.add_nodes_from(range(n))
        graph.add_edges_from((u, v) for u, v in edges if u != v)
        neighbours = graph.predecessors if directed else graph.neighbors
        indptr, indices = store.topology.indptr, store.topology.indices
        assert indptr.dtype == np.int64
        assert indices.dtype == np.int32
        assert [indices[indptr[v] : indptr[v + 1]].tolist() for v in range(n)] == [
            sorted(neighbours(v)) for v in range(n)
        ]
        assert store.num_arcs == graph.number_of_edges() * (1 if directed else 2)

        assert store.present("m").tolist() == [r is not None for r in rows]
        expected = np.array([(0, 0) if r is None else r for r in rows], dtype=np.float32)
        pick = np.array([n - 1, 0, 0])
        assert np.array_equal(store.gather("m", pick), expected[pick])
        assert store.classes == tuple(sorted({y for y in labels if y is not None}))
        assert [None if c < 0 else store.classes[c] for c in store.labels] == labels
        store.verify()


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        (["10", "9", "-1"], [10, 9, -1]),
        (["10", "09", "-1"], ["10", "09", "-1"]),
        (["10", "+9", "-1"], ["10", "+9", "-1"]),
        (["10", "9", "99999999999999999999"], ["10", "9", "99999999999999999999"]),
    ],
)
def test_csv_ids_are_integers_only_when_nothing_is_lost(write_graph, tmp_path, cells, ids):
    edges = {"src": cells[:2], "dst": cells[1:]}
    schema = write_graph(tmp_path, {"id": cells, "a": [1, 2, 3]}, edges, {"m": {"columns": ["a"]}}, ending="csv")
    assert ingest(schema, tmp_path / "store").ids(np.arange(3)) == ids


def test_dropped_edges_are_said(write_graph, tmp_path, capsys):
    edges = {"src": ["a", "a", "b", "b"], "dst": ["a", "b", "a", "a"]}
    nodes = {"id": ["a", "b"], "x": [[1.0], [2.0]]}
    store = ingest(write_graph(tmp_path, nodes, edges, {"m": {"column": "x"}}), tmp_path / "store")
    assert "dropped 1 self loops and 2 repeated edges" in capsys.readouterr().out
    assert store.num_arcs == 2


LIST_FORMS = {
    "list": pa.array([[1.5, 2], None, [3, 4]], pa.list_(pa.float64())),
    "large_list": pa.array([[1.5, 2], None, [3, 4]], pa.large_list(pa.float32())),
    "fixed": pa.array([[1.5, 2], None, [3, 4]], pa.list_(pa.float32(), 2)),
    "half": pa.array([np.array([1.5, 2], "f2"), None, np.array([3, 4], "f2")], pa.list_(pa.float16())),
    "nan_row": pa.array([[1.5, 2], [float("nan")] * 2, [3, 4]], pa.list_(pa.float32())),
    "null_row": pa.array([[1.5, 2], [None, None], [3, 4]], pa.list_(pa.float32())),
    "text": ["1.5;2", None, "3;4"],
    "spaces": ["1.5  2", None, "3 4"],
    "json": ["[1.5, 2]", None, "[3, 4]"],
}


@pytest.mark.parametrize("form", LIST_FORMS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_way_to_write_a_list(write_graph, tmp_path, form, dtype):
    nodes = {"id": [1, 2, 3], "x": LIST_FORMS[form]}
    schema = write_graph(tmp_path, nodes, {"src": [1], "dst": [3]}, {"m": {"column": "x", "dtype": dtype}})
    if form == "fixed" and int(pa.__version__.partition(".")[0]) < 26:
        with pytest.raises(InputError, match=r"nodes\.parquet: .* without the size, or read them with pyarrow 26"):
            ingest(schema, tmp_path / "store")
        return
    store = ingest(schema, tmp_path / "store")
    rows = store.gather("m", np.arange(3))
    assert rows.dtype == dtype
    assert rows.tolist() == [[1.5, 2], [0, 0], [3, 4]]
    assert store.present("m").tolist() == [True, False, True]
    assert (store.modalities["m"].width, store.modalities["m"].dtype) == (2, dtype)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">f4", "f8", "f2", "i8"])
def test_npy_of_any_layout(write_graph, tmp_path, order, dtype):
    array = np.array([[1, 2, 3], [4, 5, 6]], dtype=dtype, order=order)
    np.save(tmp_path / "x.npy", array)
    schema = write_graph(tmp_path, {"id": ["a", "b"]}, {"src": ["a"], "dst": ["b"]}, {"m": {"file": "x.npy"}})
    assert ingest(schema, tmp_path / "store").gather("m", np.array([1, 0])).tolist() == [[4, 5, 6], [1, 2, 3]]


def test_many_batches(write_graph, tmp_path):
    """More nodes than one record batch, with gaps; the oracle is the array itself."""
    n = 2 * BATCH_ROWS + 5
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    missing = rng.random(n) < 0.3
    x[missing] = np.nan
    np.save(tmp_path / "x.npy", x)
    column = pa.array([None if gone else row for gone, row in zip(missing, x, strict=True)], pa.list_(pa.float32()))
    names = [None if i % 7 == 0 else f"node {i}" for i in range(n)]
    schema = write_graph(
        tmp_path,
        {"id": np.arange(n) * 3, "x": column, "name": names},
        {"src": [0], "dst": [3]},
        {"file": {"file": "x.npy"}, "column": {"column": "x"}},
        attributes={"name": {"column": "name", "kind": "text"}},
    )
    store = ingest(schema, tmp_path / "store")
    ids = rng.integers(0, n, 1000)
    ids[:4] = [0, BATCH_ROWS - 1, BATCH_ROWS, n - 1]
    for modality in store.modalities:
        assert np.array_equal(store.gather(modality, ids), np.where(missing[:, None], 0, x)[ids])
        assert np.array_equal(store.present(modality), ~missing)
    pick = np.array([ATTRIBUTE_ROWS, 0, n - 1])
    assert store.attribute("name", pick) == [names[i] for i in pick]
    assert store.gather("file", np.array([], dtype=np.int64)).shape == (0, 3)
    for outside in (-1, n):
        with pytest.raises(IndexError, match=str(outside)):
            store.gather("file", np.array([outside]))


def test_labels_of_every_type(write_graph, tmp_path):
    def labels_of(values, ending="parquet", **keys):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        nodes = {"id": [1, 2, 3], "a": [1, 2, 3], "y": values}
        edges = {"src": [1], "dst": [2]}
        schema = write_graph(folder, nodes, edges, {"m": {"columns": ["a"]}}, ending=ending, label="y", **keys)
        store = ingest(schema, folder / "store")
        return store.labels.tolist(), store.classes

    assert labels_of([10, None, 9]) == ([1, -1, 0], ("9", "10"))
    assert labels_of([10, None, 9], ending="csv") == ([1, -1, 0], ("9", "10"))
    assert labels_of(["10", None, "9"]) == ([0, -1, 1], ("10", "9"))
    assert labels_of([10.0, float("nan"), 9.0]) == ([1, -1, 0], ("9", "10"))
    assert labels_of([True, None, False]) == ([1, -1, 0], ("False", "True"))
    assert labels_of(["b", "", "a"]) == ([1, -1, 0], ("a", "b"))
    assert labels_of(pa.array(["b", None, "a"]).dictionary_encode()) == ([1, -1, 0], ("a", "b"))
    assert labels_of(["b", None, "a"], classes=["c", "b", "a"]) == ([1, -1, 2], ("c", "b", "a"))
    assert labels_of([-1, 1, None], classes=[-1, 1]) == ([0, 1, -1], ("-1", "1"))
    assert labels_of([True, None, False], classes=[True, False]) == ([0, -1, 1], ("True", "False"))


def test_split_attributes_and_summary(write_graph, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "ü 1.png").write_bytes(b"\x89PNG one")
    schema = write_graph(
        tmp_path,
        {
            "id": ["a", "b", "c", "d"],
            "x": [[1.0], None, None, [2.0]],
            "y": ["u", None, "v", "u"],
            "part": ["train", "val", None, "test"],
            "name": ["A", None, "C", "D"],
            "png": [b"raw", None, b"", b"\x00"],
            "path": ["pictures/ü 1.png", None, "", "pictures/ü 1.png"],
        },
        {"src": ["a"], "dst": ["b"]},
        {"m": {"column": "x"}},
        attributes={
            "name": {"column": "name", "kind": "text"},
            "png": {"column": "png", "kind": "image"},
            "file": {"column": "path", "kind": "image_path"},
        },
        label="y",
        split="part",
    )
    store = ingest(schema, tmp_path / "store")
    everyone = np.arange(4)
    assert store.split.tolist() == [0, 1, -1, 2]
    assert dict(store.attributes) == {"name": "text", "png": "image", "file": "image"}
    assert store.attribute("name", everyone) == ["A", None, "C", "D"]
    assert store.attribute("png", everyone) == [b"raw", None, b"", b"\x00"]
    assert store.attribute("file", everyone) == [b"\x89PNG one", None, None, b"\x89PNG one"]
    for name in store.attributes:
        assert store.has_attribute(name).tolist() == [bool(value) for value in store.attribute(name, everyone)]
    summary = store.summary()
    for part in ("toy: 4 nodes (2 isolated), 2 arcs", "m: 1 × float32, missing in 2", "2 classes, 3 nodes labelled"):
        assert part in summary
    assert "train 1, val 1, test 1, none 1" in summary
    (tmp_path / "pictures" / "ü 1.png").unlink()
    assert store.attribute("file", everyone[:1]) == [b"\x89PNG one"]


def test_store_without_labels_or_split(write_graph, tmp_path):
    nodes = {"id": [1, 2], "x": [[1.0], [2.0]]}
    store = ingest(write_graph(tmp_path, nodes, {"src": [1], "dst": [2]}, {"m": {"column": "x"}}), tmp_path / "store")
    assert store.labels is None
    assert store.split is None
    assert store.classes == ()


def test_pickles_as_its_path_and_maps_without_copying(write_graph, tmp_path):
    nodes = {"id": np.arange(5000), "x": [[float(i), 1.0] for i in range(5000)], "y": [i % 3 for i in range(5000)]}
    schema = write_graph(tmp_path, nodes, {"src": [1], "dst": [2]}, {"m": {"column": "x"}}, label="y")
    store = ingest(schema, tmp_path / "store")
    store.gather("m", np.arange(10))
    cargo = pickle.dumps(store)
    assert len(cargo) < 1000
    again = pickle.loads(cargo)
    assert again.content_hash == store.content_hash
    assert np.array_equal(again.gather("m", np.arange(9)), store.gather("m", np.arange(9)))
    # Views of a read-only map: nobody can write, and asking twice gives the same memory.
    for array in (store.topology.indptr, store.topology.indices, store.labels, store.present("m")):
        assert not array.flags.writeable
        assert not array.flags.owndata
    assert np.shares_memory(store.present("m"), store.present("m"))
    assert store.gather("m", np.arange(3)).flags.writeable


def test_lookup_names_what_is_unknown(write_graph, tmp_path):
    nodes = {"id": [1, 2], "x": [[1.0], [2.0]]}
    store = ingest(write_graph(tmp_path, nodes, {"src": [1], "dst": [2]}, {"m": {"column": "x"}}), tmp_path / "store")
    with pytest.raises(InputError, match=r"no node has the id 7 \(1 more"):
        store.lookup([1, 7, 8])
    for wrong in (["1"], [2**70]):
        with pytest.raises(InputError, match="are integers, such as 1"):
            store.lookup(wrong)
    assert store.lookup([]).tolist() == []
    with pytest.raises(InputError, match="no modality 'text'; it has m"):
        store.gather("text", np.array([0]))
    with pytest.raises(InputError, match="no attribute 'name'; it has none"):
        store.attribute("name", np.array([0]))
    assert GraphStore.open(str(store.path)).ids(np.array([1])) == [2]
