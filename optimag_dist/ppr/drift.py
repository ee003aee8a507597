"""How far the PPR rows of an undirected graph move when edges come and go: an upper bound, without the new rows.

Symbols: π, P, deg belong to the old graph and π', P', deg' to the new one; u runs over the ends of changed edges, whose
rows are the only ones with ΔP = P' − P ≠ 0. A node without neighbours keeps its walk: P(u, u) = 1.

    (1)  π'_s − π_s = (1−β)/β Σ_u π_s(u) h_u,         h_u(v) = Σ_w ΔP(u, w) π'_w(v)
    (2)  |π'_s(v) − π_s(v)| ≤ score(s) deg'(v),       score(s) = (1−β)/β Σ_u π_s(u) c_u,
                                                      c_u = max_v |h_u(v)| / deg'(v)
    (3)  score(s) = (1−β)/β Σ_u b(u) π_u(s) / deg(s), b(u) = deg(u) c_u,  because deg(s) π_s(u) = deg(u) π_u(s)

(1) is the identity A⁻¹ − B⁻¹ = A⁻¹ (B − A) B⁻¹ for Π = β (I − (1−β) P)⁻¹. By (3) one push from the start b on the old
graph gives the score of every row at once. h_u itself is one push on the new graph from few entries, since

    (4)  h_u = (1 − d'/d) (π'_u − β e_u) / (1−β) + (Σ_inserted π'_w − Σ_deleted π'_w) / d,   d = deg(u), d' = deg'(u)

which is ΔP(u, ·) with P written by P', and Σ_w P'(u, w) π'_w = (π'_u − β e_u) / (1−β). A push that leaves residuals of
at most t·deg, of either sign, is within t·deg of the truth everywhere. Both pushes stay near the changes.

Nodes that lose their last edge: π'_s(v) = 0 for s ≠ v, so v can be left out of c_u if rows that store v are made anew.
Nodes that had no edge: π_s(u) = 0 for s ≠ u. The rows of all u are made anew.

Zhang, Lofgren & Goel (KDD 2016) push on from each source's own estimate and residual, which an artefact does not keep.
"""

from dataclasses import dataclass

import numpy as np

from optimag_dist.jit import jit
from optimag_dist.types import CSR

# c_u may be found this much too large for a cheaper push; and what a push cannot tell costs every row this part of eps.
_LOOSE = 0.125
_UNKNOWN = 1 / 256


@dataclass(frozen=True)
class Drift:
    """What a change of edges does to the rows of PPR.

    Attributes:
        score: (n,) float64: |π'_s(v) − π_s(v)| ≤ score[s]·deg'(v) wherever deg'(v) > 0.
        thinned: (n,) float64: π_s(v) (1/deg'(v) − 1/deg(v)) ≤ thinned[s] for every v that keeps fewer, but some, edges.
        growth: (n,) float64 deg/deg' where a node lost edges, infinite where it lost all, 1 elsewhere.
        ends: (n,) bool: the node is an end of a changed edge.
    """

    score: np.ndarray
    thinned: np.ndarray
    growth: np.ndarray
    ends: np.ndarray

    def bounds(self, first_node: int, offsets: np.ndarray, indices: np.ndarray, old: np.ndarray, k: int) -> np.ndarray:
        """(rows,) float64 error bounds that stored rows, ``offsets`` (rows + 1,) and ``indices`` (entries,), of
        consecutive nodes from ``first_node`` on have on the new graph; infinite where a row must be made anew.
        ``old`` (rows,) are those on the old one, ``k`` the entries of a full row."""
        rows = slice(first_node, first_node + len(old))
        # A stored entry's error is measured by the degree, which may have shrunk.
        factor = np.maximum.reduceat(self.growth[indices], offsets[:-1])
        grown = np.multiply(old, factor, out=np.full(len(old), np.inf), where=np.isfinite(factor))
        # What a row shorter than k does not store is promised to be small as well: π_s(v)/deg'(v) ≤ bound + thinned.
        grown = np.maximum(grown, np.where(np.diff(offsets) < k, old + self.thinned[rows], 0.0))
        return np.where(self.ends[rows], np.inf, grown + self.score[rows])


def measure_drift(
    old: CSR, new: CSR, inserted: np.ndarray, deleted: np.ndarray, *, teleport: float, eps: float
) -> Drift:
    """The :class:`Drift` from the graph ``old`` to ``new``, both symmetric, without self loops and duplicates.

    Args:
        inserted, deleted: (·, 2) int64 ends of the edges in which they differ, each edge once.
        teleport: β.
        eps: of the rows; what the pushes leave open costs each row about eps/128.
    """
    n = old.num_nodes
    degree, new_degree = np.diff(old.indptr), np.diff(new.indptr)
    lost = new_degree < degree
    growth = np.ones(n)
    np.divide(degree, new_degree, out=growth, where=lost & (new_degree > 0))
    growth[lost & (new_degree == 0)] = np.inf
    ends = np.zeros(n, bool)
    ends[inserted] = ends[deleted] = True

    factor = (1 - teleport) / teleport
    open_part = eps * _UNKNOWN / factor
    changed, *starts = _starts(degree, new_degree, inserted, deleted, teleport)
    weight = _weights(new.indptr, new.indices, changed, *starts, teleport, open_part, _scratch(n))
    score = factor * _per_degree(old, changed, degree[changed] * weight, teleport, open_part)
    thinner = np.flatnonzero(lost & (new_degree > 0))
    return Drift(score, _per_degree(old, thinner, growth[thinner] - 1, teleport, eps * _UNKNOWN), growth, ends)


def _starts(
    degree: np.ndarray, new_degree: np.ndarray, inserted: np.ndarray, deleted: np.ndarray, teleport: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Equation (4) for every u with d > 0: (u,), row offsets, w and mass of the start, and what is known of h_u(u)."""
    edges = np.concatenate([inserted, deleted])
    sign = np.repeat([1.0, -1.0], [len(inserted), len(deleted)])
    rows, columns, signs = np.concatenate([edges[:, 0], edges[:, 1]]), edges[:, ::-1].T.reshape(-1), np.tile(sign, 2)
    changed = np.unique(rows)
    changed = changed[degree[changed] > 0]
    own = 1 - new_degree[changed] / degree[changed]
    rows = np.concatenate([rows, changed])
    columns = np.concatenate([columns, changed])
    masses = np.concatenate([signs / np.maximum(degree[rows[: len(signs)]], 1), own / (1 - teleport)])
    kept = (degree[rows] > 0) & (new_degree[columns] > 0)
    rows, columns, masses = rows[kept], columns[kept], masses[kept]
    order = np.argsort(rows, kind="stable")
    offsets = np.searchsorted(rows[order], np.append(changed, len(degree)))
    return changed, offsets, columns[order], masses[order], -teleport * own / (1 - teleport)


def _per_degree(csr: CSR, nodes: np.ndarray, masses: np.ndarray, teleport: float, tolerance: float) -> np.ndarray:
    """(n,) upper bounds, at most ``tolerance`` too large, of Σ_i masses[i] π_i(s) / deg(s); 0 where deg(s) = 0."""
    out = np.zeros(csr.num_nodes)
    if len(nodes):
        scratch = _scratch(csr.num_nodes)
        _spread(csr.indptr, csr.indices, nodes, masses, teleport, tolerance, scratch)
        degree = np.diff(csr.indptr)
        np.divide(scratch[0], degree, out=out, where=degree > 0)
        out[degree > 0] += tolerance
    return out


def _scratch(n: int) -> tuple[np.ndarray, ...]:
    """Estimate, residual, state, touched nodes and queue of :func:`_spread`."""
    return np.zeros(n), np.zeros(n), np.zeros(n, np.uint8), np.empty(n, np.int32), np.empty(n, np.int32)


_UNTOUCHED, _TOUCHED, _WAITING = np.uint8(0), np.uint8(1), np.uint8(2)


@jit(nogil=True)
def _spread(indptr, indices, nodes, masses, teleport, tolerance, scratch):  # type: ignore[no-untyped-def]
    """Add Σ_i masses[i] π_nodes[i] to ``estimate``, to within tolerance·deg at every node; masses of either sign.

    Of ``scratch``, residual and state are zero on entry; touched lists the nodes where they may differ from zero on
    return, whose number is returned.
    """
    estimate, residual, state, touched, queue = scratch
    n = len(residual)
    count = head = tail = waiting = 0
    for i in range(len(nodes)):
        v = nodes[i]
        residual[v] += masses[i]
        if state[v] == _UNTOUCHED:
            state[v] = _WAITING
            touched[count] = v
            count += 1
            queue[tail] = v
            tail = tail + 1 if tail + 1 < n else 0
            waiting += 1
    while waiting > 0:
        u = queue[head]
        head = head + 1 if head + 1 < n else 0
        waiting -= 1
        state[u] = _TOUCHED
        degree = indptr[u + 1] - indptr[u]
        mass = residual[u]
        if abs(mass) <= tolerance * degree:
            continue
        residual[u] = 0.0
        estimate[u] += teleport * mass
        share = (1.0 - teleport) * mass / degree
        for e in range(indptr[u], indptr[u + 1]):
            v = indices[e]
            after = residual[v] + share
            residual[v] = after
            if state[v] != _WAITING and abs(after) > tolerance * (indptr[v + 1] - indptr[v]):
                if state[v] == _UNTOUCHED:
                    touched[count] = v
                    count += 1
                state[v] = _WAITING
                queue[tail] = v
                tail = tail + 1 if tail + 1 < n else 0
                waiting += 1
            elif state[v] == _UNTOUCHED:
                state[v] = _TOUCHED
                touched[count] = v
                count += 1
    return count


@jit(nogil=True)
def _weights(indptr, indices, changed, offsets, columns, masses, own, teleport, floor, scratch):  # type: ignore[no-untyped-def]
    """c_u of every changed node, at most about ``_LOOSE`` of itself or ``floor`` too large."""
    estimate, residual, state, touched, _ = scratch
    out = np.empty(len(changed))
    for i in range(len(changed)):
        u = changed[i]
        row = slice(offsets[i], offsets[i + 1])
        scale = 0.0
        for e in range(offsets[i], offsets[i + 1]):
            w = columns[e]
            scale = max(scale, teleport * abs(masses[e]) / (indptr[w + 1] - indptr[w]))
        tolerance = max(_LOOSE * scale, floor)
        estimate[u] = own[i]
        count = _spread(indptr, indices, columns[row], masses[row], teleport, tolerance, scratch)
        largest = 0.0
        for t in range(count):
            v = touched[t]
            largest = max(largest, abs(estimate[v]) / (indptr[v + 1] - indptr[v]))
            estimate[v] = residual[v] = 0.0
            state[v] = _UNTOUCHED
        estimate[u] = 0.0
        out[i] = largest + tolerance
    return out
