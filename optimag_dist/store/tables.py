"""Users' Parquet and CSV tables, read column by column, and errors that name file, column and row."""

import csv
import difflib
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
    """

    def __init__(self, file: Path, column: str) -> None:
        self.file = file
        self.column = column
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
        place = f", column {problem.column!r}" if problem.column else ""
        raise InputError(f"{self.file}{place}, row {problem.row + 1}: {problem.text}{more}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Arrow and the system say about an unreadable file into an ``InputError`` that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}; write the file again or name another one") from error


class SourceTable:
    """A user's table: ``num_rows`` and the wanted columns, one at a time or in blocks of rows.

    Dictionary columns come decoded, strings and bytes with 64-bit offsets; everything else as the file has it.
    """

    def __init__(self, path: Path, data: "pa.Table | pq.ParquetFile", num_rows: int) -> None:
        self.path = path
        self.num_rows = num_rows
        self._data = data

    @property
    def is_text(self) -> bool:
        """Whether every cell came as text (CSV)."""
        return isinstance(self._data, pa.Table)

    def column(self, name: str) -> pa.ChunkedArray:
        """The whole column."""
        chunks = [chunk for (chunk,) in self._chunks([name])]
        return pa.chunked_array(chunks)

    def blocks(self, names: Sequence[str], rows: int) -> Iterator[list[pa.Array]]:
        """The columns ``names`` in blocks of ``rows`` rows, the last one shorter."""
        held: list[list[pa.Array]] = []
        count = 0
        for arrays in self._chunks(names):
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

    def _chunks(self, names: Sequence[str]) -> Iterator[list[pa.Array]]:
        with reading(self.path):
            if isinstance(self._data, pa.Table):
                batches = iter(self._data.select(list(names)).to_batches())
            else:
                batches = self._data.iter_batches(batch_size=16_384, columns=list(names))
        while True:
            with reading(self.path):
                batch = next(batches, None)
                if batch is None:
                    return
                arrays = [_plain(batch.column(name)) for name in names]
            yield arrays


def open_table(path: Path, wanted: Mapping[str, str], why_rows: str) -> SourceTable:
    """Open a ``.parquet`` or ``.csv`` file that must hold the columns ``wanted`` (schema key → column name).

    ``why_rows`` ends the message about a table without rows.

    Raises:
        InputError: no such file, unknown ending, unreadable, no rows, a column missing or there twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; paths in a schema are relative to the schema's own folder")
    ending = path.suffix.lower()
    if ending == ".parquet":
        with reading(path):
            data = pq.ParquetFile(path, memory_map=True)
            names = data.schema_arrow.names
        _check_columns(path, names, wanted)
        num_rows = data.metadata.num_rows
    elif ending == ".csv":
        with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
        if not names:
            raise InputError(f"{path}: the file is empty; needed a header line and at least one row")
        _check_columns(path, names, wanted)
        data = _read_csv(path, sorted(set(wanted.values())))
        num_rows = data.num_rows
    else:
        raise InputError(f"{path}: needed a .parquet or a .csv file, got the ending {ending!r}")
    if num_rows == 0:
        raise InputError(f"{path}: the table has no rows; {why_rows}")
    return SourceTable(path, data, num_rows)


def integers_if_plain(strings: pa.ChunkedArray) -> pa.ChunkedArray:
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


def null_rows(column: pa.ChunkedArray) -> np.ndarray:
    """(k,) 0-based rows that are empty."""
    return np.flatnonzero(column.is_null().to_numpy())


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


def _read_csv(path: Path, columns: list[str]) -> pa.Table:
    ragged: list[tuple[int, int, int]] = []

    def note(row: pyarrow.csv.InvalidRow) -> str:
        ragged.append((row.number, row.expected_columns, row.actual_columns))
        return "skip"

    with reading(path):
        table = pyarrow.csv.read_csv(
            path,
            # Only a single thread knows the number of a ragged row.
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns,
                column_types={name: pa.string() for name in columns},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    if ragged:
        number, expected, actual = ragged[0]
        bad = BadRows(path, "")
        # Arrow counts the header as row 1.
        rows = np.array([number - 2, *(each[0] - 2 for each in ragged[1:])])
        bad.add(
            "cells", rows, lambda _: f"{actual} cells, but the header has {expected}; quote cells that hold a comma"
        )
        bad.raise_if_any()
    return table


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
