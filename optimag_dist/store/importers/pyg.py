"""PyTorch Geometric: a ``Data`` object, or its dictionary of tensors, in a ``.pt`` file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from optimag_dist.store.arrays import ArrayFeatures, ArrayRows
from optimag_dist.store.importers.array_source import (
    SPLIT_KEYS,
    ArraySource,
    ImportOptions,
    labels_of,
    num_nodes_of,
    split_of,
)
from optimag_dist.store.importers.torch_file import (
    FROM_ADJACENCY,
    SEVERAL_KINDS,
    as_numpy,
    attribute,
    described,
    load_tensors,
)
from optimag_dist.types import InputError


def open_pyg(path: Path, options: ImportOptions) -> ArraySource:
    """``edge_index`` (2, m), ``x`` or ``x_<modality>`` (n, width), ``y`` (−1: none), masks or lists of one graph. It is
    undirected when every edge comes in both directions. An ``x_<modality>`` that is no matrix of numbers is said and
    left out, as everything else in the file."""
    data = _as_dictionary(path, load_tensors(path))
    edges = _edges(path, data)
    arrays: dict[str, np.ndarray] = {}
    for key, value in data.items():
        if value is not None and (key == "x" or (str(key).startswith("x_") and isinstance(value, Tensor))):
            array = as_numpy(f"{path}, {key!r}", value)
            if key == "x" or (array.ndim == 2 and array.dtype.kind in "fiu"):
                arrays[key] = array
    if {"x", "x_x"} <= set(arrays):
        raise InputError(f"{path}: 'x' and 'x_x' would both be the modality 'x'; rename one of them")
    y = attribute(data, "y", path)
    parts = {key: attribute(data, key, path) for key in SPLIT_KEYS}
    num_nodes = _num_nodes(path, data, {**arrays, "y": y, **parts}, edges)
    used = {"edge_index", "y", "num_nodes", *arrays, *SPLIT_KEYS}
    return ArraySource(
        name=options.name or path.stem,
        edge_file=path,
        directed=options.directed,
        num_nodes=num_nodes,
        edges=ArrayRows(edges.T),
        modalities={
            key.removeprefix("x_"): ArrayFeatures(path, ArrayRows(x), num_nodes, "the graph", key)
            for key, x in arrays.items()
        },
        inputs=(path,),
        options=options,
        known_labels=labels_of(f"{path}, 'y'", y, num_nodes),
        known_split=split_of(str(path), parts, num_nodes),
        unused=[described(key, value) for key, value in data.items() if key not in used and value is not None],
    )


def _edges(path: Path, data: Mapping[Any, Any]) -> np.ndarray:
    edges = attribute(data, "edge_index", path)
    if edges is None:
        remedy = ""
        if any(isinstance(value, Mapping) for value in data.values()):
            remedy = f": {SEVERAL_KINDS}"
        elif "adj_t" in data:
            remedy = f"; before saving, {FROM_ADJACENCY}"
        raise InputError(f"{path}: no 'edge_index' (2, edges); it has {', '.join(map(str, data)) or 'nothing'}{remedy}")
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise InputError(f"{path}, 'edge_index': needed shape (2, edges), got {edges.shape}")
    return edges


def _num_nodes(path: Path, data: Mapping[Any, Any], arrays: Mapping[str, np.ndarray | None], edges: np.ndarray) -> int:
    if data.get("num_nodes") is not None:
        given = as_numpy(f"{path}, 'num_nodes'", data["num_nodes"])
        if given.size != 1 or given.dtype.kind not in "iu" or given.item() < 1:
            raise InputError(f"{path}, 'num_nodes': needed a whole number above 0, got {data['num_nodes']!r}")
        return int(given.item())
    rows = {key: array.shape for key, array in arrays.items() if array is not None and not key.endswith("_idx")}
    if rows:
        return num_nodes_of(str(path), rows)
    return int(edges.max()) + 1 if edges.size and edges.dtype.kind in "iu" else 0


def _as_dictionary(path: Path, content: Any) -> Mapping[Any, Any]:
    # What a dataset saves as processed: the data, where its graphs are cut, and the class.
    if isinstance(content, tuple) and content:
        cuts = content[1] if len(content) > 1 and isinstance(content[1], Mapping) else {}
        if any(isinstance(cut, (Tensor, list)) and len(cut) > 2 for cut in cuts.values()):
            raise InputError(f"{path}: holds several graphs; save the one you mean: torch.save(data.to_dict(), path)")
        content = content[0]
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path}: needed a PyG Data or a dictionary of tensors, got {type(content).__name__}; write "
            "torch.save(data.to_dict(), path)"
        )
    return content
