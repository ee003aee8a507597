"""The graph cost and the anchor cost as a constant less a sparse matrix."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from optimag_dist.ufgw.backend import compiled_for
from optimag_dist.ufgw.costs.base import Cost
from optimag_dist.ufgw.costs.dense import AnchorCostKind, DenseCost, anchor_cost, check_kind, graph_cost
from optimag_dist.ufgw.validation import check_tensor, require_positive

# Share of stored entries up to which a sparse product is worth it on the CPU (measured: docs/ufgw.md).
_SPARSE_UP_TO = 0.2


@dataclass(frozen=True, eq=False)
class SparseCost(Cost):
    """c 11ᵀ − S with a sparse symmetric S ≥ 0: nearly all pairs of nodes are equally far.

    Attributes:
        constant: (b,) c.
        indptr, indices: (b·N + 1,) int32, S as CSR, the problems of a batch below one another, and (nnz,) int32 columns
            within the problem, 0 ≤ j < N.
        values: (nnz,) float32 or float64.
        sound: made here, so that the solver need not look at the places of the entries and their symmetry.
    """

    constant: Tensor
    indptr: Tensor
    indices: Tensor
    values: Tensor
    sound: bool = False

    @staticmethod
    def from_proximity(proximity: Tensor, delta: float = 1e-5) -> "SparseCost":
        """C̄_G of (N, N) or (b, N, N) PPR, ≥ 0, mostly 0, not necessarily symmetric; see :func:`graph_cost`. Waits for a
        GPU once, for the number of entries.
        """
        require_positive(delta=delta)
        check_tensor("proximity", proximity)
        ppr = proximity if proximity.ndim == 3 else proximity[None]
        ppr = ppr.to(torch.promote_types(ppr.dtype, torch.float32))
        problems, nodes, _ = ppr.shape
        both = ppr + ppr.mT
        problem, row, column = both.nonzero(as_tuple=True)
        # −log(x + δ) is −log δ where x = 0, and lower by log(1 + x/δ) elsewhere.
        values = torch.log1p(both[problem, row, column] / (2 * delta))
        constant = values.new_zeros(problems).scatter_reduce_(0, problem, values, "amax")
        mean = constant - values.new_zeros(problems).index_add_(0, problem, values) / nodes**2
        # Everybody equally close: no distance to normalise, only rounding.
        mean = torch.where(mean > 16 * torch.finfo(mean.dtype).eps * constant, mean, torch.inf)
        counts = torch.bincount(problem * nodes + row, minlength=problems * nodes)
        indptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return SparseCost(constant / mean, indptr.int(), column.int(), values / mean[problem], sound=True)

    @staticmethod
    def all_but_self(nodes: int, *, dtype: torch.dtype, device: torch.device) -> "SparseCost":
        """11ᵀ − I."""
        places = torch.arange(nodes + 1, dtype=torch.int32, device=device)
        ones = torch.ones(nodes, dtype=dtype, device=device)
        return SparseCost(ones[:1], places, places[:-1], ones, sound=True)

    def anchor_cost(self, tau: float = 0.5) -> "SparseCost":
        """M = 1 − exp(−C̄_G/τ) of this graph cost, on the same entries; see :func:`anchor_cost`."""
        require_positive(tau=tau)
        far = torch.exp(-self.constant / tau)
        near = torch.exp((self.values - self.constant_of_entries) / tau)
        values = near - (far[self._problem] if self.batch_size > 1 else far)
        return replace(self, constant=1 - far, values=values)

    @property
    def batch_size(self) -> int:
        return len(self.constant)

    @property
    def nodes(self) -> int:
        return (len(self.indptr) - 1) // len(self.constant)

    @property
    def numbers(self) -> Tensor:
        return self.values

    @property
    def constant_of_entries(self) -> Tensor:
        """c of the problem that each stored entry belongs to, (nnz,) or (1,)."""
        return self.constant[self._problem] if self.batch_size > 1 else self.constant

    @cached_property
    def _square_below(self) -> Tensor:
        """(nnz,) c² − C² of the stored entries."""
        return self.values * (2 * self.constant_of_entries - self.values)

    @cached_property
    def _row(self) -> Tensor:
        """(nnz,) row within all problems."""
        rows = torch.arange(len(self.indptr) - 1, device=self.device)
        return rows.repeat_interleave(self.indptr.diff(), output_size=len(self.indices))

    @cached_property
    def _problem(self) -> Tensor:
        return self._row // self.nodes if self.batch_size > 1 else torch.zeros_like(self._row)

    def dense(self) -> Tensor:
        cost = self.constant[:, None].expand(-1, self.nodes**2).reshape(-1, self.nodes).clone()
        cost[self._row, self.indices] -= self.values
        return cost.view(-1, self.nodes, self.nodes)

    def to(self, dtype: torch.dtype) -> "SparseCost":
        return replace(self, constant=self.constant.to(dtype), values=self.values.to(dtype))

    def select(self, entries: Tensor) -> "SparseCost":
        if self.batch_size == 1:
            return self
        counts = self.indptr.diff().view(-1, self.nodes)
        kept = torch.cat([(self._problem == entry).nonzero()[:, 0] for entry in entries])
        indptr = torch.cat((counts.new_zeros(1), counts[entries].flatten().cumsum(0))).int()
        return SparseCost(self.constant[entries], indptr, self.indices[kept], self.values[kept], self.sound)

    def shifted(self, shift: Tensor) -> "SparseCost":
        return replace(self, constant=self.constant - shift)

    def mean(self, weights: Tensor) -> Tensor:
        return (self.right_matmul(weights[:, None, :])[:, 0] * weights).sum(1) / weights.sum(1).square()

    def right_matmul(self, x: Tensor) -> Tensor:
        if compiled := compiled_for(x):
            out: Tensor = compiled.sparse_right_matmul(x, self.indptr, self.indices, self.values, self.constant)
            return out
        return x.sum(2, keepdim=True) * self.constant[:, None, None] - self._product(x, self.values)

    def squared_times(self, v: Tensor) -> Tensor:
        if compiled := compiled_for(v):
            square = self.constant.square()
            out: Tensor = compiled.sparse_times(v, self.indptr, self.indices, self._square_below, square)
            return out
        below = self._product(v[:, None, :], self._square_below)[:, 0]
        return v.sum(1, keepdim=True) * self.constant[:, None].square() - below

    def entries(self, problems: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Problem, row, column and value of everything stored, repeated for each of ``problems`` where it is shared."""
        if self.batch_size > 1 or problems == 1:
            return self._problem, self._row % self.nodes, self.indices, self.values
        problem = torch.arange(problems, device=self.device).repeat_interleave(len(self.indices))
        return problem, self._row.repeat(problems), self.indices.repeat(problems), self.values.repeat(problems)

    def asymmetry(self, v: Tensor) -> Tensor:
        """(N,) → (S − Sᵀ)v (b, N)."""
        column = self._problem * self.nodes + self.indices
        out = v.new_zeros(len(self.indptr) - 1).index_add_(0, self._row, self.values * v[self.indices])
        out.index_add_(0, column, self.values * v[self._row % self.nodes], alpha=-1)
        return out.view(-1, self.nodes)

    def take_off_entries(self, cost: Tensor, weight: float) -> None:
        """``cost`` (b, N, N) ← cost − weight · S in place; b may be more than the batch of a shared S."""
        if compiled := compiled_for(cost):
            compiled.subtract_sparse(cost, self.indptr, self.indices, self.values, weight)
        else:
            problem, row, column, values = self.entries(len(cost))
            cost.view(-1).index_add_(0, (problem * self.nodes + row) * self.nodes + column, values, alpha=-weight)

    def _product(self, x: Tensor, values: Tensor) -> Tensor:
        """(b, k, N) → x S' (b, k, N), S' symmetric with ``values``."""
        problems, width, nodes = x.shape
        if self.batch_size == 1:
            # embedding_bag is ten times slower on rows that are not contiguous, which reshape alone may leave.
            rows = x.permute(2, 0, 1).reshape(nodes, problems * width).contiguous()
            columns = self.indices
        else:
            rows = x.mT.reshape(problems * nodes, width).contiguous()
            columns = (self._problem * nodes + self.indices).int()
        out = embedding_bag(columns, rows, self.indptr[:-1], mode="sum", per_sample_weights=values)
        if self.batch_size == 1:
            return out.view(nodes, problems, width).permute(1, 2, 0)
        return out.view(problems, nodes, width).mT


def graph_costs(
    proximity: Tensor, *, delta: float = 1e-5, tau: float = 0.5, anchor: AnchorCostKind = "ppr"
) -> tuple[Cost, Cost]:
    """C̄_G and M of one group of nodes, or a batch, from (N, N) or (b, N, N) PPR ≥ 0 among them, in the form that is
    fastest for the solver where they are; the rest as in :func:`graph_cost` and :func:`anchor_cost`.

    On the CPU that is sparse up to a fifth of the entries; on a GPU dense: its dense products are fast, and sparse ones
    would have to wait for the number of entries.
    """
    check_kind(anchor)
    if proximity.device.type == "cpu" and int(proximity.count_nonzero()) <= _SPARSE_UP_TO / 2 * proximity.numel():
        cost = SparseCost.from_proximity(proximity, delta)
        if anchor == "ppr":
            return cost, cost.anchor_cost(tau)
        return cost, SparseCost.all_but_self(cost.nodes, dtype=cost.dtype, device=cost.device)
    matrices = proximity if proximity.ndim == 3 else proximity[None]
    dense = torch.stack([graph_cost(matrix, delta) for matrix in matrices])
    return DenseCost(dense), DenseCost(anchor_cost(dense, tau, kind=anchor))
