"""Names and types of a table's columns."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from optimag_dist.store.bad_rows import listed
from optimag_dist.store.ids import near_miss
from optimag_dist.types import InputError


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


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds the values of both; ``pa.ArrowException`` where there is none."""
    if one == other:
        return one
    binary = pa.types.is_large_binary
    if binary(one) != binary(other) and not (pa.types.is_null(one) or pa.types.is_null(other)):
        raise pa.ArrowTypeError(f"{one} is not {other}")
    fields = [pa.schema([("x", kind)]) for kind in (one, other)]
    return pa.unify_schemas(fields, promote_options="permissive").field("x").type


def check_columns(path: Path, names: Sequence[str], wanted: Mapping[str, str]) -> None:
    """Raise ``InputError`` unless each of ``wanted`` (what names it → column) is among ``names`` once."""
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
