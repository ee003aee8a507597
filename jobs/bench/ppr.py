"""Speed and recall of top-k personalised PageRank on a synthetic power-law graph with communities.

    python jobs/bench/ppr.py [--nodes 100000] [--degree 13.5] [--sources 5000] [--eps 1e-4] [--k 32] [--threads 1 2]

The graph is Chung-Lu: weights follow a power law of exponent 2.3, 70 % of the edges stay inside a community. Times are
medians of ``--repeats`` interleaved runs of warm kernels. Recall counts how many of the k largest entries of exact PPR
(power iteration in float64 until 1e-10 of the mass is left) are among the k returned. PyTorch Geometric's ``get_ppr``
runs in the same process when it is installed.
"""

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from optimag_dist.ppr.graph import symmetrise
from optimag_dist.ppr.topk import ppr_topk, push_sources
from optimag_dist.types import CSR

EXPONENT, INSIDE, LEFT_OVER = 2.3, 0.7, 1e-10


def power_law_graph(num_nodes: int, degree: float, seed: int) -> CSR:
    """Undirected Chung-Lu graph of about ``degree`` arcs per node in communities of about 500 nodes."""
    rng = np.random.default_rng(seed)
    num_edges = int(num_nodes * degree / 2)
    num_communities = max(1, num_nodes // 500)
    weight = rng.permutation((np.arange(num_nodes) + 10.0) ** (-1 / (EXPONENT - 1)))
    community = np.sort(rng.integers(0, num_communities, num_nodes))
    total = np.concatenate([[0.0], np.cumsum(weight)])
    bounds = total[np.searchsorted(community, np.arange(num_communities + 1))]

    def draw(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        place = low + rng.random(num_edges) * (high - low)
        return np.minimum(np.searchsorted(total, place, side="right") - 1, num_nodes - 1)

    everything = np.zeros(num_edges), np.full(num_edges, total[-1])
    sources = draw(*everything)
    own = community[sources]
    inside = rng.random(num_edges) < INSIDE
    targets = draw(np.where(inside, bounds[own], 0.0), np.where(inside, bounds[own + 1], total[-1]))
    order = np.argsort(sources, kind="stable")
    indptr = np.zeros(num_nodes + 1, np.int64)
    np.cumsum(np.bincount(sources, minlength=num_nodes), out=indptr[1:])
    return symmetrise(CSR(indptr, targets[order].astype(np.int32)))


def power_iteration(csr: CSR, source: int, teleport: float) -> np.ndarray:
    """(n,) float64 π of ``source``, at most ``LEFT_OVER`` of its mass missing."""
    degree = np.diff(csr.indptr)
    rows = np.repeat(np.arange(csr.num_nodes), degree)
    walk: np.ndarray = np.zeros(csr.num_nodes)
    walk[source] = teleport
    result = walk.copy()
    while walk.sum() > LEFT_OVER:
        spread = walk / np.maximum(degree, 1)
        walk = (1 - teleport) * np.bincount(rows, weights=spread[csr.indices], minlength=csr.num_nodes)
        result += walk
    return result


def median_times(runs: dict[tuple[str, str], Callable[[], Any]], repeats: int) -> dict[tuple[str, str], np.ndarray]:
    """Median wall and processor seconds of each run, taken in turns so that a noisy spell hits all alike."""
    times: dict[tuple[str, str], list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: np.median(seconds, axis=0) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--degree", type=float, default=13.5)
    parser.add_argument("--sources", type=int, default=5000)
    parser.add_argument("--teleport", type=float, default=0.15)
    parser.add_argument("--eps", type=float, default=1e-4)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--checked", type=int, default=10, help="sources compared with power iteration")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    csr = power_law_graph(args.nodes, args.degree, args.seed)
    degrees = np.diff(csr.indptr)
    with_edges = np.flatnonzero(degrees)
    rng = np.random.default_rng(args.seed)
    sources = rng.choice(with_edges, min(args.sources, len(with_edges)), replace=False)
    options = {"teleport": args.teleport, "eps": args.eps, "k": args.k}
    first = push_sources(csr, sources, **options)
    console = Console()
    console.print(
        f"{csr.num_nodes:,} nodes, {csr.num_arcs:,} arcs (mean degree {degrees.mean():.1f}, largest {degrees.max()}); "
        f"per source {first.pushes / len(sources):.0f} pushes, {first.arcs / len(sources):.0f} arcs"
    )

    runs: dict[tuple[str, str], Callable[[], Any]] = {
        ("ppr_topk", str(threads)): partial(push_sources, csr, sources, num_threads=threads, **options)
        for threads in args.threads
    }
    if importlib.util.find_spec("torch_geometric") is not None:
        torch = importlib.import_module("torch")
        get_ppr = importlib.import_module("torch_geometric.utils").get_ppr
        rows = np.repeat(np.arange(csr.num_nodes), degrees)
        edge_index = torch.from_numpy(np.stack([rows, csr.indices.astype(np.int64)]))
        target = torch.from_numpy(sources)
        run_pyg = partial(
            get_ppr, edge_index, alpha=args.teleport, eps=args.eps, target=target, num_nodes=csr.num_nodes
        )
        run_pyg()
        runs["PyG get_ppr, no top-k", "all"] = run_pyg
    times = median_times(runs, args.repeats)
    mine = times["ppr_topk", str(args.threads[0])]
    table = Table("implementation", "threads", "µs / source", "processor µs / source", "processor time, ratio")
    for (name, threads), seconds in times.items():
        wall, processor = seconds / len(sources) * 1e6
        table.add_row(name, threads, f"{wall:.1f}", f"{processor:.1f}", f"{seconds[1] / mine[1]:.2f}")
    console.print(table)
    if importlib.util.find_spec("torch_geometric") is None:
        console.print("torch_geometric is not installed: no comparison with its get_ppr")

    checked = sources[: args.checked]
    indptr, indices, _ = ppr_topk(csr.indptr, csr.indices, checked, **options)
    recall, share = [], []
    for i, source in enumerate(checked):
        exact = power_iteration(csr, int(source), args.teleport)
        best = np.argsort(-exact, kind="stable")[: args.k]
        row = slice(indptr[i], indptr[i + 1])
        recall.append(len(np.intersect1d(best, indices[row])) / args.k)
        share.append(exact[indices[row]].sum() / exact[best].sum())
    if recall:
        console.print(
            f"against power iteration, {len(checked)} sources: recall@{args.k} {np.mean(recall):.3f} (lowest "
            f"{np.min(recall):.3f}); the returned nodes hold {np.mean(share):.1%} of the exact top-{args.k} mass"
        )


if __name__ == "__main__":
    main()
