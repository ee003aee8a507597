"""The solver's state: where it starts, how it goes on to the next plan, and what it says of itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

from optimag_dist.ufgw.backend import full_precision
from optimag_dist.ufgw.objective import evaluate, free, moments, relative_entropy
from optimag_dist.ufgw.plan import Plan
from optimag_dist.ufgw.problem import UNIT, Linearised, UFGWProblem
from optimag_dist.ufgw.sinkhorn import Entropic, SinkhornResult
from optimag_dist.ufgw.solution import DEFAULT_TOL, SolverStatus, UFGWSolution
from optimag_dist.ufgw.step import best_scale, step_length


@dataclass
class SolverState:
    """What travels through the outer steps; tensors have the batch as first axis.

    Attributes:
        plan, linearised, mass: π, its L⊗π and its mass (b,). The first plan, μ⊗ν, is never written out: None.
        workspace: (b, N, N) memory for the next cost, where there is some.
        f, g: (b, N) duals.
        value, quadratic: (b,) objective up to a constant, and its quadratic term.
        constant: (b,) 2 [ρ Σ r log(r/μ) + ρ Σ c log(c/ν) + ε Σ π log(π/μν)], what the plan costs every unit of the next
            one's mass with ``kl_tensor``.
        change, marginal_error, healthy, log_domain: (b,) see :class:`SolverStatus`.
        iterations: (b,) Sinkhorn iterations of the last outer step.
    """

    plan: Plan | None
    mass: Tensor
    linearised: Linearised
    workspace: Tensor | None
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


def start(problem: UFGWProblem, *, weigh: bool) -> SolverState:
    """At μ⊗ν, times what its objective is smallest at (line 5) where told to ``weigh`` or masses do not sum to 1: the
    first costs grow with the mass, and those of masses of 10 a node leave nothing of a plan."""
    mu_mass, nu_mass = problem.masses[:, :, None]
    # a⊗b is μ⊗ν scaled to the geometric mean of the two masses, and b sums to 1.
    a, b = problem.mu * (nu_mass / mu_mass).sqrt(), problem.nu / nu_mass
    mass = a.sum(1)
    linearised, own = problem.linearise_product(a, b)
    nought = torch.zeros_like(mass)
    rows, columns = free(problem.rho_mu), free(problem.rho_nu)
    penalty = (rows * relative_entropy(a, problem.mu)).sum(1)
    penalty = penalty + (columns * relative_entropy(b * mass[:, None], problem.nu)).sum(1)
    # π = s μ⊗ν: log(π/μν) is log s everywhere
    relative = -0.5 * mass * torch.log(problem.mu.sum(1) * problem.nu.sum(1))
    off = (problem.masses - 1).abs()
    # On a GPU, where looking would wait for it, they count as if they did not.
    is_unit = off.device.type == "cpu" and bool(off.amax() <= UNIT)
    if not problem.tensor_kl and (weigh or not is_unit):
        linear = (problem.M.right_matmul(a[:, None, :])[:, 0] * b).sum(1)
        penalised = (rows * a).sum(1) + (columns * b * mass[:, None]).sum(1)
        scale, _ = best_scale(
            (1 - problem.alpha) * linear + penalty + problem.epsilon * relative,
            2 * problem.alpha * own.clamp_min(0),
            penalised + problem.epsilon * mass,
        )
        given = problem.pinned if weigh else problem.pinned | (off.amax(0) <= UNIT)
        scale = torch.where(given, 1.0, scale.clamp_min(torch.finfo(scale.dtype).tiny ** 0.5))
        linearised.scaled_(scale)
        mass, own = mass * scale, own * scale.square()
    return SolverState(
        plan=None,
        mass=mass,
        linearised=linearised,
        workspace=None,
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


def advance(problem: UFGWProblem, state: SolverState, plan: Plan, *, measure: bool) -> None:
    """Lines 5 and 6 for ``plan``, which solved the cost linearised at the state's."""
    plan, linearised = problem.linearise(plan)
    m = moments(problem, state.linearised, state.f, state.g, plan, linearised)
    step = step_length(problem, m, state.value, state.quadratic)
    state.value, state.quadratic = step.value, step.quadratic
    state.healthy = state.healthy & step.fine
    _move(problem, state, plan.scaled_(step.scale), linearised.scaled_(step.scale), step.share, measure=measure)


def advance_tensor_kl(
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
    """The state goes ``share`` (b,) of the way to ``plan``, all of it where None; the other plan's memory becomes the
    workspace."""
    before = state.plan
    state.mass = plan.mass
    if measure and before is not None:
        state.change = plan.distance(before) / state.mass
    # On the CPU looking is free; on a GPU it would wait for the device, so there the combination is always formed.
    whole = share is None or (share.device.type == "cpu" and bool((share == 1).all()))
    if whole or before is None or share is None:
        state.plan, state.workspace, state.linearised = plan, None if before is None else before.kernel, linearised
    else:
        state.plan, state.workspace = before.lerp_(plan, share), plan.kernel
        state.mass = state.plan.mass
        state.linearised = state.linearised.lerp_(linearised, share)


def put_back(state: SolverState, entries: Tensor, again: SolverState) -> None:
    for mine, theirs in ((state.plan, again.plan), (state.linearised, again.linearised), (state, again)):
        for name, x in vars(mine).items():
            if isinstance(x, Tensor) and name != "workspace":
                x.index_copy_(0, entries, getattr(theirs, name))
    state.steps = max(state.steps, again.steps)


def report(problem: UFGWProblem, state: SolverState, tol: float | None) -> UFGWSolution:
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
    objective, rounding = sum(parts.values(), torch.zeros_like(mass)), rounding_of(problem, state)
    return UFGWSolution(
        plan=plan.kernel,
        objective=objective,
        parts=parts,
        kept_mass=_share(plan.rows, problem.mu),
        received_mass=_share(plan.columns, problem.nu),
        status=SolverStatus(
            change=state.change,
            marginal_error=state.marginal_error,
            distance=distance_left(problem, state, rounding),
            healthy=state.healthy & objective.isfinite() & (mass > 0),
            log_domain=state.log_domain,
            rounding=rounding,
            diagonal=plan.kernel.diagonal(dim1=1, dim2=2).sum(1) / mass,
            information=(log_moment - independent) / mass / present.to(mass.dtype).log(),
            mass=mass / problem.masses.prod(0).sqrt(),
            marginal_masses=problem.masses,
            threshold=DEFAULT_TOL if tol is None else tol,
            n_outer=state.steps,
        ),
    )


def distance_left(problem: UFGWProblem, state: SolverState, rounding: Tensor) -> Tensor:
    """(b,) how far the plan is from its limit; see :class:`SolverStatus`.

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


def rounding_of(problem: UFGWProblem, state: SolverState) -> Tensor:
    """(b,) see :class:`SolverStatus`: a unit of the largest numbers that the exponents (f⊕g − C)/ε are made of."""
    size = state.f.abs().amax(1) + state.g.abs().amax(1)
    size = size + 2 * problem.alpha * (state.linearised.rows.amax(1) + state.linearised.columns.amax(1))
    size = size + (1 - problem.alpha) * problem.highest_anchor_cost
    epsilon = problem.epsilon * (2 * state.mass if problem.tensor_kl else 1)
    return torch.finfo(size.dtype).eps * size / epsilon


def marginal_error(found: SinkhornResult, entropic: Entropic) -> Tensor:
    """(b,) Σ |r − μ exp(−f/ρ)| over the mass: what the next iteration would still change. After an update of g the
    columns have their optimal mass."""
    rows = found.plan.rows
    return (rows - entropic.mu * torch.exp(-found.f / entropic.rho_mu)).abs().sum(1) / rows.sum(1)


def _share(mass: Tensor, marginal: Tensor) -> Tensor:
    return torch.where(marginal > 0, mass / marginal, torch.nan)
