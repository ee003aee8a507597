"""The transport problem: its data and weights, what it costs to be at a plan, and what its input must satisfy.

Symbols: b problems of one batch (an operand that is shared has 1 there), N nodes, i, k modality side, j, l graph side.

    A, B   (b, N, N)  C_m and C_G less one common constant. |C_m − C_G|² does not see it, and without it the products
                      below are small differences of large numbers (a loss of three digits in reduced precision)
    L⊗π    (b, N, N)  Σ_kl |C_m(i,k) − C_G(j,l)|² π_kl = (A²)p 1ᵀ + 1 ((B²)q)ᵀ − 2 AπB,   p = π1, q = πᵀ1
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from optimag_dist.ufgw.checks import DoorChecks, check_weights

MARGINALS = ("kl",)


@dataclass(frozen=True)
class UFGWProblem:
    """One batch of problems; C_m and C_G are symmetric.

    Attributes:
        A: (b, N, N) centred modality costs.
        B: (1 or b, N, N) centred graph cost.
        M: (1 or b, N, N) cost between the sides.
        mu: (1 or b, N) marginal of the modality side; 0 where a node is absent.
        nu: (1 or b, N) marginal of the graph side.
        alpha: structure weight.
        rho: marginal weight.
        epsilon: entropy weight.
    """

    A: Tensor
    B: Tensor
    M: Tensor
    mu: Tensor
    nu: Tensor
    alpha: float
    rho: float
    epsilon: float

    @property
    def batch_size(self) -> int:
        return max(x.shape[0] for x in (self.A, self.B, self.M, self.mu, self.nu))

    @cached_property
    def _squares(self) -> tuple[Tensor, Tensor]:
        return self.A.square(), self.B.square()

    def product_plan(self) -> Tensor:
        """(b, N, N) μ⊗ν, scaled to the geometric mean of the two masses."""
        plan = self.mu[:, :, None] * self.nu[:, None, :]
        plan = plan / plan.sum((1, 2), keepdim=True).sqrt()
        return plan.expand(self.batch_size, -1, -1).clone()

    def linearise(self, plan: Tensor) -> Tensor:
        """(b, N, N) plan → L⊗π (b, N, N), half the gradient of the quadratic term."""
        A2, B2 = self._squares
        rows = _apply(A2, plan.sum(2))
        columns = _apply(B2, plan.sum(1))
        inner = plan @ self.B[0] if self.B.shape[0] == 1 else plan @ self.B
        return (self.A @ inner).mul_(-2).add_(rows[:, :, None]).add_(columns[:, None, :])

    def linearised_cost(self, linearised: Tensor) -> Tensor:
        """Cost of the entropic problem at a plan. The 2 belongs to the objective: the gradient of ⟨L⊗π, π⟩ is 2 L⊗π."""
        return torch.add((1 - self.alpha) * self.M, linearised, alpha=2 * self.alpha)

    def select(self, entries: Tensor) -> "UFGWProblem":
        """The problems of the batch that ``entries`` (int64) names."""
        operands = (
            x if x.shape[0] == 1 else x.index_select(0, entries) for x in (self.A, self.B, self.M, self.mu, self.nu)
        )
        A, B, M, mu, nu = operands
        A = A.expand(len(entries), -1, -1)  # so that the selection's batch size is known even where all is shared
        return UFGWProblem(A, B, M, mu, nu, self.alpha, self.rho, self.epsilon)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Symmetric (1 or b, N, N) times (b, N). As rows from the left: torch's batched product is several times slower
    on (N, 1) columns than on (1, N) rows."""
    if matrix.shape[0] == 1:
        return vector @ matrix[0]
    return (vector[:, None, :] @ matrix)[:, 0]


def build_problem(
    C_m: Tensor,
    C_G: Tensor,
    M: Tensor,
    mu: Tensor | None,
    nu: Tensor | None,
    *,
    alpha: float,
    rho: float,
    epsilon: float,
    checks: DoorChecks,
) -> UFGWProblem:
    """Check shapes at once and values through ``checks``, bring everything to one dtype, and centre the costs.

    Raises:
        ValueError: shapes, dtypes, devices or weights do not fit.
    """
    check_weights(alpha, rho, epsilon, 1, 1)
    _check_operands({"C_m": C_m, "C_G": C_G, "M": M}, {"mu": mu, "nu": nu})
    given = [x for x in (C_m, C_G, M, mu, nu) if x is not None]
    dtype = torch.float32
    for x in given:
        dtype = torch.promote_types(dtype, x.dtype)
    C_m, C_G, M = (_batched(x, 2).to(dtype) for x in (C_m, C_G, M))
    nodes = C_m.shape[-1]
    uniform = torch.full((1, nodes), 1 / nodes, dtype=dtype, device=C_m.device)
    mu, nu = (uniform if x is None else _batched(x, 1).to(dtype) for x in (mu, nu))

    for name, cost in (("C_m", C_m), ("C_G", C_G), ("M", M)):
        _check_cost(checks, name, cost, symmetric=name != "M")
    for name, marginal in (("mu", mu), ("nu", nu)):
        _check_marginal(checks, name, marginal)
    mean = ((nu[:, None, :] @ C_G)[:, 0] * nu).sum(1) / nu.sum(1).square()
    shift = mean.mean()
    return UFGWProblem(C_m - shift, C_G - shift, M, mu, nu, alpha, rho, epsilon)


def _batched(x: Tensor, dims: int) -> Tensor:
    return x[None] if x.ndim == dims else x


def _check_operands(costs: dict[str, Tensor], marginals: dict[str, Tensor | None]) -> None:
    operands: list[tuple[str, Tensor, int]] = []
    for name, cost in costs.items():
        if not isinstance(cost, Tensor) or not cost.is_floating_point():
            kind = cost.dtype if isinstance(cost, Tensor) else type(cost).__name__
            raise ValueError(f"{name}: got {kind}, needed a floating point torch.Tensor (torch.as_tensor converts)")
        if cost.ndim not in (2, 3) or cost.shape[-1] != cost.shape[-2] or cost.shape[-1] == 0:
            raise ValueError(f"{name}: got shape {tuple(cost.shape)}, needed (N, N) or (batch, N, N) with N ≥ 1")
        operands.append((name, cost, 2))
    nodes = costs["C_m"].shape[-1]
    for name, marginal in marginals.items():
        if marginal is None:
            continue
        if not isinstance(marginal, Tensor) or not marginal.is_floating_point():
            kind = marginal.dtype if isinstance(marginal, Tensor) else type(marginal).__name__
            raise ValueError(f"{name}: got {kind}, needed a floating point torch.Tensor")
        if marginal.ndim not in (1, 2):
            raise ValueError(f"{name}: got shape {tuple(marginal.shape)}, needed (N,) or (batch, N)")
        operands.append((name, marginal, 1))
    sizes = set()
    for name, x, dims in operands:
        if x.shape[-1] != nodes:
            raise ValueError(f"{name}: got {x.shape[-1]} nodes where C_m has {nodes}; both sides are the same nodes")
        if x.device != costs["C_m"].device:
            raise ValueError(f"{name} is on {x.device} and C_m on {costs['C_m'].device}; needed one device")
        if x.ndim > dims:
            sizes.add(x.shape[0])
    if 0 in sizes or len(sizes - {1}) > 1:
        raise ValueError(f"batch sizes {sorted(sizes)} do not go together; needed one size, or 1 to share an operand")


def _check_cost(checks: DoorChecks, name: str, cost: Tensor, *, symmetric: bool) -> None:
    checks.refuse_non_finite(cost, name)
    # The square root of the rounding unit: what 1 − zᵀz, or a product whose halves were summed in another order, shows.
    tolerance = torch.finfo(cost.dtype).eps ** 0.5 * cost.abs().amax()

    def negative() -> str:
        return f"{name} has a minimum of {float(cost.min()):.3g}; needed costs of at least 0"

    checks.refuse_if(cost.amin() < -tolerance, negative)
    if symmetric:

        def asymmetric() -> str:
            gap = float((cost - cost.mT).abs().max())
            return f"{name} differs from its transpose by up to {gap:.3g}; needed a symmetric cost, ½({name} + {name}ᵀ)"

        checks.refuse_if((cost - cost.mT).abs().amax() > tolerance, asymmetric)


def _check_marginal(checks: DoorChecks, name: str, marginal: Tensor) -> None:
    checks.refuse_non_finite(marginal, name)

    def negative() -> str:
        return f"{name} has a minimum of {float(marginal.min()):.3g}; needed masses of at least 0 (0: node absent)"

    def empty() -> str:
        entry = int((marginal.sum(1) <= 0).nonzero()[0])
        return f"{name}: all nodes of problem {entry} are masked; needed at least one with mass above 0"

    checks.refuse_if(marginal.amin() < 0, negative)
    checks.refuse_if((marginal.amax(1) <= 0).any(), empty)
