"""Files of text that are a table or a part of one: delimited, JSON lines, and plain lines."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.csv

from optimag_dist.store import quotes
from optimag_dist.store.bad_rows import reading, shown
from optimag_dist.store.table_columns import check_columns, common_type, plain_type
from optimag_dist.types import InputError

_BATCH_ROWS = 16_384
# A row of text must fit into one block.
_BLOCK_BYTES = 1 << 24
_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


class TextStream:
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


class DelimitedFile:
    """Delimited text; opening it reads it, to count its rows and to find stray quotes and rows of too few cells."""

    kind = "text"

    def __init__(self, stream: TextStream, wanted: Mapping[str, str], separators: Sequence[str]) -> None:
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
        check_columns(self.path, found[separator], wanted)
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

    def __init__(self, stream: TextStream, name: str) -> None:
        self.path = stream.path
        with stream.reading(), stream.text() as file:
            lines = [line for line in (line.strip() for line in file) if line]
        self._lines = pa.array(lines, pa.large_string())
        self.num_rows = len(lines)
        self.types: Mapping[str, pa.DataType] = {name: pa.large_string()}

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return iter([pa.record_batch([self._lines], list(names))])


class JsonLinesFile:
    """An object per line; opening it reads it once, for its types."""

    kind = "json"

    def __init__(self, stream: TextStream, wanted: Mapping[str, str]) -> None:
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
        check_columns(self.path, list(names), wanted)
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return record
