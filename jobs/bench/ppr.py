"""Speed and recall of top-k personalised PageRank, beside the two published implementations and a counted floor.

    python jobs/bench/ppr.py [--graph GRAPH.npz] [--sources 5000] [--eps 1e-4] [--pprgo pprgo/ppr.py] [--actors 4]

The graph is read from an npz file with ``edges`` (undirected pairs), or drawn: Chung-Lu, weights follow a power law of
exponent 2.3, 70 % of the edges stay inside a community. Times are medians of ``--repeats`` interleaved runs of warm
kernels; processor time counts every thread. Recall counts how many of the k largest entries of exact PPR (power
iteration in float64 until 1e-10 of the mass is left) are among the k largest returned.

PyTorch Geometric's ``get_ppr`` runs when it is installed. PPRGo's kernel (Bojchevski et al. 2020) runs when ``--pprgo``
names the file ``pprgo/ppr.py`` of a checkout of github.com/TUM-DAML/pprgo_pytorch. Both keep the estimate alone, ours
adds the residual's share; the row "equal recall" gives ours the largest eps at which it finds as much as PyG does.
``--actors`` runs the whole graph through Ray, replicated and sharded, and compares the processor time of the workers.
"""

import argparse
import importlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from rich.console import Console
from rich.table import Table

from optimag_dist.ppr.artefact import PPROptions
from optimag_dist.ppr.driver import RunTotals, compute_ppr
from optimag_dist.ppr.topk import push_sources
from optimag_dist.store.csr import graph_hash, symmetrise
from optimag_dist.store.partition import PartitionOptions, partition_store
from optimag_dist.types import CSR

# Candidates for "equal recall", coarse to fine.
EPS_LADDER = (1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4)
# A node touched for the first time moves a cache line in and one out; an arc is read once.
LINE_BYTES, ARC_BYTES = 128, 4
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


def read_graph(path: Path) -> CSR:
    """The undirected graph of an npz file with ``edges`` (m, 2)."""
    with np.load(path) as arrays:
        edges = arrays["edges"]
    num_nodes = int(edges.max()) + 1
    order = np.argsort(edges[:, 0], kind="stable")
    indptr = np.zeros(num_nodes + 1, np.int64)
    np.cumsum(np.bincount(edges[:, 0], minlength=num_nodes), out=indptr[1:])
    return symmetrise(CSR(indptr, edges[order, 1].astype(np.int32)))


def bandwidth() -> float:
    """Bytes per second one core copies, reads and writes counted; best of five copies of 256 MB."""
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


def median_times(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Median wall and processor seconds of each run, taken in turns so that a noisy spell hits all alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: np.median(seconds, axis=0) for name, seconds in times.items()}


def recall(found: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """Mean share of ``exact`` (top-k node ids per source) that is in ``found``."""
    return float(np.mean([len(np.intersect1d(f, e)) / len(e) for f, e in zip(found, exact, strict=True)]))


class PyG:
    """``torch_geometric.utils.get_ppr``: push, no top-k."""

    def __init__(self, csr: CSR, teleport: float, eps: float) -> None:
        torch = importlib.import_module("torch")
        self._torch = torch
        self._get_ppr = importlib.import_module("torch_geometric.utils").get_ppr
        rows = np.repeat(np.arange(csr.num_nodes), np.diff(csr.indptr))
        self._edge_index = torch.from_numpy(np.stack([rows, csr.indices.astype(np.int64)]))
        self._options = {"alpha": teleport, "eps": eps, "num_nodes": csr.num_nodes}

    def __call__(self, sources: np.ndarray) -> Any:
        return self._get_ppr(self._edge_index, target=self._torch.from_numpy(sources), **self._options)

    def top(self, sources: np.ndarray, k: int) -> list[np.ndarray]:
        (heads, nodes), values = (tensor.numpy() for tensor in self(sources))
        mine = [np.flatnonzero(heads == source) for source in sources]
        return [nodes[m[np.argsort(-values[m], kind="stable")[:k]]] for m in mine]


class PPRGo:
    """The published kernel: push and top-k."""

    def __init__(self, file: Path, csr: CSR, teleport: float, eps: float, k: int) -> None:
        spec = importlib.util.spec_from_file_location("pprgo_ppr", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # numba's disk cache imports the module by name.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        graph = csr.indptr.astype(np.int64), csr.indices.astype(np.int64), np.diff(csr.indptr)
        self._run = partial(module.calc_ppr_topk_parallel, *graph, numba.float32(teleport), numba.float32(eps))
        self._k = k

    def __call__(self, sources: np.ndarray) -> Any:
        return self._run(sources, self._k)

    def top(self, sources: np.ndarray, k: int) -> list[np.ndarray]:
        return list(self._run(sources, k)[0])


@dataclass(frozen=True)
class ArrayStore:
    """As much of a graph store as PPR and partition ask for."""

    path: Path
    topology: CSR
    content_hash: str
    modalities: dict[str, Any] = field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        return self.topology.num_nodes


def compare_placements(csr: CSR, options: PPROptions, actors: int, console: Console) -> None:
    """Processor time of the workers for the whole graph, replicated and sharded over ``actors``."""
    table = Table("placement", "processor µs / source", "ratio", "bytes fetched / source", "rounds / block")
    with tempfile.TemporaryDirectory() as folder:
        store = ArrayStore(Path(folder), csr, graph_hash(csr))
        partition_store(store, PartitionOptions(parts=4 * actors), progress=False)  # type: ignore[arg-type]
        base = 0.0
        sharded = options.model_copy(update={"placement": "sharded", "actors": actors})
        small = sharded.model_copy(update={"row_cache_mb": csr.num_arcs / (1 << 20)})
        for name, chosen in (
            ("replicated, first run compiles", options),
            ("replicated", options),
            (f"sharded, {actors} actors", sharded),
            (f"sharded, {actors} actors, cache of a quarter of the arcs", small),
        ):
            totals = RunTotals()
            compute_ppr(store, chosen, Path(folder) / name, progress=False, totals=totals)
            cost = totals.cpu_seconds / totals.rows * 1e6
            if name == "replicated":
                base = cost
            if base:
                traffic = totals.traffic
                table.add_row(
                    name,
                    f"{cost:.1f}",
                    f"{cost / base:.2f}",
                    f"{traffic.num_bytes / totals.rows:.0f}",
                    f"{traffic.rounds / totals.blocks:.1f}",
                )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, help="npz with edges; default: a drawn graph")
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--degree", type=float, default=13.5)
    parser.add_argument("--sources", type=int, default=5000)
    parser.add_argument("--teleport", type=float, default=0.15)
    parser.add_argument("--eps", type=float, default=1e-4)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--checked", type=int, default=20, help="sources compared with power iteration")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pprgo", type=Path, help="pprgo/ppr.py of a checkout of PPRGo")
    parser.add_argument("--actors", type=int, default=0, help="compare placements over this many actors")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    console = Console()
    csr = read_graph(args.graph) if args.graph else power_law_graph(args.nodes, args.degree, args.seed)
    degrees = np.diff(csr.indptr)
    with_edges = np.flatnonzero(degrees)
    rng = np.random.default_rng(args.seed)
    sources = rng.choice(with_edges, min(args.sources, len(with_edges)), replace=False)
    options = {"teleport": args.teleport, "k": args.k}
    first = push_sources(csr, sources, eps=args.eps, num_threads=1, **options)
    few = push_sources(csr, sources[:100], teleport=args.teleport, eps=args.eps, k=65536, num_threads=1)
    touched = float(np.diff(few.indptr).mean())
    arcs = first.arcs / len(sources)
    floor = (arcs * ARC_BYTES + touched * LINE_BYTES) / bandwidth() * 1e6
    console.print(
        f"{csr.num_nodes:,} nodes, {csr.num_arcs:,} arcs (mean degree {degrees.mean():.1f}, largest {degrees.max():,});"
        f" per source {first.pushes / len(sources):.0f} pushes, {arcs:,.0f} arcs, {touched:,.0f} nodes touched"
    )

    checked = sources[: args.checked]
    exact = [np.argsort(-power_iteration(csr, int(s), args.teleport), kind="stable")[: args.k] for s in checked]

    def ours(eps: float) -> float:
        rows = push_sources(csr, checked, eps=eps, **options)
        return recall(np.split(rows.indices, rows.indptr[1:-1]), exact)

    runs: dict[str, Callable[[], Any]] = {}
    recalls: dict[str, float] = {}
    for threads in args.threads:
        name = f"ours, {threads} thread{'s' if threads > 1 else ''}"
        runs[name] = partial(push_sources, csr, sources, eps=args.eps, num_threads=threads, **options)
        recalls[name] = ours(args.eps)
    baseline = next(iter(runs))
    numba.set_num_threads(1)
    peers: dict[str, Any] = {}
    if importlib.util.find_spec("torch_geometric") is not None:
        peers["PyG get_ppr, 1 thread"] = PyG(csr, args.teleport, args.eps)
    if args.pprgo:
        peers["PPRGo, 1 thread"] = PPRGo(args.pprgo, csr, args.teleport, args.eps, args.k)
    for name, peer in peers.items():
        recalls[name] = recall(peer.top(checked, args.k), exact)
        runs[name] = partial(peer, sources)
    if peers:
        wanted = max(recalls[name] for name in peers)
        eps = next((eps for eps in EPS_LADDER if ours(eps) >= wanted), args.eps)
        name = f"ours at equal recall, eps={eps:g}, 1 thread"
        recalls[name] = ours(eps)
        runs[name] = partial(push_sources, csr, sources, eps=eps, num_threads=1, **options)

    times = median_times(runs, args.repeats)
    table = Table("implementation", "µs / source", "processor µs / source", "× ours", f"recall@{args.k}")
    for name, seconds in times.items():
        wall, processor = seconds / len(sources) * 1e6
        ratio = seconds[1] / times[baseline][1]
        table.add_row(name, f"{wall:.1f}", f"{processor:.1f}", f"{ratio:.2f}", f"{recalls[name]:.3f}")
    table.add_row("counted floor (bytes / bandwidth)", f"{floor:.1f}", f"{floor:.1f}", "", "")
    console.print(table)
    for missing, here in (("torch_geometric", "PyG get_ppr, 1 thread" in peers), ("--pprgo", bool(args.pprgo))):
        if not here:
            console.print(f"no {missing}: no comparison with it")
    if args.actors:
        compare_placements(csr, PPROptions(eps=args.eps, teleport=args.teleport, k=args.k), args.actors, console)


if __name__ == "__main__":
    main()
