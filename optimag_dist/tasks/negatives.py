"""Negative edges for link prediction: which pairs are, and hard ones from personalised PageRank."""

from collections.abc import Callable

import numpy as np

from optimag_dist.ppr import PPRArtefact
from optimag_dist.types import InputError

#: (p,) int64 sources and (p,) int64 targets → (p,) bool: which pairs are edges, the batch's own included.
#: ``partial(contains, topology)`` is one (:mod:`optimag_dist.store.csr`).
IsEdge = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Uniform draws for a place before its source's non-neighbours are listed: most likely they are few.
_TRIES = 16


def ppr_hard_negatives(
    ppr: PPRArtefact, sources: np.ndarray, is_edge: IsEdge, count_per_source: int, rng: np.random.Generator
) -> np.ndarray:
    """For each source, (k,) int64 of which each occurrence draws anew, ``count_per_source`` nodes near it that are no
    neighbours: (k, count_per_source) int64.

    Drawn without repetition from the source's stored entries of ``ppr``, of the graph without the edges to be
    predicted, that are neither itself nor its neighbours, all alike. Where there are too few, uniform draws from all
    its non-neighbours follow, which may repeat; an InputError where a source is a neighbour of every other node.
    """
    indptr, columns, _ = ppr.rows(sources)
    rows = np.repeat(np.arange(len(sources)), np.diff(indptr))
    near = ~is_edge(sources[rows], columns) & (sources[rows] != columns)
    rows, columns = rows[near], columns[near]
    shuffled = np.lexsort((rng.random(len(rows)), rows))
    columns = columns[shuffled]
    # Rows are ascending and stay where they are.
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    chosen = place < count_per_source
    out = np.full((len(sources), count_per_source), -1, np.int64)
    out[rows[chosen], place[chosen]] = columns[chosen]
    row, column = np.nonzero(out < 0)
    out[row, column] = _non_neighbours(rng, ppr.num_nodes, sources[row], is_edge)
    return out


def no_edges(sources: np.ndarray, others: np.ndarray, is_edge: IsEdge) -> np.ndarray:
    """(k,) and (k, c) nodes → (k, c) bool: different nodes without an edge between them."""
    pairs = np.repeat(sources, others.shape[1]), others.ravel()
    return ~(is_edge(*pairs) | (pairs[0] == pairs[1])).reshape(others.shape)


def _non_neighbours(rng: np.random.Generator, num_nodes: int, sources: np.ndarray, is_edge: IsEdge) -> np.ndarray:
    """(p,) a uniform draw of a node that is neither the source nor its neighbour, for each."""
    out = np.empty(len(sources), np.int64)
    left = np.arange(len(sources))
    for _ in range(_TRIES):
        out[left] = rng.integers(0, num_nodes, len(left))
        left = left[is_edge(sources[left], out[left]) | (sources[left] == out[left])]
    for source in np.unique(sources[left]):
        others = np.delete(np.arange(num_nodes), source)
        free = others[~is_edge(np.full(len(others), source), others)]
        if not len(free):
            raise InputError(
                f"node {source} is linked with every other node, so no negative edge starts at it; leave its edges out "
                f"of the examples, or use uniform negatives"
            )
        mine = left[sources[left] == source]
        out[mine] = rng.choice(free, len(mine))
    return out
