"""Edges inserted and deleted in a store with PPR: the update against computing all rows again.

    python jobs/bench/ppr_update.py [--graph FILE.npz | --nodes 100000 --degree 13.5] [--changes 1 100 10000]

The graph is the key ``edges`` (m, 2) of an npz file, or Chung-Lu as in ``ppr.py``. Of the changed edges half (the
larger one) join two nodes drawn uniformly and half are drawn from the edges that are there. Both ways start from the
same store and run in a process with warm kernels and Ray started; *update* includes reading the changes, the new
topology, and all blocks; *anew* is ``compute_ppr`` of the changed store, which only has to push and write. Medians of
``--repeats`` draws; the first line warms up.

Over all draws: *error* is the largest |value − π'| / (bound·degree) over the stored entries of the ``--checked`` kept
rows with the largest bounds, π' by power iteration; *recall* is the share of a fresh run's entries that the updated
rows hold.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ppr import power_iteration, power_law_graph
from rich.console import Console
from rich.table import Table

from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.ppr.update import UpdateOptions, update_ppr
from optimag_dist.ray_session import ensure_ray
from optimag_dist.store import GraphStore, ingest


@dataclass(frozen=True)
class Draw:
    """One update measured."""

    renewed: int
    update_s: float
    anew_s: float
    worst_bound: float
    error: float
    recall: float
    lowest_recall: float


def read_edges(args: argparse.Namespace) -> tuple[np.ndarray, int]:
    """(m, 2) int64 undirected edges, each once, and n."""
    if args.graph is not None:
        edges = np.load(args.graph)["edges"].astype(np.int64)
        n = int(edges.max()) + 1
    else:
        csr = power_law_graph(args.nodes, args.degree, args.seed)
        n = csr.num_nodes
        edges = np.stack([np.repeat(np.arange(n), np.diff(csr.indptr)), csr.indices.astype(np.int64)], axis=1)
    edges = np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1)
    keys = np.unique(edges[:, 0] * n + edges[:, 1])
    return np.stack([keys // n, keys % n], axis=1), n


def draw_changes(path: Path, edges: np.ndarray, n: int, count: int, rng: np.random.Generator) -> None:
    deleted = edges[rng.choice(len(edges), count // 2, replace=False)]
    keys = set((edges[:, 0] * n + edges[:, 1]).tolist())
    inserted: list[tuple[int, int]] = []
    while len(inserted) < count - count // 2:
        u, v = sorted(int(node) for node in rng.integers(0, n, 2))
        if u != v and u * n + v not in keys:
            keys.add(u * n + v)
            inserted.append((u, v))
    pairs = np.concatenate([np.array(inserted), deleted])
    operations = ["insert"] * len(inserted) + ["delete"] * len(deleted)
    pq.write_table(pa.table({"source": pairs[:, 0], "target": pairs[:, 1], "op": operations}), path)


def measure(store: GraphStore, changes: Path, folder: Path, slack: float, checked: int) -> Draw:
    started = time.perf_counter()
    (done,) = update_ppr(
        store.path, changes, folder / "new", UpdateOptions(slack=slack), progress=False, say=lambda line: None
    )
    update_s = time.perf_counter() - started
    new, updated = GraphStore.open(folder / "new"), PPRArtefact.open(done.path)
    started = time.perf_counter()
    fresh = compute_ppr(new, updated.options, folder / "fresh", progress=False)
    anew_s = time.perf_counter() - started
    nodes = np.arange(new.num_nodes)
    bounds = updated.bounds(nodes)
    kept = np.flatnonzero(bounds != fresh.bounds(nodes))
    kept = kept[np.argsort(-bounds[kept], kind="stable")][:checked]
    error = max((row_error(updated, new, int(node), float(bounds[node])) for node in kept), default=0.0)
    recalls = row_recalls(updated, fresh)
    return Draw(done.renewed, update_s, anew_s, done.worst_bound, error, recalls.mean(), recalls.min())


def row_error(artefact: PPRArtefact, store: GraphStore, node: int, bound: float) -> float:
    _, indices, values = artefact.rows([node])
    exact = power_iteration(store.topology, node, artefact.options.teleport)
    degree = np.diff(store.topology.indptr)[indices]
    return float((np.abs(values - exact[indices]) / (bound * degree)).max())


def row_recalls(artefact: PPRArtefact, fresh: PPRArtefact) -> np.ndarray:
    """(n,) share of the entries of each fresh row that the artefact's row has."""
    n = artefact.num_nodes
    entries = []
    for each in (artefact, fresh):
        indptr, indices, _ = each.rows(np.arange(n))
        entries.append(np.repeat(np.arange(n), np.diff(indptr)) * n + indices)
    common = np.intersect1d(*entries, assume_unique=True) // n
    return np.bincount(common, minlength=n) / np.bincount(entries[1] // n, minlength=n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--degree", type=float, default=13.5)
    parser.add_argument("--changes", type=int, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--eps", type=float, default=1e-4)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--slack", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checked", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    ensure_ray()
    console = Console()
    edges, n = read_edges(args)
    console.print(f"{n:,} nodes, {len(edges):,} edges")
    table = Table(
        "changed edges", "rows pushed", "update, s", "anew, s", "ratio", "largest bound, eps", "error", "recall"
    )
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "graph.npz"), edges=edges, x_x=np.ones((n, 1), np.float16))
        store = ingest(Path(folder, "graph.npz"), Path(folder, "store"), say=lambda line: None)
        compute_ppr(store, PPROptions(eps=args.eps, k=args.k), progress=False)
        rng = np.random.default_rng(args.seed)
        # The first draw of all compiles or loads the kernels.
        for count in [1, *args.changes]:
            draws = []
            for _ in range(args.repeats):
                with tempfile.TemporaryDirectory(dir=folder) as part:
                    changes = Path(part) / "changes.parquet"
                    draw_changes(changes, edges, n, count, rng)
                    draws.append(measure(store, changes, Path(part), args.slack, args.checked))
            update_s, anew_s, renewed = (
                np.median([getattr(draw, name) for draw in draws]) for name in ("update_s", "anew_s", "renewed")
            )
            row = [
                f"{count:,}",
                f"{renewed:,.0f} ({renewed / n:.2%})",
                f"{update_s:.2f}",
                f"{anew_s:.2f}",
                f"{anew_s / update_s:.1f}",
                f"{max(draw.worst_bound for draw in draws):.2f}",
                f"{max(draw.error for draw in draws):.2f}",
                f"{np.mean([d.recall for d in draws]):.4f}, lowest row {min(d.lowest_recall for d in draws):.2f}",
            ]
            table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
