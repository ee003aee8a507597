"""Node classification: which nodes are trained, validated and tested on, the loss, and the metrics."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from optimag_dist.options import Options
from optimag_dist.store import GraphStore
from optimag_dist.types import InputError


class RandomSplit(Options):
    """A new stratified split for every seed: shares of the labelled nodes; the rest is the test set."""

    train: float = Field(gt=0, lt=1)
    val: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_a_test_set(self) -> "RandomSplit":
        if self.train + self.val >= 1:
            raise ValueError(f"train + val = {self.train + self.val:g} leaves no test nodes; make the sum less than 1")
        return self


class NodeClassificationOptions(Options):
    """Attributes:
    split: ``stored`` uses the store's own split; otherwise shares for a random one.
    """

    kind: Literal["node_classification"] = "node_classification"
    split: Literal["stored"] | RandomSplit = "stored"


class NodeClassification:
    """Targets of one run.

    Attributes:
        labels: (n,) int64, -1 where unlabelled.
        train, val, test: (…,) int64 ascending node ids, all labelled.

    Raises:
        InputError: the store has no labels, fewer than two classes, no split where one is asked for, or an empty part.
    """

    #: The metric that early stopping and the choice of the best epoch go by.
    decisive = "accuracy"

    def __init__(self, store: GraphStore, options: NodeClassificationOptions, *, seed: int) -> None:
        if store.labels is None:
            raise InputError(
                f"{store.path}: node classification needs labels and this store has none; name the label column under "
                f"nodes.label in the schema and run optimag ingest again"
            )
        if len(store.classes) < 2:
            raise InputError(f"{store.path}: node classification needs two classes or more, got {list(store.classes)}")
        self.labels = np.asarray(store.labels, dtype=np.int64)
        self.num_classes = len(store.classes)
        parts = _stored(store, self.labels) if options.split == "stored" else _random(self.labels, options.split, seed)
        self.train, self.val, self.test = parts
        for name, part in zip(("train", "val", "test"), parts, strict=True):
            if len(part) == 0:
                raise InputError(f"{store.path}: the {name} split has no labelled node; split used: {options.split}")

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over rows: (A, classes), (A,) int64 → scalar."""
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def metrics(self, device: torch.device) -> MetricCollection:
        """Fresh metrics of (logits, labels); they reduce over the workers when computed."""
        return classification_metrics(self.num_classes).to(device)


def classification_metrics(num_classes: int) -> MetricCollection:
    """Fresh metrics of ((k, classes) logits or probabilities, (k,) int64 labels)."""
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "macro_f1": MulticlassF1Score(num_classes, average="macro"),
        }
    )


def _stored(store: GraphStore, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    if store.split is None:
        raise InputError(
            f"{store.path}: task.split=stored but the store has no split; name its column under nodes.split in the "
            f"schema and ingest again, or set task.split={{train: 0.6, val: 0.2}}"
        )
    return tuple(np.flatnonzero((store.split == part) & (labels >= 0)) for part in range(3))


def _random(labels: np.ndarray, split: RandomSplit, seed: int) -> tuple[np.ndarray, ...]:
    """Stratified: every class gives its share, and at least one node, to training."""
    rng = np.random.default_rng((seed, 0x5911))
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for label in range(labels.max() + 1):
        members = rng.permutation(np.flatnonzero(labels == label))
        first = max(1, round(split.train * len(members)))
        second = first + round(split.val * len(members))
        for part, piece in zip(parts, np.split(members, [first, second]), strict=True):
            part.append(piece)
    return tuple(np.sort(np.concatenate(part)) for part in parts)
