"""Adjacency rows in bounded memory: a ring in which the newest rows replace the oldest.

A row lies in the arena as its node's id followed by its neighbours, so the ring can be unwound from its oldest end with
no list beside it. ``starts`` and ``stops`` say where the kernel finds a row; −1: not here.
"""

import numpy as np

from optimag_dist.jit import jit
from optimag_dist.ppr.topk import read_only

_ABSENT, _WANTED = -1, -2
# In place of a node id: nothing more up to the end of the arena.
_SKIP = -1


class RowCache:
    """Rows of a graph whose degrees are known.

    Attributes:
        degrees: (n,) int32.
        arena: (words,) int32.
        starts, stops: (n,) int32; row u is ``arena[starts[u]:stops[u]]``, and ``starts[u] < 0`` where it is not here.
    """

    def __init__(self, degrees: np.ndarray, num_bytes: float) -> None:
        self.degrees = degrees
        self.arena = np.zeros(min(int(num_bytes) // 4, whole_graph_words(degrees), np.iinfo(np.int32).max), np.int32)
        self.starts = np.full(len(degrees), _ABSENT, np.int32)
        self.stops = np.zeros(len(degrees), np.int32)
        # Where the oldest row lies, and how many words from there on are in use.
        self._ring = np.zeros(2, np.int64)

    def words(self, nodes: np.ndarray) -> int:
        """Words by which the ring goes on at most when the rows of ``nodes`` are inserted, if that is ``len(arena)`` or
        less (beyond, the ring may wrap more than once)."""
        sizes = self.degrees[nodes]
        return int(sizes.sum(dtype=np.int64)) + len(sizes) + int(sizes.max(initial=0))

    def missing(self, asked: np.ndarray) -> np.ndarray:
        """Distinct nodes of ``asked`` (int32, repeats allowed) whose rows are not here, in order of first mention."""
        out = np.empty(len(asked), np.int32)
        return out[: _distinct(asked, self.starts, out)]

    def insert(self, nodes: np.ndarray, indptr: np.ndarray, indices: np.ndarray) -> int:
        """Add rows that are not here, the oldest rows giving way; returns the words the ring went on by.

        What was inserted stays until the ring has gone on by ``len(arena)`` words in all. No row may be longer than
        the arena.

        Args:
            nodes: (k,) int32 distinct.
            indptr, indices: their rows; (k + 1,) int64 and int32.
        """
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
