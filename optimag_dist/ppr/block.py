"""One block file of a PPR artefact: the top-k rows of consecutive nodes, as an Arrow IPC file.

Columns ``indices`` (list<int32>), ``values`` (list<float32>) and ``bound`` (float32), one row per node; the schema's
metadata names the artefact the block belongs to, its first node and the digest of its numbers.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.files import atomic
from optimag_dist.integrity import MappedFile, checksum
from optimag_dist.options import Options
from optimag_dist.store.layout import Count, Hex
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
        digest: sha256 of the numbers, as stored in the file.
        file: that the arrays are views of.
    """

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
        """What ``meta.json`` is to say of it."""
        return BlockRecord(bytes=self.file.buffer.size, sha256=self.digest, checksum=self.file.checksum())

    def intact(self) -> bool:
        """Whether the numbers are those that were written (reads the whole block)."""
        arrays = self.offsets, self.indices, self.values, self.bounds
        return self.digest == _digest(self.key, self.first_node, *arrays)

    def verify(self, num_nodes: int, recorded: "BlockRecord | None" = None) -> None:
        """Read all of the block and compare it with the checksum that was ``recorded``, or with its own digest.

        Raises:
            InputError: the numbers are not those that were written, or cannot be rows of a graph of ``num_nodes``.
        """
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
    """A block as ``meta.json`` lists it.

    Attributes:
        bytes: size of the file.
        sha256: digest of the numbers, as in the file itself.
        checksum: of the whole file; None in lists that an older program wrote.
    """

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
    """Map a block file; its pages are read when they are used, and its numbers are not looked at.

    Args:
        path: of the file.
        size: in bytes, where it is known.

    Raises:
        InputError: the file is missing, of another size, or no block that was written to its end.
    """
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
