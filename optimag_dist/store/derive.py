"""Stores that share most of their files with another one: with one more modality, or other edges."""

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from optimag_dist.files import sync
from optimag_dist.store.arrays import recut
from optimag_dist.store.arrow_files import ArrowFile, write_batches, write_topology
from optimag_dist.store.columns import ColumnSums, write_columns
from optimag_dist.store.csr import arc_places, contains
from optimag_dist.store.edges import endpoint_batches
from optimag_dist.store.layout import NODES, TOPOLOGY, Modality, StoredFile, check_names, read_meta, write_meta
from optimag_dist.store.reader import GraphStore
from optimag_dist.store.schema import EdgeTable
from optimag_dist.store.tables import SourceTable, cells, open_table
from optimag_dist.types import CSR, InputError


def derive_store(store: GraphStore, directory: Path, files: Mapping[str, StoredFile], **changes: Any) -> GraphStore:
    """Finish the store in ``directory``, where the new ``files`` are; the others become hard links to ``store``'s, and
    ``changes`` are the fields of ``meta.json`` that differ. ``InputError`` where the store was replaced meanwhile."""
    meta = read_meta(store.path)
    for name in meta.files.keys() - files.keys():
        try:
            os.link(store.path / name, directory / name)
        except OSError as error:
            # Another disk, or a file system without hard links.
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            shutil.copyfile(store.path / name, directory / name)
            sync(directory / name)
    if read_meta(store.path).content_hash != store.content_hash:
        raise InputError(f"{store.path}: the store was replaced by another one while in use; start again")
    write_meta(directory, meta.model_copy(update={**changes, "files": {**meta.files, **files}}))
    return GraphStore.open(directory)


def check_modality_name(store: GraphStore, name: str) -> None:
    """Raise ``InputError`` unless ``store`` can have a modality called ``name``."""
    alike = [other for other in store.modalities if other.lower() == name.lower() and other != name]
    check_names([name, *alike], f"modality={name}: ")


def add_modality(
    store: GraphStore,
    modality: Modality,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    directory: Path,
    made_from: Mapping[str, str],
) -> GraphStore:
    """Write ``store`` with ``modality``, in the place of the one of its name or last, into the empty ``directory``;
    files that stay the same are hard links.

    ``blocks`` are (k, width) of the modality's dtype, finite, zeros in absent rows, and (k,) bool present; all nodes in
    order, cut anywhere. ``made_from`` are notes kept in the modality's file, see :meth:`GraphStore.notes`.
    ``InputError``: no node has a value, or the store was replaced by another one meanwhile.
    """
    row = pa.list_(pa.from_numpy_dtype(modality.dtype), modality.width)
    present, sums = [], ColumnSums()
    with ArrowFile(directory / modality.file, pa.schema([(modality.name, row)], dict(made_from))) as file:
        for values, there in recut(blocks, np.concatenate):
            sums.add(values, there)
            file.write(pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=row))
            present.append(there)
    if not any(there.any() for there in present):
        raise InputError(f"{store.path}: no node has a value in modality {modality.name!r}; there is nothing to add")
    columns = {**store.node_columns, f"present:{modality.name}": pa.array(np.concatenate(present).view(np.uint8))}
    files = {
        modality.file: file.stored(),
        modality.columns_file: write_columns(directory / modality.columns_file, sums.columns()),
        NODES: write_batches(directory / NODES, [columns]),
    }
    modalities = tuple({**store.modalities, modality.name: modality}.values())
    return derive_store(store, directory, files, modalities=modalities)


@dataclass(frozen=True)
class EdgeChanges:
    """Undirected edges that come and go, each once: (·, 2) int64 node ids, the smaller one first. None of those
    ``inserted`` is in the graph, and all of those ``deleted`` are."""

    inserted: np.ndarray
    deleted: np.ndarray


def read_changes(path: str | Path, store: GraphStore) -> EdgeChanges:
    """Read the changes of an undirected ``store`` from a table with the columns ``source`` and ``target``, users' ids
    in either order, and ``op``, which is ``insert`` or ``delete``. ``InputError``: the store is directed; or a row
    names no node, joins a node to itself, repeats an edge, inserts one that is there or held out, or deletes one that
    is not there (file, column and row are named)."""
    path = Path(path)
    if store.directed:
        raise InputError(f"{store.path}: the graph is directed, changes are for undirected ones; ingest changed tables")
    columns = {f"the column {name} of changes": name for name in ("source", "target", "op")}
    table = open_table(path.parent, path.name, columns, "needed at least one edge to insert or delete")
    ends = EdgeTable(file=path.name, source="source", target="target")
    batches = list(endpoint_batches(table, ends, store.path, store.id_column))
    pairs = np.stack([np.concatenate([batch[side] for batch in batches]) for side in (0, 1)], axis=1)
    pairs.sort(axis=1)
    words = np.array(table.column("op").to_pylist(), dtype=object)
    inserts, bad = words == "insert", table.bad_rows("op")
    unknown = np.flatnonzero(~inserts & (words != "delete"))
    bad.add("op", unknown, lambda row: f"needed 'insert' or 'delete', got {words[row]!r}")
    bad.raise_if_any()
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
    """Write ``store``, undirected, with ``changes`` into ``directory``, empty but for files ``added``; others are
    linked."""
    topology = change_topology(store.topology, changes)
    files = {**(added or {}), TOPOLOGY: write_topology(directory / TOPOLOGY, topology)}
    return derive_store(store, directory, files, num_arcs=topology.num_arcs)


def both_ways(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the arcs of undirected edges, in the order of the CSR."""
    rows, columns = np.concatenate([pairs, pairs[:, ::-1]]).T
    order = np.lexsort((columns, rows))
    return rows[order], columns[order]


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
