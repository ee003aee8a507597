"""Divides a graph store into parts that hosts can own, and writes one self-contained shard per part.

Methods, by what they cost: ``metis`` (multilevel, in memory) cuts the fewest edges; ``streaming`` places node after
node where most of its neighbours are (Fennel: Tsourakakis et al., WSDM 2014); ``hash`` looks at no edge. To the first
two a node weighs one half for itself and one half for its share of the arcs, and parts are of nearly equal weight.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pyarrow as pa
import pymetis
from pydantic import Field
from rich.table import Table

from optimag_dist.files import sole_writer
from optimag_dist.integrity import json_digest, write_record
from optimag_dist.jit import jit
from optimag_dist.options import Options
from optimag_dist.progress_bar import progress_bar
from optimag_dist.store.arrow_files import write_batches
from optimag_dist.store.csr import copy_rows, graph_hash, row_pointers, symmetrise
from optimag_dist.store.layout import BATCH_ROWS, META
from optimag_dist.store.reader import GraphStore
from optimag_dist.store.shards import ASSIGNMENT, Method, Partition, PartitionMeta, feature_file, shard_file
from optimag_dist.types import CSR, InputError, RunError

PARTITIONS = "partitions"
_METIS_ARCS = 20_000_000
# Resident bytes of METIS above those of the graph it is given; measured on five graphs: 50 to 84 per arc, all in all.
_METIS_BYTES_PER_ARC, _METIS_BYTES_PER_NODE = 100, 200
_STREAM_CHUNK = 1 << 18
# How much heavier than the mean a part of the streaming method may become.
_SLACK = 1.1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class PartitionOptions(Options):
    """Attributes:
    parts: shards to make; more than there are hosts or actors, so that these can change without partitioning again.
    method: auto takes METIS up to 20 million arcs where memory allows, streaming beyond.
    seed: of metis and hash; streaming draws nothing.
    features: give every shard its nodes' features, so that training can do without the store.
    """

    parts: int = Field(16, ge=1, le=65535)
    method: Literal["auto", Method] = "auto"
    seed: int = Field(0, ge=0, lt=2**63)
    features: bool = False


def partition_store(store: GraphStore, options: PartitionOptions, *, progress: bool = True) -> Partition:
    """Partition the undirected graph of ``store`` into ``store.path/partitions/<key>``.

    A partition of the same content and options that is there is checked and returned. When several processes ask for
    the same, one works and the others wait. Nothing that looks whole is there before everything is on the disk.
    ``InputError``: more parts than nodes, METIS asked for a graph that does not fit into memory, or the partition that
    is there is damaged. ``RunError``: METIS gave up.
    """
    if options.parts > store.num_nodes:
        raise InputError(f"parts: {options.parts} parts for {store.num_nodes:,} nodes; needed at most one per node")
    graph = symmetrise(store.topology)
    method = choose_method(graph, options.method)
    target = store.path / PARTITIONS / _key(store, method, options)
    with sole_writer(target.parent):
        if (target / META).exists():
            partition = Partition.open(target)
            partition.verify()
            return partition
        # What a killed run has left.
        shutil.rmtree(target, ignore_errors=True)
        try:
            with progress_bar(f"partition: {method}", store.num_nodes, wanted=progress) as advance:
                part = assign(graph, options.parts, method, options.seed, advance)
            target.mkdir()
            with progress_bar("partition: writing shards", options.parts, wanted=progress) as advance:
                meta = _write(target, store, graph, part, method, options, advance)
            write_record(target / META, meta.model_dump(mode="json"))
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    return Partition.open(target)


def find_partition(store_path: Path, store_hash: str, key: str | None) -> Partition:
    """The partition of a store named ``key``, or the only one there is; it must be of the store's content."""
    folder = Path(store_path) / PARTITIONS
    keys = sorted(file.parent.name for file in folder.glob(f"*/{META}"))
    if not keys:
        raise InputError(f"{store_path}: is not partitioned; run optimag partition {store_path}")
    if key is None and len(keys) > 1:
        raise InputError(f"{folder}: holds several partitions; choose one with partition=KEY from {', '.join(keys)}")
    if key is not None and key not in keys:
        raise InputError(f"partition: no {key!r} in {folder}; there is {', '.join(keys)}")
    partition = Partition.open(folder / (key or keys[0]))
    if partition.meta.store_hash != store_hash:
        raise InputError(f"{partition.path}: is of another content; delete it and run optimag partition {store_path}")
    return partition


def choose_method(graph: CSR, wanted: Literal["auto", Method]) -> Method:
    """The method for ``graph``; ``wanted`` as in :class:`PartitionOptions`."""
    if wanted == "streaming" or wanted == "hash":
        return wanted
    needed, available = metis_bytes(graph), psutil.virtual_memory().available
    if wanted == "metis" and needed > available:
        raise InputError(
            f"method=metis: needs about {needed / 2**30:.1f} GiB ({_METIS_BYTES_PER_ARC} bytes per arc and "
            f"{_METIS_BYTES_PER_NODE} per node), {available / 2**30:.1f} GiB are free; use method=streaming"
        )
    return "metis" if wanted == "metis" or (graph.num_arcs <= _METIS_ARCS and needed <= available) else "streaming"


def metis_bytes(graph: CSR) -> int:
    return _METIS_BYTES_PER_ARC * graph.num_arcs + _METIS_BYTES_PER_NODE * graph.num_nodes


def assign(
    graph: CSR, parts: int, method: str, seed: int = 0, advance: Callable[[int], object] = lambda nodes: None
) -> np.ndarray:
    """(n,) uint16 part of each node of an undirected graph without self loops; the same for the same arguments.
    ``parts`` is at most n; ``advance`` is told how many more nodes the streaming method has placed."""
    n = graph.num_nodes
    if parts == 1:
        return np.zeros(n, np.uint16)
    if method == "hash":
        # A second multiplication: with one, consecutive ids would be dealt out in a regular pattern.
        mixed = (np.arange(n, dtype=np.uint64) + np.uint64(seed)) * _GOLDEN
        mixed ^= mixed >> np.uint64(32)
        mixed *= _GOLDEN
        return (((mixed >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32)).astype(np.uint16)
    if method == "metis":
        return _metis_parts(graph, parts, seed)
    part = np.full(n, parts, np.uint16)
    load = np.zeros(parts, np.float64)
    scratch = np.zeros(parts, np.int64)
    for start in range(0, n, _STREAM_CHUNK):
        stop = min(start + _STREAM_CHUNK, n)
        _stream(graph.indptr, graph.indices, start, stop, _SLACK, part, load, scratch)
        advance(stop - start)
    return part


def _metis_parts(graph: CSR, parts: int, seed: int) -> np.ndarray:
    # METIS wants integers; hundredths of a node's own weight are fine enough beside the 3 % it lets parts differ by.
    weights = np.rint(100 + 100 * np.diff(graph.indptr) * (graph.num_nodes / max(1, graph.num_arcs))).astype(np.int64)
    adjacency = pymetis.CSRAdjacency(graph.indptr, graph.indices.astype(np.int64))
    try:
        _, part = pymetis.part_graph(parts, adjacency, vweights=weights, options=pymetis.Options(seed=seed))
    except RuntimeError as error:
        raise RunError(f"METIS gave up on this graph ({error}); use method=streaming") from error
    return np.array(part, np.uint16)


@jit(nogil=True)
def _stream(indptr, indices, start, stop, slack, part, load, shared):  # type: ignore[no-untyped-def]
    """Place nodes ``start … stop − 1``; ``part`` is the number of parts where no node has been placed yet.

    Nodes weigh as the module says, in units in which all weigh n. One goes where (neighbours there) − α·1.5·√load is
    largest, α = √parts · edges / n^1.5, among the parts that have room.
    """
    n, parts = len(indptr) - 1, len(load)
    arcs = max(1, len(indices))
    room = slack * n / parts
    price = 1.5 * np.sqrt(parts) * (0.5 * arcs) / n**1.5
    for v in range(start, stop):
        weight = 0.5 + 0.5 * (indptr[v + 1] - indptr[v]) * n / arcs
        for e in range(indptr[v], indptr[v + 1]):
            if part[indices[e]] < parts:
                shared[part[indices[e]]] += 1
        best, lightest = -1, 0
        best_score = 0.0
        for p in range(parts):
            if load[p] < load[lightest]:
                lightest = p
            score = shared[p] - price * np.sqrt(load[p])
            if load[p] + weight <= room and (best < 0 or score > best_score):
                best, best_score = p, score
            shared[p] = 0
        best = lightest if best < 0 else best
        part[v] = best
        load[best] += weight


@jit(nogil=True)
def _crossing_arcs(indptr, indices, part):  # type: ignore[no-untyped-def]
    cut = 0
    for v in range(len(indptr) - 1):
        for e in range(indptr[v], indptr[v + 1]):
            cut += part[v] != part[indices[e]]
    return cut


def _write(
    directory: Path,
    store: GraphStore,
    graph: CSR,
    part: np.ndarray,
    method: Method,
    options: PartitionOptions,
    advance: Callable[[int], object],
) -> PartitionMeta:
    degrees = np.diff(graph.indptr)
    part_nodes = np.bincount(part, minlength=options.parts)
    order = np.argsort(part, kind="stable")
    starts = np.cumsum(part_nodes) - part_nodes
    row = np.empty(len(part), np.int32)
    row[order] = np.arange(len(part)) - np.repeat(starts, part_nodes)
    columns = {"part": pa.array(part), "row": pa.array(row), "degree": pa.array(degrees, pa.int32())}
    files = {ASSIGNMENT: write_batches(directory / ASSIGNMENT, [columns])}
    modalities = tuple(store.modalities.values()) if options.features else ()
    for index in range(options.parts):
        nodes = order[starts[index] : starts[index] + part_nodes[index]]
        files[shard_file(index)] = write_batches(directory / shard_file(index), [_shard_columns(graph, nodes)])
        for modality in modalities:
            name = feature_file(index, modality.name)
            files[name] = write_batches(directory / name, _feature_columns(store, modality.name, nodes))
        advance(1)
    return PartitionMeta(
        method=method,
        parts=options.parts,
        seed=options.seed,
        store_hash=store.content_hash,
        graph_hash=graph_hash(graph),
        num_nodes=graph.num_nodes,
        num_arcs=graph.num_arcs,
        edge_cut=int(_crossing_arcs(graph.indptr, graph.indices, part)) / max(1, graph.num_arcs),
        part_nodes=tuple(part_nodes.tolist()),
        part_arcs=tuple(np.bincount(part, weights=degrees, minlength=options.parts).astype(int).tolist()),
        modalities=modalities,
        files=files,
    )


def _shard_columns(graph: CSR, nodes: np.ndarray) -> dict[str, pa.Array]:
    indptr = row_pointers(graph.indptr[nodes + 1] - graph.indptr[nodes])
    indices = np.empty(indptr[-1], np.int32)
    copy_rows(graph.indptr, graph.indices, nodes, indptr, np.arange(len(nodes)), indices)
    neighbours = pa.LargeListArray.from_arrays(pa.array(indptr), pa.array(indices))
    return {"node": pa.array(nodes, pa.int32()), "neighbours": neighbours}


def _feature_columns(store: GraphStore, modality: str, nodes: np.ndarray) -> Iterator[dict[str, pa.Array]]:
    present = store.present(modality).view(np.uint8)
    # A part without nodes still has one batch: readers need no case for it.
    for start in range(0, max(1, len(nodes)), BATCH_ROWS):
        rows = nodes[start : start + BATCH_ROWS]
        values = store.gather(modality, rows)
        features = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        yield {"features": features, "present": pa.array(present[rows])}


def _key(store: GraphStore, method: str, options: PartitionOptions) -> str:
    parts = options.model_dump(exclude={"method"}) | {"store": store.content_hash, "method": method}
    return f"{method}-{options.parts}-{json_digest(parts)[:12]}"


def as_table(meta: PartitionMeta) -> Table:
    table = Table("method", "parts", "edges cut", "largest part: nodes", "arcs", "bytes", title="partition")
    largest = [
        f"{max(sizes):,} ({max(sizes) * meta.parts / max(meta.parts, sum(sizes)):.2f} × mean)"
        for sizes in (meta.part_nodes, meta.part_arcs)
    ]
    num_bytes = sum(file.size for file in meta.files.values())
    table.add_row(meta.method, str(meta.parts), f"{meta.edge_cut:.1%}", *largest, f"{num_bytes:,}")
    return table
