"""A partitioned graph on disk: one self-contained, memory-mapped file per part, and who owns which node.

assignment.arrow            per node its part (uint16), its row within the part (int32) and its degree (int32)
shard-00007.arrow           per node of part 7 its global id (int32, ascending) and its neighbours (list of global ids)
shard-00007.<modality>.arrow  the features of the same nodes and where they are present, BATCH_ROWS rows per batch
meta.json                   written last: what it is a partition of, how good it is; sizes and checksums of the files

Version 1 had no checksums.

The graph is the undirected one that PPR runs on, whatever the store holds.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from optimag_dist.integrity import read_record
from optimag_dist.options import Options, validate_options
from optimag_dist.store.arrow_files import ArrowMap, Check, needed_range
from optimag_dist.store.csr import check_rows, copy_rows, row_pointers
from optimag_dist.store.layout import BATCH_ROWS, META, Count, Modality, StoredFile, check_sizes
from optimag_dist.types import CSR, InputError

FORMAT: Final = "optimag-partition"
VERSION = 2
READABLE_VERSIONS = (1, 2)
ASSIGNMENT = "assignment.arrow"
Method: TypeAlias = Literal["metis", "streaming", "hash"]
_AGAIN = "run `optimag partition` again"


class PartitionMeta(Options):
    """``meta.json``: how the nodes were divided, and how well.

    Attributes:
        store_hash: content hash of the store.
        graph_hash, num_nodes, num_arcs: of the undirected graph; the hash keys its PPR.
        edge_cut: share of the edges whose ends lie in two parts.
        part_nodes, part_arcs: nodes and arcs of each part.
        modalities: whose features the shards carry.
    """

    format: Literal["optimag-partition"] = FORMAT
    version: int = VERSION
    method: Method
    parts: int = Field(ge=1, le=65535)
    seed: int
    store_hash: str
    graph_hash: str
    num_nodes: int = Field(ge=1, lt=2**31)
    num_arcs: Count
    edge_cut: float
    part_nodes: tuple[Count, ...]
    part_arcs: tuple[Count, ...]
    modalities: tuple[Modality, ...]
    files: dict[str, StoredFile]

    @model_validator(mode="after")
    def _fits_together(self) -> "PartitionMeta":
        sums = ("nodes", self.part_nodes, self.num_nodes), ("arcs", self.part_arcs, self.num_arcs)
        for what, counts, total in sums:
            if len(counts) != self.parts or sum(counts) != total:
                raise ValueError(f"the {what} of its parts do not add up")
        shards = {shard_file(part) for part in range(self.parts)}
        features = {feature_file(part, m.name) for part in range(self.parts) for m in self.modalities}
        if strange := sorted(self.files.keys() ^ ({ASSIGNMENT} | shards | features)):
            raise ValueError(f"its list of files and its entries do not fit together: {strange[0]!r}")
        return self


def shard_file(part: int) -> str:
    return f"shard-{part:05d}.arrow"


def feature_file(part: int, modality: str) -> str:
    return f"shard-{part:05d}.{modality}.arrow"


class Shard:
    """One part: ``nodes`` (s,) int32 global ids, and ``rows``, CSR of s rows of global ids; both ascend."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        neighbours = batch.column("neighbours")
        self.nodes: np.ndarray = batch.column("node").to_numpy()
        self.rows = CSR(neighbours.offsets.to_numpy(), neighbours.values.to_numpy())


class Partition:
    """A finished partition; files are mapped, and verified, when they are first asked for. Pickles as its ``path``.
    Every method raises ``InputError`` where a file it reads is damaged."""

    def __init__(self, path: Path, meta: PartitionMeta) -> None:
        self.path = path
        self.meta = meta
        self._maps: dict[str, ArrowMap] = {}
        self._shards: dict[int, Shard] = {}
        self._features: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = {}
        self._present: dict[tuple[int, str], np.ndarray] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Partition":
        """Open the partition at ``path``; ``InputError`` where there is none that is whole and of this format."""
        path = Path(path).absolute()
        file = path / META
        if not file.is_file():
            state = "unfinished partition" if path.is_dir() else "no such partition"
            raise InputError(f"{path}: {state} (no {META}); {_AGAIN}")
        record = read_record(file, f"delete {path} and {_AGAIN}")
        if record.get("format") != FORMAT or record.get("version") not in READABLE_VERSIONS:
            raise InputError(f"{file}: not a partition of format version {VERSION}; {_AGAIN}")
        meta = validate_options(PartitionMeta, record, source=str(file))
        check_sizes(path, meta.files, f"; delete {path} and {_AGAIN}")
        return cls(path, meta)

    def __reduce__(self) -> tuple[object, ...]:
        return Partition.open, (self.path,)

    def verify(self) -> None:
        """Read everything and compare it with what was recorded, whatever was verified before."""
        for file in (self._assignment_file, *map(self._shard_file, range(self.meta.parts))):
            file.verify()
        for part in range(self.meta.parts):
            for modality in self.modalities:
                self._feature_file(part, modality).verify()

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
            self._shards[part] = Shard(self._shard_file(part).batches()[0])
        return self._shards[part]

    def rows(self, node_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours of ``node_ids`` ((k,) integers, any order); maps the shards they lie in and no others. Returns
        ``(indptr, indices)``: (k + 1,) int64 and (arcs,) int32 global ids."""
        indptr = row_pointers(self.degrees[node_ids])
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
        """Features of the nodes of ``part`` in shard order, as :meth:`GraphStore.feature_file` gives them."""
        if (part, modality) not in self._features:
            self._features[part, modality] = self._feature_file(part, modality).flat("features")
        return self._features[part, modality]

    def present(self, part: int, modality: str) -> np.ndarray:
        """(s,) bool in shard order: whether the node has a value in ``modality``."""
        if (part, modality) not in self._present:
            rows = [batch.column("present").to_numpy() for batch in self._feature_file(part, modality).batches()]
            self._present[part, modality] = np.concatenate(rows).view(bool)
        return self._present[part, modality]

    @cached_property
    def _assignment(self) -> pa.RecordBatch:
        return self._assignment_file.batches()[0]

    @property
    def _assignment_file(self) -> ArrowMap:
        columns = {"part": pa.uint16(), "row": pa.int32(), "degree": pa.int32()}

        def check(batches: Sequence[pa.RecordBatch]) -> None:
            part, row, degree = (batches[0].column(name).to_numpy() for name in columns)
            needed_range("column 'part'", part, 0, self.meta.parts)
            if (row < 0).any() or (row >= np.array(self.meta.part_nodes)[part]).any():
                raise ValueError("column 'row' has a row beyond its part's last")
            needed_range("column 'degree'", degree, 0, self.meta.num_nodes)

        return self._map(ASSIGNMENT, columns, self.meta.num_nodes, None, check)

    def _shard_file(self, part: int) -> ArrowMap:
        columns = {"node": pa.int32(), "neighbours": pa.large_list(pa.int32())}

        def check(batches: Sequence[pa.RecordBatch]) -> None:
            shard = Shard(batches[0])
            needed_range("column 'node'", shard.nodes, 0, self.meta.num_nodes)
            check_rows(shard.rows, self.meta.num_nodes)
            # By degree room is made for a row, and by part and row it is found.
            sizes = np.diff(shard.rows.indptr)
            mine = (self.part[shard.nodes] == part) & (self.row[shard.nodes] == np.arange(len(shard.nodes)))
            if not (mine & (self.degrees[shard.nodes] == sizes)).all():
                raise ValueError(f"its nodes are not those that {ASSIGNMENT} lists")

        return self._map(shard_file(part), columns, self.meta.part_nodes[part], None, check)

    def _feature_file(self, part: int, modality: str) -> ArrowMap:
        if modality not in self.modalities:
            raise InputError(
                f"{self.path}: its shards hold features of {', '.join(self.modalities) or 'no modality'}, not of "
                f"{modality!r}; run `optimag partition` with features=true"
            )
        record = self.modalities[modality]
        row = pa.list_(pa.from_numpy_dtype(np.dtype(record.dtype)), record.width)

        def check(batches: Sequence[pa.RecordBatch]) -> None:
            for batch in batches:
                needed_range("column 'present'", batch.column("present").to_numpy(), 0, 2)

        columns = {"features": row, "present": pa.uint8()}
        return self._map(feature_file(part, modality), columns, self.meta.part_nodes[part], BATCH_ROWS, check)

    def _map(
        self, name: str, columns: dict[str, pa.DataType], num_rows: int, batch_rows: int | None, check: Check
    ) -> ArrowMap:
        if name not in self._maps:
            stored, bounds = self.meta.files[name], self.meta.model_dump_json(exclude={"files"})
            again = f"delete {self.path} and {_AGAIN}"
            self._maps[name] = ArrowMap(
                self.path / name, stored, columns, num_rows, batch_rows, again, check=check, bounds=bounds
            )
        return self._maps[name]
