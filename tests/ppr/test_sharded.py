"""Rows that are fetched as they are needed: the same bits as push over the whole topology, in bounded memory."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optimag_dist.ppr import PPROptions, symmetrise
from optimag_dist.ppr.sharded import MB, Fetch, RowCache, ShardedPusher, requests, whole_graph_words
from optimag_dist.ppr.topk import TopK, push_sources
from optimag_dist.types import CSR, InputError

from .ppr_oracle import csr_of_arcs, graphs, power_law


def rows_of(csr: CSR, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows one by one, as no code of the package does it."""
    rows = [csr.indices[csr.indptr[u] : csr.indptr[u + 1]] for u in nodes]
    indptr = np.cumsum([0, *(len(row) for row in rows)])
    return indptr, np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32)


def in_pieces(csr: CSR, owner: np.ndarray, max_bytes: float, seed: int) -> Fetch:
    """Rows by owner, in requests of ``max_bytes``, arriving in random order."""
    rng = np.random.default_rng(seed)
    degrees = np.diff(csr.indptr)

    def fetch(nodes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        asked = list(requests(nodes, owner[nodes], degrees, max_bytes))
        assert sorted(np.concatenate([piece for _, piece, _ in asked])) == sorted(nodes)
        for place in rng.permutation(len(asked)):
            peer, piece, size = asked[place]
            assert (owner[piece] == peer).all()
            assert size == 4 * degrees[piece].sum()
            assert size <= max_bytes or len(piece) == 1
            yield piece, *rows_of(csr, piece)

    return fetch


def assert_same(came: TopK, needed: TopK) -> None:
    for name in ("indptr", "indices", "values", "bounds"):
        np.testing.assert_array_equal(getattr(came, name), getattr(needed, name))


@settings(deadline=None, max_examples=120)
@given(graphs(), st.sampled_from([1, 2, 5]), st.floats(1.0, 4.0), st.integers(0, 2**32 - 1))
def test_equals_push_over_the_whole_topology(directed: CSR, owners: int, room: float, seed: int) -> None:
    """From a cache in which one source's rows just fit to one that holds the graph."""
    csr = symmetrise(directed)
    rng = np.random.default_rng(seed)
    degrees = np.diff(csr.indptr).astype(np.int32)
    owner = rng.integers(0, owners, csr.num_nodes)
    # A source may need every row and one fetch more than fits behind the newest: see RowCache.words.
    words = whole_graph_words(degrees) * room
    options = PPROptions(eps=1e-3, k=5, row_cache_mb=max(8.0, 4 * words) / MB)
    sources = rng.integers(0, csr.num_nodes, 40)
    pusher = ShardedPusher(degrees, in_pieces(csr, owner, rng.choice([1, 30, 1e9]), seed), options)
    needed = push_sources(csr, sources, teleport=0.15, eps=1e-3, k=5)
    assert_same(pusher.push(sources)[0], needed)
    again, traffic = pusher.push(sources)
    assert_same(again, needed)
    # Everything fits, so nothing is fetched twice.
    assert (traffic.rounds, traffic.rows, traffic.num_bytes) == (0, 0, 0)


@pytest.mark.parametrize("share", [0.08, 0.15, 0.4, 2.0])
def test_small_caches_fetch_more_and_change_no_bit(share: float) -> None:
    csr = power_law(600, 4, seed=1)
    degrees = np.diff(csr.indptr).astype(np.int32)
    owner = np.random.default_rng(2).integers(0, 3, csr.num_nodes)
    options = PPROptions(eps=1e-2, k=8, row_cache_mb=4 * share * whole_graph_words(degrees) / MB)
    sources = np.arange(600)
    came, traffic = ShardedPusher(degrees, in_pieces(csr, owner, 500, seed=3), options).push(sources)
    assert_same(came, push_sources(csr, sources, teleport=0.15, eps=1e-2, k=8))
    if share >= 1:
        assert traffic.num_bytes <= csr.indices.nbytes
    else:
        assert traffic.num_bytes > csr.indices.nbytes


def test_source_that_does_not_fit_names_a_cache_that_does() -> None:
    csr = power_law(500, 4, seed=4)
    degrees = np.diff(csr.indptr).astype(np.int32)
    fetch = in_pieces(csr, np.zeros(500, np.int64), 1e9, seed=0)
    options = PPROptions(eps=1e-4, k=8, row_cache_mb=0.0005)
    for _ in range(12):
        pusher = ShardedPusher(degrees, fetch, options)
        try:
            came, _ = pusher.push(np.array([7]))
            break
        except InputError as error:
            found = re.search(r"node 7 alone.*set row_cache_mb=([0-9.]+)", str(error))
            assert found
            assert float(found[1]) > options.row_cache_mb
            options = options.model_copy(update={"row_cache_mb": float(found[1])})
    assert_same(came, push_sources(csr, np.array([7]), teleport=0.15, eps=1e-4, k=8))


@settings(deadline=None, max_examples=150)
@example(csr_of_arcs(3, [(1, 2)]), 0, [[0, 1, 2]])
@example(csr_of_arcs(3, [(0, 1), (1, 2)]), 1, [[0, 1, 2]])
@given(graphs(), st.integers(0, 60), st.lists(st.lists(st.integers(0, 23), max_size=8), max_size=12))
def test_cache_holds_what_it_says_and_the_newest(directed: CSR, extra: int, batches: list[list[int]]) -> None:
    """The rows in the cache are right, and those of the last ``len(arena)`` words are there."""
    csr = symmetrise(directed)
    degrees = np.diff(csr.indptr).astype(np.int32)
    size = int(degrees.max(initial=0)) + 1 + extra
    cache = RowCache(degrees, 4 * size)
    assert len(cache.arena) == min(size, whole_graph_words(degrees))
    went_on = 0
    inserted: dict[int, int] = {}
    for batch in batches:
        asked = np.array([u for u in batch if u < csr.num_nodes], np.int32)
        here = {u for u in range(csr.num_nodes) if cache.starts[u] >= 0}
        nodes = cache.missing(asked)
        assert nodes.tolist() == list(dict.fromkeys(u for u in asked.tolist() if u not in here))
        limit = went_on + cache.words(nodes)
        for u in nodes:
            inserted[int(u)] = went_on
            went_on += cache.insert(np.array([u], np.int32), *rows_of(csr, np.array([u])))
        assert went_on <= limit or cache.words(nodes) > len(cache.arena)
        for u in range(csr.num_nodes):
            if cache.starts[u] >= 0:
                row = cache.arena[cache.starts[u] : cache.stops[u]]
                np.testing.assert_array_equal(row, csr.indices[csr.indptr[u] : csr.indptr[u + 1]])
            else:
                assert u not in inserted or went_on - inserted[u] > len(cache.arena)
