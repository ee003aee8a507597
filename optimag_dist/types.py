"""Symbol legend, errors and the records that travel between stages.

Symbols (the whole code base uses them):

    n, m      nodes and arcs of the whole graph; m also indexes modalities where no arcs are near
    N         seed nodes of one group (the nodes one transport problem is solved over)
    A         targets of a group: its supervised nodes, the first A of its N seeds
    Z_m       (N, d_m) encoder output of modality m
    C_m       (N, N)   cosine cost of modality m;  C̄ means divided by its mean
    Π_B       (N, N)   personalised PageRank among the seeds, row s = walk from seed s
    C_G, M    (N, N)   graph cost and anchor cost made from Π_B
    π         (N, N)   transport plan, rows = modality side, columns = graph side
    μ, ν      (N,)     marginals;  r = π1 row mass; kept mass = r / μ
    α ρ ε τ δ          structure weight, marginal weight, entropy, prior width, floor of PPR
    β, eps, k          teleport probability, push residual per degree, entries kept per PPR row
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

# For annotations alone: what makes stores and PPR takes its errors from here and does without torch.
if TYPE_CHECKING:
    import torch
    from torch import Tensor


class InputError(ValueError):
    """The user's input cannot be used: the message says what came, what was needed and how to fix it."""


class RunError(RuntimeError):
    """Work that cannot go on though its input is right: the message says what happened and how to go on."""


class Diverged(RunError):
    """A model's numbers are no longer finite: it stops, and nothing of that state is kept."""


@dataclass(frozen=True)
class CSR:
    """Adjacency rows: the neighbours of row i are ``indices[indptr[i]:indptr[i + 1]]``, ascending; ``indptr`` (n + 1,)
    int64, ``indices`` (m,) int32 or int64."""

    indptr: np.ndarray
    indices: np.ndarray

    @property
    def num_nodes(self) -> int:
        return len(self.indptr) - 1

    @property
    def num_arcs(self) -> int:
        return len(self.indices)


class GraphPrior(Protocol):
    """What the regulariser asks of a graph: PPR among the nodes of a batch."""

    def submatrix(self, node_ids: np.ndarray) -> np.ndarray:
        """(N,) int64 node ids → (N, N) float32 Π_B, zero where nothing is stored."""
        ...


@dataclass(frozen=True)
class Examples:
    """What a task asks of one group: the nodes whose output it needs, and what their loss compares with.

    Attributes:
        targets: (A,) int64 distinct node ids.
        labels: name → array; what names nodes does so by their row among the targets.
        excluded_edges: (E, 2) int64 node ids of edges along which no message of this group may pass, either way.
    """

    targets: np.ndarray
    labels: Mapping[str, np.ndarray]
    excluded_edges: np.ndarray | None = None


@dataclass(frozen=True)
class SeedGroup:
    """The nodes one transport problem is solved over: (N,) int64 distinct ids, the targets, of which the task needs an
    output, first."""

    seeds: np.ndarray
    num_targets: int

    @property
    def targets(self) -> np.ndarray:
        return self.seeds[: self.num_targets]


@dataclass(frozen=True)
class Block:
    """One message-passing layer's bipartite graph; destinations are the first rows of the sources.

    ``indptr`` is (num_dst + 1,) int64, ``indices`` (arcs,) int64 local source rows, of which there are ``num_src``.
    """

    indptr: Tensor
    indices: Tensor
    num_src: int

    @property
    def num_dst(self) -> int:
        return self.indptr.numel() - 1

    def map(self, f: Callable[[Tensor], Tensor]) -> Block:
        return Block(f(self.indptr), f(self.indices), self.num_src)


@dataclass(frozen=True)
class GroupBatch:
    """A seed group with everything a training step reads.

    Attributes:
        node_ids: (U,) int64 nodes to encode: the blocks' input nodes first, then seeds not among them.
        seed_rows: (N,) int64 rows of the seeds within ``node_ids``.
        num_targets: the first of seeds and nodes are the task's; the last block's destinations are exactly these.
        blocks: outermost first; empty for a model that sends no messages.
        features, present: modality → (U, d_m) float32 (absent rows zero), and (U,) bool.
        degrees: (U,) float32 neighbours in the whole graph less excluded edges, for models that normalise by it.
        task, labels: position of the task it belongs to, and what that compares with, by name.
        proximity: (N, N) float32 Π_B, or None where no regulariser is trained.
        kept_ppr: share of the seeds' stored PPR mass that stays inside the group (0 where ``proximity`` is None).
    """

    node_ids: Tensor
    seed_rows: Tensor
    num_targets: int
    blocks: tuple[Block, ...]
    features: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    degrees: Tensor
    task: int
    labels: Mapping[str, Tensor]
    proximity: Tensor | None
    kept_ppr: float

    def map(self, f: Callable[[Tensor], Tensor]) -> GroupBatch:
        """The same batch with ``f`` applied to every tensor."""
        return replace(
            self,
            node_ids=f(self.node_ids),
            seed_rows=f(self.seed_rows),
            blocks=tuple(block.map(f) for block in self.blocks),
            features={name: f(x) for name, x in self.features.items()},
            present={name: f(x) for name, x in self.present.items()},
            degrees=f(self.degrees),
            labels={name: f(x) for name, x in self.labels.items()},
            proximity=None if self.proximity is None else f(self.proximity),
        )

    def to(self, device: torch.device) -> GroupBatch:
        """The same batch on ``device``; copies from pinned memory do not block."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class StepBatch:
    """What one rank contributes to one optimiser step.

    Attributes:
        epoch, step: position in training; the batch is a pure function of (seed, epoch, step, rank).
        groups: this rank's share of the step's ``num_groups``, at least one of every task.
        num_items: nodes or edges trained on, over all ranks, per task: the denominators of the tasks' mean losses.
    """

    epoch: int
    step: int
    groups: tuple[GroupBatch, ...]
    num_groups: int
    num_items: tuple[int, ...]

    def to(self, device: torch.device) -> StepBatch:
        return replace(self, groups=tuple(group.to(device) for group in self.groups))
