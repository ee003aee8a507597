"""A graph store with some edges inserted and deleted: everything but the topology is shared with the old one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.store.csr import arc_places, contains
from optimag_dist.store.derive import derive_store
from optimag_dist.store.edges import endpoint_batches
from optimag_dist.store.layout import TOPOLOGY, StoredFile
from optimag_dist.store.reader import GraphStore
from optimag_dist.store.schema import EdgeTable
from optimag_dist.store.tables import SourceTable, cells, open_table
from optimag_dist.store.writer import write_topology
from optimag_dist.types import CSR, InputError

_OPERATIONS = ("insert", "delete")


@dataclass(frozen=True)
class EdgeChanges:
    """Undirected edges that come and go, each once.

    Attributes:
        inserted: (·, 2) int64 node ids, the smaller one first; none of them is in the graph.
        deleted: (·, 2) int64, likewise; all of them are.
    """

    inserted: np.ndarray
    deleted: np.ndarray

    def __len__(self) -> int:
        return len(self.inserted) + len(self.deleted)


def read_changes(path: str | Path, store: GraphStore) -> EdgeChanges:
    """Read the changes of an undirected ``store`` from a table.

    Its columns: ``source`` and ``target``, users' ids in either order, and ``op``, which is ``insert`` or ``delete``.

    Raises:
        InputError: the store is directed; or a row names no node, joins a node to itself, repeats an edge, inserts one
            that is there or held out, or deletes one that is not there (file, column and row are named).
    """
    path = Path(path)
    if store.directed:
        raise InputError(
            f"{store.path}: the graph is directed, and changes are for undirected ones; change the edge table and "
            "ingest it again"
        )
    columns = {f"the column {name} of changes": name for name in ("source", "target", "op")}
    table = open_table(path.parent, path.name, columns, "needed at least one edge to insert or delete")
    ends = EdgeTable(file=path.name, source="source", target="target")
    batches = list(endpoint_batches(table, ends, store.path, store.id_column))
    pairs = np.stack([np.concatenate([batch[side] for batch in batches]) for side in (0, 1)], axis=1)
    pairs.sort(axis=1)
    operations = table.column("op")
    inserts = _inserts(table, operations)
    _check_edges(table, store, pairs, inserts)
    return EdgeChanges(pairs[inserts], pairs[~inserts])


def change_topology(topology: CSR, changes: EdgeChanges) -> CSR:
    """The in-CSR after ``changes`` of the in-CSR of an undirected graph; rows stay ascending. Takes O(n + m)."""
    gone_rows, gone = both_ways(changes.deleted)
    new_rows, new = both_ways(changes.inserted)
    leave = arc_places(topology, gone_rows, gone)
    enter = arc_places(topology, new_rows, new)
    leave.sort()
    kept = np.delete(topology.indices, leave)
    indices = np.insert(kept, enter - np.searchsorted(leave, enter), new.astype(topology.indices.dtype))
    n = topology.num_nodes
    change = np.bincount(new_rows, minlength=n) - np.bincount(gone_rows, minlength=n)
    indptr = topology.indptr.copy()
    indptr[1:] += np.cumsum(change)
    return CSR(indptr, indices)


def apply_changes(
    store: GraphStore, changes: EdgeChanges, directory: Path, added: Mapping[str, StoredFile] | None = None
) -> GraphStore:
    """Write ``store`` with ``changes`` into ``directory``; files that stay the same are hard links.

    Args:
        store: an undirected one; held-out links of it are carried along as they are.
        changes: see :class:`EdgeChanges`.
        directory: empty but for the files ``added``.
        added: name → file that the new store has beside those of ``store``.

    Raises:
        InputError: the store was replaced by another one meanwhile.
    """
    topology = change_topology(store.topology, changes)
    files = {**(added or {}), TOPOLOGY: write_topology(directory / TOPOLOGY, topology)}
    return derive_store(store, directory, files, num_arcs=topology.num_arcs)


def both_ways(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the arcs of undirected edges, in the order of the CSR."""
    rows, columns = np.concatenate([pairs, pairs[:, ::-1]]).T
    order = np.lexsort((columns, rows))
    return rows[order], columns[order]


def _inserts(table: SourceTable, operations: pa.ChunkedArray) -> np.ndarray:
    """(k,) bool: whether the row inserts its edge."""
    words = np.array(operations.to_pylist(), dtype=object)
    known = [words == operation for operation in _OPERATIONS]
    bad = table.bad_rows("op")
    bad.add(
        "op", np.flatnonzero(~(known[0] | known[1])), lambda row: f"needed 'insert' or 'delete', got {words[row]!r}"
    )
    bad.raise_if_any()
    return known[0]


def _check_edges(table: SourceTable, store: GraphStore, pairs: np.ndarray, inserts: np.ndarray) -> None:
    source, target = cells(table.column("source")), cells(table.column("target"))

    def edge(row: int) -> str:
        return f"the edge {source(row)!r} to {target(row)!r}"

    bad = table.bad_rows("")
    loops = pairs[:, 0] == pairs[:, 1]
    bad.add("loop", np.flatnonzero(loops), lambda row: f"{edge(row)} joins a node to itself; drop the row")
    keys = pairs[:, 0] * store.num_nodes + pairs[:, 1]
    repeated = np.ones(len(keys), bool)
    repeated[np.unique(keys, return_index=True)[1]] = False
    bad.add("twice", np.flatnonzero(repeated), lambda row: f"{edge(row)} stands in an earlier row too; keep one")
    there = contains(store.topology, pairs[:, 0], pairs[:, 1])
    bad.add("there", np.flatnonzero(inserts & there), lambda row: f"{edge(row)} is in the graph already; drop the row")
    if store.links is not None:
        # Both ways of every link are there, so one of them has its smaller end first.
        held_out = [links.sources * store.num_nodes + links.targets for links in (store.links.val, store.links.test)]
        bad.add(
            "held out",
            np.flatnonzero(inserts & np.isin(keys, np.concatenate(held_out))),
            lambda row: f"{edge(row)} is a held-out link, which a model must not see; drop the row",
        )
    missing = np.flatnonzero(~inserts & ~there & ~loops)
    bad.add("missing", missing, lambda row: f"{edge(row)} is not in the graph; there is nothing to delete")
    bad.raise_if_any()
