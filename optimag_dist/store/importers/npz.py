"""``.npz``: ``edges`` (m, 2) and ``x_<modality>`` (n, width); further keys as :func:`open_npz` says."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from optimag_dist.store.arrays import ArrayFeatures, NpzRows
from optimag_dist.store.importers.array_source import ArraySource, labels_of, split_of
from optimag_dist.store.importers.options import ImportOptions
from optimag_dist.store.layout import ATTRIBUTE_ROWS, SPLITS
from optimag_dist.types import InputError


def open_npz(path: Path, options: ImportOptions) -> ArraySource:
    """A graph in an ``.npz`` archive; the large arrays are streamed from it.

    Keys: ``edges`` (m, 2) integers; ``x_<modality>`` (n, width), a row of NaN meaning missing; optionally ``y`` (n,)
    labels (−1: none) and ``classes`` (their names), ``ids`` (n,) integers or text, ``names`` (n,) text kept as the
    attribute ``name``, and the masks ``train_mask``, ``val_mask``, ``test_mask``. Others are ignored. Edges are
    undirected unless the options say otherwise.

    Raises:
        InputError: the archive or one of its arrays cannot be used.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read: {error}; write it again with np.savez") from error
    if "edges" not in keys:
        raise InputError(f"{path}: no array 'edges' of shape (edges, 2); it has {', '.join(keys)}")
    features = {key.removeprefix("x_"): NpzRows(path, key) for key in keys if key.startswith("x_")}
    per_node = [*features.values(), *(NpzRows(path, key) for key in ("y", "ids") if key in keys)]
    if not per_node:
        raise InputError(f"{path}: no array 'x_<modality>' of shape (nodes, width); it has {', '.join(keys)}")
    num_nodes = per_node[0].shape[0]

    def read(key: str) -> np.ndarray | None:
        return NpzRows(path, key).read() if key in keys else None

    classes = read("classes")
    ids = read("ids")
    return ArraySource(
        name=options.name or path.stem,
        edge_file=path,
        directed=bool(options.directed),
        num_nodes=num_nodes,
        edges=NpzRows(path, "edges"),
        modalities={
            name: ArrayFeatures(path, rows, num_nodes, "the graph", f"x_{name}") for name, rows in features.items()
        }
        | options.given_features(path.parent, num_nodes),
        inputs=(path, *options.feature_files(path.parent)),
        options=options,
        known_labels=labels_of(
            f"{path}, array 'y'", read("y"), num_nodes, None if classes is None else [str(name) for name in classes]
        ),
        known_split=split_of(str(path), {part: read(f"{part}_mask") for part in SPLITS}, num_nodes),
        user_ids=None if ids is None else _user_ids(path, ids, num_nodes),
        attributes={"name": _Names(path, num_nodes)} if "names" in keys else {},
    )


def _user_ids(path: Path, ids: np.ndarray, num_nodes: int) -> pa.Array:
    if ids.shape != (num_nodes,) or ids.dtype.kind not in "iuU":
        raise InputError(f"{path}, array 'ids': needed {num_nodes:,} integers or texts, got {ids.dtype} {ids.shape}")
    if len(np.unique(ids)) < num_nodes:
        raise InputError(f"{path}, array 'ids': an id is there twice; ids must be unique")
    return pa.array(ids, pa.large_string() if ids.dtype.kind == "U" else pa.int64())


class _Names:
    """The array ``names``, streamed."""

    kind: Literal["text", "image"] = "text"
    inputs_known = True

    def __init__(self, path: Path, num_nodes: int) -> None:
        self._rows = NpzRows(path, "names")
        if self._rows.shape != (num_nodes,) or self._rows.dtype.kind != "U":
            raise InputError(
                f"{path}, array 'names': needed {num_nodes:,} texts, got {self._rows.dtype} {self._rows.shape}"
            )

    def blocks(self) -> Iterator[pa.Array]:
        for block in self._rows.blocks(ATTRIBUTE_ROWS):
            yield pa.array(block, pa.large_string())
