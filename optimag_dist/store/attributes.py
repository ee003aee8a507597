"""Raw text and pictures of the node table."""

import os
import stat
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from optimag_dist.store.bad_rows import shown
from optimag_dist.store.layout import ATTRIBUTE_ROWS
from optimag_dist.store.schema import AttributeSource
from optimag_dist.store.tables import SourceTable
from optimag_dist.types import InputError

#: A larger file is no picture of a thing.
MOST_PICTURE_BYTES = 64 << 20
_PICTURE_ENDINGS = (".jpg", ".jpeg", ".png")


class AttributeColumn:
    """One attribute of the node table."""

    def __init__(self, source: AttributeSource, folder: Path, nodes: SourceTable) -> None:
        self.kind: Literal["text", "image"] = "text" if source.kind == "text" else "image"
        self.inputs_known = source.kind != "image_path"
        self._source = source
        self._folder = folder
        self._nodes = nodes

    def blocks(self) -> Iterator[pa.Array]:
        """large_string (text) or large_binary (pictures) in blocks of ``ATTRIBUTE_ROWS`` rows."""
        source, nodes = self._source, self._nodes
        bad = nodes.bad_rows(source.column)
        pictures = _PictureFiles(self._folder, source.allow)
        first = 0
        for (array,) in nodes.blocks([source.column], ATTRIBUTE_ROWS):
            if source.kind == "text":
                yield _text(array, nodes, source.column)
            elif source.kind == "image":
                yield _bytes(array, nodes, source.column)
            else:
                contents: list[bytes | None] = []
                for row, path in enumerate(_text(array, nodes, source.column).to_pylist(), start=first):
                    contents.append(None)
                    try:
                        contents[-1] = pictures.read(path) if path else None
                    except (OSError, ValueError) as error:
                        reason = getattr(error, "strerror", None) or str(error)
                        text = f"the picture {shown(path, 200)} cannot be read: {reason}; correct it or leave it empty"
                        bad.add("file", np.array([row]), lambda _, text=text: text)  # type: ignore[misc]
                yield pa.array(contents, pa.large_binary())
            first += len(array)
        bad.raise_if_any()


class NumberedPictures:
    """Pictures of a folder, called by their nodes' numbers: ``0.jpg``, ``1.png``, …; a node without one has none."""

    kind: Literal["text", "image"] = "image"
    inputs_known = False

    def __init__(self, folder: Path, num_nodes: int) -> None:
        self._folder = folder
        self._num_nodes = num_nodes

    def blocks(self) -> Iterator[pa.Array]:
        """large_binary blocks of ``ATTRIBUTE_ROWS`` rows; ``InputError``: a file that cannot be read."""
        names = {file.stem: file.name for file in self._folder.iterdir() if file.suffix.lower() in _PICTURE_ENDINGS}
        pictures = _PictureFiles(self._folder, ())
        for start in range(0, self._num_nodes, ATTRIBUTE_ROWS):
            contents = []
            for node in range(start, min(start + ATTRIBUTE_ROWS, self._num_nodes)):
                name = names.get(str(node))
                try:
                    contents.append(None if name is None else pictures.read(name))
                except (OSError, ValueError) as error:
                    raise InputError(f"{self._folder / (name or '')}: cannot be read: {error}; remove it") from error
            yield pa.array(contents, pa.large_binary())


class _PictureFiles:
    """Reads the files that a table names, which may come from anybody: no others than are meant to be read."""

    def __init__(self, folder: Path, allow: Sequence[str]) -> None:
        self._folder = folder
        self._roots = [os.path.join(os.path.realpath(folder / root), "") for root in (".", *allow)]
        self._real = lru_cache(1024)(os.path.realpath)

    def read(self, path: str) -> bytes:
        named = self._folder / path
        real = os.path.join(self._real(str(named.parent)), named.name)
        if named.name == ".." or os.path.islink(real):
            real = os.path.realpath(named)
        if not any(real.startswith(root) for root in self._roots):
            raise ValueError(f"it lies outside {self._roots[0]}; move it there, or name its folder in 'allow'")
        # A pipe would wait for somebody to write into it.
        with open(real, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is no regular file")
            content = file.read(MOST_PICTURE_BYTES + 1)
        if len(content) > MOST_PICTURE_BYTES:
            raise ValueError(f"it is larger than {MOST_PICTURE_BYTES >> 20} MB")
        return content


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
