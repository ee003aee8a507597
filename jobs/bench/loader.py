"""Seeds per second of the batch loader, against DGL's DataLoader and PyG's NeighborLoader.

    python jobs/bench/loader.py [--npz FILE | --nodes 1000000] [--batch 1024] [--fanouts 10 10] [--threads 1] [--prior]

Same graph, same seeds in the same batches, same fan-outs, one process. Ours gathers float16 features from the mapped
store; the others have float32 features in memory. ``--npz`` is a file with ``edges`` (E, 2) and features ``x_*``;
without it, a power-law graph with two modalities of 128 numbers is made. Figures are medians of ``--repeats``
interleaved passes over ``--batches`` batches. ``--prior`` also times groups with their PPR prior (64 targets in groups
of 256 nodes, the default), which the others have nothing to compare with. ``--profile`` says where our time goes.
"""

import argparse
import importlib
import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ppr import power_law_graph
from rich.console import Console
from rich.table import Table

from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.sampling import BlockSampler, GroupLoader, LocalSource, SamplingOptions, SeedBatcher, nodes_alone
from optimag_dist.store import GraphStore, ingest


def make_store(folder: Path, edges: np.ndarray, features: dict[str, np.ndarray]) -> GraphStore:
    """Ingest (E, 2) undirected edges and modality → (n, width) float16 features."""
    np.savez(folder / "bench.npz", edges=edges, **{f"x_{name}": values for name, values in features.items()})
    return ingest(folder / "bench.npz", folder / "store")


def read_graph(npz: Path | None, num_nodes: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    if npz is not None:
        arrays = np.load(npz)
        return arrays["edges"], {name[2:]: arrays[name] for name in arrays.files if name.startswith("x_")}
    csr = power_law_graph(num_nodes, 13.5, seed=0)
    rows = np.repeat(np.arange(num_nodes, dtype=np.int32), np.diff(csr.indptr))
    once = rows < csr.indices
    rng = np.random.default_rng(0)
    features = {m: rng.standard_normal((num_nodes, 128), np.float32).astype(np.float16) for m in ("a", "b")}
    return np.stack([rows[once], csr.indices[once]], axis=1), features


def ours(
    store: GraphStore, ppr: PPRArtefact | None, seeds: np.ndarray, options: SamplingOptions
) -> Callable[[], Iterable]:
    loader = GroupLoader(LocalSource(store), ppr, options, seed=0, messages=True)
    batcher = SeedBatcher(seeds, store.num_nodes, ppr, options, seed=0, fill=ppr is not None)
    return lambda: loader.epoch([(batcher, nodes_alone)], 0)


def dgl_loader(store: GraphStore, fanouts: list[int], threads: int) -> Callable[[np.ndarray, int], Iterator]:
    """DGL's loader as its documentation writes it: features in memory, prefetched by the sampler."""
    dgl = importlib.import_module("dgl")
    topology = store.topology
    arrays = (torch.tensor(topology.indptr), torch.tensor(topology.indices).long(), torch.empty(0, dtype=torch.int64))
    graph = dgl.graph(("csc", arrays), num_nodes=store.num_nodes)
    everyone = np.arange(store.num_nodes)
    for name in store.modalities:
        graph.ndata[name] = torch.from_numpy(store.gather(name, everyone)).float()
    names = list(store.modalities)
    dgl.utils.set_num_threads(threads)

    def batches(seeds: np.ndarray, batch: int) -> Iterator:
        sampler = dgl.dataloading.NeighborSampler(fanouts, prefetch_node_feats=names)
        for _, _, blocks in dgl.dataloading.DataLoader(graph, torch.tensor(seeds), sampler, batch_size=batch):
            yield blocks, [blocks[0].srcdata[name] for name in names]

    return batches


def pyg_loader(store: GraphStore, fanouts: list[int]) -> Callable[[np.ndarray, int], Iterator]:
    data_module = importlib.import_module("torch_geometric.data")
    loader_module = importlib.import_module("torch_geometric.loader")
    topology = store.topology
    targets = np.repeat(np.arange(store.num_nodes), np.diff(topology.indptr))
    edge_index = torch.from_numpy(np.stack([topology.indices.astype(np.int64), targets]))
    everyone = np.arange(store.num_nodes)
    data = data_module.Data(edge_index=edge_index, num_nodes=store.num_nodes)
    for name in store.modalities:
        data[f"x_{name}"] = torch.from_numpy(store.gather(name, everyone)).float()
    made: dict[int, Any] = {}

    def batches(seeds: np.ndarray, batch: int) -> Iterator:
        # Its set-up sorts the whole graph, once.
        if batch not in made:
            made[batch] = loader_module.NeighborLoader(
                data,
                num_neighbors=fanouts,
                input_nodes=torch.from_numpy(seeds),
                batch_size=batch,
                filter_per_worker=True,
            )
        yield from made[batch]

    return batches


def drain(batches: Callable[[], Iterable]) -> tuple[float, float]:
    """Wall and processor seconds of all batches."""
    start = time.perf_counter(), time.process_time()
    for _ in batches():
        pass
    return time.perf_counter() - start[0], time.process_time() - start[1]


def profile(
    store: GraphStore, ppr: PPRArtefact | None, seeds: np.ndarray, options: SamplingOptions
) -> dict[str, float]:
    """Milliseconds per batch of each part of assembling one, on one thread."""
    rows = LocalSource(store)
    sampler = BlockSampler(rows.neighbours)
    times: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        times.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
        return result

    batcher = SeedBatcher(seeds, store.num_nodes, ppr, options, seed=0, fill=ppr is not None)
    for step, groups in enumerate(batcher.items(0)):
        key = (0, step, 0)
        group = timed("group", partial(batcher.group, groups[0], key=key))
        nodes, _ = timed("blocks", partial(sampler.sample, group.targets, options.fanouts, key))
        for name in store.modalities:
            timed(f"features {name}", partial(rows.features, name, nodes))
        timed("present", lambda nodes=nodes: [rows.present(m, nodes) for m in store.modalities])
        timed("degrees", partial(rows.degrees, nodes))
        if ppr is not None:
            timed("prior", partial(ppr.submatrix, group.seeds))
        times.setdefault("input nodes", []).append(len(nodes))
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npz", type=Path)
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--fanouts", type=int, nargs="+", default=[10, 10])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prior", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--store", type=Path, help="keep the store here, or use the one that is here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    console = Console()

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.store or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        made = (folder / "store").is_dir()
        store = GraphStore.open(folder / "store") if made else make_store(folder, *read_graph(args.npz, args.nodes))
        console.print(store.summary())
        linked = np.flatnonzero(np.diff(store.topology.indptr))
        count = min(args.batch * args.batches, len(linked) // args.batch * args.batch)
        seeds = np.random.default_rng(0).permutation(linked)[:count]
        options = SamplingOptions(
            groups=1, targets=args.batch, group_size=args.batch, fanouts=tuple(args.fanouts), batcher="uniform"
        )
        runs: dict[str, Callable[[], Iterable]] = {
            "optimag": ours(store, None, seeds, options),
            "optimag, DGL's sampler": ours(store, None, seeds, options.model_copy(update={"sampler": "dgl"})),
            "DGL DataLoader": partial(dgl_loader(store, args.fanouts, args.threads), seeds, args.batch),
        }
        if importlib.util.find_spec("torch_geometric") is not None:
            runs["PyG NeighborLoader"] = partial(pyg_loader(store, args.fanouts), seeds, args.batch)
        ppr, default = None, SamplingOptions(fanouts=tuple(args.fanouts), groups=1)
        if args.prior:
            ppr = compute_ppr(store, PPROptions())
            runs["optimag with prior"] = ours(store, ppr, seeds, default)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        # The first pass compiles and brings everything into memory.
        for repeat in range(args.repeats + 1):
            for name, run in runs.items():
                seconds = drain(run)
                if repeat:
                    times[name].append(seconds)
        columns = "loader", "seeds / s", "ms / batch", "ratio to ours", "processor ms / batch", "ratio to ours"
        table = Table(*columns, title=f"{args.threads} thread(s)")
        mine = np.median(times["optimag"], axis=0)
        for name, seconds in times.items():
            per_batch = default.targets if name.endswith("prior") else args.batch
            wall, processor = np.median(seconds, axis=0)
            scale = 1e3 * per_batch / count
            table.add_row(
                name,
                f"{count / wall:,.0f}",
                f"{wall * scale:.2f}",
                f"{wall / mine[0]:.2f}",
                f"{processor * scale:.2f}",
                f"{processor / mine[1]:.2f}",
            )
        console.print(table)
        if args.profile:
            console.print("ms per part, batch without prior:", profile(store, None, seeds, options))
            if ppr is not None:
                console.print("ms per part, group with prior:", profile(store, ppr, seeds, default))


if __name__ == "__main__":
    main()
