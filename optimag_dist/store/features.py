"""Feature rows of one modality from the user's files, block by block, and their validation."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optimag_dist.store.arrays import ArrayFeatures, NpyRows, as_floats, block_rows
from optimag_dist.store.bad_rows import BadRows, shown
from optimag_dist.store.layout import StoredDtype
from optimag_dist.store.schema import ModalitySource
from optimag_dist.store.source import FeatureReader
from optimag_dist.store.tables import SourceTable, cells, null_rows
from optimag_dist.types import InputError

# Looked at together to find how wide a list is.
_FIRST_ROWS = 256


def open_features(name: str, source: ModalitySource, folder: Path, nodes: SourceTable) -> FeatureReader:
    if source.file is not None:
        path = folder / source.file
        return ArrayFeatures(path, NpyRows(path), nodes.num_rows, nodes.path.name, dtype=source.dtype)
    if source.columns is not None:
        return _NumberColumns(list(source.columns), nodes, source.dtype)
    assert source.column is not None
    return _ListColumn(name, source.column, nodes, source.dtype)


def checked_blocks(reader: FeatureReader, noted: BadRows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks as they are stored: (rows, width) of the reader's dtype, zeros in absent rows, and (rows,) bool present.

    ``noted`` is given what is doubtful and kept: rows of zeros, and numbers that the dtype changes by more than
    rounding. After the last block, ``InputError`` when a row was bad: partly NaN, infinite, beyond the dtype, or badly
    shaped.
    """
    dtype = reader.dtype
    # Beyond it not every whole number is one of the dtype.
    whole_to = 2.0 ** (np.finfo(dtype).nmant + 1)
    wider = "use dtype: float32, or " if dtype == "float16" else ""
    too_large = f"{dtype} ends at {float(np.finfo(dtype).max):.6g}; {wider}scale it"
    first = 0
    any_present = False

    def note(rows_of: BadRows, kind: str, wrong: np.ndarray, remedy: Callable[[np.floating], str]) -> None:
        rows = np.flatnonzero(wrong.any(axis=1))
        if len(rows) == 0:
            return
        position = int(np.flatnonzero(wrong[rows[0]])[0])
        column, words = reader.describe(position)
        value = block[rows[0], position]
        number = int(value) if abs(value) < 1e20 and value == np.trunc(value) else value
        rows_of.add(kind, rows + first, lambda _: f"{words} is {number}; {remedy(value)}", column)

    def rounding(value: np.floating) -> str:
        return (
            f"which becomes {int(np.dtype(dtype).type(value))}, since {dtype} holds whole numbers exactly only up to "
            f"{whole_to:,.0f}; {wider}scale it, or split a code into columns"
        )

    for block in reader.blocks():
        nan, infinite = _nan_and_inf(block)
        absent = np.asarray(nan.all(axis=1))
        note(reader.bad, "nan", nan & ~absent[:, None], lambda _: "only a whole row of them means a missing value")
        note(reader.bad, "inf", infinite, lambda _: "features must be finite")
        with np.errstate(over="ignore"):
            stored = np.array(block, dtype=dtype, order="C")
        if not np.can_cast(block.dtype, dtype):
            note(reader.bad, "overflow", _nan_and_inf(stored)[1] & ~infinite, lambda _: too_large)
            if np.fmax.reduce(block, axis=None) >= whole_to or np.fmin.reduce(block, axis=None) <= -whole_to:
                large = np.isfinite(stored) & (np.abs(block) >= whole_to)
                rounded = large & (stored.astype(block.dtype) != block) & (np.trunc(block) == block)
                note(noted, "rounded", rounded, rounding)
            vanished = (stored.view(f"u{stored.itemsize}") << 1 == 0) & (block != 0)
            note(noted, "vanished", vanished, lambda _: f"which {dtype} keeps as 0; scale it")
        zeros = np.flatnonzero((stored[:, 0] == 0) & ~absent)
        zeros = zeros[~stored[zeros].any(axis=1)]
        noted.add("zeros", zeros + first, lambda _: _ZEROS, "")
        stored[absent] = 0
        any_present |= not absent.all()
        first += len(block)
        yield stored, ~absent
    reader.bad.raise_if_any()
    if not any_present:
        raise _all_missing(reader.bad.file, reader.bad.column)


_ZEROS = (
    "every number is 0, which counts as a value that is there, though OptiMAG can compare it with no other; if it "
    "means that there is none, leave the cell empty (in arrays: NaN)"
)


def _nan_and_inf(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if block.dtype != np.float16:
        return np.isnan(block), np.isinf(block)
    # numpy widens every half to look at it, which takes several times as long as its bits.
    magnitude = block.view(np.uint16) & 0x7FFF
    return magnitude > 0x7C00, magnitude == 0x7C00


def _all_missing(file: Path, column: str) -> InputError:
    place = f"{file}, column {column!r}" if column else f"{file}"
    return InputError(f"{place}: no node has a value, from row 1 to the last; fill it or drop the modality")


class _NumberColumns:
    def __init__(self, columns: list[str], nodes: SourceTable, dtype: StoredDtype) -> None:
        self.width = len(columns)
        self.dtype = dtype
        self.bad = nodes.bad_rows(columns[0])
        self._columns = columns
        self._nodes = nodes

    def blocks(self) -> Iterator[np.ndarray]:
        first = 0
        for arrays in self._nodes.blocks(self._columns, block_rows(self.width)):
            block = np.stack([self._numbers(a, c, first) for a, c in zip(arrays, self._columns, strict=True)], axis=1)
            first += len(block)
            yield block

    def describe(self, position: int) -> tuple[str | None, str]:
        return self._columns[position], "the number"

    def _numbers(self, array: pa.Array, column: str, first: int) -> np.ndarray:
        if pa.types.is_large_string(array.type):
            return self._parse(array, column, first)
        if not _is_number(array.type):
            raise InputError(f"{self._nodes.path}, column {column!r}: needed numbers, got {array.type}")
        return _floats(array)

    def _parse(self, array: pa.Array, column: str, first: int) -> np.ndarray:
        try:
            return pc.cast(array, pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            numbers = np.array([_number_or_none(text) for text in array.to_pylist()], dtype=object)
        wrong = np.array([number is None for number in numbers])
        self.bad.add(
            f"text {column}",
            np.flatnonzero(wrong) + first,
            lambda row: f"{shown(cells(array)(row - first))} is not a number; leave the cell empty if there is none",
            column,
        )
        return np.where(wrong, np.nan, numbers).astype(np.float64)


class _ListColumn:
    def __init__(self, name: str, column: str, nodes: SourceTable, dtype: StoredDtype) -> None:
        self.dtype = dtype
        self.bad = nodes.bad_rows(column)
        self._name = name
        self._column = column
        self._nodes = nodes
        self.width, self._width_row = self._find_width()

    def blocks(self) -> Iterator[np.ndarray]:
        first = 0
        for (array,) in self._nodes.blocks([self._column], block_rows(self.width)):
            yield self._block(self._as_lists(array, first, self.bad), first)
            first += len(array)

    def describe(self, position: int) -> tuple[str | None, str]:
        return None, f"number {position + 1} of {self.width}"

    def _find_width(self) -> tuple[int, int]:
        # Its own collector: blocks() meets the same rows again.
        bad = self._nodes.bad_rows(self._column)
        first = 0
        for (array,) in self._nodes.blocks([self._column], _FIRST_ROWS):
            lengths = _lengths(self._as_lists(array, first, bad))
            filled = np.flatnonzero(lengths > 0)
            if len(filled):
                return int(lengths[filled[0]]), first + int(filled[0])
            _note_empty(lengths, first, bad)
            first += len(array)
        bad.raise_if_any()
        raise _all_missing(self._nodes.path, self._column)

    def _as_lists(self, array: pa.Array, first: int, bad: BadRows) -> pa.Array:
        kind = array.type
        if pa.types.is_null(kind):
            return array.cast(pa.list_(pa.float64()))
        if pa.types.is_large_string(kind):
            return self._parse(array, first, bad)
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or not _is_number(kind.value_type):
            remedy = f"; for single numbers write columns: [{self._column}]" if _is_number(kind) else ""
            raise InputError(
                f"{self._nodes.path}, column {self._column!r}, row 1: modality {self._name!r} needs lists of numbers, "
                f"got {kind}{remedy}"
            )
        return array

    def _parse(self, array: pa.Array, first: int, bad: BadRows) -> pa.Array:
        texts = array.to_pylist()
        lists = [None if text is None else _number_list(text) for text in texts]
        wrong = [row for row, (text, numbers) in enumerate(zip(texts, lists, strict=True)) if text and numbers is None]
        bad.add(
            "text",
            np.array(wrong, dtype=np.int64) + first,
            lambda row: f"{shown(texts[row - first], 40)} is no list of numbers; write 0.1 0.2, 0.1;0.2 or [0.1, 0.2]",
        )
        return pa.array(lists, pa.list_(pa.float64()))

    def _block(self, lists: pa.Array, first: int) -> np.ndarray:
        lengths = _lengths(lists)
        _note_empty(lengths, first, self.bad)
        wrong = np.flatnonzero((lengths > 0) & (lengths != self.width))
        self.bad.add(
            "width",
            wrong + first,
            lambda row: (
                f"{lengths[row - first]} numbers, but {self.bad.place(self._width_row)} has {self.width}; "
                "all rows need the same width"
            ),
        )
        right = lengths == self.width
        numbers = _floats(lists.filter(pa.array(right)).flatten()).reshape(-1, self.width)
        if right.all():
            return numbers
        block = np.full((len(lengths), self.width), np.nan, dtype=numbers.dtype)
        block[right] = numbers
        return block


def _floats(array: pa.Array) -> np.ndarray:
    """The numbers of ``array``, NaN where there is none."""
    if pa.types.is_floating(array.type):
        return array.to_numpy(zero_copy_only=False)
    if not pa.types.is_integer(array.type):
        return pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    numbers = as_floats(array.fill_null(0).to_numpy())
    if array.null_count:
        numbers[null_rows(array)] = np.nan
    return numbers


def _is_number(kind: pa.DataType) -> bool:
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return is_number or pa.types.is_boolean(kind) or pa.types.is_null(kind)


def _lengths(lists: pa.Array) -> np.ndarray:
    """(rows,) numbers in each list, −1 where there is none."""
    if pa.types.is_fixed_size_list(lists.type):
        return np.where(lists.is_valid().to_numpy(zero_copy_only=False), lists.type.list_size, -1)
    return pc.fill_null(pc.list_value_length(lists), -1).to_numpy()


def _note_empty(lengths: np.ndarray, first: int, bad: BadRows) -> None:
    bad.add("empty", np.flatnonzero(lengths == 0) + first, lambda _: "an empty list; a missing value is an empty cell")


def _number(text: str) -> float:
    # Python reads more than others write: 1_000, and digits of any script.
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def _number_or_none(text: str | None) -> float | None:
    if text is None:
        return float("nan")
    try:
        return _number(text)
    except ValueError:
        return None


def _number_list(text: str) -> list[float] | None:
    text = text.strip()
    try:
        if not text.startswith("["):
            return [_number(number) for number in (text.split(";") if ";" in text else text.split())]
        numbers = json.loads(text)
        if any(isinstance(number, str) for number in numbers):
            return None
        return [float("nan") if number is None else float(number) for number in numbers]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
