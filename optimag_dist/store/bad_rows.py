"""What is wrong with a user's rows, told with file, column and row."""

import csv
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from optimag_dist.types import InputError


class BadRows:
    """Collects rows of one table by kind, to tell of the first one of each and how many follow. Rows are counted from 0
    here and from 1 in messages, the header of a CSV file not counted. ``column`` is the default of the messages;
    ``locate`` maps a row of a table of several files to the file it stands in and its row there."""

    def __init__(self, file: Path, column: str, locate: Callable[[int], tuple[Path, int]] | None = None) -> None:
        self.file = file
        self.column = column
        self._locate = locate or (lambda row: (file, row))
        # Kind → the first row, what is said of it, and how many there are.
        self._found: dict[str, tuple[int, str]] = {}
        self._counts: Counter[str] = Counter()

    def emptied(self) -> "BadRows":
        """A collector of the same table and column that holds nothing yet."""
        return BadRows(self.file, self.column, self._locate)

    def add(self, kind: str, rows: np.ndarray, describe: Callable[[int], str], column: str | None = None) -> None:
        """Note ``rows`` ((k,) ascending 0-based); ``describe(row)`` words the first one of its kind."""
        if len(rows) == 0:
            return
        if kind not in self._found:
            first = int(rows[0])
            name, (file, row) = self.column if column is None else column, self._locate(first)
            where = f"{file}, column {name!r}" if name else str(file)
            self._found[kind] = first, f"{where}, row {row + 1}: {describe(first)}"
        self._counts[kind] += len(rows)

    def place(self, row: int) -> str:
        """How to name ``row`` within a sentence about another row of the table."""
        file, number = self._locate(row)
        return f"row {number + 1}" if file == self.file else f"row {number + 1} of {file.name}"

    def sentences(self) -> list[str]:
        """One for each kind of row, the earliest first."""
        found = [
            (row, text + (f" ({count - 1:,} more such rows)" if count > 1 else ""))
            for (row, text), count in zip(self._found.values(), self._counts.values(), strict=True)
        ]
        return [text for _, text in sorted(found, key=lambda each: each[0])]

    def raise_if_any(self) -> None:
        if self._found:
            raise InputError(self.sentences()[0])


# Letters of what a library says.
_SAID = 300


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Arrow and the system say about an unreadable file into an ``InputError`` that names it."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no regular file; needed one that can be read more than once")
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError, EOFError, zlib.error, csv.Error) as error:
        remedy = "write the file again or name another one"
        # pyarrow before 26, where rows are missing.
        if "Expected all lists to be of size" in str(error):
            remedy = "write its lists of fixed size as pa.list_(type), without the size, or read them with pyarrow 26"
        # Arrow repeats cells of any length and content.
        said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(error))
        plain = said if len(said) <= _SAID else f"{said[:_SAID]}…"
        raise InputError(f"{path}: cannot be read: {plain}; {remedy}") from error


def shown(value: object, length: int = 60) -> str:
    """``value`` as a message prints it: quoted if it is text, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}… ({len(text):,} characters)"


def listed(values: Sequence[Any], most: int = 20, show: Callable[[Any], str] = shown) -> str:
    """``values`` as a message lists them, the first ``most`` of them."""
    more = f" and {len(values) - most:,} more" if len(values) > most else ""
    return ", ".join(map(show, values[:most])) + more
