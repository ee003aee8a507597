"""Assembles batches one step ahead of training: seeds, blocks, features, prior.

Every batch is a pure function of (seed, epoch, step) and of which groups this rank takes: there is no state to resume.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling.batcher import SamplingOptions, SeedBatcher
from optimag_dist.sampling.neighbours import BlockSampler, append_nodes, exclude_edges
from optimag_dist.sampling.rows import GraphDataSource
from optimag_dist.types import Block, Examples, GroupBatch, InputError, SeedGroup, StepBatch

# What tasks draw is keyed apart from what fills groups.
_EXAMPLES = 0x7A5C
#: Items of a group, and a generator for what is drawn at random → what the task asks of them.
ExampleFn = Callable[[np.ndarray, np.random.Generator], Examples]


def nodes_alone(items: np.ndarray, rng: np.random.Generator) -> Examples:
    """:data:`ExampleFn` of what needs no labels: the nodes themselves."""
    return Examples(items, {})


class GroupLoader:
    """Batches of one rank.

    Args:
        rows: where neighbours and features come from.
        ppr: prior of the groups; None leaves ``proximity`` out of the batches.
        messages: whether the model passes messages; without, batches have no blocks.
        rank, world_size: this rank takes every ``world_size``-th group of a step, from ``rank`` on.
        pin_memory: for copies to a GPU that do not wait.
        num_threads: that assemble batches ahead of training; default: as many as torch computes with.

    Raises:
        InputError: more ranks than groups per step, or DGL is to sample rows that are not on this host.
    """

    def __init__(
        self,
        rows: GraphDataSource,
        ppr: PPRArtefact | None,
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
                f"per step; raise sampling.groups or lower workers.count"
            )
        self._rows, self._ppr, self._options, self._seed = rows, ppr, options, seed
        self._rank, self._world_size, self._pin_memory = rank, world_size, pin_memory
        self._num_threads = num_threads or torch.get_num_threads()
        self._sampler = BlockSampler(rows.neighbours) if messages else None
        if messages and options.sampler == "dgl":
            if rows.topology is None:
                raise InputError(
                    "sampling.sampler=dgl needs the whole topology on every host; use sampling.sampler=keyed"
                )
            # DGL takes seconds to import, which every worker would wait for.
            from optimag_dist.sampling.dgl_neighbours import DGLBlockSampler

            self._sampler = DGLBlockSampler(rows.topology)

    def epoch(
        self, sources: Sequence[tuple[SeedBatcher, ExampleFn]], epoch: int, first_step: int = 0
    ) -> Generator[StepBatch, None, None]:
        """The steps of one epoch from ``first_step`` on, the same number on every rank.

        ``sources`` are, per task, what it is trained on. A step has groups of each; the epoch is as long as the longest
        takes, and the others come more than once.
        """
        steps = max(batcher.steps_per_epoch for batcher, _ in sources)
        turns = [
            [groups for turn in range(-(-steps // batcher.steps_per_epoch)) for groups in batcher.items(epoch, turn)]
            for batcher, _ in sources
        ]
        jobs = [(self._step, sources, epoch, step, [task[step] for task in turns]) for step in range(steps)]
        return prefetched(jobs[first_step:], self._num_threads)

    def _step(
        self, sources: Sequence[tuple[SeedBatcher, ExampleFn]], epoch: int, step: int, items: list[list[np.ndarray]]
    ) -> StepBatch:
        groups = []
        for task, (batcher, example_fn) in enumerate(sources):
            for index in range(self._rank, len(items[task]), self._world_size):
                key = (epoch, step, task * len(items[task]) + index)
                rng = np.random.default_rng((self._seed, *key, _EXAMPLES))
                examples = example_fn(items[task][index], rng)
                group = batcher.group(examples.targets, key=key)
                groups.append(self._assemble(group, examples, key, task))
        num_items = tuple(sum(map(len, of_task)) for of_task in items)
        return StepBatch(epoch, step, tuple(groups), sum(map(len, items)), num_items)

    def _assemble(self, group: SeedGroup, examples: Examples, key: tuple[int, ...], task: int) -> GroupBatch:
        inputs: np.ndarray = group.targets
        blocks: tuple[Block, ...] = ()
        if self._sampler is not None:
            inputs, blocks = self._sampler.sample(group.targets, self._options.fanouts, (self._seed, *key))
        # The blocks' inputs start with the targets; the other seeds follow where no block needs them anyway.
        # A task may bring more targets than a group has nodes: transport stays bounded, and takes the first of them.
        seeds = group.seeds[: 2 * self._options.group_size]
        nodes, seed_rows = append_nodes(inputs, seeds)
        degrees = self._rows.degrees(nodes)
        if examples.excluded_edges is not None:
            blocks, degrees = exclude_edges(blocks, degrees, nodes, examples.excluded_edges)
        ppr = self._ppr
        proximity = None if ppr is None else ppr.submatrix(seeds)
        kept = 0.0 if ppr is None or proximity is None else float(proximity.sum() / ppr.mass(seeds).sum())
        batch = GroupBatch(
            node_ids=torch.from_numpy(nodes),
            seed_rows=torch.from_numpy(seed_rows),
            num_targets=group.num_targets,
            blocks=blocks,
            features={m: torch.from_numpy(self._rows.features(m, nodes)) for m in self._rows.modalities},
            present={m: torch.from_numpy(self._rows.present(m, nodes)) for m in self._rows.modalities},
            degrees=torch.from_numpy(degrees).float(),
            task=task,
            labels={name: torch.from_numpy(values) for name, values in examples.labels.items()},
            proximity=None if proximity is None else torch.from_numpy(proximity),
            kept_ppr=kept,
        )
        return batch.map(torch.Tensor.pin_memory) if self._pin_memory else batch


def prefetched(jobs: Sequence[tuple], num_threads: int) -> Generator:
    """Results of ``jobs`` (a function and its arguments each) in order; each thread has one in hand, and one more waits
    to be taken."""
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
