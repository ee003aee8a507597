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
s = 1 and nothing rises.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optimag_dist.ufgw.checks import DoorChecks, check_weights, require_positive
from optimag_dist.ufgw.objective import evaluate, inner
from optimag_dist.ufgw.problem import MARGINALS, UFGWProblem, build_problem
from optimag_dist.ufgw.sinkhorn import SinkhornResult, sinkhorn_exp, sinkhorn_log
from optimag_dist.ufgw.solution import AT_REST, SolverStatus, UFGWSolution

# A step this short still moves the duals on, whatever rounding or an unfinished Sinkhorn made of the step's length.
_SHORTEST_STEP = 0.1

Sinkhorn = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, float, int], SinkhornResult]


@dataclass(frozen=True)
class Budget:
    """When to stop: after ``n_outer`` steps of ``n_sinkhorn`` iterations, or once every plan is within ``tol`` of rest
    (asking costs one wait for the device per outer step)."""

    n_outer: int
    n_sinkhorn: int
    tol: float | None = None


@dataclass
class SolverState:
    """What travels through the outer steps; all but ``steps`` have the batch as first axis."""

    plan: Tensor
    linearised: Tensor
    f: Tensor
    g: Tensor
    value: Tensor  # (b,) upper bound of the objective, less its constants; exact where the last step was whole
    quadratic: Tensor  # (b,) α ⟨L⊗π, π⟩
    healthy: Tensor
    change: Tensor
    log_domain: Tensor
    steps: int = 0


def solve_ufgw(
    C_m: Tensor,
    C_G: Tensor,
    M: Tensor,
    *,
    alpha: float = 0.6,
    rho: float = 0.1,
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
    the gradient to C_m at a fixed plan is in :class:`~optimag_dist.ufgw.UFGWRegulariser`.

    Args:
        C_m: (N, N) or (batch, N, N), symmetric, ≥ 0, float32 or float64 (half precision is computed in float32).
        C_G: likewise; an operand without batch axis (or with 1 there) is shared by the whole batch.
        M: likewise, not necessarily symmetric.
        alpha: weight of structure against M, in [0, 1].
        rho: weight of the marginals, > 0. Small: cheap to leave a node out.
        epsilon: weight of the entropy, > 0.
        mu: (N,) or (batch, N) masses of the modality side, ≥ 0, default 1/N. A 0 takes the node out of the problem
            exactly (its costs must still be finite).
        nu: likewise, of the graph side.
        marginal: ``kl`` (plain KL of the marginals, as in arXiv 2601.22856).
        n_outer: outer steps.
        n_sinkhorn: Sinkhorn iterations in each.
        tol: stop early once every plan of the batch is within this share of its mass of rest, estimated as in
            :attr:`SolverStatus.distance`. Asking waits for the device once per outer step; without it a solve waits
            once, at its end.

    Returns:
        Plan, objective and its parts, kept and received mass, status; constants to autograd.

    Raises:
        ValueError: NaN or infinite values, negative costs or masses, an asymmetric C_m or C_G, a fully masked
            problem, shapes or devices that do not fit, or weights out of range.
    """
    if marginal not in MARGINALS:
        raise ValueError(f"marginal={marginal!r}: needed one of {', '.join(map(repr, MARGINALS))}")
    check_weights(alpha, rho, epsilon, n_outer, n_sinkhorn)
    if tol is not None:
        require_positive(tol=tol)
    checks = DoorChecks()
    device = C_m.device.type if isinstance(C_m, Tensor) else "cpu"
    with torch.no_grad(), torch.autocast(device, enabled=False):
        problem = build_problem(C_m, C_G, M, mu, nu, alpha=alpha, rho=rho, epsilon=epsilon, checks=checks)
        budget = Budget(n_outer, n_sinkhorn, tol)
        state = solve(problem, budget, checks)
        solution = report(problem, state, budget)
    batched = any(x.ndim == 3 for x in (C_m, C_G, M)) or any(x is not None and x.ndim == 2 for x in (mu, nu))
    return solution if batched else _without_batch(solution)


def solve(problem: UFGWProblem, budget: Budget, checks: DoorChecks) -> SolverState:
    """Run the outer steps, settle ``checks``, and solve again by log-sum-exp what the exponential domain lost."""
    state = _run(problem, budget, sinkhorn_exp)
    held = checks.settle(state.healthy)
    lost = [entry for entry, ok in enumerate(held) if not ok]
    if lost:
        entries = torch.tensor(lost, device=state.plan.device)
        again = _run(problem.select(entries), budget, sinkhorn_log)
        again.log_domain.fill_(True)
        for name in ("plan", "linearised", "healthy", "change", "log_domain"):
            getattr(state, name).index_copy_(0, entries, getattr(again, name))
        state.steps = max(state.steps, again.steps)
    return state


def report(problem: UFGWProblem, state: SolverState, budget: Budget) -> UFGWSolution:
    """The state as the user's answer, with a batch axis throughout."""
    parts = evaluate(problem, state.plan, state.linearised)
    return UFGWSolution(
        plan=state.plan,
        objective=parts.total(),
        parts=parts.as_dict(),
        kept_mass=_share(state.plan.sum(2), problem.mu),
        received_mass=_share(state.plan.sum(1), problem.nu),
        status=SolverStatus(
            change=state.change,
            distance=state.change / _inner_progress(problem, budget),
            healthy=state.healthy,
            log_domain=state.log_domain,
            threshold=AT_REST if budget.tol is None else budget.tol,
            n_outer=state.steps,
        ),
    )


def _run(problem: UFGWProblem, budget: Budget, sinkhorn: Sinkhorn) -> SolverState:
    state = _start(problem)
    for step in range(1, budget.n_outer + 1):
        cost = problem.linearised_cost(state.linearised)
        plan, state.f, state.g, held = sinkhorn(
            cost, state.f, state.g, problem.mu, problem.nu, problem.rho, problem.epsilon, budget.n_sinkhorn
        )
        state.healthy = state.healthy & held
        state.steps = step
        last = step == budget.n_outer
        _advance(problem, state, plan, cost, measure=last or budget.tol is not None)
        if budget.tol is not None and not last:
            threshold = budget.tol * _inner_progress(problem, budget)
            if bool((state.change <= threshold).all()):
                break
    return state


def _start(problem: UFGWProblem) -> SolverState:
    plan = problem.product_plan()
    linearised = problem.linearise(plan)
    nothing = plan.new_zeros(len(plan))
    return SolverState(
        plan=plan,
        linearised=linearised,
        f=plan.new_zeros(plan.shape[:2]),
        g=plan.new_zeros(plan.shape[:2]),
        value=torch.full_like(nothing, torch.inf),
        quadratic=problem.alpha * inner(linearised, plan),
        healthy=torch.ones_like(nothing, dtype=torch.bool),
        change=nothing,
        log_domain=torch.zeros_like(nothing, dtype=torch.bool),
    )


def _advance(problem: UFGWProblem, state: SolverState, plan: Tensor, cost: Tensor, *, measure: bool) -> None:
    """Lines 5 and 6: scale ``plan`` (b, N, N), which solved ``cost``, and move the state to it or towards it.

    Along s·π the objective is, up to a constant, F(s) = a s + b s²/2 + c (s log s − s); on the way from the last plan
    π₀ to s·π it is at most (1−t) F₀ + t F₁ − t(1−t) q, where q is the quadratic term of their difference, and the
    other terms are convex. All five numbers come from inner products of what is there already.
    """
    alpha, rho, epsilon = problem.alpha, problem.rho, problem.epsilon
    linearised = problem.linearise(plan)
    rows, columns = plan.sum(2), plan.sum(1)
    linear = (1 - alpha) * inner(problem.M, plan)
    transport = inner(cost, plan)
    # ε Σ π log(π/μν), from the duals: no logarithm over the whole plan
    entropy = (state.f * rows).sum(1) + (state.g * columns).sum(1) - transport
    a = linear + rho * (_cross_entropy(rows, problem.mu) + _cross_entropy(columns, problem.nu)) + entropy
    b = 2 * alpha * inner(linearised, plan).clamp_min(0)
    c = (2 * rho + epsilon) * rows.sum(1)
    scale, log_scale = _best_scale(a, b, c)
    value = a * scale + b / 2 * scale.square() + c * (scale * log_scale - scale)

    quadratic = b / 2 * scale.square()
    q = quadratic + state.quadratic - scale * (transport - linear)
    step = ((q + state.value - value) / (2 * q)).clamp(_SHORTEST_STEP, 1)
    rounding = 8 * torch.finfo(plan.dtype).eps * (a.abs() * scale + quadratic + c * scale)
    step = torch.where((value <= state.value + rounding) | (q <= 0), 1.0, step)
    gain = step * (1 - step) * q
    # inf · 0 is NaN, hence not the convex combination as such where nothing came before
    state.value = torch.where(step == 1, value, (1 - step) * state.value + step * value - gain)
    state.quadratic = (1 - step) * state.quadratic + step * quadratic - gain

    plan = plan.mul_(scale[:, None, None])
    if measure:
        state.change = (plan - state.plan).abs_().sum((1, 2)) / plan.sum((1, 2))
    state.plan = state.plan.lerp_(plan, step[:, None, None])
    state.linearised = state.linearised.lerp_(linearised.mul_(scale[:, None, None]), step[:, None, None])
    state.healthy = state.healthy & value.isfinite() & (scale > 0)


def _best_scale(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """s > 0 with a + b·s + c·log s = 0, and log s, for b ≥ 0 and c > 0.

    In t = log s the left side is increasing and convex: one root, which Newton's iteration approaches from above
    without overshooting, if started above.
    """
    above_one = torch.minimum(-(a + b) / c, torch.log(-a / b))
    t = torch.where(a + b < 0, above_one, (-a / c).clamp_max(0))
    for _ in range(8):
        rising = b * t.exp()
        t = t - (a + rising + c * t) / (rising + c)
    return t.exp(), t


def _inner_progress(problem: UFGWProblem, budget: Budget) -> float:
    """Share of the distance to rest that one outer step covers at least, as far as Sinkhorn's iteration decides it:
    each iteration contracts the duals by κ² or better (Séjourné et al. 2019), which is slow where ρ ≫ ε."""
    kappa = problem.rho / (problem.rho + problem.epsilon)
    return 1 - kappa ** (2 * budget.n_sinkhorn)


def _cross_entropy(x: Tensor, reference: Tensor) -> Tensor:
    return (torch.xlogy(x, x) - torch.xlogy(x, reference)).sum(1)


def _share(mass: Tensor, marginal: Tensor) -> Tensor:
    return torch.where(marginal > 0, mass / marginal, torch.nan)


def _without_batch(solution: UFGWSolution) -> UFGWSolution:
    return UFGWSolution(
        plan=solution.plan[0],
        objective=solution.objective[0],
        parts={name: part[0] for name, part in solution.parts.items()},
        kept_mass=solution.kept_mass[0],
        received_mass=solution.received_mass[0],
        status=solution.status,
    )
