"""Arrow files with checksums of their bytes and a digest of their content."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from optimag_dist.integrity import Sealed
from optimag_dist.store.layout import StoredFile
from optimag_dist.types import CSR


class ContentDigest:
    """sha256 of the values of record batches, the same however the rows are cut into batches.

    Numbers, lists of numbers, strings and bytes; nulls are allowed in all but numbers by themselves.
    """

    def __init__(self) -> None:
        self._streams: dict[str, hashlib._Hash] = {}

    def update(self, batch: pa.RecordBatch) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self._feed(name, column)

    def hexdigest(self) -> str:
        whole = hashlib.sha256()
        for name in sorted(self._streams):
            whole.update(f"{len(name)} {name} {self._streams[name].hexdigest()}".encode())
        return whole.hexdigest()

    def _feed(self, name: str, array: pa.Array) -> None:
        kind = array.type
        if pa.types.is_string(kind):
            array, kind = array.cast(pa.large_string()), pa.large_string()
        if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
            self._hash(f"{name}/valid", array.is_valid().to_numpy(zero_copy_only=False))
            array = array.fill_null("" if pa.types.is_large_string(kind) else b"")
            offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
            self._hash(f"{name}/lengths", np.diff(offsets))
            data = array.buffers()[2]
            if data is not None:
                self._hash(f"{name}/data", np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]])
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            if array.null_count:
                self._hash(f"{name}/valid", array.is_valid().to_numpy(zero_copy_only=False))
            if pa.types.is_fixed_size_list(kind):
                self._feed(f"{name}/{kind.list_size}", array.flatten())
            else:
                self._hash(f"{name}/lengths", np.diff(array.offsets.to_numpy()).astype(np.int64))
                self._feed(f"{name}/values", array.flatten())
        else:
            self._hash(f"{name}/{kind}", array.to_numpy(zero_copy_only=True))

    def _hash(self, stream: str, values: np.ndarray) -> None:
        self._streams.setdefault(stream, hashlib.sha256()).update(np.ascontiguousarray(values).data.cast("B"))


def digest_of(batches: Iterable[pa.RecordBatch]) -> str:
    """:class:`ContentDigest` of all ``batches``."""
    digest = ContentDigest()
    for batch in batches:
        digest.update(batch)
    return digest.hexdigest()


class ArrowFile:
    """Writes record batches to a new Arrow IPC file; on leaving the ``with`` block it is complete and on the disk."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._digest = ContentDigest()

    def __enter__(self) -> "ArrowFile":
        self._file = self._path.open("wb")
        self._sealed = Sealed(self._file)
        self._writer = pa.ipc.new_file(self._sealed, self._schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._writer.close()
            self._sealed.cut()
            self._file.flush()
            os.fsync(self._file.fileno())

    def write(self, *columns: pa.Array) -> None:
        """Append one record batch."""
        batch = pa.record_batch(list(columns), schema=self._schema)
        self._digest.update(batch)
        self._writer.write_batch(batch)
        self._sealed.cut()

    def stored(self) -> StoredFile:
        """What ``meta.json`` records of the finished file."""
        segments = tuple(self._sealed.segments)
        return StoredFile(size=segments[-1][0], digest=self._digest.hexdigest(), segments=segments)


def write_batches(path: Path, batches: Iterable[Mapping[str, pa.Array]]) -> StoredFile:
    """Write columns by name, a record batch each, at least one; each column of a batch is contiguous in the map."""
    batches = iter(batches)
    first = next(batches)
    with ArrowFile(path, pa.schema([(name, column.type) for name, column in first.items()])) as file:
        file.write(*first.values())
        for columns in batches:
            file.write(*columns.values())
    return file.stored()


def write_topology(path: Path, topology: CSR) -> StoredFile:
    """Write an in-CSR as one list column whose offsets and values are its arrays."""
    rows = pa.LargeListArray.from_arrays(pa.array(topology.indptr), pa.array(topology.indices))
    return write_batches(path, [{"sources": rows}])
