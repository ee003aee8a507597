"""Raw text and pictures of the node table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from optimag_dist.store.layout import ATTRIBUTE_ROWS
from optimag_dist.store.schema import AttributeSource
from optimag_dist.store.tables import BadRows, SourceTable
from optimag_dist.types import InputError


class AttributeColumn:
    """One attribute of the node table."""

    def __init__(self, source: AttributeSource, folder: Path, nodes: SourceTable) -> None:
        self.kind: Literal["text", "image"] = "text" if source.kind == "text" else "image"
        self.inputs_known = source.kind != "image_path"
        self._source = source
        self._folder = folder
        self._nodes = nodes

    def blocks(self) -> Iterator[pa.Array]:
        """The attribute as large_string (text) or large_binary (pictures) in blocks of ``ATTRIBUTE_ROWS`` rows.

        Raises:
            InputError: the column holds something else, or a picture file cannot be read.
        """
        source, nodes = self._source, self._nodes
        bad = nodes.bad_rows(source.column)
        first = 0
        for (array,) in nodes.blocks([source.column], ATTRIBUTE_ROWS):
            if source.kind == "text":
                yield _text(array, nodes, source.column)
            elif source.kind == "image":
                yield _bytes(array, nodes, source.column)
            else:
                yield _pictures(_text(array, nodes, source.column), self._folder, first, bad)
            first += len(array)
        bad.raise_if_any()


def _text(array: pa.Array, nodes: SourceTable, column: str) -> pa.Array:
    try:
        return array.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{nodes.path}, column {column!r}: needed text, got {array.type}; cast the column") from error


def _bytes(array: pa.Array, nodes: SourceTable, column: str) -> pa.Array:
    if pa.types.is_large_binary(array.type) or pa.types.is_null(array.type):
        return array.cast(pa.large_binary())
    raise InputError(
        f"{nodes.path}, column {column!r}, row 1: kind image needs a column of bytes, got {array.type}; "
        "for paths of picture files write kind: image_path"
    )


def _pictures(paths: pa.Array, folder: Path, first: int, bad: BadRows) -> pa.Array:
    pictures: list[bytes | None] = []
    for row, path in enumerate(paths.to_pylist(), start=first):
        picture = None
        if path:
            try:
                picture = (folder / path).read_bytes()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                text = (
                    f"the picture {str(folder / path)!r} cannot be read: {reason}; correct the path or leave it empty"
                )
                bad.add("file", np.array([row]), lambda _, text=text: text)  # type: ignore[misc]
        pictures.append(picture)
    return pa.array(pictures, pa.large_binary())
