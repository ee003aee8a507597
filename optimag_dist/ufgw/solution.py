"""What a solve gives back: the plan, its value, and how far it can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from optimag_dist.ufgw.problem import UNIT

Outcome = Literal["converged", "max_iterations", "diverged"]
# Within this share of its mass of where it is going, a plan has converged for every use in training.
DEFAULT_TOL = 5e-3

# What to change where a sign of SolverStatus.signs, or of LocalStatus.signs, is there.
REMEDIES = {
    "diagonal": "nearly all mass is on the diagonal: every node is only matched with itself, so structure decides "
    "nothing; raise tau (the width of the anchor cost) or alpha",
    "uniform": "the plan is nearly uniform: the share of the information that one side could give about the other is "
    "near 0; lower epsilon",
    "empty": "hardly any mass is left: leaving a node out costs less than matching it, so kept mass tells nothing "
    "apart; raise rho",
    "log_domain": "epsilon or rho is too small for the exponential domain in this precision: solved by log-sum-exp, "
    "several times slower; raise epsilon or rho, or pass float64",
    "masses": "the masses do not sum to 1: structure counts with the square of the mass and all else with the mass, so "
    "alpha, rho and epsilon do not weigh what they usually do; divide mu and nu by their sums",
    "rounding": "epsilon is small beside the costs, so the rounding of these alone changes entries of the plan by this "
    "share; raise epsilon, or pass float64",
    "max_iterations": "the solver's iterations ended before its plans had converged: raise n_outer, n_sinkhorn or "
    "epsilon, or lower alpha",
    "not_converged": "what nodes keep was still moving when its iterations ended: rho is small beside alpha and "
    "agreement, and there may be several answers; raise rho",
}
_ALL_ON_DIAGONAL = 0.99
_NEARLY_INDEPENDENT = 0.01
_NEARLY_EMPTY = 0.02
_ROUGH = 0.01


@dataclass(frozen=True, eq=False)
class SolverStatus:
    """How a solve ended. Reading a property (not the tensors) waits for the device once; nothing is read before.

    Attributes:
        change, marginal_error: (b,) how far the last outer step wanted to move the plan, Σ|π − π_before|, and how far
            its row masses were from those that are optimal at its dual; both as a share of its mass.
        distance: (b,) the change over 1 − κ^(2·iterations), κ = ρ/(ρ+ε): an estimate of how far the plan is from its
            limit that does not mistake slow Sinkhorn iterations (ρ ≫ ε) for convergence, nor steps below the rounding
            for none. Where ρ = ∞, the larger of change and marginal error.
        healthy: (b,) bool, the plan is finite and has mass.
        log_domain: (b,) bool, float arithmetic gave out in the exponential domain and the problem was solved again by
            log-sum-exp.
        rounding: (b,) by what share the rounding of the costs alone may change an entry of the plan.
        diagonal: (b,) share of the plan's mass on its diagonal.
        information: (b,) mutual information of the two sides under the plan over log N: 0 where either side says
            nothing about the other, 1 where it names its partner.
        mass, marginal_masses: (b,) of the plan, 1 where it is that of the marginals; and (2, b) Σ μ and Σ ν.
        threshold, n_outer: distance up to which a problem counts as converged, and outer steps taken.
    """

    change: Tensor
    marginal_error: Tensor
    distance: Tensor
    healthy: Tensor
    log_domain: Tensor
    rounding: Tensor
    diagonal: Tensor
    information: Tensor
    mass: Tensor
    marginal_masses: Tensor
    threshold: float
    n_outer: int

    @cached_property
    def outcomes(self) -> tuple[Outcome, ...]:
        """One per problem of the batch."""
        pairs = zip(self.healthy.tolist(), self.distance.tolist(), strict=True)
        return tuple(
            "diverged" if not healthy else "converged" if distance <= self.threshold else "max_iterations"
            for healthy, distance in pairs
        )

    @property
    def outcome(self) -> Outcome:
        """The worst of the batch."""
        order: tuple[Outcome, ...] = ("diverged", "max_iterations", "converged")
        return next(outcome for outcome in order if outcome in self.outcomes)

    @property
    def converged(self) -> bool:
        return self.outcome == "converged"

    @property
    def remedy(self) -> str:
        """What to do about the outcome, empty where nothing needs doing."""
        if self.outcome == "converged":
            return ""
        if self.outcome == "max_iterations":
            if self.n_outer == 1:
                return "one outer step has nothing to be compared with: raise n_outer"
            return (
                f"about {float(self.distance.max()):.1e} of the plan's mass has still to move after {self.n_outer} "
                f"outer steps (threshold {self.threshold:.0e}): raise n_outer, n_sinkhorn or epsilon, or lower alpha"
            )
        unusual = self._unusual_masses & ~self.healthy
        if bool(unusual.any()):
            cause = f"{self._sums(unusual)}, and costs grow with the mass; divide mu and nu by their sums, or raise rho"
        else:
            cause = (
                "the costs are large against rho (row mass falls as exp(-cost/rho)), so raise rho, or scale the costs "
                "to a mean near 1"
            )
        return f"the plan lost all its mass or is not finite: {cause}"

    @property
    def signs(self) -> dict[str, Tensor]:
        """What a plan can be although it is converged, and still be of no use: key of ``REMEDIES`` → (b,) bool, on the
        device."""
        return {
            # A single node, of which there is no information to give, has nowhere else to go.
            "diagonal": self.healthy & (self.diagonal > _ALL_ON_DIAGONAL) & ~self.information.isnan(),
            "uniform": self.healthy & (self.information < _NEARLY_INDEPENDENT),
            "empty": self.healthy & (self.mass < _NEARLY_EMPTY),
            "log_domain": self.log_domain,
            "max_iterations": self.healthy & (self.distance > self.threshold),
        }

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """The signs that are there but for ``max_iterations``, masses that do not sum to 1, and an ε that is too small
        for the precision, each with what to change."""
        numbers = {"diagonal": self.diagonal, "uniform": self.information, "empty": self.mass}
        numbers["rounding"] = self.rounding
        rough = self.healthy & (self.rounding > _ROUGH)
        found = []
        for sign, flags in {**self.signs, "masses": self._unusual_masses, "rounding": rough}.items():
            if sign == "max_iterations" or not bool(flags.any()):
                continue
            text = REMEDIES[sign]
            if sign in numbers:
                text += f" (here {float(numbers[sign][flags].mean()):.2g})"
            if sign == "masses":
                text += f" (here {self._sums(flags)})"
            if len(flags) > 1:
                text += f" ({int(flags.sum())} of {len(flags)} problems)"
            found.append(text)
        return tuple(found)

    @property
    def _unusual_masses(self) -> Tensor:
        return (self.marginal_masses - 1).abs().amax(0) > UNIT

    def _sums(self, flags: Tensor) -> str:
        """Of the first of the problems that ``flags`` names."""
        of_mu, of_nu = self.marginal_masses[:, flags][:, 0].tolist()
        return f"mu sums to {of_mu:.3g} and nu to {of_nu:.3g}"

    def __str__(self) -> str:
        kinds = dict.fromkeys(self.outcomes)
        counts = ", ".join(f"{self.outcomes.count(kind)} {kind}" for kind in kinds) if len(kinds) > 1 else self.outcome
        text = f"{counts} after {self.n_outer} outer steps"
        text += f": {self.remedy}" if self.remedy else ""
        return "\n".join((text, *self.warnings))


@dataclass(frozen=True, eq=False)
class UFGWSolution:
    """The answer of :func:`~optimag_dist.ufgw.solve_ufgw`; ``(batch)`` axes are there only if an input had one.

    Attributes:
        plan: (batch, N, N) π; rows are the modality side, columns the graph side; exactly 0 at absent nodes.
        objective: (batch) UFGW(π).
        parts: its weighted terms by name, (batch) each: linear, quadratic, marginal_mu, marginal_nu, entropy.
        kept_mass, received_mass: (batch, N) π1 / μ and πᵀ1 / ν, NaN at absent nodes (0 would read as fully distrusted).
        status: how the solve ended.
    """

    plan: Tensor
    objective: Tensor
    parts: Mapping[str, Tensor]
    kept_mass: Tensor
    received_mass: Tensor
    status: SolverStatus

    def exchanged(self) -> "UFGWSolution":
        """That of the problem with its sides exchanged."""
        sides = {"marginal_mu": self.parts["marginal_nu"], "marginal_nu": self.parts["marginal_mu"]}
        kept, received = self.received_mass, self.kept_mass
        return replace(self, plan=self.plan.mT, parts={**self.parts, **sides}, kept_mass=kept, received_mass=received)

    def first(self) -> "UFGWSolution":
        """That of the only problem of a batch, without the batch's axis."""
        first: dict[str, Any] = {name: x[0] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **first, parts={name: part[0] for name, part in self.parts.items()})
