"""Stores to compute PPR in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from optimag_dist.store import GraphStore, ingest

from .ppr_oracle import power_law


def make_store(
    folder: Path, ids: Sequence[Any], ends: Sequence[Sequence[Any]], *, directed: bool = False
) -> GraphStore:
    """``folder``/store of nodes ``ids`` with one feature, and edges from ``ends[0]`` to ``ends[1]``."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, "x": np.arange(len(ids)) * 1.0}), folder / "nodes.parquet")
    pq.write_table(pa.table({"a": ends[0], "b": ends[1]}), folder / "edges.parquet")
    schema = {
        "name": "small",
        "nodes": {"file": "nodes.parquet", "id": "id"},
        "modalities": {"x": {"columns": ["x"]}},
        "edges": {"file": "edges.parquet", "source": "a", "target": "b", "directed": directed},
    }
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema), encoding="utf-8")
    return ingest(folder / "schema.yaml", folder / "store", say=lambda line: None)


def power_law_store(folder: Path, num_nodes: int, isolated: int, *, directed: bool) -> GraphStore:
    """A power-law graph, its last ``isolated`` nodes without edges; directed: each edge in one direction only."""
    csr = power_law(num_nodes - isolated, 3, seed=0)
    source = np.repeat(np.arange(csr.num_nodes), np.diff(csr.indptr))
    once = source < csr.indices
    return make_store(folder, np.arange(num_nodes), (source[once], csr.indices[once]), directed=directed)
