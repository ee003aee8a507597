"""Whether the quotes of a CSV file enclose whole cells: a stray one would swallow the rows that follow."""

import codecs
import csv
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from optimag_dist.store.bad_rows import BadRows, shown
from optimag_dist.types import InputError

_QUOTE, _LINE_FEED, _RETURN = b'"\n\r'
_CHUNK_BYTES = 1 << 24
_REMEDY = (
    "put quotes around whole cells, write a quote within such a cell twice (not with a backslash), or save the table "
    "as Parquet"
)


def are_plain(file: BinaryIO, separator: str) -> bool:
    """Whether every quote of UTF-8 text opens or closes a whole cell of one line, or stands doubled in one.

    Then nothing can be wrong with them. Takes a fraction of the time of parsing.
    """
    ends = np.zeros(256, bool)
    ends[[ord(separator), _LINE_FEED, _RETURN, _QUOTE]] = True
    inside = False
    before = _LINE_FEED
    rest = b""
    head = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
    for chunk in chain([head], iter(partial(file.read, _CHUNK_BYTES), b"")):
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


def check(path: Path, file: TextIO, separator: str, named: str, longest: int) -> None:
    """Raise ``InputError`` about the first row of a CSV file in which a quote is not where it can be, or else about
    rows that have not as many cells as the header.

    That is: text after a closing quote, a quote that is never closed, and a cell of several lines each of which would
    be a row like the others: it ends in the quote of another row. Python's parser is strict where Arrow's is not.
    ``named`` is the separator in words, ``longest`` the most characters of a cell.
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
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise InputError(f"{path}, {_row(number)}: {_what_is_wrong(lines, str(error))}; {_REMEDY}") from error
            if cells is None:
                break
            if not cells:
                continue
            width = width or len(cells)
            if number and len(lines) > 1 and (len(cells) != width or _is_rows(lines, cells, separator)):
                raise InputError(
                    f"{path}, {_row(number)}: a quote opens in {shown(lines[0].rstrip())} and closes {len(lines) - 1} "
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


def _row(number: int) -> str:
    return f"row {number}" if number else "the header"


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
