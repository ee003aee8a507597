"""Files of text that are a table or a part of one: JSON lines, plain lines, and delimited, where quotes must enclose
whole cells: a stray one would swallow the rows that follow."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.csv

from optimag_dist.store.bad_rows import BadRows, reading, shown
from optimag_dist.store.table_columns import check_columns, common_type, plain_type
from optimag_dist.types import InputError

_QUOTE, _LINE_FEED, _RETURN = b'"\n\r'
_QUOTES_BYTES = 1 << 24
_REMEDY = "put quotes around whole cells, write one within twice (not with a backslash), or save as Parquet"
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
            raise InputError(f"{path}: has zero bytes: no text, or UTF-16 without a byte order mark; save it as UTF-8")

    def open(self) -> pa.NativeFile:
        return pa.input_stream(str(self.path), compression=self.compression)

    def text(self) -> TextIO:
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
        with stream.reading(), stream.open() as file:
            if stream.encoding != "utf-8" or not quotes_are_plain(file, self._separator):
                self._check_rows()
        self.num_rows = sum(len(batch) for batch in self.batches([next(iter(wanted.values()))]))

    def _find_header(self, separators: Sequence[str], wanted: Mapping[str, str]) -> str:
        found: dict[str, list[str]] = {}
        for separator in separators:
            with self._stream.reading(), self._stream.text() as file:
                names = next(csv.reader(file, delimiter=separator), None)
            if names is None:
                raise InputError(f"{self.path}: the file is empty; needed a header line and at least one row")
            if not any(name.strip() for name in names):
                raise InputError(f"{self.path}: the first line is blank; needed the column names there, so remove it")
            found[separator] = names
            if set(wanted.values()) <= set(names):
                break
        else:
            # The one that finds most names is the one to speak of.
            separator = max(separators, key=lambda each: len(found[each]))
        check_columns(self.path, found[separator], wanted)
        return separator

    def _check_rows(self) -> None:
        with self._stream.text() as text:
            check_quotes(self.path, text, self._separator, _NAMES[self._separator], _BLOCK_BYTES)

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


def quotes_are_plain(file: BinaryIO, separator: str) -> bool:
    """Whether every quote of UTF-8 text opens or closes a whole cell of one line, or stands doubled in one: all is
    well."""
    ends = np.zeros(256, bool)
    ends[[ord(separator), _LINE_FEED, _RETURN, _QUOTE]] = True
    inside = False
    before = _LINE_FEED
    rest = b""
    head = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
    for chunk in chain([head], iter(partial(file.read, _QUOTES_BYTES), b"")):
        chunk = rest + chunk
        # What follows a quote has to be known.
        whole = chunk.rstrip(b'"')
        chunk, rest = whole, chunk[len(whole) :]
        if not chunk:
            continue
        if inside or _QUOTE in chunk:
            content = np.frombuffer(chunk, np.uint8)
            quotes = np.flatnonzero(content == _QUOTE)
            previous = np.where(quotes > 0, content[quotes - 1], before) if len(quotes) else quotes
            opens = slice(int(inside), None, 2)
            closes = slice(1 - int(inside), None, 2)
            if not ends[previous[opens]].all() or not ends[content[quotes[closes] + 1]].all():
                return False
            lines = np.flatnonzero((content == _LINE_FEED) | (content == _RETURN))
            # A line that ends after an odd number of quotes ends within a cell.
            if ((np.searchsorted(quotes, lines) + inside) % 2).any():
                return False
            inside ^= bool(len(quotes) % 2)
        before = chunk[-1]
    # The quotes that end the file: they close a cell, or are a whole one.
    return not inside if not rest else len(rest) % 2 == inside and bool(inside or ends[before])


def check_quotes(path: Path, file: TextIO, separator: str, named: str, longest: int) -> None:
    """Raise ``InputError`` about the first row of a CSV file in which a quote is not where it can be, or else about
    rows that have not as many cells as the header. Python's parser is strict where Arrow's is not.

    Not where it can be: text after a closing quote, a quote that is never closed, and a cell of several lines each of
    which would be a row like the others: it ends in the quote of another row. ``named`` is the separator in words,
    ``longest`` the most characters of a cell.
    """
    lines: list[str] = []

    def remembered() -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line

    bad = BadRows(path, "")
    limit = csv.field_size_limit(longest)
    try:
        rows = csv.reader(remembered(), delimiter=separator, strict=True)
        width, number = 0, 0
        while True:
            lines.clear()
            place = f"row {number}" if number else "the header"
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise InputError(f"{path}, {place}: {_what_is_wrong(lines, str(error))}; {_REMEDY}") from error
            if cells is None:
                break
            if not cells:
                continue
            width = width or len(cells)
            if number and len(lines) > 1 and (len(cells) != width or _is_rows(lines, cells, separator)):
                raise InputError(
                    f"{path}, {place}: a quote opens in {shown(lines[0].rstrip())} and closes {len(lines) - 1} "
                    f"lines below, in {shown(lines[-1].rstrip())}, so that the rows between them would be one cell; "
                    f"{_REMEDY}"
                )
            if len(cells) != width:
                words = f"{len(cells)} cells, but the header has {width}; quote cells that hold {named}"
                bad.add("cells", np.array([number - 1]), lambda _, words=words: words)  # type: ignore[misc]
            number += 1
    finally:
        csv.field_size_limit(limit)
    bad.raise_if_any()


def _what_is_wrong(lines: list[str], error: str) -> str:
    first, last = shown(lines[0].rstrip()), shown(lines[-1].rstrip())
    if "expected after" in error:
        if len(lines) == 1:
            return f"there is text after a closing quote, in {first}"
        return f"a quote opens in {first} and closes {len(lines) - 1} lines below, before other text, in {last}"
    if "unexpected end" in error or "field limit" in error:
        return f"a quote opens in {first} and is not closed"
    return error


def _is_rows(lines: list[str], cells: list[str], separator: str) -> bool:
    """Whether each line of a record of several would be a row like the record, were it not for the quotes."""
    parts = [line.rstrip("\r\n").split(separator) for line in lines]
    if any(len(part) != len(cells) for part in parts):
        return False
    inner = [place for place, cell in enumerate(cells) if "\n" in cell or "\r" in cell]
    pairs = [(cells[place], part[place]) for part in parts[1:] for place in range(inner[0])]
    pairs += [(cells[place], part[place]) for part in parts[:-1] for place in range(inner[-1] + 1, len(cells))]
    shapes = [(_shape(one), _shape(other)) for one, other in pairs if one and other]
    return bool(shapes) and all(one == other for one, other in shapes)


def _shape(text: str) -> str:
    """Numbers are alike, and so are texts with letters, digits and other characters in the same order."""
    try:
        float(text)
    except ValueError:
        return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", text))
    return "number"
