"""Node classification: the class of a node, from itself and its neighbourhood."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor, nn

from optimag_dist.models import MultimodalModel
from optimag_dist.store import GraphStore
from optimag_dist.tasks.splits import NodeSplit, split_nodes
from optimag_dist.tasks.task import Evaluation, Part, Setting, Task, TaskHead, TaskOptions
from optimag_dist.types import Examples, GroupBatch, InputError

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


class NodeClassificationOptions(TaskOptions):
    """Attributes:
    split: ``stored`` uses the store's own split; otherwise shares of the labelled nodes for a random one, by class.
    """

    kind: Literal["node_classification"] = "node_classification"
    split: NodeSplit = "stored"


class ClassifierHead(TaskHead):
    """A linear layer on a node's state."""

    def __init__(self, model: MultimodalModel, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(model.hidden, num_classes)

    def logits(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """(A, classes)."""
        return self.linear(model.represent(embeddings, batch))

    def loss(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Cross-entropy."""
        logits = self.logits(model, embeddings, batch)
        return nn.functional.cross_entropy(logits, batch.targets["labels"], reduction="sum")


class NodeClassification(Task[ClassifierHead]):
    """Attributes:
        labels: (n,) int64, -1 where unlabelled.
        train, val, test: (…,) int64 ascending node ids, all labelled.

    Raises:
        InputError: the store has no labels, fewer than two classes, no split where one is asked for, or an empty part.
    """

    validated = ("accuracy", "macro_f1")
    decisive = "accuracy"

    def __init__(self, store: GraphStore, options: NodeClassificationOptions, setting: Setting) -> None:
        if store.labels is None:
            raise InputError(
                f"{store.path}: node classification needs labels and this store has none; name the label column under "
                f"nodes.label in the schema and run optimag ingest again"
            )
        if len(store.classes) < 2:
            raise InputError(f"{store.path}: node classification needs two classes or more, got {list(store.classes)}")
        self.labels = np.asarray(store.labels, dtype=np.int64)
        self.num_classes = len(store.classes)
        self.train, self.val, self.test = split_nodes(
            store, options.split, self.labels >= 0, seed=setting.seed, what="labelled node", strata=self.labels
        )

    def examples(self, items: np.ndarray, rng: np.random.Generator) -> Examples:
        return Examples(items, {"labels": self.labels[items]})

    def head(self, model: MultimodalModel) -> ClassifierHead:
        return ClassifierHead(model, self.num_classes)

    def evaluation(self, part: Part) -> "_Evaluation":
        return _Evaluation(self, self.val if part == "val" else self.test)


class _Evaluation(Evaluation[ClassifierHead]):
    def __init__(self, task: NodeClassification, nodes: np.ndarray) -> None:
        self.nodes = nodes
        self._task = task
        self._metrics = classification_metrics(task.num_classes)

    def ask(self, nodes: np.ndarray, rng: np.random.Generator) -> Examples:
        return self._task.examples(nodes, rng)

    def update(
        self, model: MultimodalModel, head: ClassifierHead, embeddings: Mapping[str, Tensor], batch: GroupBatch
    ) -> None:
        labels = batch.targets["labels"]
        self._metrics.to(labels.device).update(head.logits(model, embeddings, batch), labels)

    def compute(self, head: ClassifierHead) -> dict[str, float]:
        # A rank without a batch still has to meet the others' devices.
        self._metrics.to(head.linear.weight.device)
        return {name: float(value) for name, value in self._metrics.compute().items()}


def classification_metrics(num_classes: int) -> "MetricCollection":
    """Fresh metrics of ((k, classes) logits or probabilities, (k,) int64 labels); they reduce over the workers."""
    # It imports whatever it has metrics for, transformers among them: seconds that other tasks need not wait for.
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "macro_f1": MulticlassF1Score(num_classes, average="macro"),
        }
    )
