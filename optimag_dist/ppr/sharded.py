"""Pushes sources of a graph whose adjacency rows lie elsewhere: in rounds of push, fetch what was missing, push again.

Where rows come from is a function the caller gives. They are kept in bounded memory: a ring in which the newest rows
replace the oldest. A row lies in the arena as its node's id followed by its neighbours, so the ring can be unwound from
its oldest end with no list beside it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from optimag_dist.jit import jit
from optimag_dist.ppr.artefact import PPROptions
from optimag_dist.ppr.push import PushedRows, Workspace, push_top_k
from optimag_dist.ppr.topk import TopK, pack, read_only
from optimag_dist.types import InputError

MB = 1 << 20
# Sources pushed in one round at most and, from an empty cache, at first: the first ones pay for the rows all share.
_GROUP, _FIRST_GROUP = 8192, 256
# Shares of the cache that a group may fetch before the next one has fewer sources, and below which it has more.
_MUCH, _LITTLE = 0.25, 0.12
# Rows that a round may ask for; more wait for the next one.
_ASKED = 1 << 20
_PROCESS_BYTES = 200 * MB

# (k,) int32 distinct nodes → their rows in pieces of any size and order: nodes, indptr (k' + 1,) int64, indices int32.
Fetch = Callable[[np.ndarray], Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]]
_ABSENT, _WANTED = -1, -2
# In place of a node id: nothing more up to the end of the arena.
_SKIP = -1


class RowCache:
    """Rows of a graph whose ``degrees`` (n,) int32 are known: row u is ``arena[starts[u]:stops[u]]``, all int32, and
    ``starts[u] < 0`` where it is not here."""

    def __init__(self, degrees: np.ndarray, num_bytes: float) -> None:
        self.degrees = degrees
        self.arena = np.zeros(min(int(num_bytes) // 4, whole_graph_words(degrees), np.iinfo(np.int32).max), np.int32)
        self.starts = np.full(len(degrees), _ABSENT, np.int32)
        self.stops = np.zeros(len(degrees), np.int32)
        # Where the oldest row lies, and how many words from there on are in use.
        self._ring = np.zeros(2, np.int64)

    def words(self, nodes: np.ndarray) -> int:
        """At most these words the ring goes on by when ``nodes`` are inserted, if that is ``len(arena)`` or less."""
        return whole_graph_words(self.degrees[nodes])

    def missing(self, asked: np.ndarray) -> np.ndarray:
        """Distinct nodes of ``asked`` (int32, repeats allowed) whose rows are not here, in order of first mention."""
        out = np.empty(len(asked), np.int32)
        return out[: _distinct(asked, self.starts, out)]

    def insert(self, nodes: np.ndarray, indptr: np.ndarray, indices: np.ndarray) -> int:
        """Add rows that are not here, the oldest rows giving way; returns the words the ring went on by. ``nodes`` are
        (k,) int32, distinct; ``indptr`` (k + 1,) int64 and ``indices`` int32 their rows, none longer than the arena.
        What was inserted stays until the ring has gone on by ``len(arena)`` words in all."""
        # Rows from Ray's object store are read-only, those of own shards are not: one compilation for both.
        rows = read_only(nodes), read_only(indptr), read_only(indices)
        return int(_insert(*rows, self.degrees, self.arena, self.starts, self.stops, self._ring))


def whole_graph_words(degrees: np.ndarray) -> int:
    """Arena words in which all rows of a graph find room."""
    return int(degrees.sum(dtype=np.int64)) + len(degrees) + int(degrees.max(initial=0))


@jit(nogil=True)
def _distinct(asked, starts, out):  # type: ignore[no-untyped-def]
    size = 0
    for u in asked:
        if starts[u] == _ABSENT:
            starts[u] = _WANTED
            out[size] = u
            size += 1
    for i in range(size):
        starts[out[i]] = _ABSENT
    return size


@jit(nogil=True)
def _insert(nodes, indptr, indices, degrees, arena, starts, stops, ring):  # type: ignore[no-untyped-def]
    size = len(arena)
    oldest, used = ring[0], ring[1]
    advance = 0
    for i in range(len(nodes)):
        needed = 1 + indptr[i + 1] - indptr[i]
        at = (oldest + used) % size
        # A row lies in one piece: what is left before the end may be too short for it.
        left = size - at if at + needed > size else 0
        while size - used < left + needed and used > 0:
            node = arena[oldest]
            if node == _SKIP:
                length = size - oldest
            else:
                length = 1 + degrees[node]
                starts[node] = _ABSENT
            oldest = (oldest + length) % size
            used -= length
        if used == 0:
            # Nothing to unwind: a gap and a row that together are longer than the arena must not both be counted.
            oldest = at = 0
        elif left > 0:
            arena[at] = _SKIP
            used += left
            at = 0
        u = nodes[i]
        arena[at] = u
        arena[at + 1 : at + needed] = indices[indptr[i] : indptr[i + 1]]
        starts[u] = at + 1
        stops[u] = at + needed
        used += needed
        advance += left + needed
    ring[0], ring[1] = oldest, used
    return advance


@dataclass(frozen=True)
class Traffic:
    """What was fetched: rounds of push and fetch, adjacency rows, and bytes of neighbour ids in them."""

    rounds: int = 0
    rows: int = 0
    num_bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.rounds + other.rounds, self.rows + other.rows, self.num_bytes + other.num_bytes)


class ShardedPusher:
    """Pushes sources with a bounded cache of adjacency rows, which it keeps from call to call. Every source's row is
    computed from scratch once all it reads is in the cache, by the kernel that also runs on a whole topology: the
    result does not depend on the cache, on who owns what, or on the order in which rows arrive."""

    def __init__(self, degrees: np.ndarray, fetch: Fetch, options: PPROptions) -> None:
        self._options = options
        self._fetch = fetch
        self._space = Workspace.allocate(degrees)
        self._cache = RowCache(degrees, options.row_cache_mb * MB)
        self._asked = np.empty(_ASKED, np.int32)
        self._width = _FIRST_GROUP
        self._room_for_all = len(self._cache.arena) >= whole_graph_words(degrees)

    def push(self, sources: np.ndarray) -> tuple[TopK, Traffic]:
        """Top-k rows of ``sources`` ((S,) int64 node ids)."""
        out = PushedRows.allocate(len(sources), min(self._options.k, len(self._cache.degrees)))
        waiting = np.arange(len(sources))
        pushes = arcs = 0
        traffic = self._fetch_all() if self._room_for_all else Traffic()
        while len(waiting):
            group, waiting = waiting[: self._width], waiting[self._width :]
            left, counts, fetched, advance = self._push_group(sources, group, out)
            pushes, arcs, traffic = pushes + counts[0], arcs + counts[1], traffic + fetched
            waiting = np.concatenate([left, waiting])
            # As a congestion window: a group that turns over much of the ring drops rows that it uses itself.
            if len(left) or advance > _MUCH * len(self._cache.arena):
                self._width = max(1, len(group) // 2)
            elif advance < _LITTLE * len(self._cache.arena):
                self._width = min(_GROUP, self._width + self._width // 4 + 1)
        return pack(out, pushes, arcs), traffic

    def warm_up(self) -> None:
        """Compile the kernels, or load them from numba's cache."""
        nothing = np.empty(0, np.int64)
        self._push_group(nothing, nothing, PushedRows.allocate(0, 1))
        self._cache.insert(self._cache.missing(self._asked[:0]), np.zeros(1, np.int64), np.empty(0, np.int32))

    def _push_group(
        self, sources: np.ndarray, group: np.ndarray, out: PushedRows
    ) -> tuple[np.ndarray, tuple[int, int], Traffic, int]:
        """Push ``sources[group]`` until done or until the cache would begin to drop what the group itself fetched.
        Returns the places still to do, (pushes, arcs), what was fetched, and how many words the cache went on by."""
        options, cache = self._options, self._cache
        alone = len(group) == 1
        pushes = arcs = advance = 0
        traffic = Traffic()
        while True:
            rows = PushedRows.allocate(len(group), out.nodes.shape[1])
            csr = cache.starts, cache.stops, cache.arena
            done = push_top_k(*csr, sources[group], options.teleport, options.eps, self._space, self._asked, rows)
            pushes, arcs = pushes + done[0], arcs + done[1]
            complete = rows.sizes >= 0
            out.put(group[complete], rows, complete)
            group = group[~complete]
            if not len(group):
                return group, (pushes, arcs), traffic, advance
            missing = cache.missing(self._asked[: done[2]])
            needed = advance + cache.words(missing)
            if needed > len(cache.arena):
                if alone:
                    # What else the source will ask for is not known: twice what is, and never more than all there is.
                    advised = 4 * min(2 * needed, whole_graph_words(cache.degrees)) / MB
                    raise InputError(
                        f"row_cache_mb={options.row_cache_mb:g}: the rows that node {sources[group[0]]} alone needs at "
                        f"eps={options.eps:g} do not fit; set row_cache_mb={math.ceil(advised * 100) / 100:g}"
                    )
                return group, (pushes, arcs), traffic, advance
            words, fetched = self._fetch_rows(missing)
            advance, traffic = advance + words, traffic + fetched

    def _fetch_all(self) -> Traffic:
        """All rows at once, where there is room for them: asked for as they are lacked they would all come as well, in
        many rounds, after each of which sources are pushed again."""
        self._room_for_all = False
        traffic, num_nodes = Traffic(), len(self._cache.degrees)
        for start in range(0, num_nodes, _ASKED):
            nodes = np.arange(start, min(start + _ASKED, num_nodes), dtype=np.int32)
            traffic += self._fetch_rows(self._cache.missing(nodes))[1]
        return traffic

    def _fetch_rows(self, nodes: np.ndarray) -> tuple[int, Traffic]:
        """Put the rows of ``nodes`` into the cache; how many words it went on by, and what came."""
        words, traffic = 0, Traffic(rounds=1)
        for asked, indptr, indices in self._fetch(nodes):
            words += self._cache.insert(asked, indptr, indices)
            traffic += Traffic(rows=len(asked), num_bytes=indices.nbytes)
        return words, traffic


def requests(
    nodes: np.ndarray, owner: np.ndarray, degrees: np.ndarray, max_bytes: float
) -> Iterator[tuple[int, np.ndarray, int]]:
    """``nodes`` (k,) by ``owner`` (k,), in requests of up to ``max_bytes`` or one row: owner, nodes, and bytes."""
    order = np.argsort(owner, kind="stable")
    nodes, owner = nodes[order], owner[order]
    sizes = 4 * degrees[nodes].astype(np.int64)
    start = 0
    while start < len(nodes):
        stop = int(np.searchsorted(owner, owner[start], side="right"))
        stop = start + max(1, int(np.searchsorted(np.cumsum(sizes[start:stop]), max_bytes, side="right")))
        yield int(owner[start]), nodes[start:stop], int(sizes[start:stop].sum())
        start = stop


def actor_bytes(num_nodes: int, num_arcs: int, options: PPROptions) -> dict[str, int]:
    """Most memory of one actor by use, in bytes; mapped shards are the system's cache and not in it."""
    # Every push of a node moves β·eps per neighbour into the estimate, whose total is at most 1.
    touched = min(num_nodes, 1 + math.ceil(1 / (options.eps * options.teleport)))
    return {
        "per node (slot, degree, place in the cache)": 16 * num_nodes,
        "row cache": min(int(options.row_cache_mb * MB), 4 * (num_arcs + 2 * num_nodes)),
        "one source's residuals": 24 * touched,
        "rows asked for and in flight": 4 * _ASKED + int(options.in_flight_mb * MB),
        "results of a block": 2 * 8 * options.k * options.block_size,
        "process": _PROCESS_BYTES,
    }
