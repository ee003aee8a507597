"""A user's graph into a graph store: everything is checked, then it appears at once."""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from optimag_dist.files import sync
from optimag_dist.progress_bar import progress_bar
from optimag_dist.storage import AnyPath
from optimag_dist.store.arrays import checking_bytes, recut
from optimag_dist.store.arrow_files import ArrowFile, write_batches, write_topology
from optimag_dist.store.columns import ColumnSums, write_columns
from optimag_dist.store.edges import NO_EDGES
from optimag_dist.store.features import checked_blocks
from optimag_dist.store.importers import open_source
from optimag_dist.store.layout import NODES, TOPOLOGY, Modality, StoredFile, StoreMeta, attribute_file, write_meta
from optimag_dist.store.reader import GraphStore
from optimag_dist.store.source import AttributeReader, FeatureReader, GraphSource
from optimag_dist.store.staging import (
    FinishedFile,
    Say,
    Staging,
    bytes_under,
    destination,
    fingerprint,
    make_store,
    put_in_place,
    staging,
    staging_directory,
)
from optimag_dist.store.topology import WINDOW_ARCS, build_topology
from optimag_dist.types import InputError

# Compiled kernels, Arrow's pool and open files.
_PROGRAM_BYTES = 150 << 20


def ingest(
    source_path: str | Path,
    out_path: str | AnyPath,
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
    say: Say = print,
) -> GraphStore:
    """Read the graph at ``source_path`` into a store at ``out_path``.

    Nothing is held in memory but the ids, labels and a few numbers per node. Self loops and repeated edges are dropped
    and their number is said; undirected edges are stored both ways. A store of the same content that is there already
    is left alone. Nothing appears at ``out_path`` before all of it is on the disk, and an older store goes only after
    that; an interrupted ingest goes on with the files it had finished. ``InputError``: the source cannot be used (file,
    column and row are named), ``out_path`` is taken, or the disk has too little room.

    Args:
        source_path: a YAML file (:class:`IngestSchema`; paths in it are relative to its folder), or a file or folder
            of another layout, see :mod:`optimag_dist.store.importers`.
        out_path: the directory to make; for a URI it is made in this host's cache, and sent when it is whole.
        overrides: ``key=value`` changes to the schema or to the importer's options.
        overwrite: replace a store of other content (or a damaged one) that stands at ``out_path``.
    """
    return make_store(destination(out_path), partial(_ingest, Path(source_path), overrides, say), overwrite, say)


def _ingest(source_path: Path, overrides: Sequence[str], say: Say, target: Path, overwrite: bool) -> GraphStore:
    source = open_source(source_path, overrides)
    for note in source.notes:
        say(note)
    said = len(source.notes)
    made_from = fingerprint(source.inputs, source.settings)
    ids = source.ids()
    memory, disk = estimate_needs(source, ids)
    _check_needs(memory, max(0, disk - bytes_under(staging_directory(target))), target, say)
    labels = source.labels()
    split = source.split()

    with staging(target, made_from, disk, say) as stage:
        topology = stage.finished.get(TOPOLOGY) or _write_topology(stage, source, ids)
        if topology.facts["self_loops"] or topology.facts["duplicates"]:
            say(
                f"{source.edge_file}: dropped {topology.facts['self_loops']:,} self loops and "
                f"{topology.facts['duplicates']:,} repeated edges"
            )
        for note in source.notes[said:]:
            say(note)
        columns: dict[str, pa.Array] = {"id": ids}
        if labels is not None:
            columns["label"] = pa.array(labels.codes)
        if split is not None:
            columns["split"] = pa.array(split)
        files: dict[str, StoredFile] = {TOPOLOGY: topology}
        modalities = []
        for name, features in source.modalities.items():
            modality = Modality(name=name, width=features.width, dtype=features.dtype)
            finished = stage.finished.get(modality.file)
            files[modality.file] = finished or _write_modality(stage, modality, features, source.num_nodes, say)
            if derived := stage.finished.get(modality.columns_file):
                files[modality.columns_file] = derived
            modalities.append(modality)
            columns[f"present:{name}"] = pa.array(np.fromfile(stage.scratch / modality.file, np.uint8))
        for name, attribute in source.attributes.items():
            file = attribute_file(name)
            finished = stage.finished.get(file) if attribute.inputs_known else None
            files[file] = finished or _write_attribute(stage, name, attribute, source.num_nodes)
        files[NODES] = write_batches(stage.store / NODES, [columns])
        meta = StoreMeta(
            name=source.name,
            num_nodes=len(ids),
            num_arcs=topology.facts["arcs"],
            directed=bool(topology.facts["directed"]),
            id_type="int64" if pa.types.is_integer(ids.type) else "string",
            modalities=tuple(modalities),
            classes=None if labels is None else labels.classes,
            has_split=split is not None,
            attributes={name: attribute.kind for name, attribute in source.attributes.items()},
            files=files,
        )
        if fingerprint(source.inputs, source.settings) != made_from:
            raise InputError(f"{source_path}: one of its files was changed while it was read; run the command again")
        write_meta(stage.store, meta)
        put_in_place(stage, meta.content_hash, target, overwrite, say)
    return GraphStore.open(target)


def _write_topology(stage: Staging, source: GraphSource, ids: pa.Array) -> FinishedFile:
    # Each is read once, and each of its arcs is sorted into a row.
    steps = source.num_edges * (3 if source.directed is False else 2)
    with progress_bar("edges", steps) as advance:

        def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for sources, targets in source.edge_batches(ids):
                yield sources, targets
                advance(len(sources))

        built = build_topology(counted(), source.num_nodes, source.directed, stage.scratch, sorted_arcs=advance)
    if built is None:
        raise InputError(f"{source.edge_file}: none of {source.num_edges:,} edges joins two known nodes; {NO_EDGES}")
    csr, dropped = built.csr, {"self_loops": built.self_loops, "duplicates": built.duplicates}
    stored = write_topology(stage.store / TOPOLOGY, csr)
    finished = stage.finish(TOPOLOGY, stored, arcs=csr.num_arcs, directed=built.directed, **dropped)
    # The indices, now twice on the disk.
    stage.remove_unfinished()
    return finished


def _write_modality(
    stage: Staging, modality: Modality, reader: FeatureReader, num_nodes: int, say: Say
) -> FinishedFile:
    row = pa.list_(pa.from_numpy_dtype(modality.dtype), modality.width)
    noted = reader.bad.emptied()
    sums = ColumnSums()
    with (
        ArrowFile(stage.store / modality.file, pa.schema([(modality.name, row)])) as file,
        (stage.scratch / modality.file).open("wb") as mask,
        progress_bar(f"modality {modality.name}", num_nodes) as advance,
    ):
        for block, present in recut(checked_blocks(reader, noted), np.concatenate):
            sums.add(block, present)
            file.write(pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), type=row))
            mask.write(present.tobytes())
            advance(len(block))
    sync(stage.scratch / modality.file)
    for sentence in noted.sentences():
        say(f"modality {modality.name}: {sentence}")
    finished = stage.finish(modality.file, file.stored())
    stage.finish(modality.columns_file, write_columns(stage.store / modality.columns_file, sums.columns()))
    return finished


def _write_attribute(stage: Staging, name: str, attribute: AttributeReader, num_nodes: int) -> FinishedFile:
    kind = pa.large_string() if attribute.kind == "text" else pa.large_binary()
    with (
        ArrowFile(stage.store / attribute_file(name), pa.schema([(name, kind)])) as file,
        progress_bar(f"attribute {name}", num_nodes) as advance,
    ):
        for block in attribute.blocks():
            file.write(block)
            advance(len(block))
    return stage.finish(attribute_file(name), file.stored())


def estimate_needs(source: GraphSource, ids: pa.Array) -> tuple[int, int]:
    """Upper estimates of the bytes of memory, mapped files included, and of disk that ingesting ``source`` with ``ids``
    takes beside what is used already; pictures in files of their own not counted."""
    n, m = source.num_nodes, source.num_edges
    arcs = m if source.directed is not False else 2 * m
    index = 4 if n < 2**31 else 8
    sizes = {path: path.stat().st_size for path in source.inputs}
    readers = source.modalities.values()
    nodes, topology = ids.nbytes + n * (5 + len(readers)), 8 * n + index * arcs
    # Text in tables is compressed by about three.
    raw = 3 * sum(sizes.values()) if source.attributes else 0
    # The pairs go before the topology is written, the indices after it.
    written = topology + nodes + n * sum(np.dtype(reader.dtype).itemsize * reader.width for reader in readers) + raw
    disk = max(index * (2 * m + arcs), index * arcs + topology, written)
    # Ids as they are read, checked and looked up, text by a hash table; degrees, labels and positions of every node.
    per_node = (4 if pa.types.is_integer(ids.type) else 9) * ids.nbytes + 80 * n
    tables = min(sum(size for path, size in sizes.items() if path.suffix.lower() == ".parquet"), 1 << 30)
    blocks = max(checking_bytes(n, reader.width, reader.dtype) for reader in readers)
    largest = max(index * min(arcs, WINDOW_ARCS), topology, blocks)
    return _PROGRAM_BYTES + source.resident_bytes + tables + per_node + largest, disk


def _check_needs(memory: int, disk: int, target: Path, say: Say) -> None:
    """Say what the store ``target`` needs and what there is; ``InputError`` where the disk has too little."""
    folder = next(parent for parent in target.parents if parent.exists())
    free, available = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    say(
        f"needs up to about {_size(memory)} of memory ({_size(available)} available) and {_size(disk)} of disk "
        f"({_size(free)} free)"
    )
    if disk > free:
        raise InputError(
            f"{target}: needs about {disk:,} bytes of disk and {folder} has {free:,}; free some or name another disk"
        )
    if memory > available:
        say("warning: that is more memory than there is; if it is killed, close other programs and run it again")


def _size(count: int) -> str:
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
