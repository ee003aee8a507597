"""What a PPR artefact holds, for people."""

import numpy as np
from rich.table import Table

from optimag_dist.ppr.artefact import PPRArtefact
from optimag_dist.store import GraphStore
from optimag_dist.types import InputError

_CHUNK = 1 << 18


def summary_table(artefact: PPRArtefact) -> Table:
    options = artefact.options
    n = artefact.num_nodes
    short, mass, bounds = 0, 0.0, np.empty(n, np.float32)
    for start in range(0, n, _CHUNK):
        nodes = np.arange(start, min(start + _CHUNK, n))
        short += int(np.count_nonzero(np.diff(artefact.rows(nodes)[0]) < options.k))
        mass += float(artefact.mass(nodes).sum(dtype=np.float64))
        bounds[nodes] = artefact.bounds(nodes)
    files = list(artefact.path.glob("block-*.arrow"))
    table = Table("what", "value", title=str(artefact.path))
    for name, value in (
        ("key", artefact.key),
        ("graph", artefact.graph_hash),
        ("options", f"teleport={options.teleport:g} eps={options.eps:g} k={options.k}"),
        ("nodes", f"{n:,}"),
        ("blocks", f"{len(files):,} of {options.block_size:,} nodes, {sum(f.stat().st_size for f in files):,} bytes"),
        ("rows shorter than k", f"{short:,} ({short / n:.1%})"),
        ("mean stored mass", f"{mass / n:.4f}"),
        ("error bound per degree", f"mean {bounds.mean(dtype=np.float64):.3g}, worst {bounds.max():.3g}"),
        ("checksums", "ok"),
    ):
        table.add_row(name, value)
    return table


def row_table(artefact: PPRArtefact, store: GraphStore, user_id: str) -> Table:
    """The row of the node a user calls ``user_id``."""
    if store.num_nodes != artefact.num_nodes:
        raise InputError(
            f"{artefact.path}: holds {artefact.num_nodes:,} nodes, {store.path} has {store.num_nodes:,}; "
            "give the store it was computed from"
        )
    node = store.lookup([user_id], is_text=True)
    _, indices, values = artefact.rows(node)
    bound = float(artefact.bounds(node)[0])
    table = Table("rank", "id", "PPR", title=f"{user_id}: at most {bound:.3g} · degree below the exact value")
    for rank, (name, value) in enumerate(zip(store.ids(indices), values, strict=True), start=1):
        table.add_row(str(rank), str(name), f"{value:.6f}")
    return table
