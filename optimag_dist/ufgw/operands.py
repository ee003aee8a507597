"""What comes in becomes a :class:`UFGWProblem`, or a ValueError that says what came and what was needed.

Shapes are looked at right away. Values are noted as flags that stay on the device and are read once, with the solver's
own health (:class:`~optimag_dist.ufgw.validation.DeferredChecks`); that costs one or two sweeps over each matrix.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from optimag_dist.ufgw.costs import CosineCost, Cost, DenseCost, SparseCost
from optimag_dist.ufgw.problem import UFGWProblem
from optimag_dist.ufgw.validation import DeferredChecks, as_number, check_tensor, check_weights

MARGINALS = ("kl", "kl_tensor")

# One weight for all nodes, or (N,) or (batch, N) of them; a pair is of the two sides.
OneSide = float | Tensor
Rho = OneSide | tuple[OneSide, OneSide]


def build_problem(
    C_m: Cost | Tensor,
    C_G: Cost | Tensor,
    M: Cost | Tensor,
    mu: Tensor | None,
    nu: Tensor | None,
    *,
    alpha: float,
    rho: Rho,
    epsilon: float,
    marginal: str,
    checks: DeferredChecks,
) -> UFGWProblem:
    """Check shapes at once and values through ``checks``, and bring everything to the solver's form."""
    if marginal not in MARGINALS:
        raise ValueError(f"marginal={marginal!r}: needed one of {', '.join(map(repr, MARGINALS))}")
    check_weights(alpha, epsilon)
    alpha, epsilon = as_number("alpha", alpha), as_number("epsilon", epsilon)
    costs = {name: as_cost(name, x) for name, x in (("C_m", C_m), ("C_G", C_G), ("M", M))}
    reference = costs["C_m"]
    for name, cost in costs.items():
        _check_same_nodes(name, cost.nodes, cost.device, reference)
    given = {name: None if x is None else _as_vectors(name, x, reference) for name, x in (("mu", mu), ("nu", nu))}
    weights = _as_rho(rho, reference, marginal)
    sizes = {cost.batch_size for cost in costs.values()}
    sizes |= {len(x) for x in (*given.values(), *weights.values()) if x is not None}
    if 0 in sizes or len(sizes - {1}) > 1:
        raise ValueError(f"batch sizes {sorted(sizes)} do not go together; needed one size, or 1 to share an operand")
    # What has no direction takes no part on its side, and on neither where nothing else is said.
    uniform = _uniform(*costs.values())
    masses = {}
    for (name, x), cost in zip(given.items(), costs.values(), strict=False):
        # A node that has no place in a cosine cost, absent or its embedding of length 0, has no mass.
        masses[name] = uniform if x is None else x * (cost.weights > 0) if isinstance(cost, CosineCost) else x

    for name, cost in costs.items():
        check_cost(checks, name, cost, symmetric=name != "M")
    for name, x in masses.items():
        if x is not uniform:
            _check_masses(checks, name, x)
    for name, x in weights.items():
        _check_rho(checks, name, x)
    rho_mu, *others = weights.values()
    (A, B, M), vectors = costs.values(), [*masses.values(), rho_mu, *(others or [rho_mu])]
    _check_balance(checks, *vectors)
    if exchanges_sides(C_m, C_G):
        A, B, M = B, A, DenseCost(M.values.mT) if isinstance(M, DenseCost) else M
        vectors = [vectors[i] for i in (1, 0, 3, 2)]
    return UFGWProblem.build(A, B, M, *vectors, alpha=alpha, epsilon=epsilon, tensor_kl=marginal == "kl_tensor")


def exchanges_sides(C_m: Cost | Tensor, C_G: Cost | Tensor) -> bool:
    """Whether the problem is built with its sides exchanged: the factor of a cosine cost is used on the modality's."""
    return isinstance(C_G, CosineCost) and not isinstance(C_m, CosineCost)


def _uniform(*costs: Cost) -> Tensor:
    """(1 or b, N) equal masses of the nodes that have a place in all cosine costs, 0 of the others."""
    weights = [cost.weights for cost in costs if isinstance(cost, CosineCost)]
    if not weights:
        return torch.full((1, costs[0].nodes), 1 / costs[0].nodes, dtype=costs[0].dtype, device=costs[0].device)
    if len(weights) == 1:
        return weights[0]
    there = torch.stack(torch.broadcast_tensors(*weights)).amin(0) > 0
    return there / there.sum(1, keepdim=True).clamp_min(1)


def as_cost(name: str, cost: Cost | Tensor) -> Cost:
    if isinstance(cost, Cost):
        return cost
    check_tensor(name, cost)
    if cost.ndim not in (2, 3) or cost.shape[-1] != cost.shape[-2] or cost.shape[-1] == 0:
        raise ValueError(f"{name}: got shape {tuple(cost.shape)}, needed (N, N) or (batch, N, N) with N ≥ 1")
    cost = cost.detach().to(torch.promote_types(cost.dtype, torch.float32))
    return DenseCost(cost if cost.ndim == 3 else cost[None])


def _as_vectors(name: str, x: Tensor, reference: Cost) -> Tensor:
    check_tensor(name, x)
    if x.ndim not in (1, 2):
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, needed (N,) or (batch, N)")
    _check_same_nodes(name, x.shape[-1], x.device, reference)
    return x.detach() if x.ndim == 2 else x.detach()[None]


def _check_same_nodes(name: str, nodes: int, device: torch.device, reference: Cost) -> None:
    if device != reference.device:
        raise ValueError(f"{name} is on {device} and C_m on {reference.device}; needed one device")
    if nodes != reference.nodes:
        raise ValueError(f"{name}: got {nodes} nodes where C_m has {reference.nodes}; both sides are the same nodes")


def _as_rho(rho: Rho, reference: Cost, marginal: str) -> dict[str, Tensor]:
    if isinstance(rho, tuple) and len(rho) != 2:
        raise ValueError(f"rho: got a tuple of {len(rho)}, needed one weight or the pair (of mu, of nu)")
    sides = dict(zip(("rho (mu)", "rho (nu)"), rho, strict=True)) if isinstance(rho, tuple) else {"rho": rho}
    vectors = {}
    for name, side in sides.items():
        if isinstance(side, Tensor) and side.ndim:
            if marginal == "kl_tensor":
                raise ValueError(f"{name}: got one weight per node with marginal='kl_tensor', which knows one per side")
            vectors[name] = _as_vectors(name, side, reference)
        else:
            if isinstance(side, (list, tuple)):
                raise ValueError(
                    f"{name}: got a {type(side).__name__}, needed a number, a torch.Tensor of one per node, or a tuple "
                    "of these for the two sides"
                )
            number = as_number(name, side)
            if not number > 0:
                raise ValueError(f"{name}={side!r}: needed a number above 0 (math.inf keeps the marginals)")
            vectors[name] = torch.full((1, 1), number, dtype=reference.dtype, device=reference.device)
    return vectors


def check_cost(checks: DeferredChecks, name: str, cost: Cost, *, symmetric: bool) -> None:
    if isinstance(cost, DenseCost):
        values = cost.values
        high = checks.refuse_negative(name, values, what="costs", tolerance=_rounding(values))
        if symmetric:
            vector = _no_pattern(cost.nodes, values)[None, None, :]
            across = (vector @ values)[:, 0] - (vector @ values.mT)[:, 0]
            _refuse_asymmetric(checks, name, across, high, lambda: float((values - values.mT).abs().max()))
    elif isinstance(cost, SparseCost):
        _check_sparse(checks, name, cost)
    elif isinstance(cost, CosineCost):
        lengths = cost.directions.detach().square().sum(2)
        # What has no direction has no weight either.
        bad = (cost.weights > 0) & ~((lengths - 1).abs() < 0.1)
        checks.refuse_if(
            bad.any(),
            lambda: (
                f"{name}: embedding {int(bad.nonzero()[0, 1])} of problem {int(bad.nonzero()[0, 0])} has NaN or "
                f"infinity ({int(bad.sum())} in all); needed finite numbers, or the node marked absent"
            ),
        )
        checks.refuse_if(
            (cost.weights.amax(1) <= 0).any(),
            lambda: f"{name}: no embedding has a direction; needed one that is neither absent nor zero in each problem",
        )


def _check_sparse(checks: DeferredChecks, name: str, cost: SparseCost) -> None:
    constant, indptr, indices, values = cost.constant, cost.indptr, cost.indices, cost.values
    rows, stored = len(indptr) - 1, len(values)
    if rows < 1 or rows % len(constant) or len(indices) != stored:
        raise ValueError(
            f"{name}: got {len(constant)} constants, an indptr of {len(indptr)}, {len(indices)} indices and {stored} "
            "values; needed a multiple of the constants plus 1 in indptr, and as many indices as values"
        )
    if values.device.type == "cpu" and not cost.sound:
        # At once: the kernels would read and write wherever the indices point.
        ends, counts = (int(indptr[0]), int(indptr[-1])), indptr.diff()
        if ends != (0, stored) or int(counts.amin()) < 0:
            raise ValueError(f"{name}: indptr goes from {ends[0]} to {ends[1]}; needed 0 to {stored} without falling")
        low, high = (int(x) for x in indices.aminmax()) if stored else (0, 0)
        if low < 0 or high >= cost.nodes:
            raise ValueError(f"{name}: indices from {low} to {high}; needed columns from 0 to {cost.nodes - 1}")
    checks.refuse_negative(f"the constant of {name}", constant, what="costs")
    highest = checks.refuse_negative(f"S of {name}", values, what="entries")
    checks.refuse_if(
        (values > cost.constant_of_entries * (1 + 1e-3)).any(),
        lambda: f"{name} = constant − S is negative where S is above its constant; needed costs of at least 0",
    )
    if not cost.sound:
        across = cost.asymmetry(_no_pattern(cost.nodes, values))
        _refuse_asymmetric(checks, name, across, highest, lambda: float((cost.dense() - cost.dense().mT).abs().max()))


def _refuse_asymmetric(
    checks: DeferredChecks, name: str, across: Tensor, high: Tensor, gap: Callable[[], float]
) -> None:
    """``across`` (b, N) is (C − Cᵀ)v of a vector of no pattern: two products see what is not symmetric in one sweep
    each, where comparing with the transpose reads memory across its grain."""
    checks.refuse_if(
        across.abs().amax() > _rounding(across) * high * across.shape[1] ** 0.5,
        lambda: f"{name} differs from its transpose by up to {gap():.3g}; needed a symmetric cost, ½({name} + {name}ᵀ)",
    )


def _no_pattern(nodes: int, like: Tensor) -> Tensor:
    """(N,) multiples of the golden ratio, evenly spread over [−1, 1]."""
    steps = torch.arange(1, nodes + 1, dtype=torch.float64, device=like.device)
    return (2 * (steps * ((5**0.5 - 1) / 2)).frac() - 1).to(like.dtype)


def _rounding(x: Tensor) -> float:
    """The square root of the rounding unit: what 1 − zᵀz, or a product whose halves were summed in another order,
    shows."""
    return float(torch.finfo(x.dtype).eps ** 0.5)


def _check_masses(checks: DeferredChecks, name: str, masses: Tensor) -> None:
    checks.refuse_negative(name, masses, what="masses", note=" (0: node absent)")
    empty = masses.amax(1) <= 0
    checks.refuse_if(
        empty.any(),
        lambda: f"{name}: all nodes of problem {int(empty.nonzero()[0])} are masked; needed one with mass above 0",
    )


def _check_rho(checks: DeferredChecks, name: str, rho: Tensor) -> None:
    checks.refuse_if(
        ~(rho > 0).all(),
        lambda: f"{name}: {int((~(rho > 0)).sum())} weights are NaN or not above 0; math.inf keeps a node's mass",
    )


def _check_balance(checks: DeferredChecks, mu: Tensor, nu: Tensor, rho_mu: Tensor, rho_nu: Tensor) -> None:
    """No plan has two given marginals of unequal mass."""
    if mu is nu:
        return
    pinned = (rho_mu.isinf() | (mu == 0)).all(1) & (rho_nu.isinf() | (nu == 0)).all(1)
    of_mu, of_nu = mu.sum(1), nu.sum(1)
    checks.refuse_if(
        (pinned & ((of_mu - of_nu).abs() > 1e-3 * torch.maximum(of_mu, of_nu))).any(),
        lambda: (
            f"mu sums to {of_mu.tolist()} and nu to {of_nu.tolist()} where rho=inf keeps both; "
            "needed equal sums, or a finite rho on one side"
        ),
    )
