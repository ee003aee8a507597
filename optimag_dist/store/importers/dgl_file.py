"""DGL: a file of ``dgl.save_graphs`` with one homogeneous graph."""

from pathlib import Path
from typing import Any

import numpy as np

from optimag_dist.dgl_package import import_dgl
from optimag_dist.store.arrays import ArrayFeatures, ArrayRows
from optimag_dist.store.importers.array_source import ArraySource, labels_of, split_of
from optimag_dist.store.importers.options import ImportOptions
from optimag_dist.store.importers.torch_file import as_numpy
from optimag_dist.store.layout import SPLITS
from optimag_dist.types import InputError

# Little-endian, at the head of every file of dgl.save_graphs.
_MAGIC = (0xDD2E4FF046B4A13F).to_bytes(8, "little")
_LABELS = ("label", "labels", "y")


def is_dgl(path: Path) -> bool:
    """Whether ``path`` was written by ``dgl.save_graphs``, whatever its ending (MAGB calls them ``.pt``)."""
    with path.open("rb") as file:
        return file.read(8) == _MAGIC


def open_dgl(path: Path, options: ImportOptions) -> ArraySource:
    """A DGL graph with its node data: floating matrices are modalities, ``label`` (−1: none), ``train_mask`` ….

    It is undirected when every edge comes in both directions. DGL reads the whole file into memory.

    Raises:
        InputError: no graph, several, of several kinds of nodes, node data that cannot be used, or DGL is not there.
    """
    graph = load_graph(path)
    data = {name: as_numpy(tensor) for name, tensor in graph.ndata.items()}
    features = {name: array for name, array in data.items() if array.ndim == 2 and array.dtype.kind == "f"}
    modalities = {
        name: ArrayFeatures(path, ArrayRows(array), graph.num_nodes(), "the graph", name)
        for name, array in features.items()
        if name not in _LABELS
    }
    return graph_source(path, graph, modalities | options.given_features(path.parent, graph.num_nodes()), options)


def load_graph(path: Path) -> Any:
    """The ``dgl.DGLGraph`` in ``path``.

    Raises:
        InputError: no graph, several, or of several kinds of nodes, or DGL is not there.
    """
    dgl = import_dgl(f"{path}: a graph saved by DGL", "write it as .npz where DGL is (docs/ingest.md)")
    try:
        graphs, _ = dgl.load_graphs(str(path))
    except (dgl.DGLError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}; write it with dgl.save_graphs") from error
    if len(graphs) != 1 or not graphs[0].is_homogeneous:
        kinds = f"{len(graphs)} graphs" if len(graphs) != 1 else f"node types {graphs[0].ntypes}"
        raise InputError(f"{path}: needed one graph with one type of nodes and of edges, got {kinds}; save that alone")
    return graphs[0]


def graph_source(path: Path, graph: Any, modalities: dict[str, ArrayFeatures], options: ImportOptions) -> ArraySource:
    """``graph`` with ``modalities`` in place of those in its node data."""
    n = graph.num_nodes()
    sources, targets = graph.edges()
    data = {name: as_numpy(tensor) for name, tensor in graph.ndata.items()}
    return ArraySource(
        name=options.name or path.stem,
        edge_file=path,
        directed=options.directed,
        num_nodes=n,
        edges=ArrayRows(np.stack([as_numpy(sources), as_numpy(targets)], axis=1)),
        modalities=modalities,
        inputs=(path, *options.feature_files(path.parent)),
        options=options,
        known_labels=labels_of(
            f"{path}, node data 'label'", next((data[name] for name in _LABELS if name in data), None), n
        ),
        known_split=split_of(str(path), {part: _as_mask(data.get(f"{part}_mask")) for part in SPLITS}, n),
    )


def _as_mask(values: np.ndarray | None) -> np.ndarray | None:
    # dgl.save_graphs turns masks into bytes.
    return None if values is None else values.astype(bool)
