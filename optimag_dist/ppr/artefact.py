"""The PPR artefact: top-k rows of all nodes on disk, memory-mapped, keyed by graph and options.

A directory with ``meta.json``, written last, and ``block-NNNNNN.arrow`` files: Arrow IPC with the columns ``indices``
(list<int32>), ``values`` (list<float32>) and ``bound`` (float32), one row per node; the schema's metadata names the
artefact the block belongs to, its first node and the digest of its numbers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from optimag_dist.files import atomic
from optimag_dist.integrity import LARGE, MappedFile, checksum, json_digest, read_record, verified_once, write_record
from optimag_dist.options import Options, validate_options
from optimag_dist.ppr.gather import copy_rows, fill_submatrix, row_sizes
from optimag_dist.ppr.topk import check_node_ids
from optimag_dist.progress_bar import progress_bar
from optimag_dist.remote_copies import local_copy
from optimag_dist.storage import AnyPath, RemotePath, located, to_write
from optimag_dist.store.csr import row_pointers
from optimag_dist.store.layout import META, Count, Hex
from optimag_dist.types import InputError

FORMAT_VERSION = 2
_RERUN = "rerun `optimag ppr`"
_SCHEMA = pa.schema([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32())), ("bound", pa.float32())])


class PPROptions(Options):
    """Attributes:
    teleport: β in (0, 1), the probability to jump back to the source at each step.
    eps: residual allowed per degree; each entry is at most eps·degree too small. Ten times smaller is about ten
        times slower.
    k: entries kept per node. What follows changes neither the result nor the artefact's key.
    block_size: nodes per task and per file.
    placement: replicated maps the whole topology on every host; sharded has actors that own parts of it and fetch
        the rest, for a graph larger than a host. It needs ``optimag partition``.
    partition: which partition of the store the actors share out; default: the only one there is.
    actors: of a sharded run; default: the cores of the cluster.
    row_cache_mb: memory of an actor for adjacency rows, of which it keeps the newest.
    in_flight_mb: rows an actor asks others for at a time.
    """

    teleport: float = Field(0.15, gt=0, lt=1)
    eps: float = Field(1e-4, gt=0, allow_inf_nan=False)
    k: int = Field(32, ge=1, le=65536)
    block_size: int = Field(8192, ge=1, le=32767)
    placement: Literal["replicated", "sharded"] = "replicated"
    partition: str | None = None
    actors: int | None = Field(None, ge=1)
    row_cache_mb: float = Field(256, gt=0, le=8191)
    in_flight_mb: float = Field(16, gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class PPRBlock:
    """Rows of the nodes ``first_node … first_node + num_rows − 1`` of the artefact ``key``, views of ``file``:
    ``offsets`` (rows + 1,) int32, ``indices`` and ``values`` (entries,) int32 and float32, ``bounds`` (rows,) float32
    as :meth:`PPRArtefact.bounds` gives them; ``digest`` is the sha256 of these numbers, as stored in the file."""

    key: str
    first_node: int
    offsets: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    bounds: np.ndarray
    digest: str
    file: MappedFile

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    def record(self) -> "BlockRecord":
        return BlockRecord(bytes=self.file.buffer.size, sha256=self.digest, checksum=self.file.checksum())

    def intact(self) -> bool:
        arrays = self.offsets, self.indices, self.values, self.bounds
        return self.digest == _digest(self.key, self.first_node, *arrays)

    def verify(self, num_nodes: int, recorded: "BlockRecord | None" = None) -> None:
        """Read all of the block and compare it with the checksum that was ``recorded``, or with its own digest;
        ``InputError`` where it is another, or the numbers cannot be rows of a graph of ``num_nodes``."""
        if recorded is None or recorded.checksum is None:
            whole = self.intact()
        else:
            whole = recorded.checksum == self.file.checksum()
        if not whole:
            raise self.file.damaged("its checksum does not fit")
        entries = len(self.indices)
        if self.offsets[0] != 0 or self.offsets[-1] != entries or (np.diff(self.offsets) < 0).any():
            raise self.file.damaged("a row lies outside the block")
        if entries and not (self.indices.min() >= 0 and self.indices.max() < num_nodes):
            raise self.file.damaged(f"an entry is none of the {num_nodes:,} nodes")
        if entries and not (self.values.min() >= 0 and self.values.max() <= 1):
            raise self.file.damaged("a value is no probability")
        if not (self.bounds >= 0).all():
            raise self.file.damaged("an error bound is negative")


class BlockRecord(Options):
    """A block as ``meta.json`` lists it: digest of its numbers, checksum of its file (None by older programs)."""

    bytes: Count
    sha256: Hex
    checksum: Hex | None = None


def block_name(index: int) -> str:
    return f"block-{index:06d}.arrow"


def write_block(
    path: Path,
    key: str,
    first_node: int,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    bounds: np.ndarray,
) -> BlockRecord:
    """Write a block atomically; ``indptr`` (rows + 1,) and the rest as in :class:`PPRBlock`."""
    offsets = indptr.astype(np.int32)
    digest = _digest(key, first_node, offsets, indices, values, bounds)
    columns = [
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(indices, pa.int32())),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32())),
        pa.array(bounds, pa.float32()),
    ]
    schema = _SCHEMA.with_metadata({"key": key, "first_node": str(first_node), "sha256": digest})
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    content = memoryview(stream.getvalue())
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return BlockRecord(bytes=len(content), sha256=digest, checksum=checksum(content))


def read_block(path: Path, size: int | None = None) -> PPRBlock:
    """Map a block file, of ``size`` bytes where that is known; its numbers are not looked at. ``InputError``: it is
    missing, or no block written to its end."""
    file = MappedFile(path, size, "rerun `optimag ppr` to rebuild it")
    try:
        table = pa.ipc.open_file(file.buffer)
        if table.num_record_batches != 1 or not table.schema.equals(_SCHEMA):
            raise ValueError("its columns are not those of a PPR block")
        batch = table.get_batch(0)
        batch.validate()
        if any(column.null_count for column in batch.columns):
            raise ValueError("it has nulls")
        metadata = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        indices, values = batch.column("indices"), batch.column("values")
        block = PPRBlock(
            key=metadata["key"],
            first_node=int(metadata["first_node"]),
            offsets=indices.offsets.to_numpy(),
            indices=indices.values.to_numpy(),
            values=values.values.to_numpy(),
            bounds=batch.column("bound").to_numpy(),
            digest=metadata["sha256"],
            file=file,
        )
        # One list of offsets serves both.
        if len(block.values) != len(block.indices) or not values.offsets.equals(indices.offsets):
            raise ValueError("its indices and values do not lie alike")
        return block
    except (OSError, pa.ArrowException, LookupError, AttributeError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: not a complete PPR block ({error}); rerun `optimag ppr` to rebuild it") from error


def _digest(key: str, first_node: int, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(f"{key} {first_node} ".encode())
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class ArtefactMeta(Options):
    """``meta.json``: a record per block file, and what :class:`PPRArtefact` says of itself."""

    format: int
    key: Hex
    graph_hash: str
    num_nodes: int = Field(ge=1, lt=2**31)
    options: PPROptions
    blocks: tuple[BlockRecord, ...]

    @model_validator(mode="after")
    def _fits_together(self) -> "ArtefactMeta":
        if self.key != artefact_key(self.graph_hash, self.options):
            raise ValueError("its key is not that of its graph and options")
        if len(self.blocks) != -(-self.num_nodes // self.options.block_size):
            raise ValueError(f"{len(self.blocks)} blocks do not hold {self.num_nodes} nodes")
        return self


def artefact_key(graph_hash: str, options: PPROptions) -> str:
    """32 hexadecimal digits that change with the graph, β, eps, k or the format, and with nothing else."""
    parts = options.model_dump(include={"teleport", "eps", "k"}) | {"format": FORMAT_VERSION, "graph": graph_hash}
    return json_digest(parts)[:32]


class PPRArtefact:
    """Top-k PPR rows of every node of a graph. Read-only; pickles as its location.

    Methods raise ``InputError`` for a node id outside [0, num_nodes) and for a damaged block.

    Attributes:
        location: absolute path of the directory, or the URI it was opened by.
        path: of the directory on this host; for a URI, its copy in the cache.
        options: teleport, eps, k and the block size it was written with; where it was computed is not recorded.
        graph_hash: of the symmetrised graph.
        key: see :func:`artefact_key`.
    """

    def __init__(self, path: Path, meta: ArtefactMeta, blocks: Sequence[PPRBlock], location: AnyPath) -> None:
        self.path = path
        self.location = location
        self.num_nodes = meta.num_nodes
        self.options = meta.options
        self.graph_hash = meta.graph_hash
        self.key = meta.key
        self._blocks = blocks
        addresses = [[array.ctypes.data for array in (b.offsets, b.indices, b.values)] for b in blocks]
        counts = [[b.num_rows, len(b.indices)] for b in blocks]
        self._table = np.hstack([np.array(addresses, np.int64), np.array(counts, np.int64)])

    @staticmethod
    def open(path: str | AnyPath) -> "PPRArtefact":
        """Map a finished artefact; one at a URI is copied to this host's cache, once. ``InputError``: nothing there,
        unfinished, of another format, or damaged."""
        location = located(path)
        path = local_copy(location, PPRArtefact.open) if isinstance(location, RemotePath) else location.absolute()
        file = path / META
        if not file.is_file():
            state = "is unfinished" if path.is_dir() else "does not exist"
            raise InputError(f"{path}: PPR artefact {state} (no {META}); run `optimag ppr`")
        record = read_record(file, _RERUN)
        version = record.get("format")
        if version != FORMAT_VERSION:
            raise InputError(f"{path}: PPR format {version!r}; this version reads {FORMAT_VERSION}; {_RERUN}")
        meta = validate_options(ArtefactMeta, record, source=f"{file}: damaged, {_RERUN}")
        blocks: list[PPRBlock] = []
        size = meta.options.block_size
        for index, entry in enumerate(meta.blocks):
            block = read_block(path / block_name(index), entry.bytes)
            first, num_rows = index * size, min(size, meta.num_nodes - index * size)
            found = block.key, block.digest, block.first_node, block.num_rows
            if found != (meta.key, entry.sha256, first, num_rows):
                raise InputError(f"{block.file.path}: is not the block that {META} lists; {_RERUN}")
            blocks.append(block)

        def verify() -> None:
            num_bytes, what = sum(entry.bytes for entry in meta.blocks), f"checking PPR {meta.key[:8]}"
            with progress_bar(what, num_bytes, of="bytes", wanted=num_bytes > LARGE) as advance:
                for block, entry in zip(blocks, meta.blocks, strict=True):
                    block.verify(meta.num_nodes, entry)
                    advance(entry.bytes)

        verified_once([block.file.state for block in blocks], meta.model_dump_json(), verify)
        return PPRArtefact(path, meta, blocks, location.absolute())

    @staticmethod
    def finish(
        path: AnyPath, num_nodes: int, options: PPROptions, graph_hash: str, blocks: Sequence[BlockRecord]
    ) -> None:
        """Declare the ``blocks`` in ``path`` a finished artefact."""
        key, chosen = artefact_key(graph_hash, options), {"teleport", "eps", "k", "block_size"}
        meta = ArtefactMeta(
            format=FORMAT_VERSION,
            key=key,
            graph_hash=graph_hash,
            num_nodes=num_nodes,
            options=options,
            blocks=tuple(blocks),
        )
        with to_write(path / META) as file:
            write_record(file, meta.model_dump(mode="json", exclude={"options": set(PPROptions.model_fields) - chosen}))

    def __reduce__(self) -> tuple[object, ...]:
        return PPRArtefact.open, (self.location,)

    def __repr__(self) -> str:
        options = self.options
        chosen = f"teleport={options.teleport}, eps={options.eps}, k={options.k}"
        return f"PPRArtefact({str(self.path)!r}, num_nodes={self.num_nodes}, {chosen})"

    def verify(self) -> None:
        """Compare every block's numbers with their digest, whatever was verified before."""
        for block in self._blocks:
            block.verify(self.num_nodes)

    def rows(self, node_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stored rows of ``node_ids`` (N,), each falling in value: ``(indptr, indices, values)`` of (N + 1,) int64,
        (entries,) int64, (entries,) float32."""
        nodes = check_node_ids(node_ids, self.num_nodes)
        sizes, _ = self._row_sizes(nodes)
        indptr = row_pointers(sizes)
        indices = np.empty(indptr[-1], np.int64)
        values = np.empty(indptr[-1], np.float32)
        copy_rows(self._table, self.options.block_size, nodes, indptr, indices, values)
        return indptr, indices, values

    def mass(self, node_ids: np.ndarray) -> np.ndarray:
        """(N,) float32: the part of each row's unit mass that is stored."""
        return self._row_sizes(check_node_ids(node_ids, self.num_nodes))[1].astype(np.float32)

    def bounds(self, node_ids: np.ndarray) -> np.ndarray:
        """(N,) float32 error bound of each row: no stored entry v is further from PPR than bound·deg(v), nor is 0 where
        v is not stored and the row is shorter than k."""
        block, row = np.divmod(check_node_ids(node_ids, self.num_nodes), self.options.block_size)
        out = np.empty(len(block), np.float32)
        for index in np.unique(block):
            mine = block == index
            out[mine] = self._blocks[index].bounds[row[mine]]
        return out

    def submatrix(self, node_ids: np.ndarray) -> np.ndarray:
        """(N, N) float32 Π_B: entry (i, j) is the stored π of ``node_ids[i]`` at ``node_ids[j]``, else zero."""
        nodes = check_node_ids(node_ids, self.num_nodes)
        out = np.zeros((len(nodes), len(nodes)), np.float32)
        result = fill_submatrix(self._table, self.options.block_size, nodes, out)
        if result == -2:
            distinct, place = np.unique(nodes, return_inverse=True)
            return self.submatrix(distinct)[np.ix_(place, place)]
        self._check_row(result)
        return out

    def _row_sizes(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.empty(len(nodes), np.int64)
        mass = np.empty(len(nodes), np.float64)
        self._check_row(row_sizes(self._table, self.options.block_size, nodes, sizes, mass))
        return sizes, mass

    def _check_row(self, node: int) -> None:
        if node >= 0:
            file = self.path / block_name(node // self.options.block_size)
            raise InputError(f"{file}: the row of node {node} lies outside the block; rerun `optimag ppr`")
