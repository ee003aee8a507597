"""``.npz``: ``edges`` (m, 2) and ``x_<modality>`` (n, width); further keys as :func:`open_npz` says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from optimag_dist.store.arrays import ArrayFeatures, NpzRows, npz_keys
from optimag_dist.store.importers.array_source import (
    SPLIT_KEYS,
    ArraySource,
    ImportOptions,
    labels_of,
    num_nodes_of,
    split_of,
)
from optimag_dist.store.layout import ATTRIBUTE_ROWS
from optimag_dist.types import InputError


def open_npz(path: Path, options: ImportOptions) -> ArraySource:
    """A graph in an ``.npz`` archive; the large arrays are streamed from it.

    Keys: ``edges`` (m, 2) integers; ``x_<modality>`` (n, width), a row of NaN meaning missing; optionally ``y`` (n,)
    labels (−1: none) and ``classes`` (their names), ``ids`` (n,) integers or text, ``names`` (n,) text kept as the
    attribute ``name``, the masks ``train_mask``, ``val_mask``, ``test_mask`` or the lists of nodes ``train_idx`` ….
    Others are said and ignored. Edges are undirected unless the options say otherwise.
    """
    keys = npz_keys(path)
    if "edges" not in keys:
        raise InputError(f"{path}: no array 'edges' of shape (edges, 2); it has {', '.join(keys)}")
    features = {key: NpzRows(path, key) for key in keys if key.startswith("x_")}
    per_node = features | {key: NpzRows(path, key) for key in ("y", "ids") if key in keys}
    if not per_node:
        raise InputError(f"{path}: no array 'x_<modality>' of shape (nodes, width); it has {', '.join(keys)}")
    num_nodes = num_nodes_of(str(path), {key: rows.shape for key, rows in per_node.items()})

    def read(key: str) -> np.ndarray | None:
        return NpzRows(path, key).read() if key in keys else None

    ids = read("ids")
    used = {"edges", "y", "classes", "ids", "names", *features, *SPLIT_KEYS}
    return ArraySource(
        name=options.name or path.stem,
        edge_file=path,
        directed=bool(options.directed),
        num_nodes=num_nodes,
        edges=NpzRows(path, "edges"),
        modalities={key[2:]: ArrayFeatures(path, rows, num_nodes, "the graph", key) for key, rows in features.items()},
        inputs=(path,),
        options=options,
        known_labels=labels_of(f"{path}, array 'y'", read("y"), num_nodes, _classes(path, read("classes"))),
        known_split=split_of(str(path), {key: read(key) for key in SPLIT_KEYS}, num_nodes),
        user_ids=None if ids is None else _user_ids(path, ids, num_nodes),
        attributes={"name": _Names(path, num_nodes)} if "names" in keys else {},
        unused=[repr(key) for key in keys if key not in used],
    )


def _classes(path: Path, names: np.ndarray | None) -> list[str] | None:
    if names is None:
        return None
    place = f"{path}, array 'classes'"
    if names.ndim != 1 or names.dtype.kind not in "Uiub":
        raise InputError(f"{place}: needed the names of the classes, one text each, got {names.dtype} {names.shape}")
    classes = [str(name) for name in (_as_text(place, names).to_pylist() if names.dtype.kind == "U" else names)]
    if len(set(classes)) < len(classes):
        raise InputError(f"{place}: a name is there twice; each class has its own")
    return classes


def _user_ids(path: Path, ids: np.ndarray, num_nodes: int) -> pa.Array:
    if ids.shape != (num_nodes,) or ids.dtype.kind not in "iuU":
        raise InputError(f"{path}, array 'ids': needed {num_nodes:,} integers or texts, got {ids.dtype} {ids.shape}")
    if len(np.unique(ids)) < num_nodes:
        raise InputError(f"{path}, array 'ids': an id is there twice; ids must be unique")
    if ids.dtype.kind == "U":
        return _as_text(f"{path}, array 'ids'", ids)
    if ids.dtype.kind == "u" and ids.max(initial=0) >= 2**63:
        raise InputError(f"{path}, array 'ids': the id {ids.max()} does not fit signed 64 bits; write ids.astype(str)")
    return pa.array(ids.astype(np.int64))


def _as_text(place: str, values: np.ndarray) -> pa.Array:
    try:
        return pa.array(values, pa.large_string())
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"{place}: holds text that is no Unicode ({error}); write it again") from error


class _Names:
    kind: Literal["text", "image"] = "text"
    inputs_known = True

    def __init__(self, path: Path, num_nodes: int) -> None:
        self._place = f"{path}, array 'names'"
        self._rows = NpzRows(path, "names")
        if self._rows.shape != (num_nodes,) or self._rows.dtype.kind != "U":
            raise InputError(f"{self._place}: needed {num_nodes:,} texts, got {self._rows.dtype} {self._rows.shape}")

    def blocks(self) -> Iterator[pa.Array]:
        for block in self._rows.blocks(ATTRIBUTE_ROWS):
            yield _as_text(self._place, block)
