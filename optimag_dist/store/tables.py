"""Users' tables in one file or several, streamed in batches of rows."""

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from optimag_dist.store.arrays import recut
from optimag_dist.store.bad_rows import BadRows, reading
from optimag_dist.store.table_columns import check_columns, common_type, plain, plain_type
from optimag_dist.store.text_tables import DelimitedFile, JsonLinesFile, LinesFile, TextStream
from optimag_dist.types import InputError

_BATCH_ROWS = 16_384
# Of wide rows fewer are in memory at a time.
_BATCH_BYTES = 1 << 26
_JSON = (".jsonl", ".ndjson", ".json")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# In this order the header is tried; whichever gives all columns that are wanted is it.
_SEPARATORS = (",", ";", "\t", "|")
KINDS = ".parquet, .csv, .tsv or .jsonl (text also with .gz or .zst behind it)"


class _ParquetFile:
    kind = "parquet"

    def __init__(self, path: Path, wanted: Mapping[str, str]) -> None:
        self.path = path
        with reading(path):
            self._file = pq.ParquetFile(path, memory_map=True)
            schema = self._file.schema_arrow
        check_columns(path, schema.names, wanted)
        metadata = self._file.metadata
        self.num_rows = metadata.num_rows
        self.types = {column: plain_type(schema.field(column).type) for column in wanted.values()}
        bytes_ = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        self._batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * self.num_rows // max(bytes_, 1)))

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return self._file.iter_batches(batch_size=self._batch_rows, columns=list(names))


#: One file of a table; all files of a table are of one ``kind``. ``types`` maps the wanted columns to their types.
TableFile: TypeAlias = _ParquetFile | DelimitedFile | JsonLinesFile | LinesFile


class SourceTable:
    """A user's table in one file or several: the wanted columns, in batches or blocks of rows.

    Nothing of it stays in memory. Dictionary and extension columns come as what they stand for, strings and bytes with
    64-bit offsets, cells of text files as large_string; everything else as the file has it, or as the type that holds
    the values of all files. ``path`` is what messages about the whole table name: the file, or the pattern or folder
    its ``files`` were found by.
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
        return pa.chunked_array([chunk for (chunk,) in self._batches([name])], self._types[name])

    def blocks(self, names: Sequence[str], rows: int) -> Iterator[list[pa.Array]]:
        return recut(self._batches(names), pa.concat_arrays, rows)

    def _batches(self, names: Sequence[str]) -> Iterator[list[pa.Array]]:
        for part in self._parts:
            rows = 0
            with reading(part.path):
                for batch in part.batches(names):
                    rows += len(batch)
                    yield [self._cast(plain(batch.column(name)), name, part) for name in names]
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
    (the separator, one of ``, ; | tab``, is the one that finds the columns in the header), ``.tsv``, ``.jsonl``; text
    may be compressed (``.gz``, ``.zst``) and is UTF-8, or UTF-16 with a mark. ``why_rows`` ends the message about a
    table without rows. ``InputError``: no such file, unknown ending, unreadable, no rows, a column missing, there twice
    or of a type that does not go with the other files', or a quote that does not enclose a cell.
    """
    paths = _find_files(folder, file)
    found = [part for path in paths if (part := open_table_file(path, wanted, len(paths) > 1)) is not None]
    path = folder / file if isinstance(file, str) else paths[0]
    # Parts of no rows say nothing, and their types neither.
    parts = [part for part in found if part.num_rows] or found
    if not any(part.num_rows for part in parts):
        raise InputError(f"{path}: the table has no rows; {why_rows}")
    if odd := next((part for part in parts if part.kind != parts[0].kind), None):
        raise InputError(f"{odd.path}: {parts[0].path.name} is of another kind; a table's files are one of {KINDS}")
    return SourceTable(path, parts)


def open_list(path: Path, column: str) -> SourceTable:
    """Open a file that lists what stands in ``column``: a table of any kind, or else a line each without a header."""
    if path.is_dir() or is_table(path):
        return open_table(path.parent, path.name, {"--nodes": column}, "needed at least one row")
    lines = LinesFile(TextStream(_regular(path), _endings(path)[1]), column)
    if lines.num_rows == 0:
        raise InputError(f"{path}: holds no line of text; needed at least one")
    return SourceTable(path, [lines])


def cells(column: pa.ChunkedArray | pa.Array) -> Callable[[int], Any]:
    return lambda row: column[row].as_py()


def null_rows(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
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


def open_table_file(path: Path, wanted: Mapping[str, str], several: bool) -> TableFile | None:
    """The file at ``path`` with the columns ``wanted``; None if it is empty and one of ``several``."""
    ending, compression = _endings(path)
    if ending == ".parquet" and compression is None:
        return _ParquetFile(path, wanted)
    if not is_table(path):
        raise InputError(f"{path}: needed a table that ends in {KINDS}, got the ending {''.join(path.suffixes[-2:])!r}")
    if several and path.stat().st_size == 0:
        return None
    stream = TextStream(path, compression)
    if ending in _JSON:
        return JsonLinesFile(stream, wanted)
    return DelimitedFile(stream, wanted, ("\t",) if ending == ".tsv" else _SEPARATORS)


def is_table(path: Path) -> bool:
    ending, compression = _endings(path)
    return ending in (".csv", ".tsv", *_JSON) or (ending == ".parquet" and compression is None)


def _endings(path: Path) -> tuple[str, str | None]:
    endings = ["", *(ending.lower() for ending in path.suffixes)]
    compression = _COMPRESSIONS.get(endings[-1])
    return endings[-1 if compression is None else -2], compression
