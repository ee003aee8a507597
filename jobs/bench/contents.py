"""Cuts of the Debian Contents graph (packages, directories, files) with two derived modalities, for scale benchmarks.

    python jobs/bench/contents.py contents.npz NODES OUT_FOLDER

The archive holds ``edges`` (m, 2) undirected, ``y`` and ``classes`` (sections) and ``kind``: how many packages,
directories and files there are, numbered in that order. A cut takes packages in the order of a hash, with all their
files, the files' directories and those above, until there are NODES nodes: so small cuts are as dense as the whole and
their hubs grow with them. Labels leak through the edges: these graphs are for speed and memory, not for accuracy.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from optimag_dist.jit import jit
from optimag_dist.store.topology import build_topology

WIDTH = 128
_ROWS = 1 << 17
_PACKAGE, _DIRECTORY = 0, 1
_MODALITIES = {"path": _DIRECTORY, "owner": _PACKAGE}
# A node's features look no further than this many neighbours.
_NEIGHBOURS = 16


def derive(path_npz: str | Path, nodes: int, out_folder: str | Path) -> Path:
    """Write a cut of ``nodes`` nodes as users would: schema.yaml, nodes and edges in Parquet, two fp16 ``.npy`` files.

    Everything is a function of the archive and of ``nodes``. Modality ``path`` sums random signs of a node's
    directories, ``owner`` of its packages; a node without any lacks the modality. By hash, 1 % of the nodes are for
    training, 1 % for validation, 1 % for testing.

    Args:
        path_npz: the archive.
        nodes: how many; at most those of the archive.
        out_folder: made if it is not there.

    Returns:
        The path of schema.yaml.
    """
    out = Path(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    with np.load(path_npz) as archive:
        edges, labels, classes, counts = (archive[key] for key in ("edges", "y", "classes", "kind"))
    if not 0 < nodes <= len(labels):
        raise ValueError(f"nodes must lie in 1 … {len(labels)}, got {nodes}")
    kind = np.repeat(np.arange(3, dtype=np.int8), counts)
    ids = np.flatnonzero(_chosen(edges, kind, nodes))
    if nodes < len(labels):
        new_id = np.full(len(labels), -1, np.int32)
        new_id[ids] = np.arange(nodes, dtype=np.int32)
        edges = new_id[edges]
        edges = edges[(edges >= 0).all(axis=1)]
        kind, labels = kind[ids], labels[ids]

    _write_nodes(out / "nodes.parquet", ids, labels, classes)
    with pq.ParquetWriter(out / "edges.parquet", pa.schema([("src", pa.int64()), ("dst", pa.int64())])) as writer:
        for block in _cut(edges):
            writer.write_table(pa.table({"src": ids[block[:, 0]], "dst": ids[block[:, 1]]}))
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        built = build_topology(((b[:, 0], b[:, 1]) for b in _cut(edges)), nodes, False, Path(scratch))
        assert built is not None
        for number, (name, wanted) in enumerate(_MODALITIES.items()):
            with (out / f"{name}.npy").open("wb") as file:
                header = {"descr": "<f2", "fortran_order": False, "shape": (nodes, WIDTH)}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, nodes, _ROWS):
                    stop = min(start + _ROWS, nodes)
                    rows = np.empty((stop - start, WIDTH), np.float32)
                    _signs(built.csr.indptr, built.csr.indices, ids, kind, wanted, number, start, rows)
                    file.write(rows.astype(np.float16).data)
    schema = {
        "name": f"contents-{nodes}",
        "nodes": {"file": "nodes.parquet", "id": "id", "label": "section", "split": "split"},
        "modalities": {name: {"file": f"{name}.npy", "dtype": "float16"} for name in _MODALITIES},
        "edges": {"file": "edges.parquet", "source": "src", "target": "dst"},
    }
    (out / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False), encoding="utf-8")
    return out / "schema.yaml"


def _cut(edges: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(edges), 1 << 20):
        yield edges[start : start + (1 << 20)].astype(np.int64)


def _chosen(edges: np.ndarray, kind: np.ndarray, nodes: int) -> np.ndarray:
    """(n,) bool with ``nodes`` True."""
    n = len(kind)
    if nodes == n:
        return np.ones(n, bool)
    is_file = kind[edges[:, 0]] == 2
    file, other = edges[is_file].T
    owned = kind[other] == _PACKAGE
    # A file's place in the order is that of its first package; a package and a directory come with their first file.
    rank = _hash(np.arange(n, dtype=np.uint64)).astype(np.int64) >> 1
    first = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(first, file[owned], rank[other[owned]])
    files = np.flatnonzero(kind == 2)
    place = np.full(n, n)
    place[files[np.lexsort((files, first[files]))]] = np.arange(len(files))
    np.minimum.at(place, other, place[file])
    child, parent = edges[(kind[edges[:, 0]] == _DIRECTORY) & (kind[edges[:, 1]] == _DIRECTORY)].T
    while (place[child] < place[parent]).any():
        np.minimum.at(place, parent, place[child])
    chosen = np.zeros(n, bool)
    chosen[np.argsort(place, kind="stable")[:nodes]] = True
    return chosen


def _write_nodes(path: Path, ids: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> None:
    names = pa.array([str(name) for name in classes])
    share = _hash(ids.astype(np.uint64) + np.uint64(1 << 40)) % np.uint64(100)
    split = share.astype(np.int32)
    table = {
        "id": pa.array(ids),
        "section": pa.DictionaryArray.from_arrays(pa.array(labels.astype(np.int32), mask=labels < 0), names),
        "split": pa.DictionaryArray.from_arrays(pa.array(split, mask=split > 2), pa.array(["train", "val", "test"])),
    }
    pq.write_table(pa.table(table), path)


@jit()
def _mix(x):  # type: ignore[no-untyped-def]
    # splitmix64
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@jit()
def _hash(numbers):  # type: ignore[no-untyped-def]
    hashed = np.empty(len(numbers), np.uint64)
    for i in range(len(numbers)):
        hashed[i] = _mix(numbers[i])
    return hashed


@jit()
def _signs(indptr, indices, ids, kind, wanted, modality, start, rows):  # type: ignore[no-untyped-def]
    for row in range(len(rows)):
        rows[row] = 0.0
        v = start + row
        count = 0
        for i in range(indptr[v], indptr[v + 1]):
            u = indices[i]
            if kind[u] == wanted and count < _NEIGHBOURS:
                count += 1
                for word in range(WIDTH // 64):
                    bits = _mix(np.uint64(ids[u]) * np.uint64(8) + np.uint64(4 * modality + word))
                    for bit in range(64):
                        one = np.float32((bits >> np.uint64(bit)) & np.uint64(1))
                        rows[row, 64 * word + bit] += np.float32(2.0) * one - np.float32(1.0)
        if count == 0:
            rows[row] = np.nan
        else:
            rows[row] /= np.float32(np.sqrt(count * WIDTH))


def main() -> None:
    path_npz, nodes, out_folder = sys.argv[1:]
    print(derive(path_npz, int(nodes), out_folder))


if __name__ == "__main__":
    main()
