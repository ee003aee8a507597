"""Sums over plans: how far apart two are, their entropy, and what decides the next step."""

import numpy as np
import torch
from torch import Tensor

from optimag_dist.jit import jit
from optimag_dist.ufgw.compiled.elementary import log, log_ratio
from optimag_dist.ufgw.compiled.threads import REORDER, per_problem


@jit(fastmath=REORDER, nogil=True, error_model="numpy")
def _distance(first, last, kernel, a, b, other, other_a, other_b, out):  # type: ignore[no-untyped-def]
    n = a.shape[1]
    for p in range(first, last):
        total = 0.0
        for i in range(n):
            row = kernel.dtype.type(0)
            for j in range(n):
                row += abs(a[p, i] * kernel[p, i, j] * b[p, j] - other_a[p, i] * other[p, i, j] * other_b[p, j])
            total += row
        out[p] = total


@jit(fastmath=REORDER, nogil=True, error_model="numpy")
def _multiply_out(first, last, kernel, a, b, out):  # type: ignore[no-untyped-def]
    n = a.shape[1]
    zero = kernel.dtype.type(0)
    smallest = kernel.dtype.type(np.finfo(kernel.dtype).tiny)
    for p in range(first, last):
        total = 0.0
        for i in range(n):
            row = zero
            for j in range(n):
                x = a[p, i] * kernel[p, i, j] * b[p, j]
                kernel[p, i, j] = x
                # 0 log 0 = 0, and what is below the normal numbers counts as 0
                row += x * log(max(x, smallest))
            total += row
        out[p] = total


@jit(fastmath=REORDER, nogil=True, error_model="numpy")
def _inner(x, y):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(x.shape[0]):
        row = x.dtype.type(0)
        for j in range(x.shape[1]):
            row += x[i, j] * y[i, j]
        total += row
    return total


@jit(nogil=True, error_model="numpy")
def _side(x, reference, rho, dual, at, own):  # type: ignore[no-untyped-def]
    """Sums over one side's masses: mass, ⟨own, x⟩, ⟨at, x⟩, ⟨dual, x⟩, Σ ρ x log(x/reference), Σ ρ x."""
    tiny = np.finfo(x.dtype).tiny
    mass, own_sum, at_sum, dual_sum, penalty, penalised = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(x)):
        mass += x[i]
        own_sum += own[i] * x[i]
        at_sum += at[i] * x[i]
        dual_sum += dual[i] * x[i]
        if rho[i] < np.inf and x[i] > 0:
            penalty += rho[i] * x[i] * log_ratio(x[i], reference[i], tiny)
            penalised += rho[i] * x[i]
    return mass, own_sum, at_sum, dual_sum, penalty, penalised


@jit(nogil=True, error_model="numpy")
def _moments(  # type: ignore[no-untyped-def]
    first, last, rows, columns, f, g, mu, nu, rho_mu, rho_nu, at_x, at_y, at_core, own_x, own_y, own_core, moved, out
):
    """:func:`moments`; x, y and core are the parts of a linearisation."""
    for p in range(first, last):
        r = _side(rows[p], mu[p], rho_mu[p], f[p], at_x[p], own_x[p])
        c = _side(columns[p], nu[p], rho_nu[p], g[p], at_y[p], own_y[p])
        out[0, p] = r[0]
        out[1, p] = r[1] + c[1] - 2 * _inner(own_core[p], moved[p])
        out[2, p] = r[1] + c[1]
        out[3, p] = r[2] + c[2] - 2 * _inner(at_core[p], moved[p])
        out[4, p] = r[3] + c[3]
        out[5, p] = r[4] + c[4]
        out[6, p] = r[5] + c[5]


@jit(error_model="numpy")
def _best_scale(a, b, c):  # type: ignore[no-untyped-def]
    """log s with a + b·s + c·log s = 0, as in :mod:`optimag_dist.ufgw.step`."""
    log_ratio = np.log(b / c)
    z = log_ratio - a / c
    t = np.log(z) - log_ratio if z > 1 else -a / c
    for _ in range(20):
        rising = b * np.exp(t)
        step = (a + rising + c * t) / (rising + c)
        t -= step
        if not abs(step) > 1e-15 * (1 + abs(t)):
            break
    return t


@jit(nogil=True, error_model="numpy")
def _step_length(m, value, quadratic, pinned, alpha, epsilon, shortest, unit, out):  # type: ignore[no-untyped-def]
    for p in range(len(value)):
        mass, own, own_size, across = m[0, p], m[1, p], m[2, p], m[3, p]
        duals, penalty, penalised = m[4, p], m[5, p], m[6, p]
        across *= 2 * alpha
        a = penalty + duals - across
        b = 2 * alpha * max(own, 0.0)
        c = penalised + epsilon * mass
        log_scale = 0.0 if pinned[p] else _best_scale(a, b, c)
        scale = np.exp(log_scale)
        there = a * scale + b / 2 * scale**2 + c * (scale * log_scale - scale)
        its_quadratic = b / 2 * scale**2
        q = its_quadratic + quadratic[p] - scale * across
        share, arrived, its = 1.0, there, its_quadratic
        risen = there > value[p] + 8 * unit * (abs(a) * scale + its_quadratic + c * scale)
        infeasible = pinned[p] and there - value[p] > q
        if risen and not infeasible and q > 8 * unit * alpha * own_size * scale**2:
            share = min(max((q + value[p] - there) / (2 * q), shortest), 1.0)
            gain = share * (1 - share) * q
            arrived = (1 - share) * value[p] + share * there - gain
            its = (1 - share) * quadratic[p] + share * its_quadratic - gain
        out[0, p], out[1, p], out[2, p], out[3, p] = scale, share, arrived, its
        out[4, p] = 1.0 if abs(there) < np.inf and scale > 0 else 0.0


def distance(kernel: Tensor, a: Tensor, b: Tensor, other: Tensor, other_a: Tensor, other_b: Tensor) -> Tensor:
    """(b,) Σ |a_i K_ij b_j − a'_i K'_ij b'_j|."""
    return per_problem(_distance, kernel, kernel, a, b, other, other_a, other_b)


def moments(*operands: Tensor) -> Tensor:
    """(7, b) the fields of :class:`optimag_dist.ufgw.objective.Moments`, of the operands of :func:`_moments`."""
    return per_problem(_moments, operands[-1], *operands, out=operands[0].new_empty(7, len(operands[0])))


def step_length(found: Tensor, value: Tensor, quadratic: Tensor, pinned: Tensor, *weights: float) -> Tensor:
    """(5, b) the fields of :class:`optimag_dist.ufgw.step.Step`, from :func:`moments`; α, ε and the shortest share."""
    out = torch.empty(5, len(value), dtype=value.dtype)
    arrays = [x.numpy() for x in (found, value, quadratic, pinned)]
    _step_length(*arrays, *weights, torch.finfo(value.dtype).eps, out.numpy())
    return out


def multiply_out(kernel: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """K ← diag(a) K diag(b) in place; returns Σ π log π (b,)."""
    return per_problem(_multiply_out, kernel, kernel, a, b)
