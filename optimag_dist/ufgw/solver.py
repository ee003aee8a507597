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

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from optimag_dist.ufgw.capture import replayed
from optimag_dist.ufgw.checks import DoorChecks, check_budget, check_tensor
from optimag_dist.ufgw.costs import Cost, SparseCost
from optimag_dist.ufgw.door import Rho, build_problem, exchanges_sides
from optimag_dist.ufgw.objective import evaluate, free, moments, relative_entropy
from optimag_dist.ufgw.plan import Plan
from optimag_dist.ufgw.precision import full_precision
from optimag_dist.ufgw.problem import UNIT, Linearised, UFGWProblem
from optimag_dist.ufgw.sinkhorn import Entropic, SinkhornResult, sinkhorn_exp, sinkhorn_log
from optimag_dist.ufgw.solution import AT_REST, SolverStatus, UFGWSolution
from optimag_dist.ufgw.step import best_scale, step_length

# With a tolerance, Sinkhorn's iterations of one outer step end once one of them moves less than this share of it.
_STILL = 0.1


@dataclass(frozen=True)
class Budget:
    """When to stop: after ``n_outer`` steps of ``n_sinkhorn`` iterations, or once every plan is within ``tol`` of rest
    (asking costs one wait for the device per outer step)."""

    n_outer: int
    n_sinkhorn: int
    tol: float | None = None


class Sinkhorn(Protocol):
    def __call__(
        self, cost: Tensor, x: Tensor, y: Tensor, f: Tensor, g: Tensor, entropic: Entropic, n_iter: int, still: float
    ) -> SinkhornResult: ...


@dataclass
class SolverState:
    """What travels through the outer steps; tensors have the batch as first axis.

    Attributes:
        plan, linearised: π and its L⊗π. The first plan, μ⊗ν, is never written out: None.
        mass: (b,) of the plan.
        spare: (b, N, N) memory for the next cost, where there is some.
        f, g: (b, N) duals.
        value, quadratic: (b,) objective up to a constant, and its quadratic term.
        constant: (b,) 2 [ρ Σ r log(r/μ) + ρ Σ c log(c/ν) + ε Σ π log(π/μν)], what the plan costs every unit of the
            next one's mass with ``kl_tensor``.
        change, marginal_error: (b,) see :class:`SolverStatus`.
        iterations: (b,) Sinkhorn iterations of the last outer step.
        healthy, log_domain: (b,) bool.
        steps: outer steps taken.
    """

    plan: Plan | None
    mass: Tensor
    linearised: Linearised
    spare: Tensor | None
    f: Tensor
    g: Tensor
    value: Tensor
    quadratic: Tensor
    constant: Tensor
    change: Tensor
    marginal_error: Tensor
    iterations: Tensor
    healthy: Tensor
    log_domain: Tensor
    steps: int = 0


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
    the gradient to the embeddings at a fixed plan is in :class:`~optimag_dist.ufgw.UFGWRegulariser`.

    Args:
        C_m: structure of the modality. A tensor (N, N) or (batch, N, N), symmetric, ≥ 0, float32 or float64 (half
            precision is computed in float32), or a :class:`~optimag_dist.ufgw.CosineCost`, which is several times
            faster.
        C_G: structure of the graph, likewise, or a :class:`~optimag_dist.ufgw.SparseCost`. An operand without batch
            axis (or with 1 there) is shared by the whole batch.
        M: likewise; a tensor need not be symmetric.
        alpha: weight of structure against M, in [0, 1].
        rho: weight of the marginals, > 0. Small: cheap to leave a node out; ``math.inf``: not possible (the balanced
            problem). One number, or (N,) or (batch, N) of them, one per node, or a pair of these for the modality's
            and the graph's side.
        epsilon: weight of the entropy, > 0.
        mu: (N,) or (batch, N) masses of the modality side, ≥ 0, default 1/N. A 0 takes the node out of the problem
            exactly (its costs must still be finite).
        nu: likewise, of the graph side.
        marginal: ``kl`` (plain KL of the marginals, as in arXiv 2601.22856) or ``kl_tensor`` (KL of product measures,
            the problem that POT and fugw solve; see ``docs/ufgw.md`` for the mapping of their weights).
        n_outer: outer steps, at most.
        n_sinkhorn: Sinkhorn iterations in each, at most.
        tol: stop early once every plan of the batch is within this share of its mass of rest, estimated as in
            :attr:`SolverStatus.distance`. Asking waits for a GPU once per outer step; without it a solve waits once,
            at its end.

    Returns:
        Plan, objective and its parts, kept and received mass, status; constants to autograd.

    Raises:
        ValueError: NaN or infinite values, negative costs or masses, an asymmetric C_m or C_G, zero embeddings, a fully
            masked problem, shapes or devices that do not fit, or weights out of range.
    """
    check_budget(n_outer, n_sinkhorn, tol)
    checks = DoorChecks()
    device = (C_m if isinstance(C_m, Cost) else check_tensor("C_m", C_m)).device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        problem = build_problem(
            C_m, C_G, M, mu, nu, alpha=alpha, rho=rho, epsilon=epsilon, marginal=marginal, checks=checks
        )
        budget = Budget(n_outer, n_sinkhorn, tol)
        state = solve(problem, budget, checks)
        solution = report(problem, state, budget)
    if exchanges_sides(C_m, C_G):
        solution = _sides_exchanged(solution)
    matrices, vectors = (C_m, C_G, M), (mu, nu, *(rho if isinstance(rho, tuple) else (rho,)))
    batched = (
        problem.batch_size > 1
        or any(isinstance(x, Tensor) and x.ndim == 3 for x in matrices)
        or any(isinstance(x, Tensor) and x.ndim == 2 for x in vectors)
    )
    return solution if batched else _without_batch(solution)


def solve(problem: UFGWProblem, budget: Budget, checks: DoorChecks) -> SolverState:
    """Run the outer steps, settle ``checks``, and solve again by log-sum-exp what the exponential domain lost."""
    with full_precision(problem.mu.device):
        state = _run_fast(problem, budget)
        held = checks.settle(state.healthy)
        lost = [entry for entry, ok in enumerate(held) if not ok]
        if lost:
            entries = torch.tensor(lost, device=problem.mu.device)
            again = _run(problem.select(entries), budget, sinkhorn_log, in_log=True)
            again.log_domain.fill_(True)
            _put_back(state, entries, again)
    return state


def _run_fast(problem: UFGWProblem, budget: Budget) -> SolverState:
    """In the exponential domain; on a GPU from a recording, unless a tolerance or a sparse cost asks for values."""
    waits = budget.tol is not None or any(isinstance(x, SparseCost) for x in (problem.B, problem.M))
    if problem.mu.device.type != "cuda" or waits:
        return _run(problem, budget, sinkhorn_exp)
    options = budget, problem.alpha, problem.epsilon, problem.tensor_kl, *(type(x) for x in (problem.A, problem.B))
    return replayed(lambda inputs: _run(inputs, budget, sinkhorn_exp), problem, options)


def _put_back(state: SolverState, entries: Tensor, again: SolverState) -> None:
    for mine, theirs in ((state.plan, again.plan), (state.linearised, again.linearised), (state, again)):
        for name, x in vars(mine).items():
            if isinstance(x, Tensor) and name != "spare":
                x.index_copy_(0, entries, getattr(theirs, name))
    state.steps = max(state.steps, again.steps)


def report(problem: UFGWProblem, state: SolverState, budget: Budget) -> UFGWSolution:
    """The state as the user's answer, with a batch axis throughout. The state's plan is multiplied out."""
    with full_precision(problem.mu.device):
        assert state.plan is not None  # at least one step was taken
        state.plan, log_moment = state.plan.log_moment_()
        parts = evaluate(problem, state.plan, state.linearised, log_moment)
    plan = state.plan
    mass = plan.mass
    independent = torch.xlogy(plan.rows, plan.rows).sum(1) + torch.xlogy(plan.columns, plan.columns).sum(1)
    independent = independent - torch.xlogy(mass, mass)
    present = torch.minimum((problem.mu > 0).sum(1), (problem.nu > 0).sum(1))
    objective, rounding = parts.total(), _rounding(problem, state)
    return UFGWSolution(
        plan=plan.kernel,
        objective=objective,
        parts=parts.as_dict(),
        kept_mass=_share(plan.rows, problem.mu),
        received_mass=_share(plan.columns, problem.nu),
        status=SolverStatus(
            change=state.change,
            marginal_error=state.marginal_error,
            distance=_distance(problem, state, rounding),
            healthy=state.healthy & objective.isfinite() & (mass > 0),
            log_domain=state.log_domain,
            rounding=rounding,
            diagonal=plan.kernel.diagonal(dim1=1, dim2=2).sum(1) / mass,
            information=(log_moment - independent) / mass / present.to(mass.dtype).log(),
            mass=mass / problem.masses.prod(0).sqrt(),
            marginal_masses=problem.masses,
            threshold=AT_REST if budget.tol is None else budget.tol,
            n_outer=state.steps,
        ),
    )


def _run(problem: UFGWProblem, budget: Budget, sinkhorn: Sinkhorn, *, in_log: bool = False) -> SolverState:
    state = _start(problem, weigh=in_log)
    entropic = problem.entropic()
    still = 0.0 if budget.tol is None else _STILL * budget.tol
    for step in range(1, budget.n_outer + 1):
        memory = state.mass.new_empty(len(state.f), *state.f.shape[1:] * 2) if state.spare is None else state.spare
        cost, x, y = problem.linearised_cost(state.linearised, memory)
        if problem.tensor_kl:
            before = entropic.epsilon
            entropic = problem.entropic(2 * state.mass)
            # Duals that fitted the last step's ε fit this one's as the same scalings, f/ε.
            if step > 1:
                ratio = (entropic.epsilon / before)[:, None]
                state.f, state.g = state.f * ratio, state.g * ratio
            x = x + state.constant[:, None]
        found = sinkhorn(cost, x, y, state.f, state.g, entropic, budget.n_sinkhorn, still)
        state.f, state.g, state.iterations = found.f, found.g, found.iterations
        # Log-sum-exp recovers from a step without mass; the exponential domain does not know what it has missed.
        state.healthy = found.healthy if in_log else state.healthy & found.healthy
        state.steps = step
        last = step == budget.n_outer
        measure = last or budget.tol is not None
        if measure:
            state.marginal_error = _marginal_error(found, entropic)
        if problem.tensor_kl:
            _advance_tensor_kl(problem, state, found, entropic, measure=measure)
        else:
            _advance(problem, state, found.plan, measure=measure)
        if (
            budget.tol is not None
            and not last
            and bool((_distance(problem, state, _rounding(problem, state)) <= budget.tol).all())
        ):
            break
    state.spare = None
    return state


def _start(problem: UFGWProblem, *, weigh: bool) -> SolverState:
    """At μ⊗ν, times what its objective is smallest at (line 5) where told to ``weigh`` or masses do not sum to 1: the
    first costs grow with the mass, and those of masses of 10 a node leave nothing of a plan."""
    a, b = problem.product_plan()
    mass = a.sum(1)
    linearised, own = problem.linearise_product(a, b)
    nought = torch.zeros_like(mass)
    rows, columns = free(problem.rho_mu), free(problem.rho_nu)
    penalty = (rows * relative_entropy(a, problem.mu)).sum(1)
    penalty = penalty + (columns * relative_entropy(b * mass[:, None], problem.nu)).sum(1)
    # π = s μ⊗ν: log(π/μν) is log s everywhere
    relative = -0.5 * mass * torch.log(problem.mu.sum(1) * problem.nu.sum(1))
    if not problem.tensor_kl and (weigh or not problem.has_unit_masses):
        linear = (problem.M.from_right(a[:, None, :])[:, 0] * b).sum(1)
        penalised = (rows * a).sum(1) + (columns * b * mass[:, None]).sum(1)
        scale, _ = best_scale(
            (1 - problem.alpha) * linear + penalty + problem.epsilon * relative,
            2 * problem.alpha * own.clamp_min(0),
            penalised + problem.epsilon * mass,
        )
        given = problem.pinned if weigh else problem.pinned | ((problem.masses - 1).abs().amax(0) <= UNIT)
        scale = torch.where(given, 1.0, scale.clamp_min(torch.finfo(scale.dtype).tiny ** 0.5))
        linearised.scaled_(scale)
        mass, own = mass * scale, own * scale.square()
    return SolverState(
        plan=None,
        mass=mass,
        linearised=linearised,
        spare=None,
        f=torch.zeros_like(a),
        g=torch.zeros_like(a),
        value=torch.full_like(nought, torch.inf),
        quadratic=problem.alpha * own,
        constant=2 * (penalty + problem.epsilon * relative),
        change=torch.full_like(nought, torch.inf),
        marginal_error=nought,
        iterations=nought,
        healthy=torch.ones_like(nought, dtype=torch.bool),
        log_domain=torch.zeros_like(nought, dtype=torch.bool),
    )


def _advance(problem: UFGWProblem, state: SolverState, plan: Plan, *, measure: bool) -> None:
    """Lines 5 and 6 for ``plan``, which solved the cost linearised at the state's."""
    plan, linearised = problem.linearise(plan)
    step = step_length(problem, state.value, state.quadratic, state.linearised, state.f, state.g, plan, linearised)
    state.value, state.quadratic = step.value, step.quadratic
    state.healthy = state.healthy & step.fine
    _move(problem, state, plan.scaled_(step.scale), linearised.scaled_(step.scale), step.share, measure=measure)


def _advance_tensor_kl(
    problem: UFGWProblem, state: SolverState, found: SinkhornResult, entropic: Entropic, *, measure: bool
) -> None:
    plan, linearised = problem.linearise(found.plan)
    m = moments(problem, state.linearised, state.f, state.g, plan, linearised)
    linear = (1 - problem.alpha) * plan.inner(problem.M)
    cost = linear + 2 * problem.alpha * m.across + state.constant * m.mass
    relative = (m.duals - cost) / entropic.epsilon
    scale = (state.mass / m.mass).sqrt()
    if found.lost is not None:
        # By the same rule the far too costly plans that a solve may begin with leave e^-1000 of the mass and less. They
        # change it by e^±4, and the next one is better.
        change = 0.5 * (found.lost + m.mass.log() - state.mass.log()).clamp(-8, 8)
        scale = torch.where(found.lost == 0, scale, state.mass / m.mass * change.exp())
    grown = scale * scale.log()
    penalty = scale * m.penalty + grown * m.penalised
    state.constant = 2 * (penalty + problem.epsilon * (scale * relative + grown * m.mass))
    state.healthy = state.healthy & scale.isfinite() & (scale > 0)
    _move(problem, state, plan.scaled_(scale), linearised.scaled_(scale), None, measure=measure)


def _move(
    problem: UFGWProblem, state: SolverState, plan: Plan, linearised: Linearised, share: Tensor | None, *, measure: bool
) -> None:
    """The state goes ``share`` (b,) of the way to ``plan``, all of it where None; the other plan's memory is spare."""
    before = state.plan
    state.mass = plan.mass
    if measure and before is not None:
        state.change = plan.distance(before) / state.mass
    # On the CPU looking is free; on a GPU it would wait for the device, so there the combination is always formed.
    whole = share is None or (share.device.type == "cpu" and bool((share == 1).all()))
    if whole or before is None or share is None:
        state.plan, state.spare, state.linearised = plan, None if before is None else before.kernel, linearised
    else:
        state.plan, state.spare = before.mixed_(plan, share), plan.kernel
        state.mass = state.plan.mass
        state.linearised = state.linearised.mixed_(linearised, share)


def _distance(problem: UFGWProblem, state: SolverState, rounding: Tensor) -> Tensor:
    """(b,) how far the plan is from rest; see :class:`SolverStatus`.

    One outer step covers at least 1 − κ^(2·iterations) of the way, as far as Sinkhorn decides it: each iteration
    contracts the duals by κ² or better (Séjourné et al. 2019), which is slow where ρ ≫ ε. Where ρ = ∞ that says
    nothing, and the marginals themselves are looked at. What a step of less than the rounding leaves undone counts too:
    where iterations are very slow, such steps add up to the way that is left.
    """
    rho = torch.maximum(free(problem.rho_mu).amax(1), free(problem.rho_nu).amax(1))
    kappa = rho / (rho + problem.epsilon)
    covered = 1 - kappa.pow(2 * state.iterations)
    unseen = rounding * (1 - covered) / covered
    marginal_error = torch.where(problem.pinned, state.marginal_error, 0.0)
    return torch.maximum(state.change / covered, unseen).maximum(marginal_error)


def _rounding(problem: UFGWProblem, state: SolverState) -> Tensor:
    """(b,) see :class:`SolverStatus`: a unit of the largest numbers that the exponents (f⊕g − C)/ε are made of."""
    size = state.f.abs().amax(1) + state.g.abs().amax(1)
    size = size + 2 * problem.alpha * (state.linearised.rows.amax(1) + state.linearised.columns.amax(1))
    size = size + (1 - problem.alpha) * problem.highest_prior
    epsilon = problem.epsilon * (2 * state.mass if problem.tensor_kl else 1)
    return torch.finfo(size.dtype).eps * size / epsilon


def _marginal_error(found: SinkhornResult, entropic: Entropic) -> Tensor:
    """(b,) Σ |r − μ exp(−f/ρ)| over the mass: what the next iteration would still change. After an update of g the
    columns have their optimal mass."""
    rows = found.plan.rows
    return (rows - entropic.mu * torch.exp(-found.f / entropic.rho_mu)).abs().sum(1) / rows.sum(1)


def _share(mass: Tensor, marginal: Tensor) -> Tensor:
    return torch.where(marginal > 0, mass / marginal, torch.nan)


def _sides_exchanged(solution: UFGWSolution) -> UFGWSolution:
    parts = dict(solution.parts)
    parts["marginal_mu"], parts["marginal_nu"] = parts["marginal_nu"], parts["marginal_mu"]
    return replace(
        solution,
        plan=solution.plan.mT,
        parts=parts,
        kept_mass=solution.received_mass,
        received_mass=solution.kept_mass,
    )


def _without_batch(solution: UFGWSolution) -> UFGWSolution:
    return UFGWSolution(
        plan=solution.plan[0],
        objective=solution.objective[0],
        parts={name: part[0] for name, part in solution.parts.items()},
        kept_mass=solution.kept_mass[0],
        received_mass=solution.received_mass[0],
        status=solution.status,
    )
