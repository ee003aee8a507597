"""A transport plan that is not multiplied out, π = diag(a) K diag(b), and what the solver asks of it.

Sinkhorn's iteration leaves the plan in this form, and nearly everything can be had from it without writing N² numbers.
On the CPU the sums over K run in compiled kernels where numba is installed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from optimag_dist.ufgw.backend import compiled_for
from optimag_dist.ufgw.costs import Cost, SparseCost


@dataclass(frozen=True, eq=False)
class Plan:
    """π = diag(a) K diag(b) of each problem of a batch: ``kernel`` K (b, N, N) ≥ 0, contiguous; a, b (b, N) ≥ 0, 0 at
    absent nodes; the masses π1 and πᵀ1 (b, N) of its rows and columns."""

    kernel: Tensor
    a: Tensor
    b: Tensor
    rows: Tensor
    columns: Tensor

    @property
    def mass(self) -> Tensor:
        """(b,)"""
        return self.rows.sum(1)

    def scaled_(self, factor: Tensor) -> "Plan":
        """``factor`` (b,) times the plan, in place."""
        for x in (self.a, self.rows, self.columns):
            x.mul_(factor[:, None])
        return self

    def multiplied_out_(self) -> "Plan":
        """The same plan with a = b = 1, in the memory of this one's kernel: this one must not be used any more."""
        kernel = self.kernel.mul_(self.a[:, :, None]).mul_(self.b[:, None, :])
        return Plan(kernel, torch.ones_like(self.a), torch.ones_like(self.b), self.rows, self.columns)

    def lerp_(self, other: "Plan", share: Tensor) -> "Plan":
        """(1 − share) π + share π' for ``share`` (b,), in the memory of this plan's kernel; spoils both plans."""
        mine, theirs, s = self.multiplied_out_(), other.multiplied_out_(), share[:, None]
        kernel = mine.kernel.lerp_(theirs.kernel, s[:, :, None])
        return Plan(kernel, mine.a, mine.b, mine.rows.lerp(theirs.rows, s), mine.columns.lerp(theirs.columns, s))

    def log_moment_(self) -> tuple["Plan", Tensor]:
        """The plan multiplied out as above, and Σ π log π (b,)."""
        if compiled := compiled_for(self.kernel):
            moment: Tensor = compiled.multiply_out(self.kernel, self.a, self.b)
            ones = torch.ones_like(self.a), torch.ones_like(self.b)
            return Plan(self.kernel, *ones, self.rows, self.columns), moment
        plan = self.multiplied_out_()
        # xlogy: 0 log 0 is 0, where π·log π is NaN once a plan underflows.
        return plan, torch.xlogy(plan.kernel, plan.kernel).sum((1, 2))

    def distance(self, other: "Plan") -> Tensor:
        """(b,) Σ |π − π'|."""
        if compiled := compiled_for(self.kernel):
            out: Tensor = compiled.distance(self.kernel, self.a, self.b, other.kernel, other.a, other.b)
            return out
        mine = self.kernel * self.a[:, :, None] * self.b[:, None, :]
        theirs = other.kernel * other.a[:, :, None] * other.b[:, None, :]
        return mine.sub_(theirs).abs_().sum((1, 2))

    def inner(self, cost: Cost) -> Tensor:
        """(b,) ⟨C, π⟩; a dense C need not be symmetric."""
        if not isinstance(cost, SparseCost):
            return ((self.kernel * cost.dense() @ self.b[:, :, None])[:, :, 0] * self.a).sum(1)
        if compiled := compiled_for(self.kernel):
            below = compiled.sparse_inner(self.kernel, self.a, self.b, cost.indptr, cost.indices, cost.values)
        else:
            problem, row, column, values = cost.entries(len(self.kernel))
            products = self.kernel[problem, row, column] * self.a[problem, row] * self.b[problem, column] * values
            below = products.new_zeros(len(self.kernel)).index_add_(0, problem, products)
        return cost.constant * self.mass - below
