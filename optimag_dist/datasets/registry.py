"""The datasets that ship inside the package: list them, find their schema, copy them out.

A dataset is a folder here with a ``schema.yaml`` for ``optimag ingest``, the tables it names, and ``ATTRIBUTION.md``.
What is told about it is read from those files: description, licence and source stand in the node table's metadata.
"""

import difflib
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from optimag_dist.files import sync
from optimag_dist.types import InputError
from optimag_dist.yaml_files import read_yaml

_FOLDER = Path(__file__).parent
_SCHEMA = "schema.yaml"


@dataclass(frozen=True)
class DatasetInfo:
    """What there is to know of a dataset before using it: rows of the two tables, modality → width of its features, and
    names of the labels, sorted."""

    name: str
    description: str
    nodes: int
    edges: int
    modalities: Mapping[str, int]
    classes: tuple[str, ...]
    licence: str
    source: str


def list_datasets() -> list[DatasetInfo]:
    """Every shipped dataset, by name."""
    return [_read_info(name) for name in _names()]


def dataset_schema(name: str) -> Path:
    """The shipped ``schema.yaml`` of ``name``, ready for ``optimag ingest``; ``InputError`` where there is none, which
    gives the nearest name and all names."""
    names = _names()
    if name not in names:
        close = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"unknown dataset {name!r}; {hint}shipped: {', '.join(names)}")
    return _FOLDER / name / _SCHEMA


def copy_dataset(name: str, out: str | Path) -> Path:
    """Copy the tables, schema and attribution of ``name`` to the folder ``out`` and return it.

    The folder appears complete or not at all; ``InputError`` where it exists and is not empty, or cannot be written."""
    source = dataset_schema(name).parent
    # Resolved first: "." and "a/.." have no name beside which a temporary folder could stand.
    target = Path(out).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        kind = "a folder that is not empty" if target.is_dir() else "a file"
        raise InputError(f"{out}: is {kind}; needed a new or an empty folder: give another one or remove it first")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for file in source.iterdir():
            # Contents only: an installed package may be read-only, the user's copy must not be.
            shutil.copyfile(file, temporary / file.name)
            sync(temporary / file.name)
        # Onto an existing folder this works only while it is empty, so nothing can be lost to a race.
        temporary.replace(target)
    except OSError as error:
        raise InputError(f"{out}: the dataset cannot be written there: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _names() -> list[str]:
    return sorted(schema.parent.name for schema in _FOLDER.glob(f"*/{_SCHEMA}"))


def _read_info(name: str) -> DatasetInfo:
    path = dataset_schema(name)
    schema: dict[str, Any] = read_yaml(path, "a schema")
    node_file = pq.ParquetFile(path.with_name(schema["nodes"]["file"]))
    columns = node_file.schema_arrow
    facts = {key.decode(): value.decode() for key, value in columns.metadata.items()}
    label = schema["nodes"]["label"]
    return DatasetInfo(
        name=name,
        description=facts["description"],
        nodes=node_file.metadata.num_rows,
        edges=pq.read_metadata(path.with_name(schema["edges"]["file"])).num_rows,
        modalities={key: columns.field(m["column"]).type.list_size for key, m in schema["modalities"].items()},
        classes=tuple(sorted(node_file.read([label])[label].unique().to_pylist())),
        licence=facts["licence"],
        source=facts["source"],
    )
