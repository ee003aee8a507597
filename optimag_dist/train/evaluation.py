"""The figures of a part, task by task, from batches that cover its nodes: within a fit, or of a trained model."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from optimag_dist.models import MultimodalModel
from optimag_dist.sampling import GroupLoader
from optimag_dist.tasks.task import Evaluation, Part, Task, diverged
from optimag_dist.types import GroupBatch

Batches = Iterable[tuple[str, GroupBatch]]


@torch.no_grad()
def evaluate_part(
    part: Part,
    tasks: Mapping[str, Task[Any]],
    model: MultimodalModel,
    heads: Mapping[str, nn.Module],
    loaders: Mapping[str, GroupLoader],
    device: torch.device,
    watched: Callable[[Batches], Batches] = iter,
) -> dict[str, tuple[dict[str, float], Evaluation[Any]]]:
    """Evaluate every task; model and heads are in evaluation mode.

    Args:
        part: of each task.
        tasks, heads, loaders: by the task's name; the loaders hide what evaluation must not see.
        watched: passes the batches on, and may show or tell that they come.

    Raises:
        Diverged: what a task decides by is not finite.

    Returns:
        Task → its figures over all ranks, and the evaluation, which has what was made for each node.
    """
    evaluations = {name: task.evaluation(part) for name, task in tasks.items()}
    for name, cpu_batch in watched(_batches(evaluations, loaders)):
        batch = cpu_batch.to(device)
        evaluations[name].update(model, heads[name], model.encode(batch.features), batch)
    computed = {name: evaluation.compute(heads[name]) for name, evaluation in evaluations.items()}
    for name, figures in computed.items():
        decisive = tasks[name].decisive
        if not math.isfinite(figures[decisive]):
            raise diverged(f"{f'task {name}: ' if name else ''}{decisive} of the {part} part is {figures[decisive]},")
    return {name: (computed[name], evaluation) for name, evaluation in evaluations.items()}


def _batches(
    evaluations: Mapping[str, Evaluation[Any]], loaders: Mapping[str, GroupLoader]
) -> Iterator[tuple[str, GroupBatch]]:
    for name, evaluation in evaluations.items():
        for batch in loaders[name].cover(evaluation.nodes, evaluation.chunk, evaluation.ask):
            yield name, batch
