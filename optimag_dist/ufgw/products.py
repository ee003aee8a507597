"""The matrix products of a step.

With a factor, few columns against N², they go block by block on the CPU once N² leaves the cache: the library's own
blocking is made for square matrices and takes up to 1.7 times as long (measured: docs/ufgw.md).
"""

import torch
from torch import Tensor

from optimag_dist.ufgw.costs import Cost

_BLOCK = 128
_BLOCKS_UP_TO_COLUMNS = 130
# N from which blocks pay: for a result of few rows, and for one of N².
_FEW_FROM = 1024
_MANY_FROM = 3072


def product_to_few(left: Tensor, matrix: Tensor) -> Tensor:
    """(b, N, r), (b, N, N) → leftᵀ · matrix (b, r, N)."""
    if not _in_blocks(left, _FEW_FROM):
        return left.mT @ matrix
    nodes = left.shape[1]
    out = left.new_empty(len(matrix), left.shape[2], nodes)
    for x, y, result in zip(left.expand(len(matrix), -1, -1), matrix, out, strict=True):
        torch.mm(x[:_BLOCK].T, y[:_BLOCK], out=result)
        for start in range(_BLOCK, nodes, _BLOCK):
            rows = slice(start, start + _BLOCK)
            result.addmm_(x[rows].T, y[rows])
    return out


def product_to_many(left: Tensor, right: Tensor, out: Tensor) -> None:
    """(b, N, r), (b, r, N) → left · right (b, N, N) in ``out``."""
    if not _in_blocks(left, _MANY_FROM):
        torch.bmm(left, right, out=out)
        return
    for x, y, result in zip(left, right, out, strict=True):
        for start in range(0, left.shape[1], _BLOCK):
            columns = slice(start, start + _BLOCK)
            torch.mm(x, y[:, columns], out=result[:, columns])


def product_between(left: Tensor, matrix: Tensor, right: Cost) -> Tensor:
    """(1 or b, N, N), (b, N, N), cost → left · matrix · right (b, N, N), with a share of N² numbers in between."""
    out = torch.empty_like(matrix)
    rows = max(512, -(-left.shape[1] // 8))
    for x, result in zip(left.split(rows, 1), out.split(rows, 1), strict=True):
        result.copy_(right.right_matmul(x @ matrix))
    return out


def _in_blocks(left: Tensor, from_nodes: int) -> bool:
    return left.device.type == "cpu" and left.shape[1] >= from_nodes and left.shape[2] <= _BLOCKS_UP_TO_COLUMNS
