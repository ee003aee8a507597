"""One block file of a PPR artefact: the top-k rows of consecutive nodes, as an Arrow IPC file.

Columns ``indices`` (list<int32>), ``values`` (list<float32>) and ``bound`` (float32), one row per node; the schema's
metadata names the artefact the block belongs to, its first node and the checksum of its numbers.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.files import atomic
from optimag_dist.types import InputError

_SCHEMA = pa.schema([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32())), ("bound", pa.float32())])


@dataclass(frozen=True)
class PPRBlock:
    """Rows of the nodes ``first_node … first_node + len(offsets) − 2``.

    Attributes:
        key: of the artefact it belongs to.
        first_node: node id of the first row.
        offsets: (rows + 1,) int32.
        indices: (entries,) int32.
        values: (entries,) float32.
        bounds: (rows,) float32: no stored entry v is further from PPR than bound·deg(v), nor is 0 where v is not
            stored and the row is shorter than k.
        checksum: as stored in the file.
    """

    key: str
    first_node: int
    offsets: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    bounds: np.ndarray
    checksum: str

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    def intact(self) -> bool:
        """Whether the numbers are those that were written (reads the whole block)."""
        arrays = self.offsets, self.indices, self.values, self.bounds
        return self.checksum == _checksum(self.key, self.first_node, *arrays)


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
) -> str:
    """Write a block atomically and return its checksum; ``indptr`` (rows + 1,) and the rest as in :class:`PPRBlock`."""
    offsets = indptr.astype(np.int32)
    checksum = _checksum(key, first_node, offsets, indices, values, bounds)
    columns = [
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(indices, pa.int32())),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32())),
        pa.array(bounds, pa.float32()),
    ]
    schema = _SCHEMA.with_metadata({"key": key, "first_node": str(first_node), "sha256": checksum})
    with atomic(path) as temporary, pa.ipc.new_file(temporary, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return checksum


def read_block(path: Path) -> PPRBlock:
    """Map a block file; its pages are read when they are used.

    Raises:
        InputError: the file is missing or is no block that was written to its end.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source)
            batch = table.get_batch(0)
        metadata = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        indices, values = batch.column("indices"), batch.column("values")
        return PPRBlock(
            key=metadata["key"],
            first_node=int(metadata["first_node"]),
            offsets=indices.offsets.to_numpy(),
            indices=indices.values.to_numpy(),
            values=values.values.to_numpy(),
            bounds=batch.column("bound").to_numpy(),
            checksum=metadata["sha256"],
        )
    except (OSError, pa.ArrowException, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: not a complete PPR block ({error}); rerun `optimag ppr` to rebuild it") from error


def _checksum(key: str, first_node: int, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(f"{key} {first_node} ".encode())
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
