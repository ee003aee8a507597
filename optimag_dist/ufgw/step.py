"""How heavy the next plan is made and how far the state goes towards it: lines 5 and 6 of the solver.

Along s·π the objective is, up to a constant, F(s) = a s + b s²/2 + c (s log s − s). On the way from the last plan π₀ to
s·π it is at most (1−t) F₀ + t F₁ − t(1−t) q, where q is the quadratic term of their difference and the other terms are
convex. All five numbers come from inner products of what is there already.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from optimag_dist.ufgw.backend import compiled_for
from optimag_dist.ufgw.objective import Moments
from optimag_dist.ufgw.problem import UFGWProblem

# A step this short still moves the duals on, whatever rounding or an unfinished Sinkhorn made of the step's length.
_SHORTEST = 0.1


class Step(NamedTuple):
    """(b,) each: s, by which the plan is multiplied; t in (0, 1], how far the state goes to s·π; of the plan arrived at
    the objective up to a constant and its quadratic term; and bool, whether the numbers are finite."""

    scale: Tensor
    share: Tensor
    value: Tensor
    quadratic: Tensor
    fine: Tensor


def step_length(problem: UFGWProblem, m: Moments, value: Tensor, quadratic: Tensor) -> Step:
    """The step to the plan whose moments are ``m``, from the state's ``value`` and ``quadratic`` (b,), inf where there
    is none to compare with."""
    if compiled := compiled_for(value):
        weights = problem.alpha, problem.epsilon, _SHORTEST
        found = compiled.step_length(torch.stack(m), value, quadratic, problem.pinned, *weights)
        return Step(found[0], found[1], found[2], found[3], found[4] > 0)
    across = 2 * problem.alpha * m.across
    # The entropy ε Σ π log(π/μν) is ⟨f⊕g − C, π⟩: no logarithm over the whole plan, and its ⟨M, π⟩ cancels the linear
    # term's.
    a = m.penalty + m.duals - across
    b = 2 * problem.alpha * m.own.clamp_min(0)
    c = m.penalised + problem.epsilon * m.mass
    scale, log_scale = best_scale(a, b, c)
    scale, log_scale = torch.where(problem.pinned, 1.0, scale), torch.where(problem.pinned, 0.0, log_scale)
    there = a * scale + b / 2 * scale.square() + c * (scale * log_scale - scale)

    its_quadratic = b / 2 * scale.square()
    q = its_quadratic + quadratic - scale * across
    share = ((q + value - there) / (2 * q)).clamp(_SHORTEST, 1)
    # Rounding must decide neither whether the objective rose, nor whether there is a q to speak of.
    unit = 8 * torch.finfo(value.dtype).eps
    not_risen = there <= value + unit * (a.abs() * scale + its_quadratic + c * scale)
    straight = q <= unit * problem.alpha * m.own_size * scale.square()
    # A plan that solves its linearised problem rises by q at most. One that keeps pinned masses not yet, and the plan
    # before it still less, cannot be compared by a value that does not count what is missing.
    infeasible = problem.pinned & (there - value > q)
    share = torch.where(not_risen | straight | infeasible, 1.0, share)
    gain = share * (1 - share) * q
    return Step(
        scale,
        share,
        # inf · 0 is NaN, hence not the convex combination as such where nothing came before
        torch.where(share == 1, there, (1 - share) * value + share * there - gain),
        (1 - share) * quadratic + share * its_quadratic - gain,
        there.isfinite() & (scale > 0),
    )


def best_scale(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """s > 0 with a + b·s + c·log s = 0, and log s, for b ≥ 0 and c > 0.

    In t = log s the left side is increasing and convex: one root, which Newton's iteration approaches from above
    without overshooting, if started above. The root is −a/c − W(e^z) with Lambert's W and z = log(b/c) − a/c; W is at
    least 0, and at least z − log z where z > 1.
    """
    log_ratio = torch.log(b / c)
    z = log_ratio - a / c
    t = torch.where(z > 1, z.clamp_min(1).log() - log_ratio, -a / c)
    for _ in range(6):
        rising = b * t.exp()
        t = t - (a + rising + c * t) / (rising + c)
    return t.exp(), t
