"""Block coordinate descent on the UFGW objective (stated in ``objective.py``).

    1  π ← μ⊗ν,  f, g ← 0
    2  repeat n_outer times:
    3      C ← (1−α)M + 2α L⊗π                                       linearise the quadratic term at π
    4      f, g, π ← n_sinkhorn Sinkhorn iterations on C from f, g    duals carried over
    5      π ← s·π,  s = argmin_s UFGW(s·π)                           exact, one unknown
    6      if UFGW rose: step back towards the last plan

Line 4 must start from the last duals: from zero it loses 4e-3 to 9e-3 of the plan at the same budget. Lines 5 and 6 are
not in the published algorithm. A plan that is too heavy makes the next cost too high and the next plan too light:
without line 5 that swing dies out slowly at best, and at small ρ with α near 1 it never does. Where C_m and C_G have
little in common, plans can also alternate between two matchings, each the answer to the other; line 6 ends that, as in
generalised conditional gradient (Bredies, Lorenz & Maass 2009). Both leave the stationary points as they are: there
s = 1 and nothing rises. A node whose mass is pinned (ρ = ∞) pins s at 1.

With ``kl_tensor`` the steps are those of POT and fugw (Séjourné, Vialard & Peyré 2021; Thual et al. 2022), and the same
where Sinkhorn runs to its end: in line 3 the weights ε and ρ are multiplied by 2m(π) and the cost by
nothing but a constant more, and line 5 is s² = m(π before)/m(π). Line 6 is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optimag_dist.ufgw.backend import full_precision
from optimag_dist.ufgw.capture import replayed
from optimag_dist.ufgw.costs import Cost, SparseCost
from optimag_dist.ufgw.operands import Rho, build_problem, exchanges_sides
from optimag_dist.ufgw.problem import UFGWProblem
from optimag_dist.ufgw.sinkhorn import SinkhornResult, sinkhorn_exp, sinkhorn_log
from optimag_dist.ufgw.solution import UFGWSolution
from optimag_dist.ufgw.state import (
    SolverState,
    advance,
    advance_tensor_kl,
    distance_left,
    marginal_error,
    put_back,
    report,
    rounding_of,
    start,
)
from optimag_dist.ufgw.validation import DeferredChecks, check_budget, check_tensor

# With a tolerance, Sinkhorn's iterations of one outer step end once one of them moves less than this share of it.
_SINKHORN_TOL = 0.1


@dataclass(frozen=True)
class Budget:
    """When to stop: after ``n_outer`` steps of ``n_sinkhorn`` iterations, or once every plan is within ``tol`` of rest
    (asking costs one wait for the device per outer step)."""

    n_outer: int
    n_sinkhorn: int
    tol: float | None = None


def solve_ufgw(
    C_m: Tensor | Cost,
    C_G: Tensor | Cost,
    M: Tensor | Cost,
    *,
    alpha: float = 0.6,
    rho: Rho = 0.1,
    epsilon: float = 0.01,
    mu: Tensor | None = None,
    nu: Tensor | None = None,
    marginal: str = "kl",
    n_outer: int = 10,
    n_sinkhorn: int = 20,
    tol: float | None = None,
) -> UFGWSolution:
    """Solve one UFGW problem, or a batch of them, between a modality's structure and a graph's.

        UFGW(π) = (1−α) Σ_ij M_ij π_ij  +  α Σ_ijkl |C_m(i,k) − C_G(j,l)|² π_ij π_kl
                  + ρ KL(π1 ‖ μ) + ρ KL(πᵀ1 ‖ ν)  +  ε KL(π ‖ μ⊗ν)

    The problem is not convex: the answer is a stationary point reached from π = μ⊗ν. Nothing here is differentiated;
    the gradient to the embeddings at a fixed plan is in :class:`~optimag_dist.ufgw.AlignmentRegulariser`.

    Args:
        C_m: structure of the modality. A tensor (N, N) or (batch, N, N), symmetric, ≥ 0, float32 or float64 (half
            precision is computed in float32), or a :class:`~optimag_dist.ufgw.CosineCost`, which is several times
            faster.
        C_G: structure of the graph, likewise, or a :class:`~optimag_dist.ufgw.SparseCost`. An operand without batch
            axis (or with 1 there) is shared by the whole batch.
        M: likewise; a tensor need not be symmetric.
        alpha: weight of structure against M, in [0, 1].
        rho: weight of the marginals, > 0. Small: cheap to leave a node out; ``math.inf``: not possible (the balanced
            problem). One number, or (N,) or (batch, N) of them, one per node, or a pair of these for the two sides.
        epsilon: weight of the entropy, > 0.
        mu, nu: (N,) or (batch, N) masses of the modality and the graph side, ≥ 0, default 1/N. A 0 takes the node out
            of the problem exactly (its costs must still be finite).
        marginal: ``kl`` (plain KL of the marginals, as in arXiv 2601.22856) or ``kl_tensor`` (KL of product measures,
            the problem that POT and fugw solve; see ``docs/ufgw.md`` for the mapping of their weights).
        n_outer, n_sinkhorn: outer steps, and Sinkhorn iterations in each, at most.
        tol: stop early once every plan of the batch is within this share of its mass of rest, estimated as in
            :attr:`SolverStatus.distance`. Asking waits for a GPU once per outer step; without it a solve waits once, at
            its end.

    Raises:
        ValueError: NaN or infinite values, negative costs or masses, an asymmetric C_m or C_G, zero embeddings, a fully
            masked problem, shapes or devices that do not fit, or weights out of range.
    """
    check_budget(n_outer, n_sinkhorn, tol)
    checks = DeferredChecks()
    device = (C_m if isinstance(C_m, Cost) else check_tensor("C_m", C_m)).device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        problem = build_problem(
            C_m, C_G, M, mu, nu, alpha=alpha, rho=rho, epsilon=epsilon, marginal=marginal, checks=checks
        )
        budget = Budget(n_outer, n_sinkhorn, tol)
        state = solve(problem, budget, checks)
        solution = report(problem, state, tol)
    if exchanges_sides(C_m, C_G):
        solution = solution.exchanged()
    matrices, vectors = (C_m, C_G, M), (mu, nu, *(rho if isinstance(rho, tuple) else (rho,)))
    batched = (
        problem.batch_size > 1
        or any(isinstance(x, Tensor) and x.ndim == 3 for x in matrices)
        or any(isinstance(x, Tensor) and x.ndim == 2 for x in vectors)
    )
    return solution if batched else solution.first()


def solve(problem: UFGWProblem, budget: Budget, checks: DeferredChecks) -> SolverState:
    """Run the outer steps, settle ``checks``, and solve again by log-sum-exp what the exponential domain lost."""
    with full_precision(problem.mu.device):
        state = _run_fast(problem, budget)
        held = checks.settle(state.healthy)
        lost = [entry for entry, ok in enumerate(held) if not ok]
        if lost:
            entries = torch.tensor(lost, device=problem.mu.device)
            again = outer_steps(problem.select(entries), budget, sinkhorn_log, in_log=True)
            again.log_domain.fill_(True)
            put_back(state, entries, again)
    return state


def _run_fast(problem: UFGWProblem, budget: Budget) -> SolverState:
    """In the exponential domain; on a GPU from a recording, unless a tolerance or a sparse cost asks for values."""
    waits = budget.tol is not None or any(isinstance(x, SparseCost) for x in (problem.B, problem.M))
    if problem.mu.device.type != "cuda" or waits:
        return outer_steps(problem, budget, sinkhorn_exp)
    options = budget, problem.alpha, problem.epsilon, problem.tensor_kl, *(type(x) for x in (problem.A, problem.B))
    return replayed(lambda inputs: outer_steps(inputs, budget, sinkhorn_exp), problem, options)


def outer_steps(
    problem: UFGWProblem, budget: Budget, sinkhorn: Callable[..., SinkhornResult], *, in_log: bool = False
) -> SolverState:
    state = start(problem, weigh=in_log)
    entropic = problem.entropic()
    tol = 0.0 if budget.tol is None else _SINKHORN_TOL * budget.tol
    for step in range(1, budget.n_outer + 1):
        memory = state.workspace
        if memory is None:
            memory = state.mass.new_empty(len(state.f), *state.f.shape[1:] * 2)
        cost, x, y = problem.linearised_cost(state.linearised, memory)
        if problem.tensor_kl:
            before = entropic.epsilon
            entropic = problem.entropic(2 * state.mass)
            # Duals that fitted the last step's ε fit this one's as the same scalings, f/ε.
            if step > 1:
                ratio = (entropic.epsilon / before)[:, None]
                state.f, state.g = state.f * ratio, state.g * ratio
            x = x + state.constant[:, None]
        found = sinkhorn(cost, x, y, state.f, state.g, entropic, budget.n_sinkhorn, tol)
        state.f, state.g, state.iterations = found.f, found.g, found.iterations
        # Log-sum-exp recovers from a step without mass; the exponential domain does not know what it has missed.
        state.healthy = found.healthy if in_log else state.healthy & found.healthy
        state.steps = step
        last = step == budget.n_outer
        measure = last or budget.tol is not None
        if measure:
            state.marginal_error = marginal_error(found, entropic)
        if problem.tensor_kl:
            advance_tensor_kl(problem, state, found, entropic, measure=measure)
        else:
            advance(problem, state, found.plan, measure=measure)
        if budget.tol is not None and not last:
            left = distance_left(problem, state, rounding_of(problem, state))
            if bool((left <= budget.tol).all()):
                break
    state.workspace = None
    return state
