"""Endpoints of an edge table as dense node ids, batch by batch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.store.bad_rows import shown
from optimag_dist.store.ids import NodeIds
from optimag_dist.store.schema import EdgeTable
from optimag_dist.store.tables import SourceTable, cells, null_rows

NO_EDGES = "a graph without edges has no structure to align with; name a table with at least one edge"
# Rows looked up at once where ids need no lookup table.
BATCH_EDGES = 1 << 18
_MOST_LISTED = 10


def endpoint_batches(
    edges: SourceTable, schema: EdgeTable, nodes: Path, ids: pa.Array, notes: list[str] | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(sources, targets) of the edges, each (k,) int64 positions in ``ids`` ((n,) int64 or large_string).

    ``nodes`` is where the ids stand, for messages. With ``schema.unknown`` to drop, edges of ids that no node has are
    left out, and ``notes`` gets a sentence about them. ``InputError``: after the last batch, an empty endpoint or one
    that is no node; at the first, endpoints of another type than the ids.
    """
    known = NodeIds(ids)
    # A lookup builds a hash table of all ids, so it has to serve about as many rows.
    rows = BATCH_EDGES if known.counting else max(BATCH_EDGES, len(ids) // 2)
    drop = schema.unknown == "drop"
    remedy = "the edge is dropped" if drop else "add the node, drop the edge, or write edges.unknown: drop"
    columns = [IdColumn(edges, column, nodes, known, remedy) for column in (schema.source, schema.target)]
    first, dropped = 0, 0
    strangers: dict[object, None] = {}
    for arrays in edges.blocks([schema.source, schema.target], rows):
        (sources, no_source), (targets, no_target) = (
            column.find(array, first) for column, array in zip(columns, arrays, strict=True)
        )
        first += len(sources)
        if drop and (lost := no_source | no_target).any():
            dropped += int(lost.sum())
            for array, missing in zip(arrays, (no_source, no_target), strict=True):
                if len(strangers) <= _MOST_LISTED:
                    strangers.update(dict.fromkeys(array.filter(pa.array(missing)).unique().to_pylist()))
            sources, targets = sources[~lost], targets[~lost]
        yield sources, targets
    for column in columns:
        column.bad.raise_if_any()
        if not drop:
            column.unknown.raise_if_any()
    if dropped and notes is not None:
        names = list(strangers)
        more = ", …" if len(names) > _MOST_LISTED else ""
        notes.append(
            f"{edges.path}: dropped {dropped:,} of {first:,} edges, to or from ids that no node has: "
            f"{', '.join(map(shown, names[:_MOST_LISTED]))}{more}; the first: "
            + next(column.unknown.sentences()[0] for column in columns if column.unknown.sentences())
        )


class IdColumn:
    """A column that names nodes by their ids; notes empty cells, and ids that no node has, which ``remedy`` is for."""

    def __init__(self, table: SourceTable, column: str, nodes: Path, known: NodeIds, remedy: str) -> None:
        self.bad = table.bad_rows(column)
        self.unknown = table.bad_rows(column)
        self._is_text = table.is_text
        self._nodes = nodes.name
        self._known = known
        self._remedy = remedy

    def find(self, values: pa.Array, first: int) -> tuple[np.ndarray, np.ndarray]:
        """(k,) int64 positions of ``values``, from row ``first`` on, 0 where there is none; (k,) bool which are no
        node."""
        empty = null_rows(values)
        self.bad.add("empty", empty + first, lambda _: "the id of a node is empty; fill it or drop the row")
        if len(empty) == len(values):
            return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
        result = self._known.find(values, self._is_text)
        if result is None:
            row = int(values.is_valid().index(True).as_py())
            words = (
                f"holds {values.type} such as {shown(values[row].as_py())}, but the ids of {self._nodes} are "
                f"{self._known.kind} such as {shown(self._known.ids[0].as_py())}; cast one of the two columns to the "
                "other's type"
            )
            self.bad.add("type", np.array([row + first]), lambda _: words)
            self.bad.raise_if_any()
            raise AssertionError
        found, unknown = result
        unknown[empty] = False
        self.unknown.add(
            "unknown",
            np.flatnonzero(unknown) + first,
            lambda row: (
                f"{shown(value := cells(values)(row - first))} is not the id of any node in {self._nodes}"
                f"{self._known.near_miss(value)}; {self._remedy}"
            ),
        )
        return found, unknown
