"""Sinkhorn's iterations on a GPU, one Triton launch each.

Written and checked against the torch form in Triton's interpreter on a CPU; not yet run on a GPU (docs/ufgw.md).

Needs Triton, which torch's CUDA builds bring along. In torch's own operations an iteration is six launches over four
reads of K. Here a program takes a few rows, forms their sums, scales them, and adds them, while they are still in the
cache, to its share of the column sums. The program that comes in last adds up the shares, always in the same order, so
that two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 128


@triton.jit
def _sweep(  # type: ignore[no-untyped-def]
    kernel,
    b,
    row_scale,
    column_scale,
    kappa_mu,
    kappa_nu,
    a,
    row_sums,
    column_sums,
    shares,
    arrived,
    nodes,
    blocks,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    block, problem = tl.program_id(0), tl.program_id(1)
    vectors = problem * nodes
    rows = block * ROWS + tl.arange(0, ROWS)
    is_row = rows < nodes
    matrix = kernel + problem.to(tl.int64) * nodes * nodes
    sums = tl.zeros((ROWS,), dtype=kernel.dtype.element_ty)
    for start in range(0, nodes, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_column = columns < nodes
        tile = tl.load(matrix + rows[:, None] * nodes + columns, mask=is_row[:, None] & is_column, other=0.0)
        sums += tl.sum(tile * tl.load(b + vectors + columns, mask=is_column, other=0.0), 1)
    scale = tl.load(row_scale + vectors + rows, mask=is_row, other=0.0)
    kappa = tl.load(kappa_mu + vectors + rows, mask=is_row, other=0.0)
    mine = scale * tl.exp(-kappa * tl.log(tl.where(is_row, sums, 1.0)))
    tl.store(a + vectors + rows, mine, mask=is_row)
    tl.store(row_sums + vectors + rows, sums, mask=is_row)
    for start in range(0, nodes, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        is_column = columns < nodes
        tile = tl.load(matrix + rows[:, None] * nodes + columns, mask=is_row[:, None] & is_column, other=0.0)
        share = tl.sum(tile * mine[:, None], 0)
        tl.store(shares + (problem * blocks + block) * nodes + columns, share, mask=is_column)

    # All threads of this program have stored before one of them says so; what others stored is seen after.
    tl.debug_barrier()
    before = tl.atomic_add(arrived + problem, 1, sem="acq_rel")
    if before == blocks - 1:
        for start in range(0, nodes, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            is_column = columns < nodes
            total = tl.zeros((COLUMNS,), dtype=kernel.dtype.element_ty)
            for other in range(0, blocks):
                total += tl.load(shares + (problem * blocks + other) * nodes + columns, mask=is_column, other=0.0)
            scale = tl.load(column_scale + vectors + columns, mask=is_column, other=0.0)
            kappa = tl.load(kappa_nu + vectors + columns, mask=is_column, other=0.0)
            new = scale * tl.exp(-kappa * tl.log(tl.where(is_column, total, 1.0)))
            tl.store(b + vectors + columns, new, mask=is_column)
            tl.store(column_sums + vectors + columns, total, mask=is_column)
        tl.store(arrived + problem, 0)


def iterate(
    kernel: Tensor, b: Tensor, row_scale: Tensor, column_scale: Tensor, kappa_mu: Tensor, kappa_nu: Tensor, n_iter: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``n_iter`` ≥ 1 times a ← row_scale (K b)^−κ, b ← column_scale (Kᵀa)^−κ, with K (p, N, N) contiguous, > 0, and (p,
    N) vectors.

    Returns:
        a, b, and of the last iteration the row sums K b and column sums Kᵀ a, (p, N) each.
    """
    problems, nodes, _ = kernel.shape
    # Few rows fill the device where N is small; many leave the last program fewer shares to add where it is large.
    rows = 16 if nodes <= 1024 else 32
    blocks = triton.cdiv(nodes, rows)
    b = b.clone(memory_format=torch.contiguous_format)
    vectors = [x.expand_as(b).contiguous() for x in (row_scale, column_scale, kappa_mu, kappa_nu)]
    a, row_sums, column_sums = (torch.empty_like(b) for _ in range(3))
    shares = b.new_empty(problems, blocks, nodes)
    arrived = torch.zeros(problems, dtype=torch.int32, device=b.device)
    written = a, row_sums, column_sums, shares, arrived
    for _ in range(n_iter):
        _sweep[blocks, problems](kernel, b, *vectors, *written, nodes, blocks, ROWS=rows, COLUMNS=_COLUMNS)
    return a, b, row_sums, column_sums
