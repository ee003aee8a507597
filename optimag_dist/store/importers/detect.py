"""Which layout a path has."""

from collections.abc import Sequence
from pathlib import Path

from optimag_dist.options import parse_options
from optimag_dist.store.importers.options import ImportOptions
from optimag_dist.store.importers.tables import TableSource
from optimag_dist.store.source import GraphSource
from optimag_dist.types import InputError


def open_source(path: Path, overrides: Sequence[str] = ()) -> GraphSource:
    """The graph at ``path``: a schema of tables, or a file or folder of another layout.

    Raises:
        InputError: there is nothing, it has no known layout, or it cannot be used.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return TableSource(path, overrides)
    # Some load torch, which neither tables nor stores that are there need.
    from optimag_dist.store.importers.dgl_file import is_dgl, open_dgl
    from optimag_dist.store.importers.magb import is_magb, open_magb
    from optimag_dist.store.importers.mm_graph import is_mm_graph, open_mm_graph
    from optimag_dist.store.importers.npz import open_npz
    from optimag_dist.store.importers.ogb import is_ogb, open_ogb
    from optimag_dist.store.importers.pyg import open_pyg

    options = parse_options(ImportOptions, overrides, str(path))
    if path.is_dir():
        for has_layout, open_folder in ((is_ogb, open_ogb), (is_mm_graph, open_mm_graph), (is_magb, open_magb)):
            if has_layout(path):
                return open_folder(path, options)
        raise InputError(
            f"{path}: a folder of no known layout (OGB: raw/edge.csv.gz; MM-Graph: nc_edges-nodeid.pt; MAGB: a DGL "
            "graph file); for Parquet or CSV tables name the YAML file that describes them"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".npz":
        return open_npz(path, options)
    if is_dgl(path):
        return open_dgl(path, options)
    if path.suffix.lower() in (".pt", ".pth"):
        return open_pyg(path, options)
    raise InputError(
        f"{path}: of no known layout; needed a schema.yaml of tables, .npz, a graph of dgl.save_graphs or a PyG .pt"
    )
