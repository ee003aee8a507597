"""How good a trained model is at tasks other than classes: links, retrieval, text, pictures.

Figures, batches and draws are those of the fit's own evaluation, so that what was not changed comes out the same; they
are made in this process. Classes have :mod:`optimag_dist.inference.evaluate`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from optimag_dist.console import console
from optimag_dist.files import atomic
from optimag_dist.inference.options import EvaluateOptions
from optimag_dist.inference.trained import TrainedModel
from optimag_dist.sampling import GroupLoader, HidingRows
from optimag_dist.storage import AnyPath, to_write
from optimag_dist.store import GraphStore
from optimag_dist.tasks import NodeClassificationOptions, make_task
from optimag_dist.tasks.metrics import metric_of
from optimag_dist.tasks.task import Task, TaskHead
from optimag_dist.train.evaluation import Batches, evaluate_part
from optimag_dist.types import InputError


@dataclass(frozen=True)
class TaskEvaluation:
    """Attributes:
    name: of the task; empty where the model has one.
    kind: of the task.
    part: ``val`` or ``test``.
    figures: by the names of a fit's ``result.json``.
    outputs: what was made for each node, of tasks that make something: ``id``, ``reference``, ``output``.
    """

    name: str
    kind: str
    part: str
    figures: dict[str, float]
    outputs: pa.Table | None


def evaluate_tasks(
    checkpoint: AnyPath, store: GraphStore, options: EvaluateOptions, *, progress: bool = True
) -> list[TaskEvaluation]:
    """Evaluate a trained model on its tasks, but for node classification.

    Args:
        checkpoint: ``model.pt`` of a fit, or the fit's directory.
        store: the graph; the one the model was trained on, unless ``options.allow_other_store``.
        options: ``block_size`` and ``seed`` are of no use here.
        progress: show that it goes on, where the terminal can.

    Raises:
        InputError: checkpoint, store and options do not fit together, or the fit's split is not known.
    """
    has_gpu = torch.cuda.is_available()
    if options.device == "cuda" and not has_gpu:
        raise InputError("device=cuda, but this host has no GPU; use device=cpu or device=auto")
    device = torch.device("cuda" if options.device != "cpu" and has_gpu else "cpu")
    trained = TrainedModel.open(checkpoint, device)
    trained.check_store(store, allow_other=options.allow_other_store)
    tasks_of_model = trained.tasks(options.task).items()
    asked = {name: task for name, task in tasks_of_model if not isinstance(task, NodeClassificationOptions)}
    if options.split == "train":
        raise InputError("split=train: of what a model was trained on only classes are evaluated; use val or test")
    remedy = "give the store a split of its own (nodes.split in the schema) and task.split=stored"
    for options_of_task in asked.values():
        trained.check_split(store, getattr(options_of_task, "split", "stored"), remedy=remedy)
    rows, seed, modalities = trained.rows(store), trained.seed or 0, list(trained.widths)
    tasks = {name: make_task(task, store, seed=seed, modalities=modalities) for name, task in asked.items()}
    heads = {name: _head(trained, name, task).to(device).eval() for name, task in tasks.items()}
    fanouts = trained.fanouts(options.fanouts)
    sampling = trained.config.sampling.model_copy(update={"groups": 1, "eval_fanouts": fanouts})
    messages = trained.model.passes_messages
    loaders = {
        name: GroupLoader(
            HidingRows.around(rows, [task.hidden_in_evaluation]), None, sampling, seed=seed, messages=messages
        )
        for name, task in tasks.items()
    }
    with _progress(progress) as watched:
        evaluated = evaluate_part(options.split, tasks, trained.model, heads, loaders, device, watched)
    return [
        TaskEvaluation(name, asked[name].model_dump()["kind"], options.split, figures, evaluation.outputs())
        for name, (figures, evaluation) in evaluated.items()
    ]


def as_table(evaluation: TaskEvaluation) -> Table:
    """The figures for people; shares in per cent."""
    what = f"{evaluation.name}, {evaluation.kind}" if evaluation.name else evaluation.kind
    table = Table("figure", evaluation.part, "better", title=what, title_justify="left")
    for column, value in evaluation.figures.items():
        metric, pair = metric_of(column), column.rpartition("/")[0]
        shown = f"{100 * value:.1f} %" if metric.is_share else f"{value:.4g}"
        table.add_row(f"{pair} {metric.title}".lstrip(), shown, "higher" if metric.better == "max" else "lower")
    return table


def write_evaluations(
    evaluations: Sequence[TaskEvaluation], out: AnyPath, *, checkpoint: AnyPath, store: GraphStore, classes: Any = None
) -> None:
    """Write the figures as JSON to ``out``, and what was made to ``NAME-outputs[-TASK].parquet`` beside it.

    Args:
        classes: what is to stand under ``classes``: an evaluation of these, made for the same model.
    """
    for evaluation in evaluations:
        if evaluation.outputs is not None:
            name = "-".join(filter(None, (out.name.removesuffix(".json"), "outputs", evaluation.name)))
            with to_write(out.parent / f"{name}.parquet") as file, atomic(file) as temporary:
                pq.write_table(evaluation.outputs, temporary)
    said = {"checkpoint": str(checkpoint), "store": str(store.location)}
    tasks = {e.name or e.kind: {"kind": e.kind, "part": e.part, **e.figures} for e in evaluations}
    content = said | {"tasks": tasks} | ({} if classes is None else {"classes": classes})
    with to_write(out) as file, atomic(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _head(trained: TrainedModel, name: str, task: Task[Any]) -> TaskHead:
    head = task.head(trained.model)
    try:
        head.load_state_dict(trained.heads[name])
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{trained.location}: its weights do not fit the task as it is asked for; change only keys that make no "
            f"other weights: {error}"
        ) from error
    return head


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[Batches], Batches]]:
    """Counts batches on standard error, silent where that is no terminal."""
    err = console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("evaluate: {task.completed} batches"), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not (shown and err.is_terminal)) as bar:
        yield lambda batches: bar.track(batches, total=None)
