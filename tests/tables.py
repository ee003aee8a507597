"""Tables of a graph and the schema that describes them, as a user has them before ingest."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml


def write_tables(
    folder: Path,
    nodes: dict[str, list[Any]],
    edges: Iterable[tuple[str, str]],
    modalities: Iterable[str],
    **columns: str,
) -> Path:
    """Write nodes and edges into ``folder``; returns the schema's file.

    Args:
        nodes: column → values; ``id`` must be one.
        modalities: the columns that are one each.
        columns: of the nodes, by what they mean (``label``, ``split``).
    """
    sources, targets = zip(*edges, strict=True)
    pq.write_table(pa.table(nodes), folder / "nodes.parquet")
    pq.write_table(pa.table({"a": sources, "b": targets}), folder / "edges.parquet")
    schema = {
        "name": folder.name,
        "nodes": {"file": "nodes.parquet", "id": "id", **columns},
        "modalities": {name: {"column": name} for name in modalities},
        "edges": {"file": "edges.parquet", "source": "a", "target": "b"},
    }
    path = folder / "schema.yaml"
    path.write_text(yaml.safe_dump(schema))
    return path
