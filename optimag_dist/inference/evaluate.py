"""How good a trained model is on labelled nodes of a store.

Training evaluates with the fan-outs ``sampling.eval_fanouts``, and so does this unless it is given others. With all
neighbours, the default, the two agree; where neighbours are drawn, training draws them by batch and this by node
(:mod:`optimag_dist.inference.forward`), so that they agree up to the luck of the draw.
"""

import json
import uuid
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Group
from rich.table import Table
from torchmetrics.classification import MulticlassCalibrationError

from optimag_dist.files import atomic
from optimag_dist.inference.driver import infer
from optimag_dist.inference.options import EvaluateOptions, PredictOptions
from optimag_dist.inference.parts import META
from optimag_dist.inference.trained import TrainedModel
from optimag_dist.storage import AnyPath, opened, remove_tree, to_write
from optimag_dist.store import GraphStore
from optimag_dist.tasks import make_task
from optimag_dist.tasks.node_classification import ClassCounts
from optimag_dist.types import InputError

_CALIBRATION_BINS = 15
# Beyond it a matrix says nothing to the eye.
_SHOWN_CLASSES = 12
# Classes up to which pairs of them are counted.
_CONFUSED_CLASSES = 1000


@dataclass(frozen=True)
class ClassScore:
    """How well one class is found; None where nothing was predicted as it (precision) or it has no node (recall)."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    checkpoint, store: what was evaluated on what.
    nodes: which: the name of a split, or ``listed``.
    fanouts: neighbours drawn per layer, -1 for all.
    accuracy, macro_f1: as in a fit's ``result.json``.
    calibration_error: expected calibration error of the predicted class's probability, 15 equal bins.
    classes: in the order of the model's outputs.
    confusion: ``confusion[i][j]``: nodes of class i that were predicted as class j; empty with more than 1,000 classes.
    """

    checkpoint: str
    store: str
    nodes: str
    fanouts: tuple[int, ...]
    num_nodes: int
    accuracy: float
    macro_f1: float
    calibration_error: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]


def evaluate(
    checkpoint: AnyPath,
    store: GraphStore,
    options: EvaluateOptions,
    *,
    user_ids: Sequence[Any] | None = None,
    out: AnyPath | None = None,
    progress: bool = True,
) -> Evaluation:
    """Predict labelled nodes by Ray tasks and compare with their labels.

    Args:
        checkpoint: ``model.pt`` of a fit, or the fit's directory.
        store: the graph; the one the model was trained on, unless ``options.allow_other_store``.
        user_ids: nodes to evaluate on, all labelled; default: those of ``options.split`` of the fit's own split.
        out: JSON file to write as well.
        progress: show a bar when the terminal can.

    Raises:
        InputError: checkpoint, store and nodes do not fit together, or the fit's split is not known.
        RunError: as of :func:`infer`.
    """
    trained = TrainedModel.open(checkpoint, torch.device("cpu"))
    trained.check_store(store, allow_other=options.allow_other_store)
    nodes = _split(trained, store, options) if user_ids is None else store.lookup(user_ids)
    labels = _labels(trained, store, nodes)
    predict = PredictOptions(probabilities=True, **options.model_dump(exclude={"split", "task"}))
    with _scratch(out or trained.location) as scratch:
        infer(trained.location, store, scratch, predict, user_ids=store.ids(nodes), progress=progress)
        probabilities = torch.from_numpy(_read(scratch, len(trained.classes)))
    evaluation = _compare(
        probabilities,
        torch.from_numpy(labels),
        trained.classes,
        checkpoint=str(trained.location),
        store=str(store.location),
        nodes=options.split if user_ids is None else "listed",
        fanouts=options.fanouts or trained.eval_fanouts,
    )
    if out is not None:
        with to_write(out) as file, atomic(file) as temporary:
            temporary.write_text(json.dumps(asdict(evaluation), indent=2, ensure_ascii=False), encoding="utf-8")
    return evaluation


def as_table(evaluation: Evaluation) -> Group:
    """The figures for people; the confusion matrix where it can be read."""
    of = f"{evaluation.num_nodes:,} nodes ({evaluation.nodes}), fan-outs {list(evaluation.fanouts)}"
    scores = Table(
        "class",
        *("precision", "recall", "F1", "nodes"),
        title=(
            f"{of}: accuracy {evaluation.accuracy:.4f}, macro F1 {evaluation.macro_f1:.4f}, "
            f"calibration error {evaluation.calibration_error:.4f}"
        ),
        title_justify="left",
    )
    for score in evaluation.classes:
        shares = ("" if value is None else f"{value:.3f}" for value in (score.precision, score.recall, score.f1))
        scores.add_row(score.name, *shares, f"{score.support:,}")
    if len(evaluation.classes) > _SHOWN_CLASSES:
        return Group(scores)
    names = [score.name for score in evaluation.classes]
    confusion = Table("class ↓ predicted →", *names, title="confusion", title_justify="left")
    for name, row in zip(names, evaluation.confusion, strict=True):
        confusion.add_row(name, *(f"{count:,}" for count in row))
    return Group(scores, confusion)


def _split(trained: TrainedModel, store: GraphStore, options: EvaluateOptions) -> np.ndarray:
    task = trained.classification(options.task)
    trained.check_split(store, task.split, remedy="list the nodes to evaluate on with --nodes")
    return getattr(make_task(task, store, seed=trained.seed or 0), options.split)


def _labels(trained: TrainedModel, store: GraphStore, nodes: np.ndarray) -> np.ndarray:
    """(k,) int64 positions among the model's outputs."""
    if store.labels is None:
        raise InputError(f"{store.location}: has no labels to compare with; optimag predict needs none")
    labels = store.labels[nodes]
    if (labels < 0).any():
        first = store.ids(nodes[labels < 0][:1])[0]
        raise InputError(f"nodes: {first!r} has no label in {store.location}; list labelled nodes only")
    unknown = sorted({store.classes[label] for label in np.unique(labels)} - set(trained.classes))
    if unknown:
        raise InputError(
            f"{store.location}: has nodes of class {', '.join(map(repr, unknown))}, which {trained.location} does not "
            f"know; list nodes of its classes with --nodes: {', '.join(trained.classes)}"
        )
    place = np.array([trained.classes.index(name) if name in trained.classes else -1 for name in store.classes])
    return place[labels].astype(np.int64)


@contextmanager
def _scratch(beside: AnyPath) -> Any:
    """A directory that every Ray node sees, as it sees ``beside``; gone when the block ends."""
    place = beside.absolute().parent / f".evaluate-{uuid.uuid4().hex[:12]}"
    if isinstance(place, Path):
        try:
            place.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{place.parent}: cannot be written to ({error}); name a place with --out") from error
    try:
        yield place
    finally:
        remove_tree(place)


def _read(folder: AnyPath, num_classes: int) -> np.ndarray:
    """(k, classes) float32 probabilities."""
    with opened(folder / META) as file:
        parts = json.loads(file.read())["parts"]
    blocks = []
    for part in parts:
        with opened(folder / part["file"]) as file:
            column = pq.read_table(file, columns=["probabilities"]).column("probabilities").combine_chunks()
        blocks.append(column.flatten().to_numpy().reshape(-1, num_classes))
    return np.concatenate(blocks)


def _compare(probabilities: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], **what: Any) -> Evaluation:
    count = len(classes)
    counts = ClassCounts(count)
    counts.update(probabilities, labels)
    hits, support, predicted = (x.tolist() for x in (counts.hits, counts.support, counts.predicted))
    metrics = counts.metrics()
    pairs = np.zeros((count, count) if count <= _CONFUSED_CLASSES else (0, 0), np.int64)
    if pairs.size:
        np.add.at(pairs, (labels.numpy(), probabilities.argmax(dim=1).numpy()), 1)
    calibration = MulticlassCalibrationError(count, n_bins=_CALIBRATION_BINS)
    return Evaluation(
        **what,
        num_nodes=len(labels),
        accuracy=metrics["accuracy"],
        macro_f1=metrics["macro_f1"],
        calibration_error=float(calibration(probabilities, labels)),
        classes=tuple(
            ClassScore(
                name,
                _share(hits[i], predicted[i]),
                _share(hits[i], support[i]),
                _share(2 * hits[i], support[i] + predicted[i]),
                int(support[i]),
            )
            for i, name in enumerate(classes)
        ),
        confusion=tuple(tuple(map(int, row)) for row in pairs),
    )


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
