"""Compiled parts of batch assembly: draws, relabelling and the gathering of features. No threads of their own.

A draw is a pure function of (key, node): its random numbers come from a counter (splitmix64; Steele, Lea & Flood,
OOPSLA 2014, "Fast splittable pseudorandom number generators") that starts at a hash of both. So a node's neighbours are
the same whatever else is in the batch, in whichever thread, process or host its row lies.
"""

import numpy as np

from optimag_dist.jit import jit, prefetch
from optimag_dist.store.layout import BATCH_ROWS

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
# Rows asked for before they are read, and the numbers in a cache line.
_AHEAD, _HALVES, _SINGLES = 16, 32, 16
# 2¹¹²: the difference of the exponents' biases of float32 and float16.
_REBIAS = np.float32(2.0**112)


@jit(inline="always")
def _mix(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> _S30)) * _FIRST
    x = (x ^ (x >> _S27)) * _SECOND
    return x ^ (x >> _S31)


@jit(nogil=True)
def draw(starts, stops, indices, nodes, fanout, key, indptr, out):  # type: ignore[no-untyped-def]
    """Up to ``fanout`` distinct entries of each node's row, every subset equally likely (Floyd's algorithm).

    Args:
        starts, stops: (k,) int64, where the row of ``nodes[i]`` lies in ``indices``, the neighbours.
        nodes: (k,) int64 ids that the draws are keyed by, with the uint64 ``key``.
        fanout: entries kept; shorter rows are taken whole, and all rows where it is −1.
        indptr: (k + 1,) int64, the sizes that follow from the above, summed up.
        out: (indptr[−1],) of the dtype of ``indices``, written; the order within a row is a function of the key too.
    """
    for i in range(len(nodes)):
        row = indices[starts[i] : stops[i]]
        first, size, degree = indptr[i], indptr[i + 1] - indptr[i], len(row)
        picks = out[first : first + size]
        if size == degree:
            picks[:] = row
            continue
        state = _mix(key ^ _mix(np.uint64(nodes[i]) + _GOLDEN))
        for j in range(size):
            bound = degree - size + j + 1
            state += _GOLDEN
            # A product of 32-bit numbers instead of a division; unequal by at most degree / 2³².
            pick = np.int64(((_mix(state) >> _S32) * np.uint64(bound)) >> _S32)
            for earlier in range(j):
                if picks[earlier] == pick:
                    pick = bound - 1
                    break
            picks[j] = pick
        for j in range(size):
            picks[j] = row[picks[j]]


@jit(nogil=True)
def number_nodes(nodes, count, others, rows):  # type: ignore[no-untyped-def]
    """Number ``others`` (k,) within ``nodes``, (≥ count + k,) int64 with the first ``count`` distinct, to which those
    not yet there are appended in order of occurrence; ``rows`` (k,) int64 gets where each stands. Returns the new
    count."""
    bits = 4
    while (1 << bits) < 2 * (count + len(others)):
        bits += 1
    shift, mask = np.uint64(64 - bits), (1 << bits) - 1
    table = np.full(1 << bits, -1, np.int32)
    for i in range(count):
        place = np.int64((np.uint64(nodes[i]) * _GOLDEN) >> shift)
        while table[place] >= 0:
            place = (place + 1) & mask
        table[place] = i
    for e in range(len(others)):
        node = np.int64(others[e])
        place = np.int64((np.uint64(node) * _GOLDEN) >> shift)
        while table[place] >= 0 and nodes[table[place]] != node:
            place = (place + 1) & mask
        if table[place] < 0:
            table[place] = count
            nodes[count] = node
            count += 1
        rows[e] = table[place]
    return count


@jit(nogil=True)
def gather_float16(flat, starts, nodes, out):  # type: ignore[no-untyped-def]
    """Rows ``nodes`` (k,) int64 of finite float16 numbers as float32 in ``out`` (k, width), from ``flat``, a file's
    uint16 view, in which each record batch of ``BATCH_ROWS`` rows begins at ``starts`` (batches,) int64."""
    width = out.shape[1]
    for i in range(len(nodes)):
        if i + _AHEAD < len(nodes):
            coming = nodes[i + _AHEAD]
            start = starts[coming // BATCH_ROWS] + coming % BATCH_ROWS * width
            for place in range(0, width, _HALVES):
                prefetch(flat, start + place)
        start = starts[nodes[i] // BATCH_ROWS] + nodes[i] % BATCH_ROWS * width
        row = flat[start : start + width]
        target = out[i]
        for j in range(width):
            half = np.uint32(row[j])
            # Sign and magnitude moved into place are the number over 2¹¹², subnormals included.
            bits = ((half & np.uint32(0x8000)) << np.uint32(16)) | ((half & np.uint32(0x7FFF)) << np.uint32(13))
            target[j] = np.uint32(bits).view(np.float32) * _REBIAS


@jit(nogil=True)
def gather_rows(flat, starts, nodes, out):  # type: ignore[no-untyped-def]
    """As :func:`gather_float16`, from a view of the type of ``out``.

    The loop stands here a second time, for what it shares as a function costs a sixth of the time or more.
    """
    width = out.shape[1]
    for i in range(len(nodes)):
        if i + _AHEAD < len(nodes):
            coming = nodes[i + _AHEAD]
            start = starts[coming // BATCH_ROWS] + coming % BATCH_ROWS * width
            for place in range(0, width, _SINGLES):
                prefetch(flat, start + place)
        start = starts[nodes[i] // BATCH_ROWS] + nodes[i] % BATCH_ROWS * width
        out[i] = flat[start : start + width]
