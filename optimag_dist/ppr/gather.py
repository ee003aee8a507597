"""Reading rows out of many memory-mapped blocks at once: kernels over a table of block addresses."""

import numpy as np
from numba import carray, types

from optimag_dist.jit import intrinsic, jit

# Multiplier of Fibonacci hashing: 2⁶⁴ / golden ratio.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@intrinsic
def _as_int32(typingctx, address):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(address), codegen


@intrinsic
def _as_float32(typingctx, address):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(address), codegen


@jit(inline="always")
def _row(blocks, block_size, node):  # type: ignore[no-untyped-def]
    """Columns, values and whether the offsets are possible; ``blocks``: (B, 5) int64, see :func:`row_sizes`."""
    block, row = node // block_size, node % block_size
    offsets = carray(_as_int32(blocks[block, 0]), blocks[block, 3] + 1)
    entries = blocks[block, 4]
    start, stop = offsets[row], offsets[row + 1]
    sound = 0 <= start <= stop <= entries
    if not sound:
        start, stop = 0, 0
    return (
        carray(_as_int32(blocks[block, 1]), entries)[start:stop],
        carray(_as_float32(blocks[block, 2]), entries)[start:stop],
        sound,
    )


@jit(nogil=True)
def row_sizes(blocks, block_size, nodes, sizes, mass):  # type: ignore[no-untyped-def]
    """Entries and sum of each row; a node whose row lies outside its block, or −1.

    Args:
        blocks: (B, 5) int64: addresses of offsets, indices and values, number of rows, number of entries.
        block_size: rows of every block but the last.
        nodes: (N,) int64.
        sizes, mass: (N,) int64 and (N,) float64, written.
    """
    for i in range(len(nodes)):
        columns, values, sound = _row(blocks, block_size, nodes[i])
        if not sound:
            return nodes[i]
        sizes[i] = len(columns)
        total = 0.0
        for value in values:
            total += value
        mass[i] = total
    return -1


@jit(nogil=True)
def copy_rows(blocks, block_size, nodes, indptr, indices, values):  # type: ignore[no-untyped-def]
    for i in range(len(nodes)):
        row_columns, row_values, _ = _row(blocks, block_size, nodes[i])
        start = indptr[i]
        for e in range(len(row_columns)):
            indices[start + e] = row_columns[e]
            values[start + e] = row_values[e]


@jit(nogil=True)
def fill_submatrix(blocks, block_size, nodes, out):  # type: ignore[no-untyped-def]
    """Entries of the rows of ``nodes`` whose columns are among ``nodes``, into ``out`` (N, N), zeros elsewhere.

    Returns a node whose row lies outside its block, −1 when all is well, −2 when ``nodes`` are not distinct.
    """
    bits = 3
    while (1 << bits) < 4 * len(nodes):
        bits += 1
    shift, mask = np.uint64(64 - bits), (1 << bits) - 1
    table = np.full(1 << bits, -1, np.int32)
    for i in range(len(nodes)):
        place = np.int64((np.uint64(nodes[i]) * _GOLDEN) >> shift)
        while table[place] >= 0:
            if nodes[table[place]] == nodes[i]:
                return -2
            place = (place + 1) & mask
        table[place] = i
    for i in range(len(nodes)):
        columns, values, sound = _row(blocks, block_size, nodes[i])
        if not sound:
            return nodes[i]
        for e in range(len(columns)):
            place = np.int64((np.uint64(columns[e]) * _GOLDEN) >> shift)
            while table[place] >= 0:
                if nodes[table[place]] == columns[e]:
                    out[i, table[place]] = values[e]
                    break
                place = (place + 1) & mask
    return -1
