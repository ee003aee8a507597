"""Ids, labels and splits of the node table."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optimag_dist.store.bad_rows import BadRows, listed, shown
from optimag_dist.store.ids import integers_if_plain, near_miss
from optimag_dist.store.layout import SPLITS
from optimag_dist.store.schema import NodeTable
from optimag_dist.store.source import Labels
from optimag_dist.store.tables import SourceTable, cells, null_rows
from optimag_dist.types import InputError

# What programs write for a value that is not there.
_MISSING_WORDS = ("nan", "none", "null", "na", "n/a", "<na>", "nat", "#n/a")


def read_ids(nodes: SourceTable, column: str) -> pa.Array:
    """The users' ids, (n,) int64 or large_string, row order kept. CSV cells become integers when all of them are plain
    ones (no leading zero or plus sign), otherwise strings."""
    ids = nodes.column(column)
    bad = nodes.bad_rows(column)
    bad.add("empty", null_rows(ids), lambda _: "the id is empty; every node needs one")
    bad.raise_if_any()
    if nodes.is_text:
        ids = integers_if_plain(ids)
    key = pa.concat_arrays(_as_key(ids, nodes, column).chunks)
    if _all_different(key):
        return key
    codes = key.dictionary_encode().indices.to_numpy()
    _, firsts = np.unique(codes, return_index=True)
    repeats = np.setdiff1d(np.arange(len(codes)), firsts)

    def describe(row: int) -> str:
        earlier = int(np.flatnonzero(codes == codes[row])[0])
        return f"the id {shown(key[row].as_py())} is a duplicate, {bad.place(earlier)} has it; ids must be unique"

    bad.add("duplicate", repeats, describe)
    bad.raise_if_any()
    return key


def note_missing_words(ids: pa.Array, noted: BadRows) -> None:
    if pa.types.is_large_string(ids.type):
        noted.add(
            "missing",
            np.flatnonzero(missing_words(ids)),
            lambda row: f"the id is the text {shown(ids[row].as_py())}; if it means that there is none, drop the row",
        )


def missing_words(texts: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """(k,) bool: where the text is a word for a missing value, such as ``nan``."""
    words = pa.array(_MISSING_WORDS, pa.large_string())
    return pc.is_in(pc.utf8_lower(texts), value_set=words).to_numpy(zero_copy_only=False)


def _all_different(key: pa.Array) -> bool:
    if not pa.types.is_integer(key.type):
        return len(key.dictionary_encode().dictionary) == len(key)
    # Sorting takes a fifth of the memory of a hash table.
    numbers = key.to_numpy()
    return bool((np.diff(numbers) > 0).all()) or bool((np.diff(np.sort(numbers)) > 0).all())


def read_labels(nodes: SourceTable, schema: NodeTable) -> Labels | None:
    """Labels of the nodes, or None when the schema names no column."""
    if schema.label is None:
        return None
    column = schema.label
    values = _labels_as_key(nodes, column)
    if values.null_count == len(values):
        raise InputError(f"{nodes.path}, column {column!r}: not one label; fill the column or drop 'nodes.label'")
    distinct = sorted(pc.unique(values.drop_null()).to_pylist())
    names = [str(value) for value in distinct]
    bad = nodes.bad_rows(column)
    if schema.classes is None:
        classes = names
        # −1 is many people's "unlabelled", and some people's negative class: only the user knows.
        text, signed = pa.types.is_large_string(values.type), pa.types.is_signed_integer(values.type)
        negative = pc.less(values, 0).fill_null(False).to_numpy() if signed else []
        doubtful = missing_words(values) if text else negative
        bad.add(
            "doubtful",
            np.flatnonzero(doubtful),
            lambda row: (
                f"the label is {'the text ' * text}{shown(values[row].as_py())}: leave the cell empty if that means "
                "unlabelled, or list all labels under 'nodes.classes' if it is a class"
            ),
        )
    else:
        classes = [str(name) for name in schema.classes]
        known = pa.array([v for v, name in zip(distinct, names, strict=True) if name in set(classes)], values.type)
        inside = pc.or_(pc.is_in(values, value_set=known), values.is_null())
        bad.add(
            "class",
            np.flatnonzero(~inside.to_numpy()),
            lambda row: (
                f"the label {shown(label := str(values[row].as_py()))} is not among 'nodes.classes', "
                f"{listed(classes)}{near_miss(label, pa.array(classes, pa.large_string()))}; "
                "add it there (in quotes if YAML reads it as something else), or correct the cell"
            ),
        )
    bad.raise_if_any()
    position = {name: index for index, name in enumerate(classes)}
    codes = np.array([position[name] for name in names] + [-1], dtype=np.int32)
    found = pc.index_in(values, value_set=pa.array(distinct, values.type))
    return Labels(codes[pc.fill_null(found, -1).to_numpy()], tuple(classes))


def read_split(nodes: SourceTable, column: str | None) -> np.ndarray | None:
    """(n,) int8: position in ``SPLITS`` (train, val, test), −1 for none; None when the schema names no column."""
    if column is None:
        return None
    values = nodes.column(column)
    if values.null_count < len(values) and not pa.types.is_large_string(values.type):
        raise InputError(f"{nodes.path}, column {column!r}: needed text ({', '.join(SPLITS)}), got {values.type}")
    values = values.cast(pa.large_string())
    values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.large_string()), values)
    if values.null_count == len(values):
        raise InputError(f"{nodes.path}, column {column!r}: every cell is empty; fill it or drop 'nodes.split'")
    found = pc.index_in(values, value_set=pa.array(SPLITS, pa.large_string()))
    bad = nodes.bad_rows(column)
    bad.add(
        "split",
        np.flatnonzero(pc.and_(found.is_null(), values.is_valid()).to_numpy()),
        lambda row: f"the split {shown(cells(values)(row))} is unknown; needed {', '.join(SPLITS)} or an empty cell",
    )
    bad.raise_if_any()
    return pc.fill_null(found, -1).to_numpy().astype(np.int8)


def _as_key(values: pa.ChunkedArray, table: SourceTable, column: str) -> pa.ChunkedArray:
    if pa.types.is_large_string(values.type):
        return values
    if pa.types.is_integer(values.type):
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid:
            bad = table.bad_rows(column)
            beyond = np.flatnonzero(pc.greater(values, pa.scalar(np.iinfo(np.int64).max, values.type)).to_numpy())
            bad.add("wide", beyond, lambda row: f"the id {values[row]} does not fit 64 bits; write ids as text")
            bad.raise_if_any()
    raise InputError(f"{table.path}, column {column!r}: ids must be strings or integers, got {values.type}; cast it")


def _labels_as_key(nodes: SourceTable, column: str) -> pa.ChunkedArray:
    values = nodes.column(column)
    kind = str(values.type)
    if pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        if pa.types.is_floating(values.type):
            # pandas turns integers with gaps into floats; NaN is its empty cell.
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid:
            kind = "numbers that are not whole, or do not fit 64 bits"
    elif pa.types.is_large_string(values.type):
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
        return integers_if_plain(values) if nodes.is_text else values
    elif pa.types.is_integer(values.type) or pa.types.is_boolean(values.type) or pa.types.is_null(values.type):
        return values
    raise InputError(f"{nodes.path}, column {column!r}: labels must be text, integers or booleans, got {kind}; cast it")
