"""The PPR artefact: top-k rows of all nodes on disk, memory-mapped, keyed by graph and options.

A directory with ``block-NNNNNN.arrow`` files (:mod:`optimag_dist.ppr.block`) and ``meta.json``, which is written last:
a directory without it is unfinished.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optimag_dist.files import atomic
from optimag_dist.ppr.block import PPRBlock, block_name, read_block
from optimag_dist.ppr.gather import copy_rows, fill_submatrix, row_sizes
from optimag_dist.ppr.options import PPROptions
from optimag_dist.ppr.topk import check_node_ids
from optimag_dist.storage import AnyPath, RemotePath, file_sizes, local_copy, located, to_write
from optimag_dist.types import InputError

FORMAT_VERSION = 2
META_NAME = "meta.json"


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
            InputError: nothing there, unfinished, of another format, or a block is missing, truncated or foreign.
                (Changed numbers within a block are found by :meth:`verify`, which reads everything.)
        """
        location = located(path)
        path = local_copy(location, PPRArtefact.open) if isinstance(location, RemotePath) else location.absolute()
        try:
            meta = json.loads((path / META_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            state = "is unfinished" if path.is_dir() else "does not exist"
            raise InputError(f"{path}: PPR artefact {state} (no {META_NAME}); run `optimag ppr`") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path / META_NAME}: not readable ({error}); rerun `optimag ppr`") from error
        version = meta.get("format") if isinstance(meta, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path}: PPR format {version!r}; this version reads {FORMAT_VERSION}; rerun `optimag ppr`"
            )
        options = PPROptions.model_validate(meta["options"])
        blocks: list[PPRBlock] = []
        for index, entry in enumerate(meta["blocks"]):
            file = path / block_name(index)
            size = file.stat().st_size if file.is_file() else None
            if size != entry["bytes"]:
                came = "is missing" if size is None else f"has {size} bytes"
                raise InputError(f"{file}: needed {entry['bytes']} bytes, the file {came}; rerun `optimag ppr`")
            block = read_block(file)
            expected_rows = min(options.block_size, meta["num_nodes"] - index * options.block_size)
            if (block.key, block.checksum, block.num_rows) != (meta["key"], entry["sha256"], expected_rows):
                raise InputError(f"{file}: is not the block that {META_NAME} lists; rerun `optimag ppr`")
            blocks.append(block)
        return PPRArtefact(
            path, meta["num_nodes"], options, meta["graph_hash"], meta["key"], blocks, location.absolute()
        )

    @staticmethod
    def finish(path: AnyPath, num_nodes: int, options: PPROptions, graph_hash: str, checksums: Sequence[str]) -> None:
        """Declare the blocks in ``path`` a finished artefact."""
        sizes = file_sizes(path)
        meta = {
            "format": FORMAT_VERSION,
            "key": artefact_key(graph_hash, options),
            "graph_hash": graph_hash,
            "num_nodes": num_nodes,
            "options": options.model_dump(mode="json", include={"teleport", "eps", "k", "block_size"}),
            "blocks": [
                {"bytes": sizes[block_name(index)], "sha256": checksum} for index, checksum in enumerate(checksums)
            ],
        }
        with to_write(path / META_NAME) as file, atomic(file) as temporary:
            temporary.write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def __reduce__(self) -> tuple[object, ...]:
        return PPRArtefact.open, (self.location,)

    def __repr__(self) -> str:
        options = self.options
        return (
            f"PPRArtefact({str(self.path)!r}, num_nodes={self.num_nodes}, teleport={options.teleport}, "
            f"eps={options.eps}, k={options.k})"
        )

    def verify(self) -> None:
        """Compare every block with its checksum.

        Raises:
            InputError: names the blocks whose numbers are not those that were written.
        """
        broken = [block_name(index) for index, block in enumerate(self._blocks) if not block.intact()]
        if broken:
            raise InputError(f"{self.path}: checksum does not fit in {', '.join(broken)}; rerun `optimag ppr`")

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
