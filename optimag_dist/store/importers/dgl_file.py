"""DGL: a file of ``dgl.save_graphs`` with one homogeneous graph. MAGB (arXiv 2410.09132), OpenMAG: with features."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimag_dist.dgl_package import import_dgl
from optimag_dist.store.arrays import ArrayFeatures, ArrayRows, reason_of
from optimag_dist.store.attributes import AttributeColumn, NumberedPictures
from optimag_dist.store.bad_rows import reading
from optimag_dist.store.importers.array_source import (
    SPLIT_KEYS,
    ArraySource,
    ImportOptions,
    labels_of,
    of_encoder,
    split_of,
)
from optimag_dist.store.importers.torch_file import as_numpy, described
from optimag_dist.store.schema import AttributeSource
from optimag_dist.store.source import AttributeReader
from optimag_dist.store.tables import open_table
from optimag_dist.types import InputError

# Little-endian, at the head of every file of dgl.save_graphs.
_MAGIC = (0xDD2E4FF046B4A13F).to_bytes(8, "little")
_LABELS = ("label", "labels", "y")
# Of MAGB and of OpenMAG.
_FEATURE_FOLDERS = {"text": ("TextFeature", "text_features"), "image": ("ImageFeature", "image_features")}
# Of a dataset's table, the first that is there; the loaders differ by dataset.
_TEXT_COLUMNS = ("text", "caption", "description", "title")


def is_dgl(path: Path) -> bool:
    """Whether ``path`` was written by ``dgl.save_graphs``, whatever its ending (MAGB calls them ``.pt``)."""
    with reading(path), path.open("rb") as file:
        return file.read(8) == _MAGIC


def open_dgl(path: Path, options: ImportOptions) -> ArraySource:
    """A DGL graph with its node data: floating matrices are modalities, ``label`` (−1: none), ``train_mask`` …. It is
    undirected when every edge comes in both directions. DGL reads the whole file into memory. ``InputError``: not one
    graph of one kind of nodes and edges, node data that cannot be used, or DGL is not there."""
    graph, beside = load_graph(path)
    n = graph.num_nodes()
    data = {name: as_numpy(f"{path}, node data {name!r}", tensor) for name, tensor in graph.ndata.items()}
    # Whole numbers may be ids or codes: only who made them knows.
    modalities = {
        name: ArrayFeatures(path, ArrayRows(array), n, "the graph", name)
        for name, array in data.items()
        if array.ndim == 2 and array.dtype.kind == "f" and name not in _LABELS
    }
    return graph_source(path, graph, modalities, options, beside)


def load_graph(path: Path) -> tuple[Any, list[str]]:
    """The ``dgl.DGLGraph`` in ``path``, and what stands beside it in the file, for people."""
    dgl = import_dgl(f"{path}: a graph saved by DGL", "write it as .npz where DGL is (docs/ingest.md)")
    try:
        graphs, beside = dgl.load_graphs(str(path))
    # DGL's C++ checks, and what its Python does with numbers they let pass.
    except Exception as error:
        reason = re.sub(r"^\[.*?\] \S+: (Check failed: )?", "", reason_of(error))
        raise InputError(
            f"{path}: cannot be read, it is damaged or cut short ({reason}); copy it again, or dgl.save_graphs"
        ) from error
    if len(graphs) != 1:
        raise InputError(f"{path}: needed one graph, got {len(graphs)}; save it alone: dgl.save_graphs(path, [graph])")
    graph = graphs[0]
    if len(graph.ntypes) > 1:
        raise InputError(
            f"{path}: needed nodes of one type, got {', '.join(graph.ntypes)}; save those of one, with their edges: "
            f"dgl.node_type_subgraph(graph, [{graph.ntypes[0]!r}])"
        )
    if len(graph.etypes) > 1:
        raise InputError(
            f"{path}: needed edges of one type, got {', '.join(graph.etypes)}; save those of one, "
            f"dgl.edge_type_subgraph(graph, [{graph.etypes[0]!r}]), or all as one: "
            f"dgl.to_homogeneous(graph, ndata={sorted(graph.ndata)})"
        )
    return graph, [f"{name!r} beside the graph" for name in beside]


def graph_source(
    path: Path,
    graph: Any,
    modalities: dict[str, ArrayFeatures],
    options: ImportOptions,
    beside: Sequence[str],
    attributes: Mapping[str, AttributeReader] | None = None,
) -> ArraySource:
    """``graph`` with ``modalities`` from its node data; ``beside`` is not used."""
    n = graph.num_nodes()
    sources, targets = graph.edges()
    data = {name: as_numpy(f"{path}, node data {name!r}", tensor) for name, tensor in graph.ndata.items()}
    label = next((name for name in _LABELS if name in data), "")
    # What DGL notes itself, such as _ID, begins with an underscore.
    used = {label, *SPLIT_KEYS, *modalities}
    return ArraySource(
        name=options.name or path.stem,
        edge_file=path,
        directed=options.directed,
        num_nodes=n,
        edges=ArrayRows(np.stack([as_numpy(str(path), sources), as_numpy(str(path), targets)], axis=1)),
        modalities=modalities,
        inputs=(path,),
        options=options,
        known_labels=labels_of(f"{path}, node data {label!r}", data.get(label), n),
        known_split=split_of(f"{path}, node data", {key: data.get(key) for key in SPLIT_KEYS}, n),
        attributes=attributes or {},
        unused=[
            *(described(*item) for item in sorted(graph.ndata.items()) if item[0] not in used and item[0][0] != "_"),
            *(f"edge data {described(*item)}" for item in sorted(graph.edata.items()) if item[0][0] != "_"),
            *beside,
        ],
    )


def is_magb(folder: Path) -> bool:
    return bool(_graph_files(folder))


def open_magb(folder: Path, options: ImportOptions) -> ArraySource:
    """A dataset's folder: ``<Name>Graph.pt`` of ``dgl.save_graphs``, a folder of ``.npy`` files for texts and for
    pictures (MAGB: ``TextFeature``, ``ImageFeature``; OpenMAG: ``text_features``, ``image_features``), and if there
    ``<Name>.csv`` with a text for each node and pictures numbered like the nodes in ``<Name>Images`` or
    ``<Name>Images_extracted/<Name>Images``, which become the attributes ``text`` and ``picture``.

    Without folders of features every ``.npy`` file beside the graph is a modality, of its own name or that of the
    options. Where there are several encoders, the options' ``encoder`` or ``features`` choose. The graph is undirected
    unless they say otherwise, as in the benchmarks. Layouts: https://github.com/sktsherlock/MAGB, README;
    https://github.com/YUKI-N810/OpenMAG, configs/dataset.

    ``InputError``: several graphs, several encoders and none chosen, or a file that cannot be used.
    """
    graphs = _graph_files(folder)
    if len(graphs) > 1:
        raise InputError(f"{folder}: several DGL graphs, {', '.join(path.name for path in graphs)}; leave one there")
    graph, beside = load_graph(graphs[0])
    dataset = re.sub(r"Graph$", "", graphs[0].stem)
    attributes, unused = _attributes(folder, dataset, graph.num_nodes())
    options = options.model_copy(
        update={
            "name": options.name or folder.resolve().name,
            "directed": bool(options.directed),
            "features": _found(folder, options) | dict(options.features),
        }
    )
    return graph_source(graphs[0], graph, {}, options, [*beside, *unused], attributes)


def _graph_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and is_dgl(path))


def _found(folder: Path, options: ImportOptions) -> dict[str, str]:
    there = {
        modality: [folder / name for name in names if (folder / name).is_dir()]
        for modality, names in _FEATURE_FOLDERS.items()
    }
    if not any(there.values()):
        given = set(options.features.values())
        return {path.stem: path.name for path in sorted(folder.glob("*.npy")) if path.name not in given}
    found = {}
    for modality, folders in there.items():
        files = {f"{each.name}/{path.name}": path.stem for each in folders for path in sorted(each.glob("*.npy"))}
        if files and modality not in options.features:
            also = f"features.{modality}={folders[0].name}/FILE"
            found[modality] = of_encoder(folders[0], files, options, also)
    return found


def _attributes(folder: Path, dataset: str, num_nodes: int) -> tuple[dict[str, AttributeReader], list[str]]:
    """The nodes' texts and pictures, as far as they are there, and what is not used, for people."""
    found: dict[str, AttributeReader] = {}
    unused = []
    table = folder / f"{dataset}.csv"
    if table.is_file():
        with reading(table), table.open(encoding="utf-8-sig", newline="", errors="replace") as file:
            header = next(csv.reader(file), [])
        column = next((name for name in _TEXT_COLUMNS if name in header), None)
        if column is None:
            unused.append(f"{table.name}, which has none of the columns {', '.join(_TEXT_COLUMNS)}")
        else:
            nodes = open_table(folder, table.name, {"text": column}, "needed a row for each node")
            if nodes.num_rows == num_nodes:
                found["text"] = AttributeColumn(AttributeSource(column=column, kind="text"), folder, nodes)
            else:
                unused.append(f"{table.name}, which has {nodes.num_rows:,} rows for {num_nodes:,} nodes")
    for pictures in (folder / f"{dataset}Images_extracted" / f"{dataset}Images", folder / f"{dataset}Images"):
        if pictures.is_dir():
            found.setdefault("picture", NumberedPictures(pictures, num_nodes))
    return found, unused
