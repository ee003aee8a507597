"""The edge table as an in-CSR over dense ids."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optimag_dist.store.schema import EdgeTable
from optimag_dist.store.tables import BadRows, SourceTable, cells, integers_if_plain, null_rows
from optimag_dist.types import CSR, InputError

NO_EDGES = "a graph without edges has no structure to align with; name a table with at least one edge"


@dataclass(frozen=True)
class ReadEdges:
    """The topology and what was left out of it.

    Attributes:
        topology: row v holds the sources u of the arcs u→v, ascending.
        self_loops: rows of the edge table dropped because both ends are one node.
        duplicates: rows dropped because an earlier row says the same.
    """

    topology: CSR
    self_loops: int
    duplicates: int


def read_edges(edges: SourceTable, schema: EdgeTable, nodes: SourceTable, ids: pa.Array) -> ReadEdges:
    """Look the endpoints up among ``ids`` ((n,) int64 or large_string) and build the in-CSR.

    Raises:
        InputError: an empty endpoint, one that is no node, endpoints of another type than the ids, or only self loops.
    """
    sources = _endpoints(edges, schema.source, nodes, ids)
    targets = _endpoints(edges, schema.target, nodes, ids)
    proper = sources != targets
    self_loops = len(proper) - int(np.count_nonzero(proper))
    sources, targets = sources[proper], targets[proper]
    if len(sources) == 0:
        raise InputError(f"{edges.path}: all {self_loops} edges join a node to itself; {NO_EDGES}")
    n = len(ids)
    if not schema.directed:
        sources, targets = np.minimum(sources, targets), np.maximum(sources, targets)
    # Not np.unique: its hash table (numpy 2.4) took seventy times as long on two million keys.
    keys = np.sort(targets * n + sources)
    keys = keys[np.diff(keys, prepend=-1) > 0]
    duplicates = len(sources) - len(keys)
    if not schema.directed:
        keys = np.concatenate([keys, keys % n * n + keys // n])
        keys.sort()
    indptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(keys // n, minlength=n), out=indptr[1:])
    indices = (keys % n).astype(np.int32 if n < 2**31 else np.int64)
    return ReadEdges(CSR(indptr, indices), self_loops, duplicates)


def _endpoints(edges: SourceTable, column: str, nodes: SourceTable, ids: pa.Array) -> np.ndarray:
    values = edges.column(column)
    bad = BadRows(edges.path, column)
    bad.add("empty", null_rows(values), lambda _: "the endpoint is empty; every edge needs two nodes")
    bad.raise_if_any()
    known = nodes.path.name
    keys = integers_if_plain(values) if edges.is_text and pa.types.is_integer(ids.type) else values
    if pa.types.is_integer(ids.type) and pa.types.is_integer(keys.type):
        keys = keys.cast(pa.int64()) if keys.type != pa.uint64() else keys.cast(pa.large_string())
        ids = ids.cast(keys.type)
    elif pa.types.is_integer(ids.type) and edges.is_text:
        # Compare as text: '007' is no way to write node 7, and 'x' is simply no node.
        ids = ids.cast(pa.large_string())
    elif values.type != ids.type:
        wanted = "integers" if pa.types.is_integer(ids.type) else "strings"
        raise InputError(
            f"{edges.path}, column {column!r}, row 1: holds {values.type} such as {values[0].as_py()!r}, but the "
            f"ids of {known} are {wanted} such as {ids[0].as_py()!r}; cast one of the two columns to the other's type"
        )
    found = pc.index_in(keys, value_set=ids)
    bad.add(
        "dangling",
        null_rows(found),
        lambda row: f"{cells(values)(row)!r} is not the id of any node in {known}; add the node or drop the edge",
    )
    bad.raise_if_any()
    return found.to_numpy().astype(np.int64)
