"""The transport problem: its costs and weights, and the linearisation of its quadratic term at a plan.

Symbols: b problems of one batch, N nodes, i, k modality side, j, l graph side.

    A, B   C_m and C_G less one common constant. |C_m − C_G|² does not see it, and without it the products below are
           small differences of large numbers (a loss of three digits in reduced precision)
    L⊗π    (b, N, N)  Σ_kl |C_m(i,k) − C_G(j,l)|² π_kl = (A²)p 1ᵀ + 1 ((B²)q)ᵀ − 2 AπB,   p = π1, q = πᵀ1

With A = QσQᵀ (a :class:`CosineCost` of fewer columns than nodes), AπB = Q · σQᵀπB: two products of N² r operations
and one with B, against 4N³. The (r, N) core σQᵀπB says all, scalars included: ⟨AπB, π'⟩ = ⟨core, Qᵀπ'⟩.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from optimag_dist.ufgw.costs import CosineCost, Cost, DenseCost, SparseCost
from optimag_dist.ufgw.plan import Plan
from optimag_dist.ufgw.sinkhorn import Entropic

# A factor of more columns than this share of N makes the dense products the cheaper ones (measured: docs/ufgw.md).
_FACTOR_UP_TO = 0.55
# Masses whose sum is this near to 1 sum to 1.
UNIT = 1e-3
# Products of few columns against N² go block by block on the CPU once N² leaves the cache: the library's own blocking
# is made for square matrices and takes up to 1.7 times as long (measured: docs/ufgw.md).
_BLOCK = 128
_BLOCKS_UP_TO_COLUMNS = 130
# N from which blocks pay: for a result of few rows, and for one of N².
_FEW_FROM = 1024
_MANY_FROM = 3072


@dataclass(frozen=True, eq=False)
class Linearised:
    """L⊗π of a plan, in parts.

    Attributes:
        rows, columns: (b, N) (A²)p and (B²)q.
        core, reduced: (b, r, N) σQᵀπB and Qᵀπ; or, where A is dense, (b, N, N) AπB and None, for which the plan itself
            stands.
    """

    rows: Tensor
    columns: Tensor
    core: Tensor
    reduced: Tensor | None

    def scaled_(self, factor: Tensor) -> "Linearised":
        """That of ``factor`` (b,) times the plan, in place."""
        for x in vars(self).values():
            if x is not None:
                x.mul_(factor.view(-1, *[1] * (x.ndim - 1)))
        return self

    def lerp_(self, other: "Linearised", share: Tensor) -> "Linearised":
        """That of (1 − share) π + share π', ``share`` (b,), in place."""
        for x, y in zip(vars(self).values(), vars(other).values(), strict=True):
            if x is not None:
                x.lerp_(y, share.view(-1, *[1] * (x.ndim - 1)))
        return self


@dataclass(frozen=True, eq=False)
class UFGWProblem:
    """One batch of problems, checked and brought to one form.

    Attributes:
        A, B: shifted modality cost, a CosineCost where its factor pays, else a DenseCost; and shifted graph cost.
        M: cost between the sides; only its values are used, so it need not be symmetric.
        mu, nu: (b, N) contiguous, marginals of the modality and the graph side; 0 where a node is absent.
        rho_mu, rho_nu: (b, N) contiguous, > 0, marginal weight of each node on either side; inf pins its mass.
        alpha, epsilon: weights of structure and entropy.
        shift: what A and B were shifted by, 0-dim.
        tensor_kl: the marginals' and the plan's KL are taken of product measures (``marginal="kl_tensor"``).
    """

    A: CosineCost | DenseCost
    B: Cost
    M: Cost
    mu: Tensor
    nu: Tensor
    rho_mu: Tensor
    rho_nu: Tensor
    alpha: float
    epsilon: float
    shift: Tensor
    tensor_kl: bool = False

    @staticmethod
    def build(
        C_m: Cost, C_G: Cost, M: Cost, *vectors: Tensor, alpha: float, epsilon: float, tensor_kl: bool = False
    ) -> "UFGWProblem":
        """Bring checked operands, ``vectors`` μ, ν, ρ_μ and ρ_ν (1 or b, 1 or N), to the solver's form: one dtype,
        centred costs, vectors of the whole batch."""
        dtype = torch.float32
        for given in (C_m.dtype, C_G.dtype, M.dtype, vectors[0].dtype, vectors[1].dtype):
            dtype = torch.promote_types(dtype, given)
        C_m, C_G, M = C_m.to(dtype), C_G.to(dtype), M.to(dtype)
        shape = max([x.batch_size for x in (C_m, C_G, M)] + [len(x) for x in vectors]), C_m.nodes
        mu, nu, rho_mu, rho_nu = (x.to(dtype).expand(shape).contiguous() for x in vectors)
        shift = C_G.mean(nu).mean()
        B, A = C_G.shifted(shift), C_m.shifted(shift)
        if not (isinstance(A, CosineCost) and A.rank <= _FACTOR_UP_TO * A.nodes):
            A = DenseCost(A.dense())
        return UFGWProblem(A, B, M, mu, nu, rho_mu, rho_nu, alpha, epsilon, shift, tensor_kl)

    @property
    def batch_size(self) -> int:
        return len(self.mu)

    @cached_property
    def pinned(self) -> Tensor:
        """(b,) bool: some node's mass is fixed by ρ = ∞, and with it that of the whole plan."""
        return (self.rho_mu.isinf() | self.rho_nu.isinf()).any(1)

    @cached_property
    def highest_anchor_cost(self) -> Tensor:
        """(1 or b,) the largest number that M is made of."""
        return self.M.constant if isinstance(self.M, SparseCost) else self.M.dense().amax((1, 2))

    @cached_property
    def masses(self) -> Tensor:
        """(2, b) Σ μ and Σ ν."""
        return torch.stack((self.mu.sum(1), self.nu.sum(1)))

    def linearise_product(self, a: Tensor, b: Tensor) -> tuple[Linearised, Tensor]:
        """L⊗π of π = a⊗b, of which nothing (N, N) has to be formed, and ⟨L⊗π, π⟩ (b,)."""
        mass = a.sum(1, keepdim=True)
        rows, columns = self.A.squared_times(a), self.B.squared_times(b * mass)
        right = self.B.right_matmul(b[:, None, :])
        reduced = None
        if isinstance(self.A, CosineCost):
            left = (a[:, None, :] @ self.A.factor).mT
            reduced = left * b[:, None, :]
            left = left * self.A.signs[:, None]
            quadratic = (left.square() * self.A.signs[:, None]).sum((1, 2))
        else:
            left = self.A.right_matmul(a[:, None, :]).mT
            quadratic = (left[:, :, 0] * a).sum(1)
        own = (rows * a).sum(1) + (columns * b * mass).sum(1) - 2 * quadratic * (right[:, 0] * b).sum(1)
        return Linearised(rows, columns, left * right, reduced), own

    def linearise(self, plan: Plan) -> tuple[Plan, Linearised]:
        """L⊗π, and the plan to go on with: where A is dense, multiplied out in its own memory."""
        reduced = None
        if isinstance(self.A, CosineCost):
            reduced = product_to_few(self.A.factor * plan.a[:, :, None], plan.kernel).mul_(plan.b[:, None, :])
            core = self.B.right_matmul(reduced) * self.A.signs[:, None]
        else:
            plan = plan.multiplied_out_()
            core = product_between(self.A.values, plan.kernel, self.B)
        rows, columns = self.A.squared_times(plan.rows), self.B.squared_times(plan.columns)
        return plan, Linearised(rows, columns, core, reduced)

    def linearised_cost(self, at: Linearised, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cost of the entropic problem, (1−α)M + 2α L⊗π, as a matrix (b, N, N) in ``out`` and its additions to rows
        and columns (b, N). The 2 belongs to the objective: the gradient of ⟨L⊗π, π⟩ is 2 L⊗π."""
        x, y = 2 * self.alpha * at.rows, 2 * self.alpha * at.columns
        if isinstance(self.A, CosineCost):
            product_to_many(self.A.factor.expand(len(out), -1, -1), at.core * (-4 * self.alpha), out)
        else:
            torch.mul(at.core, -4 * self.alpha, out=out)
        if isinstance(self.M, SparseCost):
            x = x + ((1 - self.alpha) * self.M.constant)[:, None]
            self.M.take_off_entries(out, 1 - self.alpha)
        else:
            out.add_(self.M.dense(), alpha=1 - self.alpha)
        return out, x, y

    def interaction(self, at: Linearised, plan: Plan, of_plan: Linearised) -> Tensor:
        """(b,) ⟨L⊗π, π'⟩ of the linearisation ``at`` π, and a plan π' with its own (multiplied out if A is dense)."""
        moved = plan.kernel if of_plan.reduced is None else of_plan.reduced
        return (at.rows * plan.rows).sum(1) + (at.columns * plan.columns).sum(1) - 2 * (at.core * moved).sum((1, 2))

    def entropic(self, factor: Tensor | None = None) -> Entropic:
        """Marginals and weights of the linearised problem, the weights times ``factor`` (b,)."""
        factor = torch.ones_like(self.mu[:, 0]) if factor is None else factor
        rho_mu, rho_nu = self.rho_mu * factor[:, None], self.rho_nu * factor[:, None]
        return Entropic(self.mu, self.nu, rho_mu, rho_nu, self.epsilon * factor)

    def select(self, entries: Tensor) -> "UFGWProblem":
        """The problems of the batch that ``entries`` (int64) names."""
        A, B, M = (x.select(entries) for x in (self.A, self.B, self.M))
        assert isinstance(A, (CosineCost, DenseCost))
        vectors = {name: getattr(self, name)[entries] for name in ("mu", "nu", "rho_mu", "rho_nu")}
        return replace(self, A=A, B=B, M=M, **vectors)


def product_to_few(left: Tensor, matrix: Tensor) -> Tensor:
    """(b, N, r), (b, N, N) → leftᵀ · matrix (b, r, N)."""
    if not _in_blocks(left, _FEW_FROM):
        return left.mT @ matrix
    nodes = left.shape[1]
    out = left.new_empty(len(matrix), left.shape[2], nodes)
    for x, y, result in zip(left.expand(len(matrix), -1, -1), matrix, out, strict=True):
        torch.mm(x[:_BLOCK].T, y[:_BLOCK], out=result)
        for start in range(_BLOCK, nodes, _BLOCK):
            rows = slice(start, start + _BLOCK)
            result.addmm_(x[rows].T, y[rows])
    return out


def product_to_many(left: Tensor, right: Tensor, out: Tensor) -> None:
    """(b, N, r), (b, r, N) → left · right (b, N, N) in ``out``."""
    if not _in_blocks(left, _MANY_FROM):
        torch.bmm(left, right, out=out)
        return
    for x, y, result in zip(left, right, out, strict=True):
        for start in range(0, left.shape[1], _BLOCK):
            columns = slice(start, start + _BLOCK)
            torch.mm(x, y[:, columns], out=result[:, columns])


def product_between(left: Tensor, matrix: Tensor, right: Cost) -> Tensor:
    """(1 or b, N, N), (b, N, N), cost → left · matrix · right (b, N, N), with a share of N² numbers in between."""
    out = torch.empty_like(matrix)
    rows = max(512, -(-left.shape[1] // 8))
    for x, result in zip(left.split(rows, 1), out.split(rows, 1), strict=True):
        result.copy_(right.right_matmul(x @ matrix))
    return out


def _in_blocks(left: Tensor, from_nodes: int) -> bool:
    return left.device.type == "cpu" and left.shape[1] >= from_nodes and left.shape[2] <= _BLOCKS_UP_TO_COLUMNS
