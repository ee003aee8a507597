"""The PPR artefact: top-k rows of all nodes on disk, memory-mapped, keyed by graph and options.

A directory with ``block-NNNNNN.arrow`` files (:mod:`optimag_dist.ppr.block`) and ``meta.json``, which is written last:
a directory without it is unfinished.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from optimag_dist.integrity import read_record, verified_once, write_record
from optimag_dist.options import Options, validate_options
from optimag_dist.ppr.block import BlockRecord, PPRBlock, block_name, read_block
from optimag_dist.ppr.gather import copy_rows, fill_submatrix, row_sizes
from optimag_dist.ppr.options import PPROptions
from optimag_dist.ppr.topk import check_node_ids
from optimag_dist.progress_bar import progress_bar
from optimag_dist.remote_copies import local_copy
from optimag_dist.storage import AnyPath, RemotePath, located, to_write
from optimag_dist.store.layout import Hex
from optimag_dist.types import InputError

FORMAT_VERSION = 2
META_NAME = "meta.json"
_RERUN = "rerun `optimag ppr`"
# What takes less than about a second shows no bar.
_LARGE = 1 << 30


class ArtefactMeta(Options):
    """``meta.json``.

    Attributes:
        format: version of the format.
        key: see :func:`artefact_key`.
        graph_hash: of the symmetrised graph.
        num_nodes: n.
        options: teleport, eps, k and block size.
        blocks: one record per file.
    """

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
    parts = {
        "format": FORMAT_VERSION,
        "graph": graph_hash,
        "teleport": options.teleport,
        "eps": options.eps,
        "k": options.k,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class PPRArtefact:
    """Top-k PPR rows of every node of a graph. Read-only; pickles as its location.

    Attributes:
        location: absolute path of the directory, or the URI it was opened by.
        path: of the directory on this host; for a URI, its copy in the cache.
        num_nodes: n.
        options: teleport, eps, k and the block size it was written with; where it was computed is not recorded.
        graph_hash: of the symmetrised graph.
        key: see :func:`artefact_key`.
    """

    def __init__(
        self,
        path: Path,
        num_nodes: int,
        options: PPROptions,
        graph_hash: str,
        key: str,
        blocks: Sequence[PPRBlock],
        location: AnyPath,
    ) -> None:
        self.path = path
        self.location = location
        self.num_nodes = num_nodes
        self.options = options
        self.graph_hash = graph_hash
        self.key = key
        self._blocks = blocks
        self._table = np.array(
            [
                [b.offsets.ctypes.data, b.indices.ctypes.data, b.values.ctypes.data, b.num_rows, len(b.indices)]
                for b in blocks
            ],
            dtype=np.int64,
        )

    @staticmethod
    def open(path: str | AnyPath) -> "PPRArtefact":
        """Map a finished artefact; one at a URI is copied to this host's cache, once.

        Raises:
            InputError: nothing there, unfinished, of another format, or damaged. What the blocks hold is verified once
                for each user and host.
        """
        location = located(path)
        path = local_copy(location, PPRArtefact.open) if isinstance(location, RemotePath) else location.absolute()
        file = path / META_NAME
        if not file.is_file():
            state = "is unfinished" if path.is_dir() else "does not exist"
            raise InputError(f"{path}: PPR artefact {state} (no {META_NAME}); run `optimag ppr`")
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
                raise InputError(f"{block.file.path}: is not the block that {META_NAME} lists; {_RERUN}")
            blocks.append(block)

        def verify() -> None:
            num_bytes = sum(entry.bytes for entry in meta.blocks)
            with progress_bar(
                f"checking PPR {meta.key[:8]}", num_bytes, of="bytes", wanted=num_bytes > _LARGE
            ) as advance:
                for block, entry in zip(blocks, meta.blocks, strict=True):
                    block.verify(meta.num_nodes, entry)
                    advance(entry.bytes)

        verified_once([block.file.state for block in blocks], meta.model_dump_json(), verify)
        return PPRArtefact(path, meta.num_nodes, meta.options, meta.graph_hash, meta.key, blocks, location.absolute())

    @staticmethod
    def finish(
        path: AnyPath, num_nodes: int, options: PPROptions, graph_hash: str, blocks: Sequence[BlockRecord]
    ) -> None:
        """Declare the ``blocks`` in ``path`` a finished artefact."""
        meta = {
            "format": FORMAT_VERSION,
            "key": artefact_key(graph_hash, options),
            "graph_hash": graph_hash,
            "num_nodes": num_nodes,
            "options": options.model_dump(mode="json", include={"teleport", "eps", "k", "block_size"}),
            "blocks": [block.model_dump(mode="json") for block in blocks],
        }
        with to_write(path / META_NAME) as file:
            write_record(file, meta)

    def __reduce__(self) -> tuple[object, ...]:
        return PPRArtefact.open, (self.location,)

    def __repr__(self) -> str:
        options = self.options
        return (
            f"PPRArtefact({str(self.path)!r}, num_nodes={self.num_nodes}, teleport={options.teleport}, "
            f"eps={options.eps}, k={options.k})"
        )

    def verify(self) -> None:
        """Compare every block's numbers with their digest, whatever was verified before.

        Raises:
            InputError: names the first block whose numbers are not those that were written.
        """
        for block in self._blocks:
            block.verify(self.num_nodes)

    def rows(self, node_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stored rows of ``node_ids`` (N,), each falling in value.

        Returns:
            ``(indptr, indices, values)``: (N + 1,) int64, (entries,) int64, (entries,) float32.

        Raises:
            InputError: a node id outside [0, num_nodes), or a damaged block.
        """
        nodes = check_node_ids(node_ids, self.num_nodes)
        sizes, _ = self._row_sizes(nodes)
        indptr = np.zeros(len(nodes) + 1, np.int64)
        np.cumsum(sizes, out=indptr[1:])
        indices = np.empty(indptr[-1], np.int64)
        values = np.empty(indptr[-1], np.float32)
        copy_rows(self._table, self.options.block_size, nodes, indptr, indices, values)
        return indptr, indices, values

    def mass(self, node_ids: np.ndarray) -> np.ndarray:
        """(N,) float32: the part of each row's unit mass that is stored. Errors as :meth:`rows`."""
        return self._row_sizes(check_node_ids(node_ids, self.num_nodes))[1].astype(np.float32)

    def bounds(self, node_ids: np.ndarray) -> np.ndarray:
        """(N,) float32 error bound of each row: no stored entry v is further from PPR than bound·deg(v), nor is 0 where
        v is not stored and the row is shorter than k. Errors as :meth:`rows`."""
        nodes = check_node_ids(node_ids, self.num_nodes)
        block, row = np.divmod(nodes, self.options.block_size)
        out = np.empty(len(nodes), np.float32)
        for index in np.unique(block):
            mine = block == index
            out[mine] = self._blocks[index].bounds[row[mine]]
        return out

    def submatrix(self, node_ids: np.ndarray) -> np.ndarray:
        """(N, N) float32 Π_B: entry (i, j) is the stored π of ``node_ids[i]`` at ``node_ids[j]``, zero if not stored.

        Reads the rows of ``node_ids`` and nothing else. Errors as :meth:`rows`.
        """
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
