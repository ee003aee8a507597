"""A user's tables into a graph store: everything is checked, then it appears at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.options import load_options
from optimag_dist.store.attributes import attribute_blocks
from optimag_dist.store.edges import NO_EDGES, read_edges
from optimag_dist.store.features import checked_blocks, open_features
from optimag_dist.store.layout import (
    NODES,
    TOPOLOGY,
    Modality,
    StoredFile,
    StoreMeta,
    attribute_file,
    check_replaceable,
    publish,
    staging,
    write_meta,
)
from optimag_dist.store.nodes import read_ids, read_labels, read_split
from optimag_dist.store.reader import GraphStore
from optimag_dist.store.schema import AttributeSource, IngestSchema, ModalitySource
from optimag_dist.store.tables import SourceTable, open_table
from optimag_dist.store.writer import ArrowFile
from optimag_dist.types import CSR, InputError


def ingest(
    schema_path: str | Path, out_path: str | Path, *, overwrite: bool = False, say: Callable[[str], None] = print
) -> GraphStore:
    """Read the tables that ``schema_path`` (YAML, :class:`IngestSchema`) describes into a store at ``out_path``.

    Self loops and repeated edges are dropped and their number is said; undirected edges are stored both ways. A store
    of the same content that is there already is left alone. Nothing appears at ``out_path`` before all of it is on the
    disk, and an older store goes only after that.

    Args:
        schema_path: the YAML file; paths in it are relative to its folder.
        out_path: the directory to make.
        overwrite: replace a store of other content (or a damaged one) that stands at ``out_path``.
        say: takes lines for people.

    Raises:
        InputError: the schema or the tables cannot be used (file, column and row are named), or ``out_path`` is taken.
    """
    schema_path = Path(schema_path)
    schema = load_options(IngestSchema, schema_path)
    folder = schema_path.parent
    target = Path(out_path).resolve()
    check_replaceable(target)
    nodes = open_table(folder / schema.nodes.file, _node_columns(schema), "needed at least one node")
    edges = _open_edges(folder, schema)
    ids = read_ids(nodes, schema.nodes.id)
    labels = read_labels(nodes, schema.nodes)
    split = read_split(nodes, schema.nodes.split)
    read = read_edges(edges, schema.edges, nodes, ids)
    if read.self_loops or read.duplicates:
        say(f"{edges.path}: dropped {read.self_loops:,} self loops and {read.duplicates:,} repeated edges")

    with staging(target) as directory:
        columns: dict[str, pa.Array] = {"id": ids}
        if labels is not None:
            columns["label"] = pa.array(labels.codes)
        if split is not None:
            columns["split"] = pa.array(split)
        files = {TOPOLOGY: _write_topology(directory, read.topology)}
        modalities = []
        for name, source in schema.modalities.items():
            modality, present, stored = _write_modality(directory, name, source, folder, nodes)
            modalities.append(modality)
            columns[f"present:{name}"] = pa.array(present.view(np.uint8))
            files[modality.file] = stored
        for name, attribute in schema.attributes.items():
            files[attribute_file(name)] = _write_attribute(directory, name, attribute, folder, nodes)
        files[NODES] = _write_one_batch(directory / NODES, columns)
        meta = StoreMeta(
            name=schema.name,
            num_nodes=len(ids),
            num_arcs=read.topology.num_arcs,
            directed=schema.edges.directed,
            id_type="int64" if pa.types.is_integer(ids.type) else "string",
            modalities=tuple(modalities),
            classes=None if labels is None else labels.classes,
            has_split=split is not None,
            attributes={k: "text" if a.kind == "text" else "image" for k, a in schema.attributes.items()},
            files=files,
        )
        write_meta(directory, meta)
        if _holds(target, meta.content_hash, overwrite):
            say(f"{target}: holds this very graph already; left as it is")
        else:
            publish(directory, target)
    return GraphStore.open(target)


def _open_edges(folder: Path, schema: IngestSchema) -> SourceTable:
    wanted = {"edges.source": schema.edges.source, "edges.target": schema.edges.target}
    return open_table(folder / schema.edges.file, wanted, NO_EDGES)


def _node_columns(schema: IngestSchema) -> dict[str, str]:
    wanted = {"nodes.id": schema.nodes.id, "nodes.label": schema.nodes.label, "nodes.split": schema.nodes.split}
    for name, source in schema.modalities.items():
        wanted[f"modalities.{name}.column"] = source.column
        wanted |= {f"modalities.{name}.columns[{i}]": column for i, column in enumerate(source.columns or ())}
    wanted |= {f"attributes.{name}.column": source.column for name, source in schema.attributes.items()}
    return {key: column for key, column in wanted.items() if column is not None}


def _write_topology(directory: Path, topology: CSR) -> StoredFile:
    rows = pa.LargeListArray.from_arrays(pa.array(topology.indptr), pa.array(topology.indices))
    return _write_one_batch(directory / TOPOLOGY, {"sources": rows})


def _write_one_batch(path: Path, columns: dict[str, pa.Array]) -> StoredFile:
    # One batch, so that each column is one contiguous array in the map.
    with ArrowFile(path, pa.schema([(name, column.type) for name, column in columns.items()])) as file:
        file.write(*columns.values())
    return file.stored()


def _write_modality(
    directory: Path, name: str, source: ModalitySource, folder: Path, nodes: SourceTable
) -> tuple[Modality, np.ndarray, StoredFile]:
    reader = open_features(name, source, folder, nodes)
    modality = Modality(name=name, width=reader.width, dtype=source.dtype)
    row = pa.list_(pa.from_numpy_dtype(modality.dtype), modality.width)
    masks = []
    with ArrowFile(directory / modality.file, pa.schema([(name, row)])) as file:
        for block, present in checked_blocks(reader, modality.dtype):
            file.write(pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), type=row))
            masks.append(present)
    return modality, np.concatenate(masks), file.stored()


def _write_attribute(
    directory: Path, name: str, source: AttributeSource, folder: Path, nodes: SourceTable
) -> StoredFile:
    kind = pa.large_string() if source.kind == "text" else pa.large_binary()
    with ArrowFile(directory / attribute_file(name), pa.schema([(name, kind)])) as file:
        for block in attribute_blocks(source, folder, nodes):
            file.write(block)
    return file.stored()


def _holds(target: Path, content_hash: str, overwrite: bool) -> bool:
    """Whether a sound store of this content stands at ``target``; raises when another one must not be replaced."""
    if not target.exists() or not any(target.iterdir()):
        return False
    try:
        standing = GraphStore.open(target)
        if standing.content_hash == content_hash:
            standing.verify()
            return True
        problem = f"{target}: holds another graph ({standing.name}, hash {standing.content_hash[:16]})"
    except InputError as error:
        problem = str(error)
    if not overwrite:
        raise InputError(f"{problem}; name another folder, or ask for the old one to be overwritten (overwrite)")
    return False
