"""The nodes that a user lists, by the user's own ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from optimag_dist.store import GraphStore
from optimag_dist.store.bad_rows import shown
from optimag_dist.store.edges import IdColumn
from optimag_dist.store.ids import NodeIds
from optimag_dist.store.tables import open_list
from optimag_dist.types import InputError


def read_ids(path: Path, store: GraphStore) -> list[Any]:
    """Users' ids from a file: column ``id`` of a table as ingest reads them, or a text file with one id per line.
    ``InputError``: no such file, no such column, no id in it, an empty or repeated one, or one that no node has (file
    and row are named)."""
    table = open_list(path, "id")
    values = pa.concat_arrays(table.column("id").chunks)
    column = IdColumn(table, "id", store.path, NodeIds(store.id_column), "correct it or drop the row")
    nodes, _ = column.find(values, 0)
    column.bad.raise_if_any()
    column.unknown.raise_if_any()
    _, firsts = np.unique(nodes, return_index=True)
    column.bad.add(
        "twice",
        np.setdiff1d(np.arange(len(nodes)), firsts),
        lambda row: f"{shown(values[row].as_py())} is listed in an earlier row too; list every id once",
    )
    column.bad.raise_if_any()
    return store.ids(nodes)


def distinct_nodes(store: GraphStore, user_ids: Sequence[Any]) -> np.ndarray:
    """(k,) int64 nodes of ``user_ids``; ``InputError`` where no node has an id, or one is listed twice."""
    nodes = store.lookup(user_ids)
    distinct, first = np.unique(nodes, return_index=True)
    if len(distinct) < len(nodes):
        place = int(np.setdiff1d(np.arange(len(nodes)), first)[0])
        raise InputError(f"nodes: {shown(user_ids[place])} is listed again at row {place + 1}; list every id once")
    return nodes
