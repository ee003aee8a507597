"""Which nodes train together: every step's seed groups, as a pure function of (seed, epoch, step).

A group is one transport problem. With uniformly drawn seeds from a large graph Π_B is almost diagonal and says nothing
about structure, so a group's targets (its supervised nodes) bring their strongest PPR neighbours with them:
influence-based batching (Gasteiger et al., arXiv 2212.09083). The groups of a step are the same whatever the number of
workers, who share them out: so its gradient does not depend on that number.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from optimag_dist.options import Options
from optimag_dist.ppr import PPRArtefact
from optimag_dist.types import InputError, SeedGroup

_NODES_PER_TARGET = 16


class SamplingOptions(Options):
    """How batches are drawn.

    Attributes:
        batcher: ``ppr`` fills a group with its targets' strongest PPR neighbours, ``uniform`` with random nodes.
        groups: seed groups (transport problems) per optimiser step, over all workers together.
        targets: supervised nodes (or edges, where a task is about these) per group, at most.
        group_size: N, nodes per group (targets included); capped at the number of nodes of the graph. Edges bring two
            ends and their negatives: the transport problem then is over up to twice as many nodes.
        fanouts: neighbours sampled per node, one entry per message-passing layer, input side first; -1 takes all.
        eval_fanouts: the same for evaluation; None takes all neighbours.
        sampler: who draws neighbours: ``keyed`` is this package's own, ``dgl`` is DGL's (same distribution, slower,
            and only where the whole topology is on the host).
    """

    batcher: Literal["ppr", "uniform"] = "ppr"
    groups: int = Field(2, ge=1)
    targets: int = Field(64, ge=2)
    group_size: int = Field(256, ge=2)
    fanouts: tuple[int, ...] = Field((10, 10), min_length=1)
    eval_fanouts: tuple[int, ...] | None = None
    sampler: Literal["keyed", "dgl"] = "keyed"

    @model_validator(mode="after")
    def _consistent(self) -> "SamplingOptions":
        if self.targets > self.group_size:
            raise ValueError(f"targets ({self.targets}) must not exceed group_size ({self.group_size})")
        for name in ("fanouts", "eval_fanouts"):
            if any(f < -1 or f == 0 for f in getattr(self, name) or ()):
                raise ValueError(f"{name} must be positive, or -1 for all neighbours")
        if self.eval_fanouts is not None and len(self.eval_fanouts) != len(self.fanouts):
            raise ValueError(f"eval_fanouts needs {len(self.fanouts)} entries, one per layer, like fanouts")
        return self

    @property
    def for_kept_mass(self) -> "SamplingOptions":
        """Groups in which every target has most of its PPR neighbours about it, from which kept mass is estimated."""
        targets = max(2, self.group_size // _NODES_PER_TARGET)
        return self.model_copy(update={"batcher": "ppr", "targets": min(targets, self.group_size)})

    @property
    def fanouts_at_evaluation(self) -> tuple[int, ...]:
        """``eval_fanouts``, or all neighbours in every layer."""
        return self.eval_fanouts or (-1,) * len(self.fanouts)


class SeedBatcher:
    """Cuts a task's items into the groups of each step, every item in exactly one group per epoch, and fills groups.

    Args:
        items: (T,) int64 ids of the nodes to cover (the training nodes), or (T, 2) edges; at least one per group of a
            step.
        num_nodes: nodes of the whole graph, from which groups are filled.
        ppr: artefact with a row for every node; needed when groups are filled by PPR.
        seed: together with the epoch and step it determines every group.
        fill: whether groups are filled up to ``group_size``; without a regulariser only the targets are of use.
    """

    def __init__(
        self,
        items: np.ndarray,
        num_nodes: int,
        ppr: PPRArtefact | None,
        options: SamplingOptions,
        *,
        seed: int,
        fill: bool = True,
    ) -> None:
        if len(items) < options.groups:
            what, more = ("nodes", "label more nodes") if items.ndim == 1 else ("edges", "hold out fewer")
            raise InputError(
                f"{len(items)} training {what} cannot fill sampling.groups={options.groups} groups per step; "
                f"{more} or lower sampling.groups"
            )
        if fill and options.batcher == "ppr" and ppr is None:
            raise InputError("sampling.batcher=ppr needs a PPR artefact; compute one with: optimag ppr STORE")
        self._items = np.asarray(items, dtype=np.int64)
        self._num_nodes, self._ppr, self._options, self._seed = num_nodes, ppr, options, seed
        self._size = min(options.group_size, num_nodes) if fill else 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._items) // (self._options.groups * self._options.targets))

    @property
    def smallest_group(self) -> int:
        """Items of the smallest group."""
        return len(self._items) // (self.steps_per_epoch * self._options.groups)

    def items(self, epoch: int, turn: int = 0) -> list[list[np.ndarray]]:
        """Step → group → items, whose numbers differ by at most one; ``turn`` counts the times within one epoch."""
        key = (self._seed, epoch, turn) if turn else (self._seed, epoch)
        order = np.random.default_rng(key).permutation(self._items)
        groups = self._options.groups
        pieces = np.array_split(order, self.steps_per_epoch * groups)
        return [pieces[i : i + groups] for i in range(0, len(pieces), groups)]

    def group(self, targets: np.ndarray, *, key: Sequence[int]) -> SeedGroup:
        """The group around ``targets``; ``key`` (epoch, step, group) seeds what is drawn at random."""
        seeds = targets
        if self._options.batcher == "ppr" and self._ppr is not None:
            # A second round from what the first brought in, for targets with few neighbours of their own.
            for _ in range(2):
                seeds = self._add_ppr_neighbours(self._ppr, seeds)
        missing = self._size - len(seeds)
        if missing > 0:
            rng = np.random.default_rng((self._seed, *key))
            seeds = np.concatenate([seeds, draw_others(rng, self._num_nodes, seeds, missing)])
        return SeedGroup(seeds=seeds, num_targets=len(targets))

    def _add_ppr_neighbours(self, ppr: PPRArtefact, seeds: np.ndarray) -> np.ndarray:
        missing = self._size - len(seeds)
        if missing <= 0:
            return seeds
        _, columns, values = ppr.rows(seeds)
        outside = ~np.isin(columns, seeds)
        candidates, inverse = np.unique(columns[outside], return_inverse=True)
        influence = np.bincount(inverse, weights=values[outside], minlength=len(candidates))
        # Candidates are ascending, so a stable sort breaks ties by id.
        best = candidates[np.argsort(-influence, kind="stable")[:missing]]
        return np.concatenate([seeds, best])


def draw_others(rng: np.random.Generator, num_nodes: int, taken: np.ndarray, count: int) -> np.ndarray:
    """``count`` distinct nodes not in ``taken``, touching O(count + len(taken)) memory."""
    free = num_nodes - len(taken)
    # The i-th free node is i plus the number of taken nodes at or below it.
    picks = rng.choice(free, size=count, replace=False)
    ordered = np.sort(taken)
    return picks + np.searchsorted(ordered - np.arange(len(ordered)), picks, side="right")
