"""Node and edge tables in Parquet or CSV that a YAML schema describes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.options import load_options
from optimag_dist.store.attributes import AttributeColumn
from optimag_dist.store.edges import NO_EDGES, endpoint_batches
from optimag_dist.store.features import open_features
from optimag_dist.store.nodes import note_missing_words, read_ids, read_labels, read_split
from optimag_dist.store.schema import IngestSchema
from optimag_dist.store.source import AttributeReader, FeatureReader, Labels
from optimag_dist.store.tables import open_table


class TableSource:
    resident_bytes = 0

    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        self._schema = schema = load_options(IngestSchema, path, overrides)
        folder = path.parent
        self._nodes = open_table(folder, schema.nodes.file, _node_columns(schema), "needed at least one node")
        wanted = {"edges.source": schema.edges.source, "edges.target": schema.edges.target}
        self._edges = open_table(folder, schema.edges.file, wanted, NO_EDGES)
        self.name = schema.name
        self.edge_file = self._edges.path
        self.directed: bool | None = schema.edges.directed
        self.num_nodes = self._nodes.num_rows
        self.num_edges = self._edges.num_rows
        self.modalities: Mapping[str, FeatureReader] = {
            name: open_features(name, modality, folder, self._nodes) for name, modality in schema.modalities.items()
        }
        self.attributes: Mapping[str, AttributeReader] = {
            name: AttributeColumn(attribute, folder, self._nodes) for name, attribute in schema.attributes.items()
        }
        arrays = [folder / modality.file for modality in schema.modalities.values() if modality.file is not None]
        self.inputs: tuple[Path, ...] = (*self._nodes.files, *self._edges.files, *arrays)
        self.settings = schema.model_dump_json()
        self.notes: list[str] = [
            f"warning: column {column!r} is the label and among the features of modality {name!r}, so a model is given "
            "what it is to predict; leave it out there"
            for name, modality in schema.modalities.items()
            for column in (modality.column, *(modality.columns or ()))
            if column is not None and column == schema.nodes.label
        ]

    def ids(self) -> pa.Array:
        column = self._schema.nodes.id
        ids = read_ids(self._nodes, column)
        noted = self._nodes.bad_rows(column)
        note_missing_words(ids, noted)
        self.notes += [f"warning: {sentence}" for sentence in noted.sentences()]
        return ids

    def labels(self) -> Labels | None:
        return read_labels(self._nodes, self._schema.nodes)

    def split(self) -> np.ndarray | None:
        return read_split(self._nodes, self._schema.nodes.split)

    def edge_batches(self, ids: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return endpoint_batches(self._edges, self._schema.edges, self._nodes.path, ids, self.notes)


def _node_columns(schema: IngestSchema) -> dict[str, str]:
    wanted = {"nodes.id": schema.nodes.id, "nodes.label": schema.nodes.label, "nodes.split": schema.nodes.split}
    for name, source in schema.modalities.items():
        wanted[f"modalities.{name}.column"] = source.column
        wanted |= {f"modalities.{name}.columns[{i}]": column for i, column in enumerate(source.columns or ())}
    wanted |= {f"attributes.{name}.column": source.column for name, source in schema.attributes.items()}
    return {key: column for key, column in wanted.items() if column is not None}
