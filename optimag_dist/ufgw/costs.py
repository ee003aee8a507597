"""Costs of the transport problem, as objects that know their structure.

    C_m = 1 − Z_m Z_mᵀ ;  C̄_m = C_m / mean(C_m)                     a factor of d + 2 columns    CosineCost
    C_G = −log(½(Π_B + Π_Bᵀ) + δ), shifted to min 0, over its mean    a constant less a sparse S   SparseCost
    M   = 1 − exp(−C̄_G / τ)                                         a constant less a sparse S   SparseCost
                                                                                              (arXiv 2601.22856)

The solver asks a cost for products only, and each kind gives them by its cheapest exact route. :class:`DenseCost` takes
any matrix. :func:`cosine_cost`, :func:`graph_cost` and :func:`anchor_prior` are the same three as plain tensors.
Nothing here reads a value back from a GPU.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from optimag_dist.ufgw.backend import compiled_for
from optimag_dist.ufgw.checks import check_tensor, require_positive

AnchorKind = Literal["ppr", "identity"]

# Share of stored entries up to which a sparse product is worth it on the CPU (measured: docs/ufgw.md).
_SPARSE_UP_TO = 0.2
# (C∘C)v takes 4 r² N operations by the factor, and one read of N² once the square is written out: that is worth it
# where r² is above this many N, and always up to this N (measured likewise).
_WRITE_SQUARE_OUT = 6
_WRITE_SQUARE_OUT_UP_TO = 512
_BLOCK = 128


class Cost(ABC):
    """A symmetric (N, N) cost for each of b problems; b is 1 for a cost that all problems of a batch share."""

    @property
    @abstractmethod
    def batch_size(self) -> int: ...

    @property
    @abstractmethod
    def nodes(self) -> int: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def dense(self) -> Tensor:
        """(b, N, N) the matrix itself."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> "Cost": ...

    @abstractmethod
    def select(self, entries: Tensor) -> "Cost":
        """The problems of the batch that ``entries`` (int64) names; a shared cost stays shared."""

    @abstractmethod
    def lowered(self, shift: Tensor) -> "Cost":
        """This cost less a 0-dim ``shift`` everywhere."""

    @abstractmethod
    def mean(self, weights: Tensor) -> Tensor:
        """(b, N) → wᵀCw / (Σw)² (b,)."""

    @abstractmethod
    def from_right(self, x: Tensor) -> Tensor:
        """(b, k, N) → x C (b, k, N)."""

    @abstractmethod
    def squared_times(self, v: Tensor) -> Tensor:
        """(b, N) → (C∘C) v (b, N)."""


@dataclass(frozen=True, eq=False)
class DenseCost(Cost):
    """Any cost, written out.

    Attributes:
        values: (b, N, N) floating point.

    Raises:
        ValueError: another shape.
    """

    values: Tensor

    def __post_init__(self) -> None:
        check_tensor("DenseCost", self.values)
        if self.values.ndim != 3 or self.values.shape[1] != self.values.shape[2]:
            raise ValueError(f"DenseCost: got shape {tuple(self.values.shape)}, needed (batch, N, N); x[None] adds one")

    @property
    def batch_size(self) -> int:
        return len(self.values)

    @property
    def nodes(self) -> int:
        return self.values.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def dense(self) -> Tensor:
        return self.values

    def to(self, dtype: torch.dtype) -> "DenseCost":
        return DenseCost(self.values.to(dtype))

    def select(self, entries: Tensor) -> "DenseCost":
        return self if self.batch_size == 1 else DenseCost(self.values[entries])

    def lowered(self, shift: Tensor) -> "DenseCost":
        return DenseCost(self.values - shift)

    def mean(self, weights: Tensor) -> Tensor:
        return (_rows_times(weights, self.values) * weights).sum(1) / weights.sum(1).square()

    def from_right(self, x: Tensor) -> Tensor:
        return x @ self.values[0] if self.batch_size == 1 else x @ self.values

    def squared_times(self, v: Tensor) -> Tensor:
        if self.nodes <= _WRITE_SQUARE_OUT_UP_TO:
            return _rows_times(v, self._square)
        # Block by block: the square as a whole would be another N² numbers.
        out = torch.zeros_like(v)
        for part, rows in zip(v.split(_BLOCK, 1), self.values.split(_BLOCK, 1), strict=True):
            out += _rows_times(part, rows.square())
        return out

    @cached_property
    def _square(self) -> Tensor:
        return self.values.square()


@dataclass(frozen=True, eq=False)
class CosineCost(Cost):
    """C̄ = (1 − ZZᵀ) / mean, known by Z: a product costs O(N² d), and the matrix is never stored.

    With z̃ = z − z̄ and s = 1/mean, C̄(i,k) = v_i + v_k − s z̃_i·z̃_k, where v = ½ − s z̃·z̄. So C̄ = Q diag(σ) Qᵀ with
    Q = [√s Z̃, (v+1)/√2, (v−1)/√2] and σ = (−1, …, −1, 1, −1): numbers near 1 however close together the embeddings lie.

    Attributes:
        directions: (b, N, d) float32 or float64, rows of unit length, 0 where absent.
        weights: (b, N) 1/n for each of the n nodes that are there, 0 for the others: whose pairs the mean runs over.
        shift: what is taken off everywhere, 0-dim or a number.
    """

    directions: Tensor
    weights: Tensor
    shift: Tensor | float = 0.0

    @staticmethod
    def from_embeddings(embeddings: Tensor, present: Tensor | None = None) -> "CosineCost":
        """The cost among the rows of ``embeddings``, differentiable in them through :attr:`directions`.

        Args:
            embeddings: (N, d) or (b, N, d) floating point; lengths of rows do not matter, at any scale. A row of zeros
                has no direction: its node counts as absent. Half precision is computed in float32.
            present: (N,) or (b, N) bool, default all. Rows of absent nodes are not read.

        Raises:
            ValueError: other shapes or dtypes.
        """
        check_tensor("embeddings", embeddings)
        if embeddings.ndim not in (2, 3) or 0 in embeddings.shape:
            raise ValueError(
                f"embeddings: got shape {tuple(embeddings.shape)}, needed (N, d) or (batch, N, d) with at least one "
                "row and column"
            )
        z = embeddings if embeddings.ndim == 3 else embeddings[None]
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            if present is not None:
                check_tensor("present", present, what="bool")
                if present.shape not in (embeddings.shape[-2:-1], z.shape[:2]):
                    raise ValueError(
                        f"present: got shape {tuple(present.shape)}, needed {tuple(embeddings.shape[:-1])}"
                    )
                z = torch.where(present[..., None], z, 0.0)
            directions, there = to_directions(z)
            weights = there.to(z.dtype)
            return CosineCost(directions, weights / weights.sum(1, keepdim=True).clamp_min(1))

    @property
    def batch_size(self) -> int:
        return len(self.directions)

    @property
    def nodes(self) -> int:
        return self.directions.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.directions.dtype

    @property
    def device(self) -> torch.device:
        return self.directions.device

    @property
    def rank(self) -> int:
        """Columns of the factor."""
        return self.directions.shape[2] + 2

    @cached_property
    def centre(self) -> Tensor:
        """z̄ (b, d)."""
        return (self.weights[:, None, :] @ self.directions.detach())[:, 0]

    @cached_property
    def _centred(self) -> Tensor:
        return (self.directions.detach() - self.centre[:, None, :]) * (self.weights > 0)[:, :, None]

    @cached_property
    def scale(self) -> Tensor:
        """s = 1/mean (b,); 0 where all directions are one up to rounding: there is no distance left to normalise."""
        # The mean of 1 − zᵀz is the variance of z, which as a sum of squares does not cancel.
        mean = (self._centred.square().sum(2) * self.weights).sum(1)
        return torch.where(mean < 16 * torch.finfo(mean.dtype).eps, 0.0, 1 / mean)

    @cached_property
    def factor(self) -> Tensor:
        """Q (b, N, d + 2)."""
        columns = self._centred * self.scale.sqrt()[:, None, None]
        top = (self.scale > 0).to(self.dtype)[:, None] - self.shift
        v = top / 2 - (self._centred @ self.centre[:, :, None])[:, :, 0] * self.scale[:, None]
        return torch.cat((columns, ((v + 1) / 2**0.5)[:, :, None], ((v - 1) / 2**0.5)[:, :, None]), 2)

    @cached_property
    def signs(self) -> Tensor:
        """σ (d + 2,)."""
        signs = self.directions.new_full((self.rank,), -1)
        signs[-2] = 1
        return signs

    @cached_property
    def signed_factor(self) -> Tensor:
        """Q diag(σ) (b, N, d + 2)."""
        return self.factor * self.signs

    def dense(self) -> Tensor:
        return self.signed_factor @ self.factor.mT

    def to(self, dtype: torch.dtype) -> "CosineCost":
        if dtype == self.dtype:
            return self
        return CosineCost(self.directions.to(dtype), self.weights.to(dtype), self.shift)

    def select(self, entries: Tensor) -> "CosineCost":
        if self.batch_size == 1:
            return self
        return CosineCost(self.directions[entries], self.weights[entries], self.shift)

    def lowered(self, shift: Tensor) -> "CosineCost":
        return replace(self, shift=self.shift + shift)

    def mean(self, weights: Tensor) -> Tensor:
        w = (weights[:, None, :] @ self.factor)[:, 0]
        return (w.square() * self.signs).sum(1) / weights.sum(1).square()

    def from_right(self, x: Tensor) -> Tensor:
        return (x @ self.signed_factor) @ self.factor.mT

    def squared_times(self, v: Tensor) -> Tensor:
        if self._square is not None:
            return _rows_times(v, self._square)
        gram = self.signed_factor.mT @ (v[:, :, None] * self.signed_factor)
        return ((self.factor @ gram) * self.factor).sum(2)

    @cached_property
    def _square(self) -> Tensor | None:
        small = self.nodes <= _WRITE_SQUARE_OUT_UP_TO
        return self.dense().square_() if small or self.rank**2 > _WRITE_SQUARE_OUT * self.nodes else None

    def pull_back(self, slope: Tensor) -> Tensor:
        """Gradient to :attr:`directions` of a function whose derivative by C̄ is a symmetric E, the mean included:
        2s⟨E, C̄⟩ w z̄ᵀ − 2s EZ.

        Args:
            slope: (b, N, d + 2) EQ, all that is needed of E.
        """
        s = self.scale[:, None, None]
        ones = ((slope[:, :, -2] - slope[:, :, -1]) / 2**0.5)[:, :, None]
        at_cost = (slope * self.signed_factor).sum((1, 2)) + self.shift * ones.sum((1, 2))
        E_Z = s.sqrt() * slope[:, :, :-2] + s * ones * self.centre[:, None, :]
        return 2 * s * (at_cost[:, None] * self.weights)[:, :, None] * self.centre[:, None, :] - 2 * E_Z


@dataclass(frozen=True, eq=False)
class SparseCost(Cost):
    """c 11ᵀ − S with a sparse symmetric S ≥ 0: nearly all pairs of nodes are equally far.

    Attributes:
        constant: (b,) c.
        indptr: (b·N + 1,) int32, S as CSR, the problems of a batch below one another.
        indices: (nnz,) int32 columns within the problem, 0 ≤ j < N.
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
        """C̄_G of PPR among the nodes; see :func:`graph_cost`. Waits for a GPU once, for the number of entries.

        Args:
            proximity: (N, N) or (b, N, N) PPR, ≥ 0, mostly 0, not necessarily symmetric.
            delta: floor under PPR, > 0.
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

    def anchor_prior(self, tau: float = 0.5) -> "SparseCost":
        """M = 1 − exp(−C̄_G/τ) of this graph cost, on the same entries; see :func:`anchor_prior`."""
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
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

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

    def lowered(self, shift: Tensor) -> "SparseCost":
        return replace(self, constant=self.constant - shift)

    def mean(self, weights: Tensor) -> Tensor:
        return (self.from_right(weights[:, None, :])[:, 0] * weights).sum(1) / weights.sum(1).square()

    def from_right(self, x: Tensor) -> Tensor:
        if compiled := compiled_for(x):
            out: Tensor = compiled.sparse_from_right(x, self.indptr, self.indices, self.values, self.constant)
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
    proximity: Tensor, *, delta: float = 1e-5, tau: float = 0.5, prior: AnchorKind = "ppr"
) -> tuple[Cost, Cost]:
    """C̄_G and M of one group of nodes, in the form that is fastest for the solver where they are.

    On the CPU that is sparse up to a fifth of the entries; on a GPU dense: its dense products are fast, and sparse
    ones would have to wait for the number of entries.

    Args:
        proximity: (N, N) or (b, N, N) PPR among the nodes, ≥ 0.
        delta: floor under PPR.
        tau: width of the anchor prior.
        prior: as in :func:`anchor_prior`.
    """
    _check_kind(prior)
    if proximity.device.type == "cpu" and int(proximity.count_nonzero()) <= _SPARSE_UP_TO / 2 * proximity.numel():
        cost = SparseCost.from_proximity(proximity, delta)
        if prior == "ppr":
            return cost, cost.anchor_prior(tau)
        return cost, SparseCost.all_but_self(cost.nodes, dtype=cost.dtype, device=cost.device)
    matrices = proximity if proximity.ndim == 3 else proximity[None]
    dense = torch.stack([graph_cost(matrix, delta) for matrix in matrices])
    return DenseCost(dense), DenseCost(anchor_prior(dense, tau, kind=prior))


def cosine_cost(embeddings: Tensor, present: Tensor | None = None) -> Tensor:
    """Cosine distances among the rows of ``embeddings``, divided by their mean: C̄_m, as a differentiable tensor.

    The mean is part of the autograd graph. Were it a constant, shrinking every distance would lower the loss.

    Args:
        embeddings: (N, d) floating point; lengths of rows do not matter. Half precision is computed in float32.
        present: (N,) bool, default all. The mean runs over all pairs of present nodes, the diagonal included; costs
            of pairs with an absent node are 0 and mean nothing, since absent nodes carry no mass. A row of zeros has no
            direction: its node counts as absent.

    Returns:
        (N, N) float32 or float64, non-negative, mean 1 over the present pairs. All zeros where the embeddings of the
        present nodes point the same way (up to rounding), or where fewer than two are present.
    """
    check_tensor("embeddings", embeddings)
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        if present is not None:
            z = torch.where(present[:, None], z, 0.0)
        z, there = to_directions(z)
        cost = torch.where(there[:, None] & there, (1 - z @ z.T).clamp_min(0), 0.0)
        pairs = there.sum().to(cost.dtype) ** 2
        mean = cost.sum() / pairs.clamp_min(1)
        # Below the rounding of 1 − zᵀz there is no distance left to normalise.
        collapsed = mean < 16 * torch.finfo(cost.dtype).eps
        return torch.where(collapsed, 0.0, cost / torch.where(collapsed, 1.0, mean))


def cosine_costs(embeddings: Tensor, present: Tensor) -> Tensor:
    """:func:`cosine_cost` (b, N, N) of (b, N, d) and (b, N)."""
    return torch.stack([cosine_cost(z, mask) for z, mask in zip(embeddings, present, strict=True)])


def to_directions(z: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of (…, N, d) at unit length, and which nodes have one (…, N): not those of a row of zeros, which stay zeros.

    Rows are first divided by a power of two near their largest entry. That rounds nothing, and their squares neither
    underflow nor overflow: a row times 1e-30 or 1e30 has the same direction, to the last bit.
    """
    with torch.no_grad():
        peak = z.detach().abs().amax(-1, keepdim=True)
        power = torch.where(peak > 0, peak / (2 * torch.frexp(peak).mantissa), 1.0)
    # NaN is not 0: such a row is refused by name, not left out.
    return normalize(z / power, dim=-1), peak[..., 0] != 0


def graph_cost(proximity: Tensor, delta: float = 1e-5) -> Tensor:
    """Distance of nodes in the graph from their personalised PageRank, as a tensor: C̄_G.

    Args:
        proximity: (N, N) PPR among the nodes (Π_B), non-negative, not necessarily symmetric.
        delta: floor under PPR; it sets how far apart unconnected nodes are. Rejection needs a small one.

    Returns:
        (N, N) symmetric, minimum 0, mean 1 over all pairs; all zeros where every pair is equally close.

    Raises:
        ValueError: ``delta`` is not above 0.
    """
    require_positive(delta=delta)
    check_tensor("proximity", proximity)
    with torch.autocast(proximity.device.type, enabled=False):
        ppr = proximity.to(torch.promote_types(proximity.dtype, torch.float32))
        cost = -torch.log(0.5 * (ppr + ppr.T) + delta)
        cost = cost - cost.min()
        mean = cost.mean()
        return cost / torch.where(mean > 0, mean, 1.0)


def anchor_prior(C_G: Tensor, tau: float = 0.5, *, kind: AnchorKind = "ppr") -> Tensor:
    """Cost of sending a node's modality side to another node's graph side, as a tensor: M.

    Args:
        C_G: (N, N) or (b, N, N) normalised graph cost.
        tau: width; a small one forces the mass to the diagonal. Not used by ``identity``.
        kind: ``ppr``: 1 − exp(−C̄_G/τ).  ``identity``: 0 on the diagonal, 1 elsewhere.

    Raises:
        ValueError: ``tau`` is not above 0, or an unknown ``kind``.
    """
    _check_kind(kind)
    if kind == "identity":
        return (1 - torch.eye(C_G.shape[-1], dtype=C_G.dtype, device=C_G.device)).expand_as(C_G)
    require_positive(tau=tau)
    return -torch.expm1(-C_G / tau)


def _check_kind(kind: str) -> None:
    if kind not in ("ppr", "identity"):
        raise ValueError(f"anchor prior {kind!r}: needed one of 'ppr', 'identity'")


def _rows_times(v: Tensor, matrix: Tensor) -> Tensor:
    """(b, K) times (1 or b, K, N). Symmetric matrices too are multiplied from the left: torch's batched product is
    several times slower on (N, 1) columns than on (1, N) rows."""
    if len(matrix) == 1:
        return v @ matrix[0]
    return (v[:, None, :] @ matrix)[:, 0]
