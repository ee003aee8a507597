"""What a solve gives back: the plan, its value, and how far it can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

Outcome = Literal["converged", "budget spent", "trouble"]
# Within this share of its mass of where it is going, a plan is at rest for every use in training.
AT_REST = 5e-3


@dataclass(frozen=True, eq=False)
class SolverStatus:
    """How a solve ended. Reading a property (not the tensors) waits for the device once; nothing is read before.

    Attributes:
        change: (b,) how far the last outer step wanted to move the plan, Σ|π − π_before|, as a share of its mass.
        distance: (b,) the change over 1 − κ^(2·n_sinkhorn), κ = ρ/(ρ+ε): an estimate of how far the plan is from
            rest that does not mistake slow Sinkhorn iterations (ρ ≫ ε) for convergence.
        healthy: (b,) bool, the plan is finite and has mass.
        log_domain: (b,) bool, float arithmetic gave out in the exponential domain and the problem was solved again by
            log-sum-exp.
        threshold: distance up to which a problem counts as converged.
        n_outer: outer steps taken.
    """

    change: Tensor
    distance: Tensor
    healthy: Tensor
    log_domain: Tensor
    threshold: float
    n_outer: int

    @cached_property
    def outcomes(self) -> tuple[Outcome, ...]:
        """One per problem of the batch."""
        pairs = zip(self.healthy.tolist(), self.distance.tolist(), strict=True)
        return tuple(
            "trouble" if not healthy else "converged" if distance <= self.threshold else "budget spent"
            for healthy, distance in pairs
        )

    @property
    def outcome(self) -> Outcome:
        """The worst of the batch."""
        order: tuple[Outcome, ...] = ("trouble", "budget spent", "converged")
        return next(outcome for outcome in order if outcome in self.outcomes)

    @property
    def converged(self) -> bool:
        return self.outcome == "converged"

    @property
    def remedy(self) -> str:
        """What to do about it, empty where nothing needs doing."""
        if self.outcome == "trouble":
            return (
                "the plan lost all its mass or is not finite: the costs are large against rho (row mass falls as "
                "exp(-cost/rho)), so raise rho, or scale the costs to a mean near 1"
            )
        if self.outcome == "budget spent":
            return (
                f"about {float(self.distance.max()):.1e} of the plan's mass has still to move after {self.n_outer} "
                f"outer steps (threshold {self.threshold:.0e}): raise n_outer, n_sinkhorn or epsilon, or lower alpha"
            )
        return ""

    def __str__(self) -> str:
        kinds = dict.fromkeys(self.outcomes)
        counts = ", ".join(f"{self.outcomes.count(kind)} {kind}" for kind in kinds) if len(kinds) > 1 else self.outcome
        redone = int(self.log_domain.sum())
        text = f"{counts} after {self.n_outer} outer steps"
        text += f", {redone} in the log domain" if redone else ""
        return f"{text}: {self.remedy}" if self.remedy else text


@dataclass(frozen=True, eq=False)
class UFGWSolution:
    """The answer of :func:`~optimag_dist.ufgw.solve_ufgw`; ``(batch)`` axes are there only if an input had one.

    Attributes:
        plan: (batch, N, N) π; rows are the modality side, columns the graph side. Rows and columns of absent nodes
            are exactly 0.
        objective: (batch) UFGW(π).
        parts: its weighted terms by name, (batch) each: linear, quadratic, marginal_mu, marginal_nu, entropy.
        kept_mass: (batch, N) π1 / μ, NaN at absent nodes (0 would read as fully distrusted).
        received_mass: (batch, N) πᵀ1 / ν, NaN likewise.
        status: how the solve ended.
    """

    plan: Tensor
    objective: Tensor
    parts: Mapping[str, Tensor]
    kept_mass: Tensor
    received_mass: Tensor
    status: SolverStatus
