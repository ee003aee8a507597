"""The metrics of a part, task by task: within a fit, or of a trained model."""

import math
from collections.abc import Mapping
from typing import Any

from optimag_dist.layerwise import LayerwiseForward
from optimag_dist.tasks import Evaluation, Task, TaskHead, qualified
from optimag_dist.tasks.task import Part, diverged


def evaluate_part(
    part: Part, tasks: Mapping[str, Task[Any]], heads: Mapping[str, TaskHead], forward: LayerwiseForward
) -> dict[str, Evaluation]:
    """Evaluate every task; called on every rank.

    Args:
        part: of each task.
        tasks, heads: by the task's name; model and heads are in evaluation mode.

    Raises:
        Diverged: what a task goes by is not finite.
    """
    evaluations = {name: task.evaluate(part, heads[name], forward) for name, task in tasks.items()}
    for name, evaluation in evaluations.items():
        monitor = tasks[name].monitor
        if not math.isfinite(value := evaluation.metrics[monitor]):
            raise diverged(f"{f'task {name}: ' if name else ''}{monitor} of the {part} part is {value},")
    return evaluations


def joined(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """The metrics of all tasks, by their names in a run."""
    return {
        qualified(name, metric): value
        for name, evaluation in evaluations.items()
        for metric, value in evaluation.metrics.items()
    }
