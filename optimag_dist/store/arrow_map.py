"""Arrow files of record batches as they are read: mapped, and verified before a value is handed out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from optimag_dist.integrity import MappedFile, is_verified, verified_once
from optimag_dist.store.layout import StoredFile
from optimag_dist.store.writer import digest_of
from optimag_dist.types import InputError


class ArrowMap:
    """One mapped file, in which no value and no place lies outside what it may be.

    Whoever wrote the file: its bytes are compared with the recorded checksums (or, of an older program, its content
    with the digest), then its columns with what they are to be.

    Args:
        path: of the file.
        stored: what was written.
        columns: name → type.
        num_rows: of all batches together; None: one batch of any number.
        batch_rows: of every batch but the last; None: all rows are one batch.
        remedy: what to do about a damaged file.
        nulls: whether there may be any.
        check: raises ValueError where a value in the batches cannot be; asked of whole files only.
        bounds: what ``check`` compares with, as text.

    Raises:
        InputError: the file is missing or of another size; of every method: it is damaged.
    """

    def __init__(
        self,
        path: Path,
        stored: StoredFile,
        columns: Mapping[str, pa.DataType],
        num_rows: int | None,
        batch_rows: int | None,
        remedy: str,
        *,
        nulls: bool = False,
        check: Callable[[Sequence[pa.RecordBatch]], None] = lambda batches: None,
        bounds: str = "",
    ) -> None:
        self._file = MappedFile(path, stored.size, remedy)
        self._stored = stored
        self._columns = columns
        self._num_rows = num_rows
        self._batch_rows = batch_rows
        # A file without rows still has one batch: readers need no case for it.
        self._num_batches = max(1, -(-(num_rows or 0) // batch_rows)) if batch_rows else 1
        self._nulls = nulls
        self._check = check
        kinds = {name: str(kind) for name, kind in columns.items()}
        self._expected = f"{stored.model_dump_json()} {kinds} {num_rows} {batch_rows} {bounds}"
        self._sound: set[int] = set()

    def batch(self, index: int) -> pa.RecordBatch:
        """One record batch, of which nothing else is read; of a file without checksums all is."""
        if self._stored.segments is None:
            return self.batches()[index]
        if index not in self._sound and not is_verified([self._file.state], self._expected):
            with self._damage():
                self._file.check(self._stored.segments, [index])
                self._check_batch(index)
        self._sound.add(index)
        with self._damage():
            return self._reader.get_batch(index)

    def batches(self) -> list[pa.RecordBatch]:
        """All record batches."""
        self.verify_once()
        with self._damage():
            return [self._reader.get_batch(index) for index in range(self._num_batches)]

    def metadata(self) -> dict[str, str]:
        """The notes in the schema."""
        if self._stored.segments is None:
            self.batches()
        with self._damage():
            return {key.decode(): value.decode() for key, value in (self._reader.schema.metadata or {}).items()}

    def verify_once(self) -> None:
        """Verify the whole file, unless that has been done before."""
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
        """The numbers of a column of fixed-size lists where they lie, for kernels that read them there.

        Returns:
            The part of the map that holds them, flat; and (batches,) int64: where in it each batch begins.
        """
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
        segments = self._stored.segments
        if segments is not None:
            if len(segments) != self._num_batches + 1:
                raise ValueError(f"{len(segments) - 1} record batches, needed {self._num_batches}")
            # The schema is read from the footer.
            self._file.check(segments, [len(segments) - 1])
        reader = pa.ipc.open_file(self._file.buffer)
        if reader.num_record_batches != self._num_batches:
            raise ValueError(f"{reader.num_record_batches} record batches, needed {self._num_batches}")
        for name, kind in self._columns.items():
            if reader.schema.field(name).type != kind:
                raise ValueError(f"column {name!r} is {reader.schema.field(name).type}, needed {kind}")
        return reader

    def _check_batch(self, index: int) -> pa.RecordBatch:
        batch = self._reader.get_batch(index)
        rows = self._num_rows
        if rows is not None and self._batch_rows is not None:
            rows = min(self._batch_rows, rows - index * self._batch_rows)
        if rows is not None and batch.num_rows != rows:
            raise ValueError(f"record batch {index} has {batch.num_rows} rows, needed {rows}")
        batch.validate(full=True)
        for name in self._columns:
            column = batch.column(name)
            if pa.types.is_fixed_size_list(column.type):
                _matrix(column)
            if column.null_count and not self._nulls:
                raise ValueError(f"column {name!r} has nulls")
        return batch

    def _verify(self) -> None:
        with self._damage():
            if self._stored.segments is not None:
                self._file.check(self._stored.segments, range(len(self._stored.segments)))
            batches = [self._check_batch(index) for index in range(self._num_batches)]
            if self._stored.segments is None:
                self._compare_content()
            self._check(batches)

    def _compare_content(self) -> None:
        if digest_of(map(self._reader.get_batch, range(self._num_batches))) != self._stored.digest:
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
