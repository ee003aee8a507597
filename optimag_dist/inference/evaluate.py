"""How good a trained model is at its tasks: what its fit says of itself, by the same code and draws, on this or another
split, and more of classes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix

from optimag_dist.files import atomic
from optimag_dist.inference.ids import distinct_nodes
from optimag_dist.inference.options import EvaluateOptions
from optimag_dist.inference.trained import TrainedModel
from optimag_dist.layerwise import LayerwiseForward
from optimag_dist.progress_bar import progress_bar
from optimag_dist.storage import AnyPath, to_write
from optimag_dist.store import GraphStore
from optimag_dist.tasks import NodeClassificationOptions, TaskOptions, make_task, metric_of
from optimag_dist.tasks.node_classification import ClassCounts, classify
from optimag_dist.train.parts import evaluate_part
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
class ClassReport:
    """Attributes:
    nodes: the name of a split, or ``listed``.
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


@dataclass(frozen=True)
class TaskEvaluation:
    """Attributes:
    name: of the task; empty where the model has one.
    part: ``train``, ``val`` or ``test``; ``listed`` for listed nodes.
    metrics: by the names of a fit's ``result.json``.
    outputs: what was made for each node, of tasks that make something: ``id``, ``reference``, ``output``.
    classes: more about these, where the task is to tell them.
    """

    name: str
    kind: str
    part: str
    metrics: dict[str, float]
    outputs: pa.Table | None = None
    classes: ClassReport | None = None


def evaluate(
    checkpoint: AnyPath,
    store: GraphStore,
    options: EvaluateOptions,
    *,
    user_ids: Sequence[Any] | None = None,
    progress: bool = True,
) -> list[TaskEvaluation]:
    """Evaluate a trained model on all its tasks, in this process. ``InputError``: checkpoint, store, nodes and options
    do not fit together, or the fit's split is not known. ``Diverged``: what the model says is not finite.

    Args:
        checkpoint: ``model.pt`` of a fit, or the fit's directory.
        user_ids: nodes to compare classes of, all labelled; default: those of ``options.split`` of the fit's own split.
    """
    has_gpu = torch.cuda.is_available()
    if options.device == "cuda" and not has_gpu:
        raise InputError("device=cuda, but this host has no GPU; use device=cpu or device=auto")
    device = torch.device("cuda" if options.device != "cpu" and has_gpu else "cpu")
    trained = TrainedModel.open(checkpoint, device)
    trained.check_store(store, allow_other=options.allow_other_store)
    asked = trained.tasks(options.task)
    _check_asked(asked, options, trained, store, listed=user_ids is not None)
    seed = options.seed if options.seed is not None else trained.seed or 0
    with progress_bar("evaluate", None, wanted=progress) as advance:
        forward = trained.forward(store, trained.fanouts(options.fanouts), seed, partial(advance, 1))
        return [_evaluate(trained, store, forward, name, task, options, user_ids) for name, task in asked.items()]


def _evaluate(
    trained: TrainedModel,
    store: GraphStore,
    forward: LayerwiseForward,
    name: str,
    options_of_task: TaskOptions,
    options: EvaluateOptions,
    user_ids: Sequence[Any] | None,
) -> TaskEvaluation:
    make = partial(make_task, options_of_task, store, seed=trained.seed or 0, modalities=list(trained.widths))
    kind = options_of_task.kind
    if isinstance(options_of_task, NodeClassificationOptions):
        part = options.split if user_ids is None else "listed"
        nodes = getattr(make(), part) if user_ids is None else distinct_nodes(store, user_ids)
        scores = ClassScores(trained.classes)
        classify(nodes, _labels(trained, store, nodes), trained.classifier, forward, scores.update)
        places = {"checkpoint": str(trained.location), "store": str(store.location)}
        report = scores.report(**places, nodes=part, fanouts=trained.fanouts(options.fanouts))
        metrics = {"accuracy": report.accuracy, "macro_f1": report.macro_f1}
        return TaskEvaluation(name, kind, part, metrics, classes=report)
    assert options.split != "train"
    task: Any = make()
    made = evaluate_part(options.split, {name: task}, {name: trained.head(name, task)}, forward)[name]
    return TaskEvaluation(name, kind, options.split, made.metrics, made.outputs)


class ClassScores:
    """Counts what a model says of labelled nodes, in memory that grows with the pairs of at most 1,000 ``classes``,
    which are in the order of the model's outputs."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes, count = classes, len(classes)
        self._counts = ClassCounts(count)
        self._pairs = MulticlassConfusionMatrix(count) if count <= _CONFUSED_CLASSES else None
        self._calibration = MulticlassCalibrationError(count, n_bins=_CALIBRATION_BINS)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add (k, classes) logits and (k,) int64 labels."""
        probabilities, labels = logits.softmax(1).cpu(), labels.cpu()
        self._counts.update(probabilities, labels)
        self._calibration.update(probabilities, labels)
        if self._pairs is not None:
            self._pairs.update(probabilities, labels)

    def report(self, **what: Any) -> ClassReport:
        """All that was added; ``what`` are the first fields of the report."""
        metrics, columns = self._counts.metrics(), self._counts.counts.tolist()
        return ClassReport(
            **what,
            accuracy=metrics["accuracy"],
            macro_f1=metrics["macro_f1"],
            num_nodes=sum(columns[-1]),
            calibration_error=float(self._calibration.compute()),
            classes=tuple(
                ClassScore(name, _share(hits, said), _share(hits, there), _share(2 * hits, there + said), int(there))
                for name, hits, said, there in zip(self._classes, *columns, strict=True)
            ),
            confusion=() if self._pairs is None else tuple(map(tuple, self._pairs.compute().tolist())),
        )


def as_table(evaluation: TaskEvaluation) -> Table | Group:
    """The metrics for people; shares in per cent, and of classes a table of their own."""
    if evaluation.classes is not None:
        return _class_tables(evaluation.classes)
    what = f"{evaluation.name}, {evaluation.kind}" if evaluation.name else evaluation.kind
    table = Table("metric", evaluation.part, "better", title=what, title_justify="left")
    for column, value in evaluation.metrics.items():
        metric, pair = metric_of(column), column.rpartition("/")[0]
        shown = f"{100 * value:.1f} %" if metric.is_share else f"{value:.4g}"
        table.add_row(f"{pair} {metric.title}".lstrip(), shown, "higher" if metric.better == "max" else "lower")
    return table


def write_evaluations(
    evaluations: Sequence[TaskEvaluation], out: AnyPath, *, checkpoint: AnyPath, store: GraphStore
) -> None:
    """Write the metrics as JSON to ``out``, and what was made to ``NAME-outputs[-TASK].parquet`` beside it."""
    for evaluation in evaluations:
        if evaluation.outputs is not None:
            name = "-".join(filter(None, (out.name.removesuffix(".json"), "outputs", evaluation.name)))
            with to_write(out.parent / f"{name}.parquet") as file, atomic(file) as temporary:
                pq.write_table(evaluation.outputs, temporary)
    content: dict[str, Any] = {"checkpoint": str(checkpoint), "store": str(store.location)}
    reports = {e.name: asdict(e.classes) for e in evaluations if e.classes is not None}
    classes = next(iter(reports.values())) if len(reports) == 1 else reports
    if len(reports) == len(evaluations):
        content |= classes
    else:
        others = [e for e in evaluations if e.classes is None]
        content["tasks"] = {e.name or e.kind: {"kind": e.kind, "part": e.part, **e.metrics} for e in others}
        content |= {"classes": classes} if reports else {}
    with to_write(out) as file, atomic(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _class_tables(report: ClassReport) -> Group:
    """The scores of the classes, and the confusion matrix where it can be read."""
    title = (
        f"{report.num_nodes:,} nodes ({report.nodes}), fan-outs {list(report.fanouts)}: accuracy "
        f"{report.accuracy:.4f}, macro F1 {report.macro_f1:.4f}, calibration error {report.calibration_error:.4f}"
    )
    scores = Table("class", "precision", "recall", "F1", "nodes", title=title, title_justify="left")
    for score in report.classes:
        shares = ("" if value is None else f"{value:.3f}" for value in (score.precision, score.recall, score.f1))
        scores.add_row(score.name, *shares, f"{score.support:,}")
    if len(report.classes) > _SHOWN_CLASSES:
        return Group(scores)
    names = [score.name for score in report.classes]
    confusion = Table("class ↓ predicted →", *names, title="confusion", title_justify="left")
    for name, row in zip(names, report.confusion, strict=True):
        confusion.add_row(name, *(f"{count:,}" for count in row))
    return Group(scores, confusion)


def _check_asked(
    asked: dict[str, TaskOptions], options: EvaluateOptions, trained: TrainedModel, store: GraphStore, *, listed: bool
) -> None:
    classes = {name for name, task in asked.items() if isinstance(task, NodeClassificationOptions)}
    if listed and not classes:
        raise InputError(f"--nodes: lists nodes to compare classes of, and {trained.location} was trained on none")
    if options.split == "train" and asked.keys() - classes:
        raise InputError("split=train: of what a model was trained on only classes are evaluated; use val or test")
    of_own = "give the store a split of its own (nodes.split in the schema) and task.split=stored"
    for name, task in asked.items():
        if not (listed and name in classes):
            remedy = "list the nodes to evaluate on with --nodes" if name in classes else of_own
            trained.check_split(store, getattr(task, "split", "stored"), remedy=remedy)


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


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
