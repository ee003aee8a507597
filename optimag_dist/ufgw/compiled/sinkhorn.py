"""Sinkhorn's iterations with the kernel read once in each.

What bounds an iteration is reading K. Row sums and column sums are usually two sweeps; here one does both. The scaling
a_i of a row needs that row's sum only, so as soon as it is known the row, still in cache, is added to the column sums,
while the sums of the next rows are formed in the same loop and keep the memory busy.

Functions take the rows from ``first`` to ``last`` of one problem, so that threads can share a large one: each adds up
its own column sums.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimag_dist.jit import jit
from optimag_dist.ufgw.compiled.elementary import exp, log_ratio
from optimag_dist.ufgw.compiled.threads import REORDER, for_each_part, for_each_problem

_LANES = 64
# From this N on a problem is worth sharing between threads, pass by pass.
_SHARED_FROM = 1536


@jit(fastmath=REORDER | {"nnan"}, nogil=True, error_model="numpy")
def _absorb(first, last, cost, x, y, g, mu, nu, row_low, column_low):  # type: ignore[no-untyped-def]
    """f̂ − x of these rows and their part of ĝ − y: f̂_i = min_j (C_ij − g_j), ĝ_j = min_i (C_ij − f̂_i),
    C = cost + x⊕y."""
    n = len(x)
    inf = cost.dtype.type(np.inf)
    shifted = np.empty_like(g)
    for j in range(n):
        shifted[j] = y[j] - g[j] if nu[j] > 0 else inf
        column_low[j] = inf
    # The compiler does not vectorise a minimum over a row by itself: one per lane, then over the lanes by halves.
    lanes = np.empty(_LANES, cost.dtype)
    whole = n - n % _LANES
    for i in range(first, last):
        lanes[:] = inf
        for start in range(0, whole, _LANES):
            for lane in range(_LANES):
                lanes[lane] = min(lanes[lane], cost[i, start + lane] + shifted[start + lane])
        half = _LANES // 2
        while half > 0:
            for lane in range(half):
                lanes[lane] = min(lanes[lane], lanes[lane + half])
            half //= 2
        low = lanes[0]
        for j in range(whole, n):
            low = min(low, cost[i, j] + shifted[j])
        row_low[i] = low
        if mu[i] > 0:
            for j in range(n):
                column_low[j] = min(column_low[j], cost[i, j] - low)


@jit(nogil=True, error_model="numpy")
def _scalings(x, y, g, mu, nu, rho_mu, rho_nu, eps, row_low, column_low, b):  # type: ignore[no-untyped-def]
    """With u = exp((f − f̂)/ε), v likewise, a = μu and b = νv, an iteration reads a = scale · (K b)^−κ: scale and κ of
    both sides, and the first b."""
    n = len(x)
    one = x.dtype.type(1)
    row_scale, column_scale = np.empty_like(x), np.empty_like(x)
    kappa_mu, kappa_nu = np.empty_like(x), np.empty_like(x)
    for i in range(n):
        f_hat, g_hat = row_low[i] + x[i], column_low[i] + y[i]
        kappa_mu[i] = one / (one + eps / rho_mu[i])
        kappa_nu[i] = one / (one + eps / rho_nu[i])
        row_scale[i] = mu[i] * np.exp(-f_hat / (rho_mu[i] + eps))
        column_scale[i] = nu[i] * np.exp(-g_hat / (rho_nu[i] + eps))
        b[i] = nu[i] * np.exp((g[i] - g_hat) / eps)
    return row_scale, column_scale, kappa_mu, kappa_nu


@jit(fastmath=REORDER, nogil=True, error_model="numpy")
def _first_sweep(  # type: ignore[no-untyped-def]
    first, last, cost, row_low, column_low, inverse, floor, scalings, a, b, row_sums, column_sums
):
    """K = exp((f̂⊕ĝ − C)/ε) in place of ``cost``, and one iteration with each row as it comes."""
    row_scale, _, kappa_mu, _ = scalings
    n = len(a)
    zero = cost.dtype.type(0)
    for j in range(n):
        column_sums[j] = zero
    for i in range(first, last):
        total = zero
        low = row_low[i]
        for j in range(n):
            # The upper clamp concerns absent nodes only: their entries must be finite, for 0 · inf is not 0.
            k = exp(min(max((low + column_low[j] - cost[i, j]) * inverse, floor), zero))
            cost[i, j] = k
            total += k * b[j]
        row_sums[i] = total
        a[i] = row_scale[i] * total ** -kappa_mu[i]
        for j in range(n):
            column_sums[j] += a[i] * cost[i, j]


@jit(fastmath=REORDER, nogil=True, error_model="numpy")
def _sweep(first, last, kernel, scalings, a, b, row_sums, column_sums):  # type: ignore[no-untyped-def]
    """An iteration but for its b, four rows at a time."""
    row_scale, _, kappa_mu, _ = scalings
    zero = kernel.dtype.type(0)
    n, end = len(a), last - 1
    for j in range(n):
        column_sums[j] = zero
    s0, s1, s2, s3 = zero, zero, zero, zero
    a0, a1, a2, a3 = zero, zero, zero, zero
    r0, r1, r2, r3 = first, first, first, first
    # Rows r are added to the column sums while the sums of the next rows q are formed.
    for i in range(first, last + 4, 4):
        # Where the rows are no multiple of 4 the last one stands in for those beyond it, and is added once.
        q0, q1, q2, q3 = min(i, end), min(i + 1, end), min(i + 2, end), min(i + 3, end)
        for j in range(n):
            s0 += kernel[q0, j] * b[j]
            s1 += kernel[q1, j] * b[j]
            s2 += kernel[q2, j] * b[j]
            s3 += kernel[q3, j] * b[j]
            column_sums[j] += a0 * kernel[r0, j] + a1 * kernel[r1, j] + a2 * kernel[r2, j] + a3 * kernel[r3, j]
        if i >= last:
            break
        row_sums[q0], row_sums[q1], row_sums[q2], row_sums[q3] = s0, s1, s2, s3
        a0 = row_scale[q0] * s0 ** -kappa_mu[q0]
        a1 = row_scale[q1] * s1 ** -kappa_mu[q1]
        a2 = row_scale[q2] * s2 ** -kappa_mu[q2]
        a3 = row_scale[q3] * s3 ** -kappa_mu[q3]
        a[q0], a[q1], a[q2], a[q3] = a0, a1, a2, a3
        a1 = a1 if q1 > q0 else zero
        a2 = a2 if q2 > q1 else zero
        a3 = a3 if q3 > q2 else zero
        s0, s1, s2, s3 = zero, zero, zero, zero
        r0, r1, r2, r3 = q0, q1, q2, q3


@jit(nogil=True, error_model="numpy")
def _update_b(scalings, column_sums, b):  # type: ignore[no-untyped-def]
    """b from the parts (t, N) of the column sums, which are added into the first; returns max |b − b before| / b."""
    _, column_scale, _, kappa_nu = scalings
    moved = b.dtype.type(0)
    for part in range(1, len(column_sums)):
        for j in range(len(b)):
            column_sums[0, j] += column_sums[part, j]
    for j in range(len(b)):
        new = column_scale[j] * column_sums[0, j] ** -kappa_nu[j]
        if new > 0:
            moved = max(moved, abs(new - b[j]) / new)
        b[j] = new
    return moved


@jit(fastmath=REORDER, nogil=True, error_model="numpy")
def _row_masses(first, last, kernel, a, b, rows):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        total = kernel.dtype.type(0)
        for j in range(len(b)):
            total += kernel[i, j] * b[j]
        rows[i] = a[i] * total


@jit(nogil=True, error_model="numpy")
def _finish(x, y, mu, nu, eps, row_low, column_low, row_sums, column_sums, floor, f, g, a, b, columns):  # type: ignore[no-untyped-def]
    """Duals and column masses; returns whether the arithmetic held."""
    kind = x.dtype.type
    info = np.finfo(x.dtype)
    clamped = np.exp(floor) / kind(info.eps)
    a_total, b_total = kind(0), kind(0)
    for i in range(len(x)):
        a_total += a[i]
        b_total += b[i]
        columns[i] = b[i] * column_sums[i]
    held = True
    for i in range(len(x)):
        # The clamp was harmless if all it could have added to a sum is below that sum's rounding.
        held &= mu[i] == 0 or (row_sums[i] > clamped * b_total and 0 < a[i] <= info.max)
        held &= nu[i] == 0 or (column_sums[i] > clamped * a_total and 0 < b[i] <= info.max)
        f[i] = row_low[i] + x[i] + eps * log_ratio(a[i], mu[i], info.tiny) if mu[i] > 0 else kind(0)
        g[i] = column_low[i] + y[i] + eps * log_ratio(b[i], nu[i], info.tiny) if nu[i] > 0 else kind(0)
    return held


@jit(nogil=True, error_model="numpy")
def _floor(like):  # type: ignore[no-untyped-def]
    """Entries this far below their row's maximum count for nothing, and exp into denormals is 30 times slower."""
    return like.dtype.type(0.92 * np.log(np.finfo(like.dtype).tiny))


@jit(nogil=True, error_model="numpy")
def _solve(  # type: ignore[no-untyped-def]
    first, last, cost, x, y, mu, nu, rho_mu, rho_nu, epsilon, n_iter, tol, out, healthy, iterations
):
    """Problems ``first`` to ``last``, one after the other."""
    n = cost.shape[1]
    one, floor = cost.dtype.type(1), _floor(cost)
    row_low, row_sums = np.empty(n, cost.dtype), np.empty(n, cost.dtype)
    column_low, column_sums = np.empty(n, cost.dtype), np.empty((1, n), cost.dtype)
    for p in range(first, last):
        K, eps = cost[p], epsilon[p]
        f, g, a, b, rows, columns = out[0, p], out[1, p], out[2, p], out[3, p], out[4, p], out[5, p]
        _absorb(0, n, K, x[p], y[p], g, mu[p], nu[p], row_low, column_low)
        scalings = _scalings(x[p], y[p], g, mu[p], nu[p], rho_mu[p], rho_nu[p], eps, row_low, column_low, b)
        _first_sweep(0, n, K, row_low, column_low, one / eps, floor, scalings, a, b, row_sums, column_sums[0])
        moved = _update_b(scalings, column_sums, b)
        done = 1
        while done < n_iter and moved > tol:
            _sweep(0, n, K, scalings, a, b, row_sums, column_sums[0])
            moved = _update_b(scalings, column_sums, b)
            done += 1
        iterations[p] = done
        _row_masses(0, n, K, a, b, rows)
        healthy[p] = _finish(
            x[p], y[p], mu[p], nu[p], eps, row_low, column_low, row_sums, column_sums[0], floor, f, g, a, b, columns
        )


def _solve_shared(threads: int, *operands: Any) -> None:
    """The same with the rows of each problem dealt to threads."""
    cost, x, y, mu, nu, rho_mu, rho_nu, epsilon, n_iter, tol, out, healthy, iterations = operands
    n = cost.shape[1]
    one, floor = cost.dtype.type(1), _floor(cost)
    row_low, row_sums = np.empty(n, cost.dtype), np.empty(n, cost.dtype)
    lows, sums = np.empty((threads, n), cost.dtype), np.empty((threads, n), cost.dtype)

    def rows_shared(function: Any, *arguments: Any, parts: Any = None) -> None:
        for_each_part(
            n, threads, lambda t, lo, hi: function(lo, hi, *arguments, *(() if parts is None else (parts[t],)))
        )

    for p in range(len(cost)):
        K, eps = cost[p], epsilon[p]
        f, g, a, b, rows, columns = out[:, p]
        rows_shared(_absorb, K, x[p], y[p], g, mu[p], nu[p], row_low, parts=lows)
        column_low = lows.min(0)
        scalings = _scalings(x[p], y[p], g, mu[p], nu[p], rho_mu[p], rho_nu[p], eps, row_low, column_low, b)
        rows_shared(_first_sweep, K, row_low, column_low, one / eps, floor, scalings, a, b, row_sums, parts=sums)
        moved = _update_b(scalings, sums, b)
        done = 1
        while done < n_iter and moved > tol:
            rows_shared(_sweep, K, scalings, a, b, row_sums, parts=sums)
            moved = _update_b(scalings, sums, b)
            done += 1
        iterations[p] = done
        rows_shared(_row_masses, K, a, b, rows)
        healthy[p] = _finish(
            x[p], y[p], mu[p], nu[p], eps, row_low, column_low, row_sums, sums[0], floor, f, g, a, b, columns
        )


def sinkhorn(
    cost: Tensor,
    x: Tensor,
    y: Tensor,
    f: Tensor,
    g: Tensor,
    mu: Tensor,
    nu: Tensor,
    rho_mu: Tensor,
    rho_nu: Tensor,
    epsilon: Tensor,
    n_iter: int,
    tol: float = 0.0,
) -> tuple[Tensor, ...]:
    """As :func:`optimag_dist.ufgw.sinkhorn.sinkhorn_exp`, on the CPU; ``cost`` becomes the kernel.

    Returns:
        f, g, a, b, rows, columns (b, N), healthy (b,) bool, iterations (b,) done.
    """
    out = torch.empty(6, *f.shape, dtype=f.dtype)
    out[0], out[1] = f, g
    healthy, iterations = torch.empty(len(cost), dtype=torch.bool), torch.empty_like(epsilon)
    operands = [t.numpy() for t in (cost, x, y, mu, nu, rho_mu, rho_nu, epsilon)]
    limit = operands[0].dtype.type(tol)
    results = [t.numpy() for t in (out, healthy, iterations)]
    threads = torch.get_num_threads()
    if len(cost) < threads and cost.shape[1] >= _SHARED_FROM:
        _solve_shared(threads, *operands, n_iter, limit, *results)
    else:
        for_each_problem(cost, lambda first, last: _solve(first, last, *operands, n_iter, limit, *results))
    return *out.unbind(), healthy, iterations
