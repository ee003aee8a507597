"""Graphs in other people's layouts, one file each; :func:`open_source` finds out which one it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimag_dist.imported import load, path_of
from optimag_dist.options import parse_options
from optimag_dist.store.importers.array_source import ImportOptions
from optimag_dist.store.importers.tables import TableSource
from optimag_dist.store.source import GraphSource
from optimag_dist.types import InputError

# Layout → where the function stands that opens it; some load torch, which tables do without.
IMPORTERS = {
    "ogb": "optimag_dist.store.importers.ogb:open_ogb",
    "mm_graph": "optimag_dist.store.importers.mm_graph:open_mm_graph",
    "magb": "optimag_dist.store.importers.dgl_file:open_magb",
    "npz": "optimag_dist.store.importers.npz:open_npz",
    "dgl": "optimag_dist.store.importers.dgl_file:open_dgl",
    "pyg": "optimag_dist.store.importers.pyg:open_pyg",
}
#: By what a dataset's folder is known, for people.
FOLDER_LAYOUTS = (
    "OGB: raw/edge.csv.gz; MM-Graph: nc_edges-nodeid.pt or lp-edge-split-*.pt; MAGB, OpenMAG: a DGL graph file"
)


def open_source(path: Path, overrides: Sequence[str] = ()) -> GraphSource:
    """The graph at ``path``: a schema of tables, or a file or folder of another layout, found out or named by
    ``importer=``. ``InputError``: there is nothing, it has no known layout, it cannot be used, or the importer makes no
    graph of it."""
    named = any(override.startswith("importer=") for override in overrides)
    if path.suffix.lower() in (".yaml", ".yml") and not named:
        return TableSource(path, overrides)
    options = parse_options(ImportOptions, overrides, str(path))
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: is a pipe or a device; needed a file or a folder")
    layout = options.importer or _layout_of(path)
    source: Any = load(path_of(layout, IMPORTERS, "importer"))(path, options)
    if not isinstance(source, GraphSource):
        raise InputError(
            f"importer={layout}: needed a GraphSource from it, such as an ArraySource (docs/extending.md); got "
            f"{type(source).__name__}"
        )
    return source


def folder_layout(folder: Path) -> str | None:
    """The layout of a dataset's folder; None where it is none of ``FOLDER_LAYOUTS``."""
    from optimag_dist.store.importers.dgl_file import is_magb
    from optimag_dist.store.importers.mm_graph import is_mm_graph
    from optimag_dist.store.importers.ogb import is_ogb

    known = {"ogb": is_ogb, "mm_graph": is_mm_graph, "magb": is_magb}
    return next((layout for layout, has_layout in known.items() if has_layout(folder)), None)


def _layout_of(path: Path) -> str:
    from optimag_dist.store.importers.dgl_file import is_dgl

    if path.is_dir():
        if layout := folder_layout(path):
            return layout
        raise InputError(
            f"{path}: a folder of no known layout ({FOLDER_LAYOUTS}); for Parquet or CSV tables name the YAML file "
            "that describes them"
        )
    if path.suffix.lower() == ".npz":
        return "npz"
    if is_dgl(path):
        return "dgl"
    if path.suffix.lower() in (".pt", ".pth"):
        return "pyg"
    raise InputError(
        f"{path}: of no known layout; needed a schema.yaml of tables, .npz, a graph of dgl.save_graphs, a PyG .pt, or "
        "importer=file.py:function"
    )
