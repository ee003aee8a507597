"""Forward push for personalised PageRank: the kernel. No input, no output, no threads of its own.

It reads adjacency rows from wherever the caller has put them, all of them or some: a source that needs a row which is
not there says so and is to be pushed again once it is. So one kernel serves a topology that is mapped as a whole and
one that is spread over hosts, and gives the same answer for both.

Solves, per source s, on an undirected graph (Andersen, Chung & Lang, FOCS 2006, "Local graph partitioning using
PageRank vectors", without the lazy step)

    π_s = β Σ_k (1−β)^k e_s (D⁻¹A)^k

by keeping an estimate p and a residual r with π_s = p + Σ_u r(u) π_u, and pushing every u with r(u) > eps·deg(u):

    1.  p(u) += β r(u)
    2.  r(v) += (1−β) r(u) / deg(u)   for every neighbour v of u
    3.  r(u)  = 0

Symmetry (deg(u) π_u(v) = deg(v) π_v(u)) gives 0 ≤ π_s(v) − p(v) ≤ eps·deg(v). Because π_v(v) ≥ β, p + βr is a lower
bound too, and a better one: the top k are taken of it. The queue is first-in first-out: last-in costs 12 % more pushes.

Memory is the limit, not arithmetic. The only array over all nodes that an arc reads is ``record`` (8 bytes per node: a
slot and the degree); what changes (residual, estimate) is packed in the order of first touch and stays in cache. The
slot maps a node to its packed place. Slots only grow from source to source, so a slot below the current source's first
one means "untouched" and ``record`` is never cleared.
"""

from typing import NamedTuple

import numpy as np

from optimag_dist.jit import jit, prefetch

_LAST_SLOT = np.iinfo(np.int32).max
# Arcs whose records are requested before the first of them is used; about what a core keeps in flight.
_PREFETCH = 64
_CACHE_LINE = 16  # int32 entries


class Workspace(NamedTuple):
    """Scratch of one thread for a graph of n nodes: ``record`` (2n,) int32, per node its slot and its degree, and the
    slot ``first_slot`` (1,) int64 at which the next source begins.

    Packed, and used only as far as pushes reach: ``node`` (n,) int32 ids, ``residual`` r and ``estimate`` p (n,)
    float64, zero beyond the touched ones. ``queue`` (n,) int32: a ring of packed places whose residual is above
    eps·deg.
    """

    record: np.ndarray
    first_slot: np.ndarray
    node: np.ndarray
    residual: np.ndarray
    estimate: np.ndarray
    queue: np.ndarray

    @staticmethod
    def allocate(degrees: np.ndarray) -> "Workspace":
        num_nodes = len(degrees)
        record = np.zeros(2 * num_nodes, np.int32)
        record[1::2] = degrees
        node, queue = np.empty(num_nodes, np.int32), np.empty(num_nodes, np.int32)
        residual, estimate = np.zeros(num_nodes, np.float64), np.zeros(num_nodes, np.float64)
        return Workspace(record, np.ones(1, np.int64), node, residual, estimate, queue)


class PushedRows(NamedTuple):
    """What the kernel writes, k places for each of S sources: ``nodes`` and ``values`` (S, k) int32 and float32;
    ``sizes`` (S,) int64 places in use, −1 where an adjacency row was missing; ``bounds`` (S,) float32: 0 ≤ π_s(v) −
    value(v) ≤ bound·deg(v) before the values' rounding."""

    nodes: np.ndarray
    values: np.ndarray
    sizes: np.ndarray
    bounds: np.ndarray

    @staticmethod
    def allocate(num_sources: int, k: int) -> "PushedRows":
        arrays = np.empty((num_sources, k), np.int32), np.empty((num_sources, k), np.float32)
        return PushedRows(*arrays, np.zeros(num_sources, np.int64), np.zeros(num_sources, np.float32))

    def part(self, rows: slice) -> "PushedRows":
        return PushedRows(*(array[rows] for array in self))

    def put(self, rows: np.ndarray, other: "PushedRows", chosen: np.ndarray) -> None:
        for mine, theirs in zip(self, other, strict=True):
            mine[rows] = theirs[chosen]


@jit(inline="always")
def _float32_below(x):  # type: ignore[no-untyped-def]
    """The largest float32 that is not above x ≥ 0: a rounded lower bound stays a lower bound."""
    y = np.float32(x)
    return np.nextafter(y, np.float32(0.0)) if np.float64(y) > x else y


@jit(inline="always")
def _worse(value, node, other_value, other_node):  # type: ignore[no-untyped-def]
    return value < other_value or (value == other_value and node > other_node)


@jit()
def _sift_down(values, nodes, value, node, size):  # type: ignore[no-untyped-def]
    """Put (value, node) at the root of the heap whose root is the worst entry."""
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and _worse(values[child + 1], nodes[child + 1], values[child], nodes[child]):
            child += 1
        if not _worse(values[child], nodes[child], value, node):
            break
        values[hole], nodes[hole] = values[child], nodes[child]
        hole = child
    values[hole], nodes[hole] = value, node


@jit()
def _sift_up(values, nodes, value, node, hole):  # type: ignore[no-untyped-def]
    while hole > 0:
        parent = (hole - 1) // 2
        if not _worse(value, node, values[parent], nodes[parent]):
            break
        values[hole], nodes[hole] = values[parent], nodes[parent]
        hole = parent
    values[hole], nodes[hole] = value, node


@jit()
def _drain_top(packed_node, residual, estimate, count, teleport, values, nodes):  # type: ignore[no-untyped-def]
    """Fill ``values``, ``nodes`` with the largest p + βr, best first, ties by node id; zero the packed arrays.

    Returns how many there are and Σ r.
    """
    k = len(values)
    size = 0
    worst = 0.0
    left = 0.0
    for t in range(count):
        left += residual[t]
        x = estimate[t] + teleport * residual[t]
        estimate[t] = 0.0
        residual[t] = 0.0
        if size == k and x < worst:
            continue
        value, v = _float32_below(x), packed_node[t]
        if size < k:
            if value > 0:
                _sift_up(values, nodes, value, v, size)
                size += 1
        elif _worse(values[0], nodes[0], value, v):
            _sift_down(values, nodes, value, v, k)
        worst = np.float64(values[0])
    for last in range(size - 1, 0, -1):
        value, v = values[last], nodes[last]
        values[last], nodes[last] = values[0], nodes[0]
        _sift_down(values, nodes, value, v, last)
    return size, left


@jit(nogil=True)
def push_top_k(starts, stops, indices, sources, teleport, eps, space, missing, out):  # type: ignore[no-untyped-def]
    """Push every source and keep the k largest entries of p + βr, rounded down to float32. Returns pushes done and arcs
    read, summed over the sources, and how many entries of ``missing`` are filled.

    Args:
        starts, stops: (n,) int64; the neighbours of node u are ``indices[starts[u]:stops[u]]``, and ``starts[u] < 0``
            says that they are not here. Of a CSR: ``indptr[:-1]``, ``indptr[1:]``.
        indices: (m,) int32 or int64; the graph is symmetric, without self loops or duplicates.
        sources: (S,) int64 node ids.
        teleport, eps: β in (0, 1) and the residual allowed per degree.
        space: a :class:`Workspace` of this graph.
        missing: (L,) int32, written: nodes whose rows were needed and not here, repeated where several sources asked.
        out: :class:`PushedRows`, written.
    """
    record, first_slot, node, residual, estimate, queue = space
    out_nodes, out_values, out_size, out_bound = out
    n = len(node)
    pushes = 0
    arcs = 0
    num_missing = 0
    for i in range(len(sources)):
        if first_slot[0] > _LAST_SLOT - n:
            record[::2] = 0
            first_slot[0] = 1
        first = first_slot[0]
        source = sources[i]
        degree = record[2 * source + 1]
        complete = True
        record[2 * source] = first
        node[0] = source
        count = 1
        head = 0
        tail = 0
        waiting = 0
        if degree == 0:
            # Nowhere to go: the walk stays, so all of π_s is at s.
            estimate[0] = 1.0
        else:
            residual[0] = 1.0
            if residual[0] > eps * degree:
                queue[0] = 0
                tail = 1
                waiting = 1
        while waiting > 0:
            place = queue[head]
            head += 1
            if head == n:
                head = 0
            waiting -= 1
            if waiting > 0:
                ahead = starts[node[queue[head]]]
                prefetch(indices, ahead)
                prefetch(indices, ahead + _CACHE_LINE)
            u = node[place]
            start, stop = starts[u], stops[u]
            if start < 0:
                # Going on without the row finds out what else is missing; the source's numbers are thrown away.
                complete = False
                residual[place] = 0.0
                if num_missing == len(missing):
                    break
                missing[num_missing] = u
                num_missing += 1
                continue
            mass = residual[place]
            estimate[place] += teleport * mass
            residual[place] = 0.0
            share = (1.0 - teleport) * mass / (stop - start)
            pushes += 1
            arcs += stop - start
            for chunk in range(start, stop, _PREFETCH):
                chunk_stop = min(chunk + _PREFETCH, stop)
                for e in range(chunk, chunk_stop):
                    prefetch(record, 2 * indices[e])
                for e in range(chunk, chunk_stop):
                    v = np.uint64(indices[e])
                    # Half of the arcs reach a new node, in no order a branch predictor could learn: select, not branch.
                    t = np.int64(record[np.uint64(2) * v]) - first
                    fresh = t < 0
                    t = np.uint32(count if fresh else t)
                    count += fresh
                    record[np.uint64(2) * v] = first + t
                    node[t] = v
                    before = residual[t]
                    after = before + share
                    residual[t] = after
                    threshold = eps * record[np.uint64(2) * v + np.uint64(1)]
                    # A node waits in the queue exactly while its residual is above its threshold.
                    if (before <= threshold) & (after > threshold):
                        prefetch(starts, v)
                        queue[tail] = t
                        tail += 1
                        if tail == n:
                            tail = 0
                        waiting += 1
        first_slot[0] = first + count
        size, left = _drain_top(node, residual, estimate, count, teleport, out_values[i], out_nodes[i])
        out_size[i] = size if complete else -1
        # π − p = Σ_u r(u) π_u, in which no residual is above eps·deg and no π_u(v) above 1.
        bound = np.float32(min(eps, left))
        out_bound[i] = bound if bound >= min(eps, left) else np.nextafter(bound, np.float32(np.inf))
    return pushes, arcs, num_missing
