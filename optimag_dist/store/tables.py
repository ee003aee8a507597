"""Users' tables in one file or several, streamed in batches of rows."""

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from optimag_dist.store.bad_rows import BadRows, reading
from optimag_dist.store.table_columns import common_type, plain
from optimag_dist.store.table_files import KINDS, TableFile, is_table, open_lines, open_table_file
from optimag_dist.types import InputError


class SourceTable:
    """A user's table in one file or several: the wanted columns, in batches or blocks of rows.

    Nothing of it stays in memory. Dictionary and extension columns come as what they stand for, strings and bytes with
    64-bit offsets, cells of text files as large_string; everything else as the file has it, or as the type that holds
    the values of all files.

    Attributes:
        path: what messages about the whole table name: the file, or the pattern or folder the files were found by.
        files: the files in the order they are read.
        num_rows: rows of all of them.
    """

    def __init__(self, path: Path, parts: Sequence[TableFile]) -> None:
        self.path = path
        self.files = tuple(part.path for part in parts)
        self.num_rows = sum(part.num_rows for part in parts)
        self._parts = parts
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])
        self._types = _common_types(parts)

    @property
    def is_text(self) -> bool:
        """Whether every cell comes as text (CSV)."""
        return self._parts[0].kind == "text"

    def bad_rows(self, column: str) -> BadRows:
        """A collector that names the file a row stands in."""
        return BadRows(self.path, column, self._locate)

    def column(self, name: str) -> pa.ChunkedArray:
        """The whole column: for what is small per node, such as ids and labels."""
        chunks = [chunk for (chunk,) in self._batches([name])]
        return pa.chunked_array(chunks, self._types[name])

    def blocks(self, names: Sequence[str], rows: int) -> Iterator[list[pa.Array]]:
        """The columns ``names`` in blocks of ``rows`` rows, the last one shorter."""
        held: list[list[pa.Array]] = []
        count = 0
        for arrays in self._batches(names):
            start = 0
            while start < len(arrays[0]):
                part = [array.slice(start, rows - count) for array in arrays]
                start += len(part[0])
                count += len(part[0])
                held.append(part)
                if count == rows:
                    yield [pa.concat_arrays(list(pieces)) for pieces in zip(*held, strict=True)]
                    held, count = [], 0
        if held:
            yield [pa.concat_arrays(list(pieces)) for pieces in zip(*held, strict=True)]

    def _batches(self, names: Sequence[str]) -> Iterator[list[pa.Array]]:
        for part in self._parts:
            batches = part.batches(names)
            rows = 0
            while True:
                with reading(part.path):
                    batch = next(batches, None)
                    if batch is None:
                        break
                    arrays = [self._cast(plain(batch.column(name)), name, part) for name in names]
                rows += len(batch)
                yield arrays
            if rows != part.num_rows:
                raise InputError(
                    f"{part.path}, column {names[0]!r}: holds {rows:,} rows where the file declares {part.num_rows:,}; "
                    "it is damaged, or was changed while it was read: write it again"
                )

    def _cast(self, array: pa.Array, name: str, part: TableFile) -> pa.Array:
        kind = self._types[name]
        if array.type == kind:
            return array
        try:
            return array.cast(kind)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{part.path}, column {name!r}: a value does not fit {kind}, which the files of this table have in "
                f"common: {error}; write all of them with the same types"
            ) from error

    def _locate(self, row: int) -> tuple[Path, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.files[number], row - int(self._starts[number])


def open_table(folder: Path, file: str | Sequence[str], wanted: Mapping[str, str], why_rows: str) -> SourceTable:
    """Open files that must each hold the columns ``wanted`` (what names it → column).

    ``file`` is a path relative to ``folder``, a folder of part files, a pattern such as ``part-*.parquet`` (both read
    in sorted order) or a list of paths (read in its order). Their endings say what they are: ``.parquet``, ``.csv``
    (the separator, one of ``, ; | tab``, is the one that finds the columns in the header), ``.tsv``, ``.jsonl``;
    text may be compressed (``.gz``, ``.zst``) and is UTF-8, or UTF-16 with a mark. ``why_rows`` ends the message about
    a table without rows.

    Raises:
        InputError: no such file, unknown ending, unreadable, no rows, a column missing, there twice or of a type that
            does not go with the other files', or a quote that does not enclose a cell.
    """
    paths = _find_files(folder, file)
    several = len(paths) > 1
    found = [part for path in paths if (part := open_table_file(path, wanted, several)) is not None]
    path = folder / file if isinstance(file, str) else paths[0]
    # Parts of no rows say nothing, and their types neither.
    parts = [part for part in found if part.num_rows] or found
    if not any(part.num_rows for part in parts):
        raise InputError(f"{path}: the table has no rows; {why_rows}")
    if odd := next((part for part in parts if part.kind != parts[0].kind), None):
        raise InputError(
            f"{odd.path}: {parts[0].path.name} is of another kind; needed all files of a table as one of {KINDS}"
        )
    return SourceTable(path, parts)


def open_list(path: Path, column: str) -> SourceTable:
    """Open a file that lists what stands in ``column``: a table of any kind, or else a line each without a header.

    Raises:
        InputError: as for :func:`open_table`.
    """
    if path.is_dir() or is_table(path):
        return open_table(path.parent, path.name, {"--nodes": column}, "needed at least one row")
    lines = open_lines(_regular(path), column)
    if lines.num_rows == 0:
        raise InputError(f"{path}: holds no line of text; needed at least one")
    return SourceTable(path, [lines])


def cells(column: pa.ChunkedArray | pa.Array) -> Callable[[int], Any]:
    """Row → the Python value in it, for messages."""
    return lambda row: column[row].as_py()


def null_rows(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """(k,) 0-based rows that are empty."""
    return np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))


def _common_types(parts: Sequence[TableFile]) -> dict[str, pa.DataType]:
    types = dict(parts[0].types)
    for part in parts[1:]:
        for column, kind in part.types.items():
            try:
                types[column] = common_type(types[column], kind)
            except pa.ArrowException as error:
                raise InputError(
                    f"{part.path}, column {column!r}: holds {kind}, but {parts[0].path.name} holds {types[column]}; "
                    "write all files of a table with the same types"
                ) from error
    return types


def _find_files(folder: Path, file: str | Sequence[str]) -> list[Path]:
    if not isinstance(file, str):
        return [_regular(folder / name) for name in file]
    path = folder / file
    if path.is_dir():
        return _parts_in(path)
    if not path.exists() and glob.has_magic(file):
        paths = sorted(Path(found) for found in glob.glob(str(path)) if Path(found).is_file())
        if not paths:
            raise InputError(f"{path}: no file has such a name; patterns are relative to the schema's folder")
        return paths
    return [_regular(path)]


def _regular(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path}: no such file; relative paths start at the folder of the file that names them")
    if not path.is_file():
        raise InputError(f"{path}: is no regular file; needed {KINDS}")
    return path


def _parts_in(folder: Path) -> list[Path]:
    """The part files that Spark, Dask or DuckDB wrote into ``folder``; names with ``_`` or ``.`` in front are notes."""
    found = sorted(path for path in folder.iterdir() if path.name[0] not in "_.")
    if inner := [path for path in found if path.is_dir()]:
        raise InputError(
            f"{inner[0]}: is a folder within the folder of a table; columns that are kept in the names of folders are "
            "not read: write the table without partitions, or name its files by a pattern"
        )
    if not found:
        raise InputError(f"{folder}: is a folder without files; needed {KINDS}, or a folder of such files")
    return [_regular(path) for path in found]
