"""One file per task: splits, examples, head, loss, evaluation."""

from optimag_dist.tasks.agreement import ClassAgreement
from optimag_dist.tasks.node_classification import NodeClassification, NodeClassificationOptions
from optimag_dist.tasks.registry import (
    AnyTask,
    make_task,
    metric_of,
    monitor_of,
    named,
    notes_of,
    qualified,
    val_metrics_of,
)
from optimag_dist.tasks.task import Evaluation, Task, TaskHead, TaskOptions
