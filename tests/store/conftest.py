"""Writes small graphs as users would."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

WriteGraph = Callable[..., Path]


def _write_table(path: Path, columns: Mapping[str, Any]) -> None:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in zip(*columns.values(), strict=True):
                writer.writerow(["" if cell is None else cell for cell in row])
    else:
        pq.write_table(pa.table(dict(columns)), path)


def _write_graph(
    folder: Path,
    nodes: Mapping[str, Any],
    edges: Mapping[str, Any],
    modalities: Mapping[str, Any],
    ending: str = "parquet",
    directed: bool = False,
    attributes: Mapping[str, Any] | None = None,
    name: str = "toy",
    **node_keys: Any,
) -> Path:
    """Tables ``nodes`` (column 'id' …) and ``edges`` ('src', 'dst') plus schema.yaml, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / f"nodes.{ending}", nodes)
    _write_table(folder / f"edges.{ending}", edges)
    schema = {
        "name": name,
        "nodes": {"file": f"nodes.{ending}", "id": "id", **node_keys},
        "modalities": modalities,
        "attributes": attributes or {},
        "edges": {"file": f"edges.{ending}", "source": "src", "target": "dst", "directed": directed},
    }
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False), encoding="utf-8")
    return folder / "schema.yaml"


@pytest.fixture(scope="session")
def write_graph() -> WriteGraph:
    return _write_graph
