"""Assembles batches one step ahead of training: seeds, blocks, features, prior.

Every batch is a pure function of (seed, epoch, step) and of which groups this rank takes: there is no state to resume.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import torch

from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling.batcher import SamplingOptions, SeedBatcher
from optimag_dist.sampling.neighbours import BlockSampler, sampling_thread
from optimag_dist.store import GraphStore
from optimag_dist.types import Block, GroupBatch, InputError, SeedGroup, StepBatch

_STEPS_AHEAD = 2


class GroupLoader:
    """Batches of one rank.

    Args:
        store: where features and topology are gathered from, row by row.
        ppr: prior of the groups; None leaves ``proximity`` out of the batches.
        labels: (n,) int task labels.
        options: fan-outs and group sizes.
        seed: seed of the run.
        messages: whether the model passes messages; without, batches have no blocks.
        rank, world_size: this rank takes every ``world_size``-th group of a step, from ``rank`` on.
    """

    def __init__(
        self,
        store: GraphStore,
        ppr: PPRArtefact | None,
        labels: np.ndarray,
        options: SamplingOptions,
        *,
        seed: int,
        messages: bool,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        if world_size > options.groups:
            raise InputError(
                f"{world_size} workers but sampling.groups={options.groups}: every worker needs at least one group "
                f"per step; raise sampling.groups or lower train.workers"
            )
        self._store = store
        self._ppr = ppr
        self._labels = labels
        self._options = options
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._pin_memory = pin_memory
        topology = store.topology
        self._degrees = np.diff(topology.indptr)
        self._sampler = BlockSampler(topology) if messages else None

    def epoch(self, batcher: SeedBatcher, epoch: int) -> Iterator[StepBatch]:
        """The steps of one epoch, the same number on every rank."""
        jobs = [(self._step, batcher, epoch, step, anchors) for step, anchors in enumerate(batcher.anchors(epoch))]
        return _ahead(jobs)

    def cover(self, nodes: np.ndarray, chunk: int) -> Iterator[GroupBatch]:
        """This rank's share of ``nodes``, in chunks of anchors without neighbours beyond the blocks' own."""
        fanouts = self._options.eval_fanouts or (-1,) * len(self._options.fanouts)
        mine = nodes[self._rank :: self._world_size]
        chunks = [mine[i : i + chunk] for i in range(0, len(mine), chunk)]
        jobs = [(self._assemble, SeedGroup(c, len(c)), fanouts, (0, i), None) for i, c in enumerate(chunks)]
        return _ahead(jobs)

    def _step(self, batcher: SeedBatcher, epoch: int, step: int, anchors: list[np.ndarray]) -> StepBatch:
        groups = []
        for index in range(self._rank, len(anchors), self._world_size):
            key = (epoch, step, index)
            group = batcher.group(anchors[index], key=key)
            groups.append(self._assemble(group, self._options.fanouts, key, self._ppr))
        return StepBatch(epoch, step, tuple(groups), len(anchors), sum(len(a) for a in anchors))

    def _assemble(
        self, group: SeedGroup, fanouts: tuple[int, ...], key: tuple[int, ...], ppr: PPRArtefact | None
    ) -> GroupBatch:
        inputs: np.ndarray = group.anchors
        blocks: tuple[Block, ...] = ()
        if self._sampler is not None:
            inputs, blocks = self._sampler.sample(group.anchors, fanouts, (self._seed, *key))
        # The blocks' inputs start with the anchors; the other seeds follow where no block needs them anyway.
        nodes = np.concatenate([inputs, np.setdiff1d(group.seeds, inputs)])
        order = np.argsort(nodes)
        seed_rows = order[np.searchsorted(nodes, group.seeds, sorter=order)]
        proximity = None if ppr is None else ppr.submatrix(group.seeds)
        kept = 0.0 if ppr is None or proximity is None else float(proximity.sum() / ppr.mass(group.seeds).sum())
        batch = GroupBatch(
            node_ids=torch.from_numpy(nodes),
            seed_rows=torch.from_numpy(seed_rows),
            num_anchors=group.num_anchors,
            blocks=blocks,
            features={m: torch.from_numpy(self._store.gather(m, nodes)).float() for m in self._store.modalities},
            present={m: torch.from_numpy(self._store.present(m)[nodes]) for m in self._store.modalities},
            degrees=torch.from_numpy(self._degrees[nodes]).float(),
            labels=torch.from_numpy(self._labels[group.anchors]).long(),
            proximity=None if proximity is None else torch.from_numpy(proximity),
            kept_ppr=kept,
        )
        return batch.map(torch.Tensor.pin_memory) if self._pin_memory else batch


def _ahead(jobs: list[tuple]) -> Iterator:
    """Results of ``jobs`` in order, a few of them computed ahead on the sampling thread."""
    pending: deque[Future] = deque()
    remaining = iter(jobs)
    try:
        while True:
            while len(pending) < _STEPS_AHEAD and (job := next(remaining, None)) is not None:
                pending.append(sampling_thread().submit(*job))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
