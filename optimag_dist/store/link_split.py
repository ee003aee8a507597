"""Edges of a graph become links to predict: they leave the topology, and each is asked both ways against negatives."""

from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from optimag_dist.jit import jit
from optimag_dist.options import Options
from optimag_dist.progress_bar import progress_bar
from optimag_dist.storage import AnyPath
from optimag_dist.store.csr import arc_places, contains
from optimag_dist.store.derive import EdgeChanges, apply_changes, both_ways
from optimag_dist.store.layout import LINKS
from optimag_dist.store.link_queries import LinkQueries, write_links
from optimag_dist.store.reader import GraphStore
from optimag_dist.store.staging import Say, destination, make_store, put_in_place, staging
from optimag_dist.types import CSR, InputError

_NEGATIVES = "negatives.bin"
# 8 MB of negatives are drawn and written at a time.
_BLOCK_NUMBERS = 1 << 20


class LinkSplitOptions(Options):
    """Attributes:
    val: share of the undirected edges held out to choose a model by.
    test: share held out to judge it by.
    negatives: nodes that the target of a link is ranked against.
    seed: of all draws; the same edges are held out whatever ``negatives`` is.
    """

    val: float = Field(0.05, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    negatives: int = Field(100, ge=1, lt=2**31)
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _leaves_edges(self) -> "LinkSplitOptions":
        if self.val + self.test >= 1:
            raise ValueError(f"val + test = {self.val + self.test:g} leaves no edges to train on; make it less than 1")
        return self


def split_links(
    store: GraphStore,
    out: str | AnyPath,
    options: LinkSplitOptions = LinkSplitOptions(),  # noqa: B008  (frozen)
    *,
    overwrite: bool = False,
    say: Say = print,
) -> GraphStore:
    """Write ``store``, undirected and without held-out links, less some of its edges, which become these, to ``out``.

    What is held out is a function of the graph's content and ``options``, every set of edges equally likely; and so are
    a query's negatives among the nodes that may be one (:class:`~optimag_dist.store.LinkQueries`). Files other than the
    topology are hard links to those of ``store``. PPR and partitions, which know all edges, stay behind. A store of the
    same content that is there already is left alone, one of other content or a damaged one unless ``overwrite``;
    nothing appears before all of it is on the disk. For a URI it is made in this host's cache, and sent when it is
    whole. ``say`` takes lines for people. ``InputError``: the store is directed or has held-out links, a share rounds
    to no edges or leaves none, a node has too few others for ``negatives``, ``out`` is taken or is ``store`` itself, or
    the disk is full.
    """
    return make_store(destination(out, store), partial(_split_links, store, options, say), overwrite, say)


def _split_links(store: GraphStore, options: LinkSplitOptions, say: Say, target: Path, overwrite: bool) -> GraphStore:
    rng = np.random.default_rng(options.seed)
    val, test = _hold_out(store, options, rng)
    sources, targets = (np.concatenate(ends) for ends in zip(both_ways(val), both_ways(test), strict=True))
    _check_negatives(store, sources, options.negatives)
    # The negatives stand twice on the disk for a while.
    needed = 8 * len(sources) * 2 * options.negatives + store.topology.indptr.nbytes + store.topology.indices.nbytes
    with staging(target, f"{store.content_hash} {options.model_dump_json()}", needed, say) as stage:
        negatives = _draw_negatives(store.topology, sources, options.negatives, rng, stage.scratch / _NEGATIVES)
        links = write_links(stage.store / LINKS, LinkQueries(sources, targets, negatives), 2 * len(val))
        changes = EdgeChanges(inserted=np.empty((0, 2), np.int64), deleted=np.concatenate([val, test]))
        made = apply_changes(store, changes, stage.store, {LINKS: links})
        put_in_place(stage, made.content_hash, target, overwrite, say)
    return GraphStore.open(target)


def check_no_leak(store: GraphStore) -> None:
    """``InputError`` about the first held-out link that is an arc of the topology, either way; O(log
    degree) for each."""
    if store.links is None:
        return
    for part, queries in (("val", store.links.val), ("test", store.links.test)):
        ends = queries.sources, queries.targets
        leaks = np.flatnonzero(contains(store.topology, *ends) | contains(store.topology, *ends[::-1]))
        if len(leaks):
            source, target = store.ids(np.array([queries.sources[leaks[0]], queries.targets[leaks[0]]]))
            more = f" ({len(leaks) - 1:,} more such {part} queries)" if len(leaks) > 1 else ""
            raise InputError(
                f"{store.path}: leak: the held-out {part} link {source!r} to {target!r} is an edge of the graph{more}, "
                "so a model sees what it is to predict; split the whole graph again with optimag split"
            )


def _hold_out(store: GraphStore, options: LinkSplitOptions, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Edges for validation and for test, each (·, 2) int64 node ids, the smaller one first."""
    if store.directed:
        raise InputError(
            f"{store.path}: the graph is directed, and links are held out of undirected ones; ingest it again as one "
            "(edges.directed=false for a schema, directed=false for other layouts)"
        )
    if store.links is not None:
        raise InputError(f"{store.path}: has held-out links already; split the store that it was made from")
    topology = store.topology
    num_edges = topology.num_arcs // 2
    num_val, num_test = (round(share * num_edges) for share in (options.val, options.test))
    for key, share, count in (("val", options.val, num_val), ("test", options.test, num_test)):
        if count == 0:
            raise InputError(f"{store.path}: {key}={share:g} of {num_edges:,} edges is none; raise {key}")
    if num_val + num_test >= num_edges:
        raise InputError(
            f"{store.path}: val={options.val:g} and test={options.test:g} of {num_edges:,} edges leave none; lower them"
        )
    drawn = rng.choice(num_edges, num_val + num_test, replace=False)
    # Edges are counted row by row, each in the row of its smaller node: there it lies beyond the node's own place.
    nodes = np.arange(topology.num_nodes)
    ends = np.cumsum(topology.indptr[1:] - arc_places(topology, nodes, nodes))
    smaller = np.searchsorted(ends, drawn, side="right")
    larger = topology.indices[topology.indptr[smaller + 1] - (ends[smaller] - drawn)]
    pairs = np.stack([smaller, larger], axis=1).astype(np.int64)
    return pairs[:num_val], pairs[num_val:]


def _check_negatives(store: GraphStore, sources: np.ndarray, negatives: int) -> None:
    strangers = store.num_nodes - 1 - np.diff(store.topology.indptr)[sources]
    fewest = int(np.argmin(strangers))
    if strangers[fewest] < negatives:
        node = store.ids(sources[fewest : fewest + 1])[0]
        remedy = f"lower negatives to {strangers[fewest]:,}" if strangers[fewest] else "leave that node out"
        raise InputError(
            f"{store.path}: negatives={negatives:,}, but only {strangers[fewest]:,} other nodes are not neighbours of "
            f"the node {node!r}, whose links are held out; {remedy}"
        )


def _draw_negatives(topology: CSR, sources: np.ndarray, count: int, rng: np.random.Generator, path: Path) -> np.ndarray:
    """(k, count) int64, a row for each of ``sources``, mapped from the new file ``path``."""
    drawn_for = np.full(topology.num_nodes, -1, np.int64)
    rows = max(1, _BLOCK_NUMBERS // count)
    with path.open("wb") as file, progress_bar("negatives", len(sources)) as advance:
        for first in range(0, len(sources), rows):
            block = np.empty((min(rows, len(sources) - first), count), np.int64)
            _draw_strangers(rng, topology.indptr, topology.indices, sources, first, drawn_for, block)
            file.write(block.data)
            advance(len(block))
    return np.memmap(path, np.int64, "r", shape=(len(sources), count))


@jit(nogil=True)
def _draw_strangers(rng, indptr, indices, sources, first, drawn_for, out):  # type: ignore[no-untyped-def]
    """Distinct nodes that are neither the source nor its neighbours, every sequence of them equally likely.

    Args:
        rng: a numpy Generator.
        indptr, indices: in-CSR of an undirected graph.
        sources: (k,) int64; ``out[0]`` is of ``sources[first]``.
        drawn_for: (n,) int64, for each rank the last row that drew it; kept between calls.
        out: (rows, count) int64, written.
    """
    for i in range(len(out)):
        source = sources[first + i]
        row = indices[indptr[source] : indptr[source + 1]]
        strangers = len(drawn_for) - len(row) - 1
        own_rank = source - np.searchsorted(row, source)
        for j in range(out.shape[1]):
            while True:
                rank = rng.integers(0, strangers)
                if drawn_for[rank] != first + i:
                    break
            drawn_for[rank] = first + i
            # Now the rank among all nodes that are no neighbours, the source being one of them …
            if rank >= own_rank:
                rank += 1
            # … which is its node less the neighbours below: row[e] − e strangers are below the neighbour row[e].
            low, high = 0, len(row)
            while low < high:
                middle = (low + high) // 2
                if row[middle] - middle <= rank:
                    low = middle + 1
                else:
                    high = middle
            out[i, j] = rank + low
