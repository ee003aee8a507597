"""Assembles batches one step ahead of training: seeds, blocks, features, prior.

Every batch is a pure function of (seed, epoch, step) and of which groups this rank takes: there is no state to resume.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling.batcher import SamplingOptions, SeedBatcher
from optimag_dist.sampling.neighbours import BlockSampler, Sampler, append_nodes
from optimag_dist.sampling.rows import GraphRows
from optimag_dist.types import Block, GroupBatch, InputError, SeedGroup, StepBatch


class GroupLoader:
    """Batches of one rank.

    Args:
        rows: where neighbours and features come from, row by row: :class:`~optimag_dist.sampling.StoreRows` of a store.
        ppr: prior of the groups; None leaves ``proximity`` out of the batches.
        labels: (n,) int task labels.
        options: fan-outs and group sizes.
        seed: seed of the run.
        messages: whether the model passes messages; without, batches have no blocks.
        rank, world_size: this rank takes every ``world_size``-th group of a step, from ``rank`` on.
        pin_memory: for copies to a GPU that do not wait.
        num_threads: threads that assemble batches ahead of training; default: as many as torch computes with. The
            batches do not depend on it.

    Raises:
        InputError: more ranks than groups per step, or DGL is to sample rows that are not on this host.
    """

    def __init__(
        self,
        rows: GraphRows,
        ppr: PPRArtefact | None,
        labels: np.ndarray,
        options: SamplingOptions,
        *,
        seed: int,
        messages: bool,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        num_threads: int | None = None,
    ) -> None:
        if world_size > options.groups:
            raise InputError(
                f"{world_size} workers but sampling.groups={options.groups}: every worker needs at least one group "
                f"per step; raise sampling.groups or lower train.workers"
            )
        self._rows = rows
        self._ppr = ppr
        self._labels = labels
        self._options = options
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._pin_memory = pin_memory
        self._num_threads = num_threads or torch.get_num_threads()
        self._sampler = _make_sampler(rows, options) if messages else None

    def epoch(self, batcher: SeedBatcher, epoch: int, first_step: int = 0) -> Generator[StepBatch, None, None]:
        """The steps of one epoch from ``first_step`` on, the same number on every rank."""
        jobs = [(self._step, batcher, epoch, step, anchors) for step, anchors in enumerate(batcher.anchors(epoch))]
        return _ahead(jobs[first_step:], self._num_threads)

    def cover(self, nodes: np.ndarray, chunk: int) -> Iterator[GroupBatch]:
        """This rank's share of ``nodes``, in chunks of anchors without neighbours beyond the blocks' own."""
        fanouts = self._options.fanouts_at_evaluation
        mine = nodes[self._rank :: self._world_size]
        chunks = [mine[i : i + chunk] for i in range(0, len(mine), chunk)]
        jobs = [(self._assemble, SeedGroup(c, len(c)), fanouts, (0, i), None) for i, c in enumerate(chunks)]
        return _ahead(jobs, self._num_threads)

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
        nodes, seed_rows = append_nodes(inputs, group.seeds)
        proximity = None if ppr is None else ppr.submatrix(group.seeds)
        kept = 0.0 if ppr is None or proximity is None else float(proximity.sum() / ppr.mass(group.seeds).sum())
        batch = GroupBatch(
            node_ids=torch.from_numpy(nodes),
            seed_rows=torch.from_numpy(seed_rows),
            num_anchors=group.num_anchors,
            blocks=blocks,
            features={m: torch.from_numpy(self._rows.features(m, nodes)) for m in self._rows.modalities},
            present={m: torch.from_numpy(self._rows.present(m, nodes)) for m in self._rows.modalities},
            degrees=torch.from_numpy(self._rows.degrees(nodes)).float(),
            labels=torch.from_numpy(self._labels[group.anchors]).long(),
            proximity=None if proximity is None else torch.from_numpy(proximity),
            kept_ppr=kept,
        )
        return batch.map(torch.Tensor.pin_memory) if self._pin_memory else batch


def _make_sampler(rows: GraphRows, options: SamplingOptions) -> Sampler:
    if options.sampler == "keyed":
        return BlockSampler(rows.neighbours)
    if rows.topology is None:
        raise InputError("sampling.sampler=dgl needs the whole topology on every host; use sampling.sampler=keyed")
    # DGL takes seconds to import, which every worker would wait for.
    from optimag_dist.sampling.dgl_neighbours import DGLBlockSampler

    return DGLBlockSampler(rows.topology)


def _ahead(jobs: list[tuple], num_threads: int) -> Generator:
    """Results of ``jobs`` in order; each thread has one in hand and one waits to be taken."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="loader")
    pending: deque[Future] = deque()
    remaining = iter(jobs)
    try:
        while True:
            while len(pending) <= num_threads and (job := next(remaining, None)) is not None:
                pending.append(pool.submit(*job))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
