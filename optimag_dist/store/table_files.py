"""One file of a user's table: Parquet, delimited text or JSON lines, as batches of rows."""

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from optimag_dist.store import quotes
from optimag_dist.store.bad_rows import listed, reading, shown
from optimag_dist.store.ids import near_miss
from optimag_dist.types import InputError

_BATCH_ROWS = 16_384
# Of wide rows fewer are in memory at a time.
_BATCH_BYTES = 1 << 26
# A row of text must fit into one block.
_BLOCK_BYTES = 1 << 24
_JSON = (".jsonl", ".ndjson", ".json")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# In this order the header is tried; whichever gives all columns that are wanted is it.
_SEPARATORS = (",", ";", "\t", "|")
KINDS = ".parquet, .csv, .tsv or .jsonl (text also with .gz or .zst behind it)"


class TableFile(Protocol):
    """One file of a table.

    Attributes:
        path: of it.
        kind: ``parquet``, ``text`` or ``json``; all files of a table are of one kind.
        num_rows: of it.
        types: wanted column → its type, without extensions and dictionaries.
    """

    path: Path
    kind: str
    num_rows: int
    types: Mapping[str, pa.DataType]

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns ``names``, from the first row to the last."""
        ...


def open_table_file(path: Path, wanted: Mapping[str, str], several: bool) -> TableFile | None:
    """The file at ``path`` with the columns ``wanted`` (what names it → column).

    None if it is empty and one of ``several``.

    Raises:
        InputError: an unknown ending, damaged, no header, or a column is missing or there twice.
    """
    ending, compression = _endings(path)
    if ending == ".parquet" and compression is None:
        return _ParquetFile(path, wanted)
    if not is_table(path):
        raise InputError(f"{path}: needed a table that ends in {KINDS}, got the ending {''.join(path.suffixes[-2:])!r}")
    if several and path.stat().st_size == 0:
        return None
    stream = _Stream(path, compression)
    if ending in _JSON:
        return _JsonFile(stream, wanted)
    return _TextFile(stream, wanted, ("\t",) if ending == ".tsv" else _SEPARATORS)


def is_table(path: Path) -> bool:
    """Whether the ending of ``path`` is that of a table with named columns."""
    ending, compression = _endings(path)
    return ending in (".csv", ".tsv", *_JSON) or (ending == ".parquet" and compression is None)


def _endings(path: Path) -> tuple[str, str | None]:
    """The ending before that of a compression, in lower case, and the compression."""
    endings = ["", *(ending.lower() for ending in path.suffixes)]
    compression = _COMPRESSIONS.get(endings[-1])
    return endings[-1 if compression is None else -2], compression


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type whose values say the same without extensions, dictionaries and views, text with 64-bit offsets."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_list_view(kind):
        return pa.list_(kind.value_type)
    if pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_type)
    return kind


def plain(array: pa.Array) -> pa.Array:
    """``array`` as :func:`plain_type` of its type."""
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = plain_type(array.type)
    return array if array.type == kind else array.cast(kind)


class _Stream:
    """The bytes of a text file, uncompressed, and the encoding that its first bytes tell."""

    def __init__(self, path: Path, compression: str | None) -> None:
        self.path = path
        self.compression = compression
        with reading(path), self.open() as file:
            start = file.read(256)
        self.encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
        if self.encoding == "utf-8" and b"\0" in start:
            raise InputError(
                f"{path}: holds zero bytes, so it is no text, or UTF-16 without a byte order mark; save it as UTF-8"
            )

    def open(self) -> pa.NativeFile:
        return pa.input_stream(str(self.path), compression=self.compression)

    def text(self) -> TextIO:
        """Lines end where they do in the file."""
        encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        return io.TextIOWrapper(io.BufferedReader(self.open()), encoding=encoding, newline="")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """:func:`reading` of its path, with the line of bytes that are no text."""
        with reading(self.path):
            try:
                yield
            except (UnicodeDecodeError, pa.ArrowInvalid) as error:
                if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
                    self._raise_bad_bytes(error)
                raise

    def _raise_bad_bytes(self, cause: Exception) -> None:
        with self.open() as file:
            for number, line in enumerate(io.BufferedReader(file), start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{self.path}, line {number}: the byte {line[error.start]:#04x} is not UTF-8; save the file as "
                        "UTF-8 (a spreadsheet calls it 'CSV UTF-8')"
                    ) from cause


class _ParquetFile:
    """One Parquet file, mapped."""

    kind = "parquet"

    def __init__(self, path: Path, wanted: Mapping[str, str]) -> None:
        self.path = path
        with reading(path):
            self._file = pq.ParquetFile(path, memory_map=True)
            schema = self._file.schema_arrow
        _check_columns(path, schema.names, wanted)
        metadata = self._file.metadata
        self.num_rows = metadata.num_rows
        self.types: Mapping[str, pa.DataType] = {
            column: plain_type(schema.field(column).type) for column in wanted.values()
        }
        bytes_ = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        self._batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * self.num_rows // max(bytes_, 1)))

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return self._file.iter_batches(batch_size=self._batch_rows, columns=list(names))


class _TextFile:
    """Delimited text; opening it reads it, to count its rows and to find stray quotes and rows of too few cells."""

    kind = "text"

    def __init__(self, stream: _Stream, wanted: Mapping[str, str], separators: Sequence[str]) -> None:
        self.path = stream.path
        self._stream = stream
        self._separator = self._find_header(separators, wanted)
        self.types: Mapping[str, pa.DataType] = {column: pa.large_string() for column in wanted.values()}
        self._check_quotes()
        self.num_rows = sum(len(batch) for batch in self.batches([next(iter(wanted.values()))]))

    def _find_header(self, separators: Sequence[str], wanted: Mapping[str, str]) -> str:
        found: dict[str, list[str]] = {}
        for separator in separators:
            with self._stream.reading(), self._stream.text() as file:
                names = next(csv.reader(file, delimiter=separator), None)
            if names is None:
                raise InputError(f"{self.path}: the file is empty; needed a header line and at least one row")
            if not any(name.strip() for name in names):
                raise InputError(
                    f"{self.path}: the first line is blank; needed the names of the columns there, so remove the blank "
                    "line"
                )
            found[separator] = names
            if set(wanted.values()) <= set(names):
                break
        else:
            # The one that finds most names is the one to speak of.
            separator = max(separators, key=lambda each: len(found[each]))
        _check_columns(self.path, found[separator], wanted)
        return separator

    def _check_quotes(self) -> None:
        with self._stream.reading():
            if self._stream.encoding == "utf-8":
                with self._stream.open() as file:
                    if quotes.are_plain(file, self._separator):
                        return
            self._check_rows()

    def _check_rows(self) -> None:
        with self._stream.text() as text:
            quotes.check(self.path, text, self._separator, _NAMES[self._separator], _BLOCK_BYTES)

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        encoding = "utf8" if self._stream.encoding == "utf-8" else self._stream.encoding
        read = pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, encoding=encoding)
        parse = pyarrow.csv.ParseOptions(delimiter=self._separator, newlines_in_values=True)
        convert = pyarrow.csv.ConvertOptions(
            include_columns=sorted(set(names)),
            column_types={name: pa.string() for name in names},
            strings_can_be_null=True,
            null_values=[""],
        )
        file = self._stream.open() if self._stream.compression else self.path
        with self._stream.reading():
            try:
                yield from pyarrow.csv.open_csv(file, read_options=read, parse_options=parse, convert_options=convert)
            except pa.ArrowInvalid as error:
                if "columns, got" in str(error):
                    self._check_rows()
                raise


class LinesFile:
    """Text without a header, whose lines that are not blank are the one column ``name``."""

    kind = "text"

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        stream = _Stream(path, _endings(path)[1])
        with stream.reading(), stream.text() as file:
            lines = [line for line in (line.strip() for line in file) if line]
        self._lines = pa.array(lines, pa.large_string())
        self.num_rows = len(lines)
        self.types: Mapping[str, pa.DataType] = {name: pa.large_string()}

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return iter([pa.record_batch([self._lines], list(names))])


class _JsonFile:
    """An object per line; opening it reads it once, for its types."""

    kind = "json"

    def __init__(self, stream: _Stream, wanted: Mapping[str, str]) -> None:
        self.path = stream.path
        self._stream = stream
        columns = sorted(set(wanted.values()))
        kinds = dict.fromkeys(columns, pa.null())
        names: dict[str, None] = {}
        self.num_rows = 0
        for rows in self._rows(strict=True):
            names.update(dict.fromkeys(name for row in rows for name in row))
            for column in columns:
                kinds[column] = self._widened(kinds[column], rows, column)
            self.num_rows += len(rows)
        if not self.num_rows:
            raise InputError(f"{self.path}: the file is empty; needed a JSON object on each line, at least one")
        _check_columns(self.path, list(names), wanted)
        self._kinds = kinds
        self.types: Mapping[str, pa.DataType] = {column: plain_type(kind) for column, kind in kinds.items()}

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for rows in self._rows():
            arrays = [pa.array([row.get(name) for row in rows], self._kinds[name]) for name in names]
            yield pa.record_batch(arrays, list(names))

    def _rows(self, strict: bool = False) -> Iterator[list[dict[str, Any]]]:
        number = 0
        with self._stream.reading(), self._stream.text() as file:
            while lines := list(islice((line for line in file if not line.isspace()), _BATCH_ROWS)):
                rows = []
                for line in lines:
                    number += 1
                    rows.append(self._parse(line, number, strict))
                yield rows

    def _parse(self, line: str, number: int, strict: bool) -> dict[str, Any]:
        try:
            row = json.loads(line, object_pairs_hook=_object if strict else None)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{self.path}, row {number}: not a JSON object: {error}; needed one object per line, as in "
                '{"id": "a", "x": [0.1, 0.2]}'
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{self.path}, row {number}: needed a JSON object per line, got {shown(row)}; an array of objects has "
                "to be written one a line"
            )
        return row

    def _widened(self, known: pa.DataType, rows: list[dict[str, Any]], column: str) -> pa.DataType:
        try:
            return common_type(known, pa.array([row.get(column) for row in rows]).type)
        except (pa.ArrowException, OverflowError, TypeError):
            pass
        first = self.num_rows
        for number, row in enumerate(rows, start=first + 1):
            try:
                known = common_type(known, pa.array([row.get(column)]).type)
            except (pa.ArrowException, OverflowError, TypeError) as error:
                raise InputError(
                    f"{self.path}, column {column!r}, row {number}: {shown(row.get(column))} does not go with the "
                    f"{known} of the rows before it; write all of a column as one type"
                ) from error
        # Each fits by itself: whole numbers beside fractions that no double holds.
        raise InputError(
            f"{self.path}, column {column!r}, row {first + 1}: the numbers from here on fit no one type; write whole "
            "numbers beyond 2^53 as text"
        )


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds the values of both.

    Raises:
        pa.ArrowException: there is none.
    """
    if one == other:
        return one
    binary = pa.types.is_large_binary
    if binary(one) != binary(other) and not (pa.types.is_null(one) or pa.types.is_null(other)):
        raise pa.ArrowTypeError(f"{one} is not {other}")
    fields = [pa.schema([("x", kind)]) for kind in (one, other)]
    return pa.unify_schemas(fields, promote_options="permissive").field("x").type


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return record


_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


def _check_columns(path: Path, names: Sequence[str], wanted: Mapping[str, str]) -> None:
    for key, column in wanted.items():
        count = list(names).count(column)
        if count > 1:
            raise InputError(f"{path}: column {column!r} is there {count} times; rename all but one")
        if count == 0:
            close = difflib.get_close_matches(column, names, n=1)
            hint = near_miss(column, pa.array(names, pa.large_string())) or (
                f"did you mean {close[0]!r}? " if close else ""
            )
            raise InputError(
                f"{path}: no column {column!r}, which {key} names; {hint.strip() + ' ' if hint else ''}columns here: "
                f"{listed(list(names))}"
            )
