"""MM-Graph (arXiv 2406.16321): one folder per dataset with edges, labels, splits and features of several encoders."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from optimag_dist.store.arrays import ArrayFeatures, ArrayRows
from optimag_dist.store.importers.array_source import (
    SPLIT_KEYS,
    ArraySource,
    ImportOptions,
    labels_of,
    of_encoder,
    split_of,
)
from optimag_dist.store.importers.torch_file import as_numpy, attribute, described, load_tensors
from optimag_dist.types import InputError

_EDGES = "nc_edges-nodeid.pt"
_LINKS = "lp-edge-split-*.pt"
_FEATURES = "_feat.pt"


def is_mm_graph(folder: Path) -> bool:
    return (folder / _EDGES).is_file() or any(folder.glob(_LINKS))


def open_mm_graph(folder: Path, options: ImportOptions) -> ArraySource:
    """``nc_edges-nodeid.pt``, ``labels-w-missing.pt`` and ``split.pt``, or the train edges of ``lp-edge-split-*.pt``.

    An encoder's file ``<encoder>_feat.pt`` holds text and image side by side, text first, half of the width each; the
    two become the modalities ``text`` and ``image``. The graph is undirected unless the options say otherwise, as in
    the benchmark. Layout: https://github.com/mm-graph-benchmark/mm-graph-benchmark, nc_dataset.py and lp_dataset.py.

    ``InputError``: several encoders and none chosen, or a file that is missing or cannot be used.
    """
    links = sorted(folder.glob(_LINKS))
    unused = []
    edge_file = folder / _EDGES
    if edge_file.is_file():
        edges = as_numpy(str(edge_file), load_tensors(edge_file))
        unused = [path.name for path in links]
    else:
        if len(links) > 1:
            raise InputError(
                f"{folder}: several edge splits, {', '.join(path.name for path in links)}; leave one there"
            )
        edge_file = links[0]
        edges = _train_edges(edge_file)
    feature_file = _feature_file(folder, options)
    features = as_numpy(str(feature_file), load_tensors(feature_file))
    if features.ndim != 2 or features.shape[1] % 2:
        raise InputError(f"{feature_file}: needed shape (nodes, 2 × width), got {features.shape}")
    n, half = len(features), features.shape[1] // 2
    label_file, split_file = folder / "labels-w-missing.pt", folder / "split.pt"
    labels = as_numpy(str(label_file), load_tensors(label_file)) if label_file.is_file() else None
    split = load_tensors(split_file) if split_file.is_file() else {}
    if not isinstance(split, Mapping):
        raise InputError(f"{split_file}: needed a dict of train_idx, val_idx, test_idx, got {type(split).__name__}")
    unused += [f"{split_file.name}: {described(key, nodes)}" for key, nodes in split.items() if key not in SPLIT_KEYS]
    return ArraySource(
        name=options.name or folder.resolve().name,
        edge_file=edge_file,
        directed=bool(options.directed),
        num_nodes=n,
        edges=ArrayRows(edges),
        modalities={
            name: ArrayFeatures(feature_file, ArrayRows(part), n, "the graph", name)
            for name, part in {"text": features[:, :half], "image": features[:, half:]}.items()
        },
        inputs=(edge_file, feature_file, *(path for path in (label_file, split_file) if path.is_file())),
        options=options,
        known_labels=labels_of(str(label_file), labels, n),
        known_split=split_of(str(split_file), {key: attribute(split, key, split_file) for key in SPLIT_KEYS}, n),
        unused=unused,
    )


def _train_edges(path: Path) -> np.ndarray:
    content = load_tensors(path)
    train = content.get("train") if isinstance(content, Mapping) else None
    ends = [attribute(train if isinstance(train, Mapping) else {}, f"{end}_node", path) for end in ("source", "target")]
    known = [end for end in ends if end is not None and end.ndim == 1]
    if len({len(end) for end in known}) != 1 or len(known) != 2:
        raise InputError(f"{path}: needed 'train' with as many 'source_node' as 'target_node', one number each")
    return np.stack(known, axis=1)


def _feature_file(folder: Path, options: ImportOptions) -> Path:
    encoders = {path.name: path.name.removesuffix(_FEATURES) for path in sorted(folder.glob(f"*{_FEATURES}"))}
    if not encoders:
        raise InputError(f"{folder}: no *{_FEATURES}")
    return folder / of_encoder(folder, encoders, options)
