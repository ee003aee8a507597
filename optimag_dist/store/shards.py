"""A partitioned graph on disk: one self-contained, memory-mapped file per part, and who owns which node.

assignment.arrow            per node its part (uint16), its row within the part (int32) and its degree (int32)
shard-00007.arrow           per node of part 7 its global id (int32, ascending) and its neighbours (list of global ids)
shard-00007.<modality>.arrow  the features of the same nodes and where they are present, BATCH_ROWS rows per batch
meta.json                   written last: what it is a partition of, how good it is, sizes and digests of the files

The graph is the undirected one that PPR runs on, whatever the store holds.
"""

import json
from functools import cached_property, partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa

from optimag_dist.jit import jit
from optimag_dist.options import Options, validate_options
from optimag_dist.store.layout import META, Modality, StoredFile, check_sizes, flat_batches
from optimag_dist.store.writer import is_intact
from optimag_dist.types import CSR, InputError

FORMAT: Final = "optimag-partition"
VERSION = 1
ASSIGNMENT = "assignment.arrow"


class PartitionMeta(Options):
    """``meta.json``.

    Attributes:
        method, parts, seed: how the nodes were divided.
        store_hash: content hash of the store.
        graph_hash: of the undirected graph, which keys its PPR.
        num_nodes, num_arcs: of the undirected graph.
        edge_cut: share of the edges whose ends lie in two parts.
        part_nodes, part_arcs: nodes and arcs of each part.
        modalities: whose features the shards carry.
        files: size and digest of each file.
    """

    format: Literal["optimag-partition"] = FORMAT
    version: int = VERSION
    method: Literal["metis", "streaming", "hash"]
    parts: int
    seed: int
    store_hash: str
    graph_hash: str
    num_nodes: int
    num_arcs: int
    edge_cut: float
    part_nodes: tuple[int, ...]
    part_arcs: tuple[int, ...]
    modalities: tuple[Modality, ...]
    files: dict[str, StoredFile]


def shard_file(part: int) -> str:
    return f"shard-{part:05d}.arrow"


def feature_file(part: int, modality: str) -> str:
    return f"shard-{part:05d}.{modality}.arrow"


class Shard:
    """One part of the graph; nothing of the other parts is needed to read it.

    Attributes:
        nodes: (s,) int32 global ids, ascending.
        rows: CSR of s rows; neighbours are global ids, ascending.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        neighbours = batch.column("neighbours")
        self.nodes: np.ndarray = batch.column("node").to_numpy()
        self.rows = CSR(neighbours.offsets.to_numpy(), neighbours.values.to_numpy())


class _ShardFeatures:
    """One modality of one part: ``flat`` and ``starts`` of :func:`flat_batches`, and ``present`` (s,) bool."""

    def __init__(self, batches: list[pa.RecordBatch]) -> None:
        self.flat, self.starts = flat_batches([batch.column("features").flatten().to_numpy() for batch in batches])
        self.present = np.concatenate([batch.column("present").to_numpy().view(bool) for batch in batches])


class Partition:
    """A finished partition; files are mapped when they are first asked for. Pickles as its path.

    Attributes:
        path: absolute path of the directory.
        meta: see :class:`PartitionMeta`.
    """

    def __init__(self, path: Path, meta: PartitionMeta) -> None:
        self.path = path
        self.meta = meta
        self._shards: dict[int, Shard] = {}
        self._shard_features: dict[tuple[int, str], _ShardFeatures] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Partition":
        """Open the partition at ``path``.

        Raises:
            InputError: there is none, it is unfinished or of another format, or a file is missing or truncated.
        """
        path = Path(path).absolute()
        file = path / META
        again = "run `optimag partition` again"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            state = "unfinished partition" if path.is_dir() else "no such partition"
            raise InputError(f"{path}: {state} (no {META}); {again}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: damaged ({error}); {again}") from error
        if not isinstance(record, dict) or (record.get("format"), record.get("version")) != (FORMAT, VERSION):
            raise InputError(f"{file}: not a partition of format version {VERSION}; {again}")
        meta = validate_options(PartitionMeta, record, source=str(file))
        check_sizes(path, meta.files, f"; delete {path} and {again}")
        return cls(path, meta)

    def __reduce__(self) -> tuple[object, ...]:
        return Partition.open, (self.path,)

    def verify(self) -> None:
        """Read everything once and compare it with the recorded digests.

        Raises:
            InputError: names the first file whose content has changed.
        """
        for name, stored in self.meta.files.items():
            if not is_intact(partial(_batches, self.path / name), stored):
                raise InputError(
                    f"{self.path / name}: damaged (its content is not what was written); delete the folder"
                )

    @property
    def part(self) -> np.ndarray:
        """(n,) uint16 part of each node."""
        return self._assignment.column("part").to_numpy()

    @property
    def row(self) -> np.ndarray:
        """(n,) int32 row of each node within its part."""
        return self._assignment.column("row").to_numpy()

    @property
    def degrees(self) -> np.ndarray:
        """(n,) int32 neighbours of each node in the whole graph."""
        return self._assignment.column("degree").to_numpy()

    def shard(self, part: int) -> Shard:
        """The shard of ``part``, mapped once."""
        if part not in self._shards:
            self._shards[part] = Shard(_batches(self.path / shard_file(part))[0])
        return self._shards[part]

    def rows(self, node_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours of ``node_ids`` ((k,) integers, any order); maps the shards they lie in and no others.

        Returns:
            ``(indptr, indices)``: (k + 1,) int64 and (arcs,) int32 global ids.
        """
        indptr = np.zeros(len(node_ids) + 1, np.int64)
        np.cumsum(self.degrees[node_ids], out=indptr[1:])
        indices = np.empty(indptr[-1], np.int32)
        part, row = self.part[node_ids], self.row[node_ids]
        for index in np.unique(part):
            mine = np.flatnonzero(part == index)
            shard = self.shard(int(index)).rows
            copy_rows(shard.indptr, shard.indices, row[mine], indptr, mine, indices)
        return indptr, indices

    @cached_property
    def modalities(self) -> dict[str, Modality]:
        """Whose features the shards carry, by name; none where they were left out."""
        return {record.name: record for record in self.meta.modalities}

    def feature_file(self, part: int, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """Features of the nodes of ``part`` in shard order, where they lie, for kernels that read them there.

        Returns:
            The part of the mapped file that holds them, flat, of the stored dtype; and (batches,) int64: where in it
            each batch of ``BATCH_ROWS`` rows begins.
        """
        shard = self._features(part, modality)
        return shard.flat, shard.starts

    def present(self, part: int, modality: str) -> np.ndarray:
        """(s,) bool in shard order: whether the node has a value in ``modality``."""
        return self._features(part, modality).present

    def _features(self, part: int, modality: str) -> "_ShardFeatures":
        if modality not in self.modalities:
            raise InputError(
                f"{self.path}: its shards hold features of {', '.join(self.modalities) or 'no modality'}, not of "
                f"{modality!r}; run `optimag partition` with features=true"
            )
        if (part, modality) not in self._shard_features:
            self._shard_features[part, modality] = _ShardFeatures(_batches(self.path / feature_file(part, modality)))
        return self._shard_features[part, modality]

    @cached_property
    def _assignment(self) -> pa.RecordBatch:
        return _batches(self.path / ASSIGNMENT)[0]


def _batches(path: Path) -> list[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        return [reader.get_batch(index) for index in range(reader.num_record_batches)]


@jit(nogil=True)
def copy_rows(indptr, indices, rows, out_indptr, places, out):  # type: ignore[no-untyped-def]
    """Copy row ``rows[i]`` of a CSR to ``out`` from ``out_indptr[places[i]]`` on."""
    for i in range(len(rows)):
        to = out_indptr[places[i]]
        for e in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[to] = indices[e]
            to += 1
