"""OptiMAG's regulariser: weight · Σ_m UFGW(π*_m), the plans held fixed (arXiv 2601.22856).

Plans of :class:`LocalRegulariser` leave mass where it is (:mod:`optimag_dist.ufgw.local`): that finds conflicts, which
the published problem hardly does, at a fraction of the cost. :class:`UFGWRegulariser` is the published one, and
:class:`RobustRegulariser` the same between nodes that are trusted as the local kind trusts them. In these two the
gradient reaches the encoders through the modality costs alone,
∂/∂C̄_m(i,k) = 2α [C̄_m(i,k) r_i r_k − (π C̄_G πᵀ)_ik], r = π1: it pulls apart or together exactly the pairs whose
distance disagrees with that of the nodes their mass was sent to, and leaves rejected nodes alone. It goes straight to
the embeddings (:func:`~optimag_dist.ufgw.objective.structure_term`); no (N, N) matrix is in the autograd graph.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from optimag_dist.ufgw.backend import outside_graphs
from optimag_dist.ufgw.costs import CosineCost, cosine_costs, graph_costs
from optimag_dist.ufgw.local import LocalStatus, alignment, by_autograd, consistency, estimate_trust, near_weights
from optimag_dist.ufgw.objective import structure_term
from optimag_dist.ufgw.options import AlignmentOptions, LocalOptions, RobustOptions, UFGWOptions
from optimag_dist.ufgw.plan import Plan
from optimag_dist.ufgw.problem import Linearised, UFGWProblem
from optimag_dist.ufgw.solution import SolverStatus, UFGWSolution
from optimag_dist.ufgw.solver import Budget, solve
from optimag_dist.ufgw.state import report
from optimag_dist.ufgw.validation import DeferredChecks, check_tensor


@dataclass(frozen=True, eq=False)
class UFGWDiagnostics:
    """What the last call found; all tensors are detached and stay on their device.

    Attributes:
        kept_mass: modality → (N,) π1/μ per node: low where the modality conflicts with the graph; NaN where absent.
        received_mass: modality → (N,) πᵀ1/ν per node, NaN where absent.
        without_direction: modality → 0-dim int64, nodes counted as absent because their embedding is of length 0.
        parts: modality → weighted terms of the objective by name, 0-dim each (before the regulariser's weight).
        status: the solver's, or that of a local plan's trust; one entry per modality in the order of ``kept_mass``.
    """

    kept_mass: Mapping[str, Tensor]
    received_mass: Mapping[str, Tensor]
    without_direction: Mapping[str, Tensor]
    parts: Mapping[str, Mapping[str, Tensor]]
    status: SolverStatus | LocalStatus


class AlignmentRegulariser(nn.Module, ABC):
    """Aligns the structure within each modality with the graph's, over one group of nodes. No parameters of its own."""

    def __init__(self, options: AlignmentOptions) -> None:
        super().__init__()
        self.options = options
        self._last: UFGWDiagnostics | None = None

    def extra_repr(self) -> str:
        return ", ".join(f"{each.name}={getattr(self.options, each.name)!r}" for each in fields(self.options))

    @outside_graphs
    def forward(
        self, embeddings: Mapping[str, Tensor], proximity: Tensor, present: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The weighted sum over modalities, all solved as one batch: 0-dim float32 (float64 if an embedding is). It can
        be differentiated twice, plans and what is kept held fixed (a transport plan is then found once more).

        Args:
            embeddings: modality → (N, d_m), floating point, row i = node i; lengths of rows do not matter. A row of
                zeros has no direction: its node counts as absent. Rows of absent nodes are not read. Half precision,
                also by autocast, is computed in float32.
            proximity: (N, N) PPR among the same nodes, ≥ 0, same device.
            present: modality → (N,) bool; a modality without an entry is present everywhere. One that no node of the
                group has adds 0.

        Raises:
            ValueError: shapes do not fit, NaN or infinite values, or negative proximity. On a GPU this and the solver's
                health are read together: one wait.
        """
        _check_shapes(embeddings, proximity, present)
        names = list(embeddings)
        dtype = torch.float32
        for z in embeddings.values():
            dtype = torch.promote_types(dtype, z.dtype)
        everyone = torch.ones(len(proximity), dtype=torch.bool, device=proximity.device)
        masks = torch.stack([(present or {}).get(name, everyone) for name in names])
        checks = DeferredChecks()
        checks.refuse_negative("proximity", proximity, what="PPR")

        with torch.autocast(proximity.device.type, enabled=False):
            # A column of zeros changes no cosine, so one tensor holds modalities of any width.
            width = max(z.shape[1] for z in embeddings.values())
            stacked = torch.stack([pad(z.to(dtype), (0, width - z.shape[1])) for z in embeddings.values()])
            C_m = CosineCost.from_embeddings(stacked, masks)
            there = C_m.weights > 0
            _check_values(checks, names, C_m, there)
            found = self._find(C_m, proximity.detach().to(dtype), there, checks)
        self._last = UFGWDiagnostics(
            kept_mass=dict(zip(names, torch.where(there, found.kept, torch.nan), strict=True)),
            received_mass=dict(zip(names, torch.where(there, found.received, torch.nan), strict=True)),
            without_direction=dict(zip(names, (masks & ~there).sum(1), strict=True)),
            parts={
                name: {part: torch.where(found.defined[i], x[i], 0.0) for part, x in found.parts.items()}
                for i, name in enumerate(names)
            },
            status=found.status,
        )
        return self.options.weight * found.value.sum()

    def diagnostics(self) -> UFGWDiagnostics:
        """What the last call of the module found; a RuntimeError where it has not been called yet."""
        if self._last is None:
            raise RuntimeError("no diagnostics yet: call the regulariser on a group of nodes first")
        return self._last

    @abstractmethod
    def _find(self, C_m: CosineCost, proximity: Tensor, present: Tensor, checks: DeferredChecks) -> "_Found": ...


class _Found(NamedTuple):
    """Of b modalities: value (b,), kept and received (b, N), parts (b,) each, where they are defined (b,), status."""

    value: Tensor
    kept: Tensor
    received: Tensor
    parts: Mapping[str, Tensor]
    defined: Tensor
    status: SolverStatus | LocalStatus


class LocalRegulariser(AlignmentRegulariser):
    """Mass stays where it is or is given up."""

    options_class = LocalOptions
    options: LocalOptions

    def __init__(self, options: LocalOptions = LocalOptions()) -> None:
        super().__init__(options)

    def _find(self, C_m: CosineCost, proximity: Tensor, present: Tensor, checks: DeferredChecks) -> _Found:
        options = self.options
        marginal = present.to(C_m.dtype)
        marginal = marginal / marginal.sum(1, keepdim=True).clamp_min(1)
        with torch.no_grad():
            weights = near_weights(proximity)
            C_G, _ = graph_costs(proximity, delta=options.delta, anchor="identity")
        estimated = partial(estimate_trust, weights=weights, marginal=marginal, alpha=options.alpha, rho=options.rho)
        if options.differentiate:
            C = cosine_costs(C_m.directions, present)
            trust = estimated(C, agreement=options.agreement)
            aligned, consistent = by_autograd(C, C_G.dense(), trust, marginal)
        else:
            with torch.no_grad():
                trust = estimated(C_m.dense(), agreement=options.agreement)
            aligned = alignment(C_m, C_G, trust, marginal)
            consistent = consistency(C_m, trust) if options.consistency else torch.zeros_like(aligned)
        # A modality that nobody has, or whose embeddings all point the same way, has nothing to be aligned.
        healthy = (C_m.scale > 0) & aligned.isfinite()
        checks.settle(healthy)
        kept = trust.kept.detach()
        weighted = {"structure": options.alpha * aligned, "consistency": options.consistency * consistent}
        value = torch.where(healthy, weighted["structure"] + weighted["consistency"], 0.0)
        parts = {name: part.detach() for name, part in weighted.items()}
        status = LocalStatus(trust.change.detach(), (kept * marginal).sum(1), healthy)
        return _Found(value, kept, kept, parts, healthy, status)


class UFGWRegulariser(AlignmentRegulariser):
    """The published problem: mass may also move to other nodes."""

    options_class = UFGWOptions
    options: UFGWOptions

    def __init__(self, options: UFGWOptions = UFGWOptions()) -> None:
        super().__init__(options)

    def _find(self, C_m: CosineCost, proximity: Tensor, present: Tensor, checks: DeferredChecks) -> _Found:
        anyone = present.any(1)
        # A modality that nobody has is solved over everybody, and its value dropped: no branch on a device value.
        marginal = (present | ~anyone[:, None]).to(C_m.dtype)
        marginal = marginal / marginal.sum(1, keepdim=True)
        with torch.no_grad():
            trust, marginal = self._trusted(C_m, proximity, present, marginal)
        problem, plan, linearised, solution = self._solved(C_m, proximity, marginal, checks)
        fixed, healthy = CosineCost(C_m.directions.detach(), C_m.weights), solution.status.healthy

        def again() -> tuple[UFGWProblem, Plan]:
            return self._solved(fixed, proximity, marginal, DeferredChecks())[:2]

        structure = structure_term(C_m, problem, plan, linearised, healthy, again)
        constant = solution.objective - solution.parts["quadratic"]
        # What could not be solved is told by the status; as NaN it would end up in every weight.
        value = torch.where(anyone & healthy, self.options.alpha * structure + constant, 0.0)
        kept, received = trust * solution.kept_mass, trust * solution.received_mass
        return _Found(value, kept, received, solution.parts, anyone, solution.status)

    @property
    def _rho(self) -> float:
        return self.options.rho

    def _trusted(self, C_m: CosineCost, proximity: Tensor, present: Tensor, marginal: Tensor) -> tuple[Tensor, Tensor]:
        """Share of its ``marginal`` that a node has, and these shares as marginals (b, N) that sum to 1."""
        return torch.ones_like(marginal), marginal

    @torch.no_grad()
    def _solved(
        self, C_m: CosineCost, proximity: Tensor, marginal: Tensor, checks: DeferredChecks
    ) -> tuple[UFGWProblem, Plan, Linearised, UFGWSolution]:
        options = self.options
        C_G, M = graph_costs(proximity, delta=options.delta, tau=options.tau, anchor=options.anchor)
        rho = torch.full_like(marginal[:1, :1], self._rho)
        alpha, epsilon = options.alpha, options.epsilon
        problem = UFGWProblem.build(C_m, C_G, M, marginal, marginal, rho, rho, alpha=alpha, epsilon=epsilon)
        state = solve(problem, Budget(options.n_outer, options.n_sinkhorn), checks)
        solution = report(problem, state, None)
        assert state.plan is not None  # at least one step was taken
        return problem, state.plan, state.linearised, solution


class RobustRegulariser(UFGWRegulariser):
    """Mass may move to other nodes; how much a node has to begin with is its trust, by its own neighbourhood.

    In the published problem every node is compared with all nodes of the group, and what conflicts with a few
    neighbours drowns among hundreds of pairs that say nothing. Marginals μ·k say it: as KL(r | μk) = KL(r | μ) −
    Σ r log k up to a constant, that is a linear term −ρ log k(i) for every unit of mass at node i, see
    :mod:`optimag_dist.ufgw.local`.
    """

    options_class = RobustOptions
    options: RobustOptions

    def __init__(self, options: RobustOptions = RobustOptions()) -> None:
        super().__init__(options)

    @property
    def _rho(self) -> float:
        return self.options.rho * self.options.stiffness

    def _trusted(self, C_m: CosineCost, proximity: Tensor, present: Tensor, marginal: Tensor) -> tuple[Tensor, Tensor]:
        options = self.options
        weights, near = near_weights(proximity), {"alpha": options.alpha, "rho": options.rho}
        # A modality that nobody has disagrees with none.
        trust = estimate_trust(C_m.dense(), weights, present * marginal, agreement=options.agreement, **near).kept
        kept = trust * marginal
        # Where nobody is trusted the plan is of no use, and its status says so.
        return trust, torch.where(kept.sum(1, keepdim=True) > 0, _normalised(kept), marginal)


def _normalised(x: Tensor) -> Tensor:
    return x / x.sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny ** 0.5)


def _check_shapes(embeddings: Mapping[str, Tensor], proximity: Tensor, present: Mapping[str, Tensor] | None) -> None:
    if not isinstance(embeddings, Mapping) or not embeddings:
        raise ValueError("embeddings: needed a mapping of modality names to (N, d) tensors, with at least one entry")
    check_tensor("proximity", proximity)
    if proximity.requires_grad:
        raise ValueError("proximity requires a gradient, which does not reach it; pass proximity.detach()")
    if proximity.ndim != 2 or proximity.shape[0] != proximity.shape[1] or not len(proximity):
        raise ValueError(f"proximity: got shape {tuple(proximity.shape)}, needed (N, N) with N ≥ 1")
    nodes = len(proximity)
    for name, z in embeddings.items():
        name = f"embeddings[{name!r}]"
        check_tensor(name, z)
        if z.ndim != 2 or len(z) != nodes or z.shape[1] == 0:
            raise ValueError(f"{name}: got shape {tuple(z.shape)}, needed ({nodes}, d) as proximity has")
        _check_device(name, z, proximity)
    if present is not None and not isinstance(present, Mapping):
        what = type(present).__name__
        raise ValueError(f"present: got {what}, needed a mapping of modality names to (N,) bool tensors")
    for modality, mask in (present or {}).items():
        name = f"present[{modality!r}]"
        if modality not in embeddings:
            raise ValueError(f"{name}: no such modality; embeddings has {', '.join(map(repr, embeddings))}")
        check_tensor(name, mask, what="bool")
        if mask.shape != (nodes,):
            raise ValueError(f"{name}: got shape {tuple(mask.shape)}, needed ({nodes},)")
        _check_device(name, mask, proximity)


def _check_device(name: str, x: Tensor, proximity: Tensor) -> None:
    if x.device != proximity.device:
        raise ValueError(f"{name} is on {x.device}, proximity on {proximity.device}; needed one device")


def _check_values(checks: DeferredChecks, names: list[str], C_m: CosineCost, there: Tensor) -> None:
    # NaN and infinity have made their whole row's direction NaN.
    bad = there & C_m.directions.detach()[:, :, 0].isnan()

    def explain() -> str:
        m, row = bad.nonzero()[0].tolist()
        return f"embeddings[{names[m]!r}]: row {row} has NaN or infinity ({int(bad[m].sum())} such rows)"

    checks.refuse_if(bad.any(), explain)
