"""Users' Parquet and CSV tables, streamed in batches of rows, and errors that name file, column and row."""

import csv
import difflib
import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from optimag_dist.types import InputError

# An integer as a machine writes it: '007' and '+7' stay strings, so that no id is destroyed.
_PLAIN_INTEGER = r"^(0|-?[1-9][0-9]*)$"


@dataclass
class _Problem:
    column: str
    row: int
    text: str
    count: int


class BadRows:
    """Collects bad rows of one table by kind, to report the first one and how many follow.

    Rows are counted from 0 here and from 1 in messages, the header of a CSV file not counted.

    Args:
        file: what the messages name.
        column: default column of the messages.
        locate: row of the whole table → the file it stands in and its row there, for tables of several files.
    """

    def __init__(self, file: Path, column: str, locate: Callable[[int], tuple[Path, int]] | None = None) -> None:
        self.file = file
        self.column = column
        self._locate = locate or (lambda row: (file, row))
        self._problems: dict[str, _Problem] = {}

    def add(self, kind: str, rows: np.ndarray, describe: Callable[[int], str], column: str | None = None) -> None:
        """Note ``rows`` ((k,) ascending 0-based); ``describe(row)`` words the first one of its kind."""
        if len(rows) == 0:
            return
        if kind in self._problems:
            self._problems[kind].count += len(rows)
        else:
            first = int(rows[0])
            self._problems[kind] = _Problem(column or self.column, first, describe(first), len(rows))

    def raise_if_any(self) -> None:
        """Raise an ``InputError`` about the earliest bad row, if there is one."""
        if not self._problems:
            return
        problem = min(self._problems.values(), key=lambda each: each.row)
        more = f" ({problem.count - 1:,} more such rows)" if problem.count > 1 else ""
        column = f", column {problem.column!r}" if problem.column else ""
        file, row = self._locate(problem.row)
        raise InputError(f"{file}{column}, row {row + 1}: {problem.text}{more}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Arrow and the system say about an unreadable file into an ``InputError`` that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}; write the file again or name another one") from error


class SourceTable:
    """A user's table in one file or several: the wanted columns, in batches or blocks of rows.

    Nothing of it stays in memory. Dictionary columns come decoded, strings and bytes with 64-bit offsets, cells of CSV
    files as large_string; everything else as the file has it.

    Attributes:
        path: what messages about the whole table name: the file, or the pattern the files were found by.
        files: the files in the order they are read.
        num_rows: rows of all of them.
    """

    def __init__(self, path: Path, parts: "Sequence[_ParquetPart | _CsvPart]") -> None:
        self.path = path
        self.files = tuple(part.path for part in parts)
        self.num_rows = sum(part.num_rows for part in parts)
        self._parts = parts
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])

    @property
    def is_text(self) -> bool:
        """Whether every cell comes as text (CSV)."""
        return isinstance(self._parts[0], _CsvPart)

    def bad_rows(self, column: str) -> BadRows:
        """A collector that names the file a row stands in."""
        return BadRows(self.path, column, self._locate)

    def column(self, name: str) -> pa.ChunkedArray:
        """The whole column: for what is small per node, such as ids and labels."""
        chunks = [chunk for (chunk,) in self._batches([name])]
        return pa.chunked_array(chunks)

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
            while True:
                with reading(part.path):
                    batch = next(batches, None)
                    if batch is None:
                        break
                    arrays = [_plain(batch.column(name)) for name in names]
                yield arrays

    def _locate(self, row: int) -> tuple[Path, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.files[number], row - int(self._starts[number])


def open_table(folder: Path, file: str | Sequence[str], wanted: Mapping[str, str], why_rows: str) -> SourceTable:
    """Open ``.parquet`` or ``.csv`` files that must each hold the columns ``wanted`` (schema key → column name).

    ``file`` is a path relative to ``folder``, a pattern such as ``part-*.parquet`` (read in sorted order) or a list of
    paths (read in its order). ``why_rows`` ends the message about a table without rows.

    Raises:
        InputError: no such file, unknown ending, unreadable, no rows, a column missing, there twice or of another type
            than in the first file.
    """
    paths = _find_files(folder, file)
    endings = {path.suffix.lower() for path in paths}
    if len(endings) > 1 or not endings <= {".parquet", ".csv"}:
        odd = next(path for path in paths if path.suffix.lower() != ".parquet" or len(endings) > 1)
        of_one_kind = ", and all files of a table of one kind" if len(paths) > 1 else ""
        raise InputError(f"{odd}: needed a .parquet or a .csv file{of_one_kind}, got the ending {odd.suffix.lower()!r}")
    parts = [(_ParquetPart if path.suffix.lower() == ".parquet" else _CsvPart)(path, wanted) for path in paths]
    for part in parts:
        for column, kind in part.types.items():
            if kind != parts[0].types[column]:
                raise InputError(
                    f"{part.path}, column {column!r}: holds {kind}, but {parts[0].path.name} holds "
                    f"{parts[0].types[column]}; write all files of a table with the same types"
                )
    table = SourceTable(folder / file if isinstance(file, str) else paths[0], parts)
    if table.num_rows == 0:
        raise InputError(f"{table.path}: the table has no rows; {why_rows}")
    return table


def _find_files(folder: Path, file: str | Sequence[str]) -> list[Path]:
    paths = [folder / file] if isinstance(file, str) else [folder / name for name in file]
    if isinstance(file, str) and not paths[0].is_file() and glob.has_magic(file):
        paths = sorted(Path(path) for path in glob.glob(str(paths[0])) if Path(path).is_file())
        if not paths:
            raise InputError(f"{folder / file}: no file has such a name; patterns are relative to the schema's folder")
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; paths in a schema are relative to the schema's own folder")
    return paths


class _ParquetPart:
    """One Parquet file, mapped."""

    def __init__(self, path: Path, wanted: Mapping[str, str]) -> None:
        self.path = path
        with reading(path):
            self._file = pq.ParquetFile(path, memory_map=True)
            schema = self._file.schema_arrow
        _check_columns(path, schema.names, wanted)
        self.num_rows = self._file.metadata.num_rows
        self.types = {column: _plain(pa.array([], schema.field(column).type)).type for column in wanted.values()}

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return self._file.iter_batches(batch_size=16_384, columns=list(names))


class _CsvPart:
    """One CSV file; opening it reads it once, to count its rows and to find those with too few or too many cells."""

    # A row must fit into one block.
    _BLOCK_BYTES = 1 << 24

    def __init__(self, path: Path, wanted: Mapping[str, str]) -> None:
        self.path = path
        with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
        if not names:
            raise InputError(f"{path}: the file is empty; needed a header line and at least one row")
        _check_columns(path, names, wanted)
        self.types = {column: pa.large_string() for column in wanted.values()}
        bad = BadRows(path, "")

        def note(row: pyarrow.csv.InvalidRow) -> str:
            found, needed = row.actual_columns, row.expected_columns
            # Arrow counts the header as row 1.
            bad.add(
                "cells",
                np.array([row.number - 2]),
                lambda _: f"{found} cells, but the header has {needed}; quote cells that hold a comma",
            )
            return "skip"

        with reading(path):
            self.num_rows = sum(len(batch) for batch in self._read([next(iter(wanted.values()))], note))
        bad.raise_if_any()

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return self._read(names, None)

    def _read(
        self, names: Sequence[str], note: Callable[[pyarrow.csv.InvalidRow], str] | None
    ) -> Iterator[pa.RecordBatch]:
        yield from pyarrow.csv.open_csv(
            self.path,
            # Only a single thread knows the number of a ragged row.
            read_options=pyarrow.csv.ReadOptions(use_threads=note is None, block_size=self._BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=sorted(set(names)),
                column_types={name: pa.string() for name in names},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )


def integers_if_plain(strings: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Text cells as int64 when every one is an integer as a machine writes it (no leading zero or plus), else as is."""
    if strings.null_count == len(strings):
        return strings
    if not pc.all(pc.match_substring_regex(strings, _PLAIN_INTEGER)).as_py():
        return strings
    try:
        return strings.cast(pa.int64())
    except pa.ArrowInvalid:  # beyond 64 bits
        return strings


def cells(column: pa.ChunkedArray | pa.Array) -> Callable[[int], Any]:
    """Row → the Python value in it, for messages."""
    return lambda row: column[row].as_py()


def null_rows(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """(k,) 0-based rows that are empty."""
    return np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))


def _check_columns(path: Path, names: Sequence[str], wanted: Mapping[str, str]) -> None:
    for key, column in wanted.items():
        count = list(names).count(column)
        if count > 1:
            raise InputError(f"{path}: column {column!r} is there {count} times; rename all but one")
        if count == 0:
            close = difflib.get_close_matches(column, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(
                f"{path}: no column {column!r}, which the schema names as {key}; "
                f"{hint}columns here: {', '.join(map(repr, names))}"
            )


def _plain(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string(array.type) or str(array.type) == "string_view":
        return array.cast(pa.large_string())
    if pa.types.is_binary(array.type) or pa.types.is_fixed_size_binary(array.type):
        return array.cast(pa.large_binary())
    return array
