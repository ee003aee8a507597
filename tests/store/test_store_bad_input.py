"""Every bad input is refused in words that name file, column and row, and leaves nothing behind."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from optimag_dist.store import ingest
from optimag_dist.types import InputError

N = 8


def rows(**changes: Any) -> list[list[float] | None]:
    """Eight lists of two numbers; row7=... sets the seventh row."""
    values: list[Any] = [[float(i), 1.0] for i in range(N)]
    for key, value in changes.items():
        values[int(key[3:]) - 1] = value
    return values


def column(value: Any, at: int = 7, base: Any = "a") -> list[Any]:
    return [value if row == at else base for row in range(1, N + 1)]


NODES = {"id": list("abcdefgh"), "x": rows(), "p": [1.0] * N, "q": [2.0] * N, "y": ["u", "v"] * 4, "s": ["train"] * N}
EDGES = {"src": list("abcdefgh"), "dst": list("bcdefgha")}
X = {"m": {"column": "x"}}
NAN, INF = float("nan"), float("inf")
INTS = {"id": list(range(N))}

# name: (changed node columns, changed edge columns, modalities, further arguments, what the message must say)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], list[str]]] = {
    "duplicate id": ({"id": list("abcdefab")}, {}, X, {}, ["nodes", "'id'", "row 7", "'a'", "row 1", "1 more"]),
    "null id": ({"id": [*[None] * 7, "h"]}, {}, X, {}, ["nodes", "'id'", "row 1", "6 more"]),
    "dangling source": ({}, {"src": list("abcdefzh")}, X, {}, ["edges", "'src'", "row 7", "'z'", "nodes"]),
    "dangling target": ({}, {"dst": list("bcdefgzz")}, X, {}, ["edges", "'dst'", "row 7", "'z'", "1 more"]),
    "null endpoint": ({}, {"dst": column(None)}, X, {}, ["edges", "'dst'", "row 7", "empty"]),
    "only self loops": ({}, {"dst": list("abcdefgh")}, X, {}, ["edges", "8 edges", "no structure to align with"]),
    "label without class": (
        {"y": column("w")},
        {},
        X,
        {"label": "y", "classes": ["a"]},
        ["'y'", "row 7", "'w'", "'a'"],
    ),
    "no label at all": ({"y": [None] * N}, {}, X, {"label": "y"}, ["nodes", "'y'", "not one label"]),
    "split unknown": (
        {"s": column("valid", base="val")},
        {},
        X,
        {"split": "s"},
        ["nodes", "'s'", "row 7", "'valid'", "val,"],
    ),
    "missing id column": ({}, {}, X, {"id": "idd"}, ["nodes", "'idd'", "nodes.id", "did you mean 'id'"]),
    "missing label column": ({}, {}, X, {"label": "group"}, ["nodes", "'group'", "nodes.label"]),
    "missing modality column": ({}, {}, {"m": {"column": "xx"}}, {}, ["nodes", "'xx'", "modalities.m.column"]),
    "missing one of columns": ({}, {}, {"m": {"columns": ["p", "r"]}}, {}, ["nodes", "'r'", "modalities.m.columns[1]"]),
    "partly empty": (
        {"p": column(None, base=1.0)},
        {},
        {"m": {"columns": ["q", "p"]}},
        {},
        ["nodes", "'p'", "row 7", "nan"],
    ),
    "infinite number": ({"p": column(INF, base=1.0)}, {}, {"m": {"columns": ["q", "p"]}}, {}, ["'p'", "row 7", "inf"]),
    "missing npy": ({}, {}, {"m": {"file": "none.npy"}}, {}, ["none.npy", "no such file"]),
    "npy of other rows": ({}, {}, {"m": {"file": "short.npy"}}, {}, ["short.npy", "row 8", "7 rows", "has 8"]),
    "pickled npy": ({}, {}, {"m": {"file": "objects.npy"}}, {}, ["objects.npy", "plain .npy"]),
    "bare pickle": ({}, {}, {"m": {"file": "pickle.npy"}}, {}, ["pickle.npy", "plain .npy"]),
    "empty npy": ({}, {}, {"m": {"file": "empty.npy"}}, {}, ["empty.npy", "plain .npy"]),
    "truncated npy": ({}, {}, {"m": {"file": "cut.npy"}}, {}, ["cut.npy", "plain .npy"]),
    "archive as npy": ({}, {}, {"m": {"file": "archive.npy"}}, {}, ["archive.npy", "archive of arrays"]),
    "flat npy": ({}, {}, {"m": {"file": "flat.npy"}}, {}, ["flat.npy", "shape (nodes, width)", "(8,)"]),
    "text npy": ({}, {}, {"m": {"file": "text.npy"}}, {}, ["text.npy", "numbers"]),
    "npy NaN": ({}, {}, {"m": {"file": "nan.npy"}}, {}, ["nan.npy", "row 7", "column 2 of 3", "nan"]),
    "npy inf": ({}, {}, {"m": {"file": "inf.npy"}}, {}, ["inf.npy", "row 6", "column 3 of 3", "-inf", "1 more"]),
    "npy all missing": ({}, {}, {"m": {"file": "void.npy"}}, {}, ["void.npy", "no node has a value"]),
    "bad path of picture": (
        {"y": column("none.png", base=None)},
        {},
        X,
        {"attributes": {"pic": {"column": "y", "kind": "image_path"}}},
        ["nodes", "'y'", "row 7", "none.png"],
    ),
    "text as picture": (
        {},
        {},
        X,
        {"attributes": {"pic": {"column": "y", "kind": "image"}}},
        ["nodes", "'y'", "image_path"],
    ),
}
# Types that only Parquet has.
PARQUET_CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], list[str]]] = {
    "wrong width": ({"x": rows(row7=[1.0])}, {}, X, {}, ["nodes", "'x'", "row 7", "1 numbers", "row 1 has 2"]),
    "empty list": ({"x": rows(row7=[])}, {}, X, {}, ["nodes", "'x'", "row 7", "empty"]),
    "NaN in a list": ({"x": rows(row7=[1.0, NAN])}, {}, X, {}, ["nodes", "'x'", "row 7", "number 2 of 2", "nan"]),
    "null in a list": ({"x": rows(row7=[None, 1.0])}, {}, X, {}, ["nodes", "'x'", "row 7", "number 1 of 2", "nan"]),
    "inf in a list": ({"x": rows(row7=[-INF, 1.0])}, {}, X, {}, ["nodes", "'x'", "row 7", "-inf"]),
    "float16 overflow": (
        {"x": rows(row7=[7e4, 1.0])},
        {},
        {"m": {"column": "x", "dtype": "float16"}},
        {},
        ["nodes", "'x'", "row 7", "70000", "float32"],
    ),
    "float32 overflow": ({"x": rows(row7=[1.0, 1e39])}, {}, X, {}, ["nodes", "'x'", "row 7", "1e+39"]),
    "all missing": ({"x": pa.nulls(N, pa.list_(pa.float32()))}, {}, X, {}, ["nodes", "'x'", "row 1", "no node has"]),
    "all missing, no type": ({"x": pa.nulls(N)}, {}, X, {}, ["nodes", "'x'", "no node has a value"]),
    "all NaN": ({"x": [[NAN, NAN]] * N}, {}, X, {}, ["nodes", "'x'", "no node has a value"]),
    "number where a list": ({}, {}, {"m": {"column": "p"}}, {}, ["nodes", "'p'", "columns: [p]"]),
    "list of strings": ({"x": [["a"]] * N}, {}, X, {}, ["nodes", "'x'", "lists of numbers"]),
    "list where a number": ({}, {}, {"m": {"columns": ["x"]}}, {}, ["nodes", "'x'", "needed numbers"]),
    "float ids": ({"id": [float(i) for i in range(N)]}, {}, X, {}, ["nodes", "'id'", "double", "cast"]),
    "string edges, int ids": (INTS, {"src": ["1"] * N, "dst": ["2"] * N}, X, {}, ["edges", "'src'", "'1'", "cast"]),
    "int edges, string ids": ({}, {"src": [1] * N, "dst": [2] * N}, X, {}, ["edges", "'src'", "strings", "cast"]),
    "fractional labels": ({"y": [0.5] * N}, {}, X, {"label": "y"}, ["nodes", "'y'", "not whole"]),
    "negative label": ({"y": column(-1, base=2)}, {}, X, {"label": "y"}, ["nodes", "'y'", "row 7", "-1", "unlabelled"]),
    "date labels": ({"y": pa.array([0] * N, pa.date32())}, {}, X, {"label": "y"}, ["nodes", "'y'", "date32"]),
    "numeric split": ({"s": [1] * N}, {}, X, {"split": "s"}, ["nodes", "'s'", "int64"]),
    "list as text": ({}, {}, X, {"attributes": {"t": {"column": "png", "kind": "text"}}}, ["nodes", "'png'", "text"]),
}
CSV_CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], list[str]]] = {
    "text in a number": (
        {"p": column("1,5", base=1)},
        {},
        {"m": {"columns": ["q", "p"]}},
        {},
        ["'p'", "row 7", "'1,5'"],
    ),
    "text in a list": ({"x": column("1 two", base="1 2")}, {}, X, {}, ["nodes", "'x'", "row 7", "'1 two'"]),
    "decimal comma": ({"x": column("1,5;2,5", base="1 2")}, {}, X, {}, ["nodes", "'x'", "row 7", "'1,5;2,5'"]),
    "wrong width": ({"x": column("1 2 3", base="1 2")}, {}, X, {}, ["nodes", "'x'", "row 7", "3 numbers"]),
    "no text is a list": ({"x": ["?"] * N}, {}, X, {}, ["nodes", "'x'", "row 1", "'?'", "7 more"]),
    "word, int ids": (INTS, {"src": ["1"] * 7 + ["x"], "dst": [2] * N}, X, {}, ["edges", "'src'", "row 8", "'x'"]),
    "leading zero, int ids": (INTS, {"src": [1] * 7 + ["07"], "dst": [2] * N}, X, {}, ["edges", "row 8", "'07'"]),
}


def refuse(write_graph: Any, folder: Path, ending: str, case: tuple[Any, ...]) -> None:
    nodes, edges, modalities, keys, needed = case
    array = np.ones((N, 3), dtype=np.float32)
    source = folder / "in"
    source.mkdir()
    np.save(source / "short.npy", array[:7])
    np.save(source / "objects.npy", np.array([{"a": 1}] * N, dtype=object), allow_pickle=True)
    (source / "pickle.npy").write_bytes(pickle.dumps(array))
    (source / "empty.npy").write_bytes(b"")
    np.save(source / "cut.npy", array)
    (source / "cut.npy").write_bytes((source / "cut.npy").read_bytes()[:-20])
    with (source / "archive.npy").open("wb") as file:
        np.savez(file, array)
    np.save(source / "flat.npy", array[:, 0])
    np.save(source / "text.npy", np.full((N, 3), "a"))
    np.save(source / "void.npy", np.full_like(array, np.nan))
    for name, places in {"nan": [(6, 1, np.nan)], "inf": [(5, 2, -np.inf), (7, 0, np.inf)]}.items():
        bad = array.copy()
        for row, position, value in places:
            bad[row, position] = value
        np.save(source / f"{name}.npy", bad)

    table = {**NODES, **nodes}
    if ending == "csv":
        table = {name: [" ".join(map(str, c)) if isinstance(c, list) else c for c in v] for name, v in table.items()}
    else:
        table["png"] = pa.array([[b"list"]] * N)
    schema = write_graph(source, table, {**EDGES, **edges}, modalities, ending=ending, **keys)
    out = folder / "deep" / "out"
    before = {path: path.read_bytes() for path in source.iterdir()}
    with pytest.raises(InputError) as caught:
        ingest(schema, out / "store")
    message = str(caught.value)
    for part in needed:
        assert part in message, f"{part!r} not in: {message}"
    assert str(source) in message
    assert [path.name for path in folder.iterdir()] == ["in"]
    assert {path: path.read_bytes() for path in source.iterdir()} == before


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_refused(write_graph, tmp_path, ending, name):
    refuse(write_graph, tmp_path, ending, CASES[name])


@pytest.mark.parametrize("name", PARQUET_CASES)
def test_refused_in_parquet(write_graph, tmp_path, name):
    refuse(write_graph, tmp_path, "parquet", PARQUET_CASES[name])


@pytest.mark.parametrize("name", CSV_CASES)
def test_refused_in_csv(write_graph, tmp_path, name):
    refuse(write_graph, tmp_path, "csv", CSV_CASES[name])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("which", ["nodes", "edges"])
def test_table_without_rows(write_graph, tmp_path, ending, which):
    empty = pa.array([], pa.string()) if ending == "parquet" else []
    nodes = {"id": empty, "p": empty} if which == "nodes" else {"id": ["a"], "p": [1]}
    edges = {"src": empty, "dst": empty} if which == "edges" else {"src": ["a"], "dst": ["a"]}
    schema = write_graph(tmp_path, nodes, edges, {"m": {"columns": ["p"]}}, ending=ending)
    needed = {"nodes": "at least one node", "edges": "a graph without edges has no structure to align with"}[which]
    with pytest.raises(InputError, match=rf"{which}\.{ending}: the table has no rows; .*{needed}"):
        ingest(schema, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "needed"),
    [
        (b"", "empty"),
        (b"id,p\na,1\nb\nc,1,2\n", "row 2: 1 cells, but the header has 2.*1 more"),
        (b"id,p\na,1\n\xff,1\n", "line 3: the byte 0xff is not UTF-8"),
        (b"\xff\xfei\x00d\x00", "no column 'p'.*columns here: 'id'"),
        (b"i\x00d\x00,\x00p\x00\n\x00", "UTF-16 without a byte order mark"),
        (b"\nid,p\na,1\n", "first line is blank"),
        (b"id,id,p\na,b,1\n", "column 'id' is there 2 times"),
        (b"id:p\na:1\n", "no column 'id'.*columns here: 'id:p'"),
        (b"id;p\na;1;2\n", "row 1: 3 cells, but the header has 2; quote cells that hold a semicolon"),
    ],
)
def test_broken_csv(write_graph, tmp_path, content, needed):
    schema = write_graph(
        tmp_path, {"id": ["a", "b"], "p": [1, 2]}, {"src": ["a"], "dst": ["b"]}, {"m": {"columns": ["p"]}}, ending="csv"
    )
    (tmp_path / "nodes.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"nodes\.csv.*{needed}"):
        ingest(schema, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("damage", ["cut", "zeroed", "other", "missing"])
def test_broken_parquet(write_graph, tmp_path, damage):
    n = 3000
    ids = [f"node {i}" for i in range(n)]
    edges = {"src": ids[:1], "dst": ids[1:2]}
    schema = write_graph(
        tmp_path, {"id": ids, "p": np.random.default_rng(0).random(n)}, edges, {"m": {"columns": ["p"]}}
    )
    path = tmp_path / "nodes.parquet"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        half = len(content) // 2
        # Zeroed pages behind a sound footer are met only in the middle of reading.
        path.write_bytes({"cut": content[:half], "zeroed": bytes(half) + content[half:], "other": b"hello"}[damage])
    with pytest.raises(InputError, match=r"nodes\.parquet"):
        ingest(schema, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        ({"modalities": {}}, "modalities"),
        ({"modalities": {"m": {"column": "x", "file": "x.npy"}}}, "exactly one of"),
        ({"modalities": {"m": {}}}, "exactly one of"),
        ({"modalities": {"a/b": {"column": "x"}}}, "'a/b'"),
        ({"modalities": {"m": {"column": "x"}, "M": {"column": "x"}}}, "upper and lower"),
        ({"modalities": {"m": {"columns": ["p", "p"]}}}, "none twice"),
        ({"classes": ["a"]}, "no 'label'"),
        ({"classes": ["a", "a"], "label": "y"}, "none twice"),
        ({"labl": "y"}, "labl.*did you mean.*label"),
    ],
)
def test_bad_schema(write_graph, tmp_path, change, needed):
    arguments = {"nodes": {"id": ["a", "b"]}, "edges": {"src": ["a"], "dst": ["b"]}, "modalities": X, **change}
    schema = write_graph(tmp_path, **arguments)
    with pytest.raises(InputError, match=rf"schema\.yaml.*{needed}"):
        ingest(schema, tmp_path / "store")


def test_unsigned_endpoint_beyond_64_bits_is_dangling(write_graph, tmp_path):
    edges = {"src": pa.array([1, 2**64 - 1], pa.uint64()), "dst": pa.array([2, 1], pa.uint64())}
    schema = write_graph(tmp_path, {"id": [1, 2, -1], "p": [1, 2, 3]}, edges, {"m": {"columns": ["p"]}})
    with pytest.raises(InputError, match=r"'src', row 2: 18446744073709551615 is not"):
        ingest(schema, tmp_path / "store")
