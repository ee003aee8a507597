"""Stores of a few nodes, their PPR without Ray's workers, and fits of them without Ray."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optimag_dist.options import validate_options
from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.artefact import artefact_key, block_name, write_block
from optimag_dist.ppr.topk import push_sources
from optimag_dist.sampling import ExampleFn, GraphDataSource, GroupLoader, SeedBatcher, nodes_alone
from optimag_dist.store import GraphStore, ingest
from optimag_dist.train.callback import TrainerCallback
from optimag_dist.train.fit import Fit, Worker, run_fit
from optimag_dist.train.options import RunConfig, VariantConfig
from optimag_dist.train.parts import Parts, evaluate_part, joined
from optimag_dist.types import Block, GroupBatch

from ..tables import write_tables


def quietly(line: str) -> None:
    """Takes lines for people."""


def make_store(
    folder: Path, features: Mapping[str, np.ndarray], edges: Iterable[tuple[int, int]], **columns: list[Any]
) -> GraphStore:
    """A store of the nodes n0, n1, …

    Args:
        folder: to be made.
        features: modality → (n, width); a row of NaN is a missing one.
        edges: undirected.
        columns: ``label`` and ``split`` of the nodes.
    """
    folder.mkdir()
    rows = {m: [None if np.isnan(row).any() else row.tolist() for row in x] for m, x in features.items()}
    ids = [f"n{node}" for node in range(len(next(iter(rows.values()))))]
    ends = ((ids[u], ids[v]) for u, v in edges)
    schema = write_tables(folder, {"id": ids, **rows, **columns}, ends, rows, **{name: name for name in columns})
    return ingest(schema, folder / "store", say=quietly)


def make_ppr(store: GraphStore, folder: Path) -> PPRArtefact:
    """As ``compute_ppr`` does."""
    folder.mkdir()
    options, n = PPROptions(eps=1e-5, k=16), store.num_nodes
    rows = push_sources(store.topology, np.arange(n), teleport=options.teleport, eps=options.eps, k=options.k)
    key = artefact_key("graph", options)
    checksum = write_block(folder / block_name(0), key, 0, rows.indptr, rows.indices, rows.values, rows.bounds)
    PPRArtefact.finish(folder, n, options, "graph", [checksum])
    return PPRArtefact.open(folder)


def configure(task: dict[str, Any], **sections: dict[str, Any]) -> VariantConfig:
    """Small, without dropout and regulariser, unless ``sections`` say otherwise."""
    recipe: dict[str, Any] = {
        "name": "tiny",
        "store": "none",
        "task": task,
        "sampling": {"groups": 2, "targets": 12, "group_size": 32, "fanouts": [-1, -1]},
        "model": {"hidden": 16, "embedding": 8, "dropout": 0.0},
        "regulariser": {"weight": 0},
        "optim": {"lr": 0.01},
        "train": {"epochs": 2, "patience": 1000},
    }
    recipe |= {name: {**recipe.get(name, {}), **section} for name, section in sections.items()}
    return validate_options(RunConfig, recipe, "recipe").resolve()["default"]


def fit(
    config: VariantConfig,
    store: GraphStore,
    folder: Path,
    ppr: PPRArtefact | None = None,
    callback: TrainerCallback | None = None,
) -> dict[str, Any] | None:
    return run_fit(Fit("default", 0, config, folder), store, ppr, Worker(), callback)


def start(
    config: VariantConfig, store: GraphStore, ppr: PPRArtefact | None = None, worker: Worker | None = None
) -> Parts:
    """A fit before its first step; it writes nothing."""
    return Parts(Fit("default", 0, config, Path("nowhere")), store, ppr, worker or Worker())


def evaluated(parts: Parts, part: Literal["val", "test"]) -> dict[str, float]:
    """The metrics of all tasks, by their names in a run."""
    parts.step_loss.eval()
    return joined(evaluate_part(part, parts.tasks, parts.heads, parts.forward()))


def first_groups(parts: Parts) -> tuple[GroupBatch, ...]:
    """The groups of the first step."""
    return next(parts.loader.epoch(parts.sources, 0)).groups


def batch_of(
    parts: Parts, nodes: np.ndarray, example_fn: ExampleFn = nodes_alone, rows: GraphDataSource | None = None
) -> GroupBatch:
    """One batch whose targets are ``nodes``, ascending, with their neighbourhoods in ``rows``."""
    changes = {"groups": 1, "targets": len(nodes), "group_size": len(nodes)}
    options = parts.fit.config.sampling.model_copy(update=changes)
    batcher = SeedBatcher(nodes, parts.store.num_nodes, None, options, seed=0, fill=False)
    loader = GroupLoader(rows or parts.masked_rows, None, options, seed=0, messages=parts.model.passes_messages)
    (step,) = loader.epoch([(batcher, lambda items, rng: example_fn(np.sort(items), rng))], 0)
    return step.groups[0]


def arcs_of(block: Block, nodes: np.ndarray) -> list[tuple[int, int]]:
    """(destination, source) ids of the block's arcs in their order; ``nodes`` are the batch's."""
    rows = np.repeat(np.arange(block.num_dst), block.indptr.diff().numpy())
    return list(zip(nodes[rows].tolist(), nodes[block.indices.numpy()].tolist(), strict=True))


def messages_of(group: GroupBatch) -> set[tuple[int, int]]:
    """(destination, source) ids of all arcs along which the group passes messages."""
    nodes = group.node_ids.numpy()
    return {arc for block in group.blocks for arc in arcs_of(block, nodes)}


def both_ways(edges: np.ndarray) -> set[tuple[int, int]]:
    """(E, 2) → the arcs of the edges."""
    return {arc for u, v in edges.tolist() for arc in ((u, v), (v, u))}
