"""Endpoints of an edge table as dense node ids, batch by batch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optimag_dist.store.schema import EdgeTable
from optimag_dist.store.tables import SourceTable, cells, integers_if_plain, null_rows
from optimag_dist.types import InputError

NO_EDGES = "a graph without edges has no structure to align with; name a table with at least one edge"
# Rows looked up at once where ids need no lookup table.
BATCH_EDGES = 1 << 18


def endpoint_batches(
    edges: SourceTable, schema: EdgeTable, nodes: Path, ids: pa.Array
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(sources, targets) of the edges, each (k,) int64 positions in ``ids`` ((n,) int64 or large_string).

    ``nodes`` is where the ids stand, for messages.

    Raises:
        InputError: after the last batch, an empty endpoint or one that is no node; at the first, endpoints of another
            type than the ids.
    """
    # A lookup builds a hash table of all ids, so it has to serve about as many rows.
    counting = is_counting(ids)
    rows = BATCH_EDGES if counting else max(BATCH_EDGES, len(ids) // 2)
    columns = [_Endpoints(edges, column, nodes, ids, counting) for column in (schema.source, schema.target)]
    first = 0
    for arrays in edges.blocks([schema.source, schema.target], rows):
        sources, targets = (column.find(array, first) for column, array in zip(columns, arrays, strict=True))
        first += len(sources)
        yield sources, targets
    for column in columns:
        column.bad.raise_if_any()


class _Endpoints:
    def __init__(self, edges: SourceTable, column: str, nodes: Path, ids: pa.Array, counting: bool) -> None:
        self.bad = edges.bad_rows(column)
        self._edges = edges
        self._column = column
        self._nodes = nodes.name
        self._ids = ids
        self._ids_as_text = ids.cast(pa.large_string()) if pa.types.is_integer(ids.type) and edges.is_text else None
        self._counting = counting

    def find(self, values: pa.Array, first: int) -> np.ndarray:
        """(k,) int64 positions of ``values``, which start at row ``first``; 0 for those noted as bad."""
        empty = null_rows(values)
        self.bad.add("empty", empty + first, lambda _: "the endpoint is empty; every edge needs two nodes")
        if len(empty) == len(values):
            return np.zeros(len(values), np.int64)
        found, unknown = self._positions(values)
        unknown[empty] = False
        self.bad.add(
            "dangling",
            np.flatnonzero(unknown) + first,
            lambda row: (
                f"{cells(values)(row - first)!r} is not the id of any node in {self._nodes}; "
                "add the node or drop the edge"
            ),
        )
        return found

    def _positions(self, values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        keys, ids = self._comparable(values)
        if self._counting and pa.types.is_int64(keys.type):
            numbers = keys.fill_null(0).to_numpy()
            unknown = (numbers < 0) | (numbers >= len(ids))
            return np.where(unknown, 0, numbers) if unknown.any() else numbers, unknown
        found = pc.index_in(keys, value_set=ids)
        unknown = found.is_null().to_numpy(zero_copy_only=False)
        return found.fill_null(0).to_numpy().astype(np.int64), unknown

    def _comparable(self, values: pa.Array) -> tuple[pa.Array, pa.Array]:
        """``values`` and the ids as one type."""
        ids = self._ids
        keys = integers_if_plain(values) if self._ids_as_text is not None else values
        if pa.types.is_integer(ids.type) and pa.types.is_integer(keys.type):
            if keys.type != pa.uint64():
                return keys.cast(pa.int64()), ids
            return keys.cast(pa.large_string()), ids.cast(pa.large_string())
        if self._ids_as_text is not None:
            # Compare as text: '007' is no way to write node 7, and 'x' is simply no node.
            return keys, self._ids_as_text
        if values.type != ids.type:
            wanted = "integers" if pa.types.is_integer(ids.type) else "strings"
            row = int(values.is_valid().index(True).as_py())
            raise InputError(
                f"{self._edges.path}, column {self._column!r}, row {row + 1}: holds {values.type} such as "
                f"{values[row].as_py()!r}, but the ids of {self._nodes} are {wanted} such as {ids[0].as_py()!r}; "
                "cast one of the two columns to the other's type"
            )
        return keys, ids


def is_counting(ids: pa.Array) -> bool:
    """Whether the ids are 0, 1, …, n − 1, so that nothing needs looking up."""
    return pa.types.is_integer(ids.type) and bool(np.array_equal(ids.to_numpy(), np.arange(len(ids))))
