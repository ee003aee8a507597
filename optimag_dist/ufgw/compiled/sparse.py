"""Products with a constant less a sparse matrix, c 11ᵀ − S.

S comes as CSR over N rows shared by all problems, or over b·N rows, one problem below the other.
"""

import numpy as np
import torch
from torch import Tensor

from optimag_dist.jit import jit
from optimag_dist.ufgw.compiled.threads import REORDER, per_problem

_ROW_OF = 16


@jit(fastmath=REORDER, nogil=True, error_model="numpy")
def _subtract(first, last, indptr, indices, values, scale, cost):  # type: ignore[no-untyped-def]
    n = cost.shape[1]
    shared = len(indptr) == n + 1
    for p in range(first, last):
        for i in range(n):
            row = cost[p, i]
            start = i if shared else p * n + i
            for e in range(indptr[start], indptr[start + 1]):
                # Unsigned: otherwise every index is tested for being negative.
                row[np.uint64(indices[e])] -= scale * values[e]


@jit(fastmath=REORDER, nogil=True, error_model="numpy")
def _sparse_inner(first, last, kernel, a, b, indptr, indices, values, out):  # type: ignore[no-untyped-def]
    n = a.shape[1]
    shared = len(indptr) == n + 1
    for p in range(first, last):
        total = 0.0
        scaling = b[p]
        for i in range(n):
            row = kernel[p, i]
            start = i if shared else p * n + i
            part = kernel.dtype.type(0)
            for e in range(indptr[start], indptr[start + 1]):
                j = np.uint64(indices[e])
                part += row[j] * scaling[j] * values[e]
            total += part * a[p, i]
        out[p] = total


@jit(fastmath=REORDER, nogil=True, error_model="numpy")
def _sparse_times(first, last, v, indptr, indices, values, constant, out):  # type: ignore[no-untyped-def]
    n = v.shape[1]
    shared = len(indptr) == n + 1
    for p in range(first, last):
        x = v[p]
        total = v.dtype.type(0)
        for i in range(n):
            total += x[i]
        total *= constant[0 if shared else p]
        for i in range(n):
            start = i if shared else p * n + i
            part = v.dtype.type(0)
            for e in range(indptr[start], indptr[start + 1]):
                part += x[np.uint64(indices[e])] * values[e]
            out[p, i] = total - part


@jit(fastmath=REORDER, nogil=True, error_model="numpy")
def _sparse_right_matmul(first, last, x, indptr, indices, values, constant, out):  # type: ignore[no-untyped-def]
    """x (c 11ᵀ − S), by adding up rows of xᵀ, four at a time."""
    width, n = x.shape[1:]
    shared = len(indptr) == n + 1
    turned = np.zeros((n, (width + _ROW_OF - 1) // _ROW_OF * _ROW_OF), x.dtype)
    added = np.empty_like(turned)
    zero = x.dtype.type(0)
    for p in range(first, last):
        for block in range(0, n, _ROW_OF):
            for k in range(width):
                for j in range(block, min(block + _ROW_OF, n)):
                    turned[j, k] = x[p, k, j]
        for i in range(n):
            mine = added[i]
            mine[:] = zero
            row = i if shared else p * n + i
            start, stop = indptr[row], indptr[row + 1]
            e = start
            while e + 4 <= stop:
                u, v, w, z = turned[indices[e]], turned[indices[e + 1]], turned[indices[e + 2]], turned[indices[e + 3]]
                s, t, q, r = values[e], values[e + 1], values[e + 2], values[e + 3]
                for k in range(len(mine)):
                    mine[k] += s * u[k] + t * v[k] + q * w[k] + r * z[k]
                e += 4
            while e < stop:
                u, s = turned[indices[e]], values[e]
                for k in range(len(mine)):
                    mine[k] += s * u[k]
                e += 1
        for k in range(width):
            total = zero
            for j in range(n):
                total += x[p, k, j]
            out[p, k, :] = constant[0 if shared else p] * total
        for block in range(0, n, _ROW_OF):
            for k in range(width):
                for j in range(block, min(block + _ROW_OF, n)):
                    out[p, k, j] -= added[j, k]


def subtract_sparse(cost: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, scale: float) -> None:
    """cost ← cost − scale · S in place; S has N rows shared by all problems, or b·N."""
    per_problem(_subtract, cost, indptr, indices, values, cost.numpy().dtype.type(scale), out=cost)


def sparse_inner(kernel: Tensor, a: Tensor, b: Tensor, indptr: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """(b,) ⟨S, diag(a) K diag(b)⟩."""
    return per_problem(_sparse_inner, kernel, kernel, a, b, indptr, indices, values)


def sparse_times(v: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, constant: Tensor) -> Tensor:
    """(b, N) → (c 11ᵀ − S) v (b, N)."""
    return per_problem(_sparse_times, v, v, indptr, indices, values, constant, out=torch.empty_like(v))


def sparse_right_matmul(x: Tensor, indptr: Tensor, indices: Tensor, values: Tensor, constant: Tensor) -> Tensor:
    """(b, k, N) → x (c 11ᵀ − S) (b, k, N)."""
    return per_problem(_sparse_right_matmul, x, x, indptr, indices, values, constant, out=torch.empty_like(x))
