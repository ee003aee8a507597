"""Arrays in files, read in blocks of rows: ``.npy``, members of ``.npz``, arrays in memory."""

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from optimag_dist.store.bad_rows import BadRows
from optimag_dist.store.layout import BATCH_ROWS, StoredDtype
from optimag_dist.types import InputError

# So many numbers of a modality are looked at together.
_BLOCK_NUMBERS = 1 << 22


def block_rows(width: int) -> int:
    """Rows of ``width`` numbers that are read together, so that wide ones do not fill the memory."""
    return max(1, min(BATCH_ROWS, _BLOCK_NUMBERS // max(width, 1)))


def checking_bytes(num_rows: int, width: int, dtype: StoredDtype) -> int:
    """Memory that checking a modality takes: a batch as it is stored, and several copies of the block before it."""
    return (min(num_rows, BATCH_ROWS) * np.dtype(dtype).itemsize + 5 * 8 * min(num_rows, block_rows(width))) * width


def recut(
    blocks: Iterable[Sequence[Any]], join: Callable[[list[Any]], Any], rows: int = BATCH_ROWS
) -> Iterator[list[Any]]:
    """``blocks`` of arrays that are parallel, cut anew into ``rows`` rows, the last ones shorter."""
    held: list[list[Any]] = []
    count = 0
    for block in blocks:
        start = 0
        while start < len(block[0]):
            held.append([array[start : start + rows - count] for array in block])
            start, count = start + len(held[-1][0]), count + len(held[-1][0])
            if count == rows:
                yield [join(list(parts)) for parts in zip(*held, strict=True)]
                held, count = [], 0
    if held:
        yield [join(list(parts)) for parts in zip(*held, strict=True)]


def as_floats(numbers: np.ndarray) -> np.ndarray:
    """``numbers`` as floats that hold every one of them exactly."""
    if numbers.dtype.kind == "f":
        return numbers
    if numbers.dtype.itemsize == 8 and len(numbers) and max(-int(numbers.min()), int(numbers.max())) > 1 << 53:
        return numbers.astype(np.longdouble)
    return numbers.astype(np.float64)


class RowSource(Protocol):
    """An array of ``shape`` and ``dtype`` that is read from its first row to its last."""

    shape: tuple[int, ...]
    dtype: np.dtype
    resident_bytes: int

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """The array in blocks of ``rows`` rows, the last one shorter."""


class ArrayRows:
    """An array in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape = array.shape
        self.dtype = array.dtype
        self.resident_bytes = array.nbytes
        self._array = array

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self._array), rows):
            yield self._array[start : start + rows]


class NpyRows:
    """A ``.npy`` file; ``InputError`` where there is none, or no plain array."""

    resident_bytes = 0

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file; a relative path starts at the folder of the source")
        if path.suffix.lower() != ".npy":
            raise InputError(f"{path}: needed a .npy file, got the ending {path.suffix!r}")
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header comes out as almost any
            reason = reason_of(error)
            raise InputError(
                f"{path}: not a plain .npy array: {reason}; write it with np.save(path, array.astype(np.float32))"
            ) from error
        if not isinstance(array, np.memmap):
            raise InputError(f"{path}: needed an array, got an archive of arrays; write it with np.save")
        self.shape = array.shape
        self.dtype = array.dtype
        self._path = path
        self._array = array

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        if not self._array.flags.c_contiguous:
            yield from ArrayRows(self._array).blocks(rows)
            return
        # Read, not mapped: pages that have been looked at would stay resident.
        with self._path.open("rb") as file:
            file.seek(self._array.offset)
            for start in range(0, self.shape[0], rows):
                row_shape = self.shape[1:]
                count = min(rows, self.shape[0] - start)
                yield np.fromfile(file, self.dtype, count * math.prod(row_shape)).reshape(count, *row_shape)


def npz_keys(path: Path) -> list[str]:
    """The arrays of an ``.npz`` archive; ``InputError`` where it is damaged, or has one of its arrays twice."""
    with _reading_archive(f"{path}"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("one of its arrays is there twice")
    return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


class NpzRows:
    """One array of an ``.npz`` archive, compressed or not, in the machine's byte order."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        with self._open() as (member, size):
            self.shape, self._fortran, self._file_dtype = _read_header(member)
            if self._file_dtype.hasobject:
                raise ValueError("it holds Python objects")
            self._bytes = math.prod(self.shape) * self._file_dtype.itemsize
            if min(self.shape, default=0) < 0 or member.tell() + self._bytes != size:
                raise ValueError(f"its header says {self.shape} and {self._file_dtype}, which its size does not fit")
        self.dtype = self._file_dtype.newbyteorder("=")
        # The columns of a transposed array stand one after the other: no row is whole before the end.
        self.resident_bytes = self._bytes if self._fortran else 0

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        if self._fortran:
            yield from ArrayRows(self.read()).blocks(rows)
            return
        row_shape = self.shape[1:]
        row_bytes = math.prod(row_shape) * self._file_dtype.itemsize
        with self._open() as (member, _):
            _read_header(member)
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                content = member.read(count * row_bytes)
                if len(content) < count * row_bytes:
                    raise ValueError("it ends too early")
                yield np.frombuffer(content, self._file_dtype).reshape(count, *row_shape).astype(self.dtype, copy=False)
            # Only reading on makes the archive compare its checksum.
            member.read(1)

    def read(self) -> np.ndarray:
        with self._open() as (member, _):
            array = np.lib.format.read_array(member, allow_pickle=False)
            member.read(1)
        return array.astype(self.dtype, copy=False)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int]]:
        with (
            _reading_archive(f"{self._path}, array {self._key!r}"),
            zipfile.ZipFile(self._path) as archive,
            archive.open(f"{self._key}.npy") as member,
        ):
            yield member, archive.getinfo(f"{self._key}.npy").file_size


@contextmanager
def _reading_archive(place: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    # Damage to an archive or to a header within comes out as almost any exception.
    except Exception as error:
        raise InputError(f"{place}: cannot be read: {reason_of(error)}; write it again with np.savez") from error


def reason_of(error: BaseException, longest: int = 200) -> str:
    """The first line of what a library says about a file, which may quote the file itself."""
    line = (str(error) or type(error).__name__).splitlines()[0].strip().rstrip(".")
    return line if len(line) <= longest else f"{line[:longest]} …"


def _read_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


class ArrayFeatures:
    """A modality that is an array of shape (nodes, width); a row of NaN means missing.

    ``path`` and ``key``, the array's name within it, are named in messages; ``nodes`` is what has ``num_nodes``, in
    words; by default the store keeps float16 where the array is, else float32. ``InputError``: no numbers, no two
    dimensions, or another number of rows.
    """

    def __init__(
        self, path: Path, rows: RowSource, num_nodes: int, nodes: str, key: str = "", dtype: StoredDtype | None = None
    ) -> None:
        place = f"{path}, array {key!r}" if key else str(path)
        if rows.dtype.kind not in "fiu":
            raise InputError(f"{place}: needed an array of numbers, got {rows.dtype}; write array.astype(np.float32)")
        if len(rows.shape) != 2 or rows.shape[1] == 0:
            remedy = "; write array[:, None]" if len(rows.shape) == 1 else ""
            raise InputError(f"{place}: needed shape (nodes, width) with width at least 1, got {rows.shape}{remedy}")
        if rows.shape[0] != num_nodes:
            raise InputError(
                f"{place}, row {min(rows.shape[0], num_nodes) + 1}: the array has {rows.shape[0]:,} rows and {nodes} "
                f"has {num_nodes:,}; row i of the array must be that of node i"
            )
        self.width = rows.shape[1]
        self.dtype: StoredDtype = dtype or ("float16" if rows.dtype.str[1:] == "f2" else "float32")
        self.bad = BadRows(path, key)
        self.resident_bytes = rows.resident_bytes
        self._rows = rows

    def blocks(self) -> Iterator[np.ndarray]:
        for block in self._rows.blocks(block_rows(self.width)):
            yield as_floats(block)

    def describe(self, position: int) -> tuple[str | None, str]:
        return None, f"column {position + 1} of {self.width}"
