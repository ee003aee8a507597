"""The two matrix products of a step with a factor, few columns against N².

On the CPU they go block by block once N² leaves the cache: the library's own blocking is made for square matrices and
takes up to 1.7 times as long (docs/ufgw.md).
"""

import torch
from torch import Tensor

_BLOCK = 128
_BLOCKS_FROM = 1024


def product_to_few(left: Tensor, matrix: Tensor) -> Tensor:
    """(b, N, r), (b, N, N) → leftᵀ · matrix (b, r, N)."""
    nodes = left.shape[1]
    if nodes < _BLOCKS_FROM or left.device.type != "cpu":
        return left.mT @ matrix
    out = left.new_empty(len(matrix), left.shape[2], nodes)
    for x, y, result in zip(left.expand(len(matrix), -1, -1), matrix, out, strict=True):
        torch.mm(x[:_BLOCK].T, y[:_BLOCK], out=result)
        for start in range(_BLOCK, nodes, _BLOCK):
            rows = slice(start, start + _BLOCK)
            result.addmm_(x[rows].T, y[rows])
    return out


def product_to_many(left: Tensor, right: Tensor, out: Tensor) -> None:
    """(b, N, r), (b, r, N) → left · right (b, N, N) in ``out``."""
    nodes = left.shape[1]
    if nodes < _BLOCKS_FROM or left.device.type != "cpu":
        torch.bmm(left, right, out=out)
        return
    for x, y, result in zip(left, right, out, strict=True):
        for start in range(0, nodes, _BLOCK):
            columns = slice(start, start + _BLOCK)
            torch.mm(x, y[:, columns], out=result[:, columns])
