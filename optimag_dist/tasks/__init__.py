"""One file per task: targets, loss, metrics."""

from optimag_dist.tasks.node_classification import NodeClassification, NodeClassificationOptions

__all__ = ["NodeClassification", "NodeClassificationOptions"]
