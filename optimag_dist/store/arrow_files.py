"""Arrow files of record batches: written with checksums of their bytes and a digest of their content; mapped, and
verified before a value is handed out."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from optimag_dist.integrity import MappedFile, Sealed, is_verified, verified_once
from optimag_dist.store.layout import StoredFile
from optimag_dist.types import CSR, InputError


class ContentDigest:
    """sha256 of the values of record batches, the same however the rows are cut into batches. Numbers, lists of
    numbers, strings and bytes; nulls are allowed in all but numbers by themselves."""

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

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._writer.close()
            self._sealed.cut()
            self._file.flush()
            os.fsync(self._file.fileno())

    def write(self, *columns: pa.Array) -> None:
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


Check: TypeAlias = Callable[[Sequence[pa.RecordBatch]], None]


@dataclass(eq=False)
class ArrowMap:
    """One mapped file, in which no value and no place lies outside what it may be.

    Whoever wrote the file: its bytes are compared with the recorded checksums (or, of an older program, its content
    with the digest), then its columns with what they are to be. Methods raise ``InputError`` where it is damaged.

    Args:
        columns: name → type.
        num_rows: of all batches together; None: one batch of any number.
        batch_rows: of every batch but the last; None: all rows are one batch.
        remedy: what to do about a damaged file.
        nulls: whether there may be any.
        check: raises ValueError where a value in the batches cannot be; asked of whole files only.
        bounds: what ``check`` compares with, as text.
    """

    path: Path
    stored: StoredFile
    columns: Mapping[str, pa.DataType]
    num_rows: int | None
    batch_rows: int | None
    remedy: str
    nulls: bool = False
    check: Check = lambda batches: None
    bounds: str = ""

    def __post_init__(self) -> None:
        self._file = MappedFile(self.path, self.stored.size, self.remedy)
        # A file without rows still has one batch: readers need no case for it.
        self._num_batches = max(1, -(-(self.num_rows or 0) // self.batch_rows)) if self.batch_rows else 1
        kinds = {name: str(kind) for name, kind in self.columns.items()}
        self._expected = f"{self.stored.model_dump_json()} {kinds} {self.num_rows} {self.batch_rows} {self.bounds}"
        self._sound: set[int] = set()

    def batch(self, index: int) -> pa.RecordBatch:
        """One record batch, of which nothing else is read; of a file without checksums all is."""
        if self.stored.segments is None:
            return self.batches()[index]
        if index not in self._sound and not is_verified([self._file.state], self._expected):
            with self._damage():
                self._file.check(self.stored.segments, [index])
                self._check_batch(index)
        self._sound.add(index)
        with self._damage():
            return self._reader.get_batch(index)

    def batches(self) -> list[pa.RecordBatch]:
        self.verify_once()
        with self._damage():
            return [self._reader.get_batch(index) for index in range(self._num_batches)]

    def metadata(self) -> dict[str, str]:
        if self.stored.segments is None:
            self.batches()
        with self._damage():
            return {key.decode(): value.decode() for key, value in (self._reader.schema.metadata or {}).items()}

    def verify_once(self) -> None:
        verified_once([self._file.state], self._expected, self._verify)

    def verify(self) -> None:
        """Read all of the file and compare it, whatever is remembered of it."""
        self._file.forget()
        self._verify()
        with self._damage():
            self._compare_content()

    def matrix(self, column: str, index: int) -> np.ndarray:
        """A batch's column of fixed-size lists as (rows, size), a view of the map."""
        return _matrix(self.batch(index).column(column))

    def flat(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of a column of fixed-size lists where they lie, for kernels that read them there: the part of the
        map that holds them, flat; and (batches,) int64: where in it each batch begins."""
        arrays = [_matrix(batch.column(column)) for batch in self.batches()]
        dtype, base = arrays[0].dtype, self._file.buffer.address
        with self._damage():
            # Arrow may place nothing anywhere.
            places = [array.ctypes.data - base if array.size else 0 for array in arrays]
            for place, array in zip(places, arrays, strict=True):
                if place % dtype.itemsize or not 0 <= place <= self._file.buffer.size - array.nbytes:
                    raise ValueError("its numbers do not lie in it")
        end = max(place + array.nbytes for place, array in zip(places, arrays, strict=True))
        whole = np.frombuffer(self._file.buffer, np.uint8)[:end]
        return whole.view(dtype), np.array(places, np.int64) // dtype.itemsize

    @cached_property
    def _reader(self) -> pa.RecordBatchFileReader:
        segments = self.stored.segments
        if segments is not None:
            if len(segments) != self._num_batches + 1:
                raise ValueError(f"{len(segments) - 1} record batches, needed {self._num_batches}")
            # The schema is read from the footer.
            self._file.check(segments, [len(segments) - 1])
        reader = pa.ipc.open_file(self._file.buffer)
        if reader.num_record_batches != self._num_batches:
            raise ValueError(f"{reader.num_record_batches} record batches, needed {self._num_batches}")
        for name, kind in self.columns.items():
            if reader.schema.field(name).type != kind:
                raise ValueError(f"column {name!r} is {reader.schema.field(name).type}, needed {kind}")
        return reader

    def _check_batch(self, index: int) -> pa.RecordBatch:
        batch = self._reader.get_batch(index)
        rows = self.num_rows
        if rows is not None and self.batch_rows is not None:
            rows = min(self.batch_rows, rows - index * self.batch_rows)
        if rows is not None and batch.num_rows != rows:
            raise ValueError(f"record batch {index} has {batch.num_rows} rows, needed {rows}")
        batch.validate(full=True)
        for name in self.columns:
            column = batch.column(name)
            if pa.types.is_fixed_size_list(column.type):
                _matrix(column)
            if column.null_count and not self.nulls:
                raise ValueError(f"column {name!r} has nulls")
        return batch

    def _verify(self) -> None:
        with self._damage():
            if self.stored.segments is not None:
                self._file.check(self.stored.segments, range(len(self.stored.segments)))
            batches = [self._check_batch(index) for index in range(self._num_batches)]
            if self.stored.segments is None:
                self._compare_content()
            self.check(batches)

    def _compare_content(self) -> None:
        if digest_of(map(self._reader.get_batch, range(self._num_batches))) != self.stored.digest:
            raise ValueError("its content is not what was written")

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """What Arrow says of damage is told with the file and what to do about it."""
        try:
            yield
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, MemoryError) as error:
            raise self._file.damaged(error) from error


def _matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)


def needed_range(name: str, values: np.ndarray, low: int, stop: int) -> None:
    """Raise ValueError unless all of ``values`` lie in ``low`` … ``stop − 1``."""
    if len(values) and not (values.min() >= low and values.max() < stop):
        raise ValueError(f"{name} from {values.min()} to {values.max()}, needed {low} to {stop - 1}")
