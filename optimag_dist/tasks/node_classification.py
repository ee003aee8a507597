"""Node classification: the class of a node, from itself and its neighbourhood."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from optimag_dist.layerwise import LayerwiseForward
from optimag_dist.models import MultimodalModel
from optimag_dist.ppr import PPRArtefact
from optimag_dist.store import GraphStore
from optimag_dist.tasks.agreement import ClassAgreement, class_agreement
from optimag_dist.tasks.metrics import Metric
from optimag_dist.tasks.splits import NodeSplit, split_nodes
from optimag_dist.tasks.task import (
    Evaluation,
    Part,
    Task,
    TaskContext,
    TaskHead,
    TaskOptions,
    diverged,
    my_chunks,
    sum_over_ranks,
)
from optimag_dist.types import Examples, GroupBatch, InputError

# Classes that a note names.
_NAMED = 5
# Nodes that are classified at once.
_CHUNK = 8_192


class NodeClassificationOptions(TaskOptions):
    """Attributes:
    split: ``stored`` uses the store's own split; otherwise shares of the labelled nodes for a random one, by class.
    """

    kind: str = "node_classification"
    split: NodeSplit = "stored"


class ClassifierHead(TaskHead):
    """A linear layer on a node's state."""

    def __init__(self, model: MultimodalModel, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(model.hidden, num_classes)

    def loss(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Cross-entropy."""
        logits = self.linear(model.represent(embeddings, batch))
        return nn.functional.cross_entropy(logits, batch.labels["labels"], reduction="sum")


class NodeClassification(Task[ClassifierHead]):
    """The store's ``labels``, (n,) int64, -1 where unlabelled, and the labelled nodes to train, validate and test on,
    (…,) int64 ascending. Raises ``InputError`` where the store has no labels, fewer than two classes, no split where
    one is asked for, or an empty part."""

    options_class = NodeClassificationOptions
    metrics = (Metric("accuracy", "accuracy"), Metric("macro_f1", "macro-F1"))
    val_metrics = ("accuracy", "macro_f1")
    monitor = "accuracy"

    def __init__(self, store: GraphStore, options: NodeClassificationOptions, context: TaskContext) -> None:
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
            store, options.split, self.labels >= 0, seed=context.seed, what="labelled node", strata=self.labels
        )
        counts = [
            np.bincount(self.labels[nodes], minlength=self.num_classes) for nodes in (self.train, self.val, self.test)
        ]
        self.notes = _notes(store.classes, *counts)
        if np.count_nonzero(counts[1]) > 1:
            self.guess = float(counts[1][counts[0].argmax()] / counts[1].sum())

    def agreement(self, ppr: PPRArtefact) -> ClassAgreement:
        return class_agreement(ppr, self.train, self.labels)

    def examples(self, items: np.ndarray, rng: np.random.Generator) -> Examples:
        return Examples(items, {"labels": self.labels[items]})

    def head(self, model: MultimodalModel) -> ClassifierHead:
        return ClassifierHead(model, self.num_classes)

    def evaluate(self, part: Part, head: ClassifierHead, forward: LayerwiseForward) -> Evaluation:
        nodes = self.val if part == "val" else self.test
        counts = ClassCounts(self.num_classes)
        classify(nodes, self.labels[nodes], head, forward, counts.update)
        return Evaluation(counts.of_all_ranks().metrics())


@torch.no_grad()
def classify(
    nodes: np.ndarray,
    labels: np.ndarray,
    head: ClassifierHead,
    forward: LayerwiseForward,
    note: Callable[[Tensor, Tensor], None],
) -> None:
    """Call ``note`` with (c, classes) logits and (c,) labels of chunks of ``nodes``, (k,) int64 as ``labels``, this
    rank's share of them. Raises ``Diverged`` where a logit is not finite, on any rank."""
    states, truth = forward.states(nodes), torch.from_numpy(labels)
    wrong = torch.zeros((), dtype=torch.int64, device=forward.device)
    for rows in my_chunks(len(nodes), _CHUNK):
        logits = head.linear(states[rows].to(forward.device))
        wrong += (~logits.isfinite()).any(1).sum()
        note(logits, truth[rows].to(forward.device))
    if count := int(sum_over_ranks(wrong)):
        raise diverged(f"the class scores of {count:,} of {len(nodes):,} nodes are")


def _notes(classes: Sequence[str], train: np.ndarray, val: np.ndarray, test: np.ndarray) -> list[str]:
    """What a split cannot teach or judge, from each part's (classes,) numbers of nodes."""
    notes = []
    unlearned = train == 0
    if (judged := unlearned & (val + test > 0)).any():
        wrong = int((val + test)[judged].sum())
        notes.append(
            f"split: no training nodes of {_named(classes, judged)}: never learned, so that {wrong:,} validation and "
            f"test nodes can only be wrong"
        )
    if (absent := unlearned & (val + test == 0)).any():
        notes.append(f"split: no nodes at all of {_named(classes, absent)}")
    for part, counts in (("training", train), ("validation", val), ("test", test)):
        there = counts > 0
        if there.sum() == 1:
            notes.append(f"split: all {part} nodes are of {_named(classes, there)}")
        elif part != "training" and (missing := ~there & ~unlearned).any():
            notes.append(f"split: no {part} nodes of {_named(classes, missing)}: not judged there")
    return notes


def _named(classes: Sequence[str], chosen: np.ndarray) -> str:
    names = [repr(classes[index]) for index in np.flatnonzero(chosen)[:_NAMED]]
    count = int(chosen.sum())
    more = f" and {count - _NAMED:,} more" if count > _NAMED else ""
    return f"{'class' if count == 1 else f'{count:,} classes,'} {', '.join(names)}{more}"


class ClassCounts:
    """Counts nodes by class, in memory that grows with the classes and not with their pairs: ``counts``, (3, classes)
    int64, of nodes predicted rightly, predicted so, and that are so."""

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add (k, classes) logits or probabilities and (k,) int64 labels."""
        self.counts = self.counts.to(labels.device)
        predicted = scores.argmax(1)
        for row, nodes in enumerate((labels[predicted == labels], predicted, labels)):
            self.counts[row] += torch.bincount(nodes, minlength=self.counts.shape[1])

    def of_all_ranks(self) -> "ClassCounts":
        """The workers' counts together."""
        total = ClassCounts(self.counts.shape[1])
        total.counts = sum_over_ranks(self.counts.clone())
        return total

    def metrics(self) -> dict[str, float]:
        """Accuracy, and F1 averaged over the classes that were there or predicted."""
        hits, predicted, support = self.counts
        seen = predicted + support
        f1 = 2 * hits.double() / seen.clamp(min=1)
        return {
            "accuracy": float(hits.sum() / support.sum()),
            "macro_f1": float(f1.sum() / (seen > 0).sum()),
        }
