"""PyTorch Geometric: a ``Data`` object, or its dictionary of tensors, in a ``.pt`` file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimag_dist.store.arrays import ArrayFeatures, ArrayRows
from optimag_dist.store.importers.array_source import ArraySource, labels_of, split_of
from optimag_dist.store.importers.options import ImportOptions
from optimag_dist.store.importers.torch_file import as_numpy, load_tensors
from optimag_dist.store.layout import SPLITS
from optimag_dist.types import InputError


def open_pyg(path: Path, options: ImportOptions) -> ArraySource:
    """``edge_index`` (2, m), ``x`` or ``x_<modality>`` (n, width), ``y`` (−1: none), ``train_mask`` … of one graph.

    It is undirected when every edge comes in both directions.

    Raises:
        InputError: the file holds something else, or one of these cannot be used.
    """
    data = _as_dictionary(path, load_tensors(path))
    if "edge_index" not in data:
        raise InputError(
            f"{path}: no 'edge_index' of shape (2, edges); it has {', '.join(map(str, data)) or 'nothing'}"
        )
    edges = as_numpy(data["edge_index"])
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise InputError(f"{path}, 'edge_index': needed shape (2, edges), got {edges.shape}")
    features = {
        key.removeprefix("x_"): as_numpy(value)
        for key, value in data.items()
        if (key == "x" or key.startswith("x_")) and value is not None
    }
    per_node = [*features.values(), *(as_numpy(data[key]) for key in ("y", "train_mask") if data.get(key) is not None)]
    num_nodes = data.get("num_nodes") or (len(per_node[0]) if per_node else int(edges.max(initial=-1)) + 1)

    def array(key: str) -> Any:
        return None if data.get(key) is None else as_numpy(data[key])

    return ArraySource(
        name=options.name or path.stem,
        edge_file=path,
        directed=options.directed,
        num_nodes=num_nodes,
        edges=ArrayRows(edges.T),
        modalities={
            name: ArrayFeatures(path, ArrayRows(x), num_nodes, "the graph", name) for name, x in features.items()
        }
        | options.given_features(path.parent, num_nodes),
        inputs=(path, *options.feature_files(path.parent)),
        options=options,
        known_labels=labels_of(f"{path}, 'y'", array("y"), num_nodes),
        known_split=split_of(str(path), {part: array(f"{part}_mask") for part in SPLITS}, num_nodes),
    )


def _as_dictionary(path: Path, content: Any) -> Mapping[str, Any]:
    # What a dataset saves as processed: the data, where its graphs are cut, and the class.
    if isinstance(content, tuple) and content:
        cuts = content[1] if len(content) > 1 and isinstance(content[1], Mapping) else {}
        if any(len(cut) > 2 for cut in cuts.values()):
            raise InputError(f"{path}: holds several graphs; save the one you mean: torch.save(data.to_dict(), path)")
        content = content[0]
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path}: needed a PyG Data or a dictionary of tensors, got {type(content).__name__}; write "
            "torch.save(data.to_dict(), path)"
        )
    return content
