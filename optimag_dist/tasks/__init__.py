"""One file per task: splits, examples, head, loss, evaluation."""

from optimag_dist.tasks.node_classification import NodeClassification, NodeClassificationOptions
from optimag_dist.tasks.registry import AnyTask, decisive_of, make_task, named, notes_of, qualified, validated
from optimag_dist.tasks.task import Evaluation, Task, TaskHead, TaskOptions

__all__ = [
    "AnyTask",
    "Evaluation",
    "NodeClassification",
    "NodeClassificationOptions",
    "Task",
    "TaskHead",
    "TaskOptions",
    "decisive_of",
    "make_task",
    "named",
    "notes_of",
    "qualified",
    "validated",
]
