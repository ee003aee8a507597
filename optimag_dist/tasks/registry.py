"""Tasks by their kind: options, and what they make of a store."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import Field, SerializeAsAny

from optimag_dist.imported import load_kind
from optimag_dist.options import OptionsOfKind, section
from optimag_dist.ppr import PPRArtefact
from optimag_dist.store import GraphStore
from optimag_dist.tasks.metrics import DECLARED, Metric
from optimag_dist.tasks.task import Task, TaskContext, TaskOptions
from optimag_dist.types import InputError

# Kind → where its task stands.
TASKS = {
    "node_classification": "optimag_dist.tasks.node_classification:NodeClassification",
    "link_prediction": "optimag_dist.tasks.link_prediction:LinkPrediction",
    "modality_retrieval": "optimag_dist.tasks.modality_retrieval:ModalityRetrieval",
    "graph2text": "optimag_dist.tasks.graph2text:GraphToText",
    "graph2image": "optimag_dist.tasks.graph2image:GraphToImage",
}
_DEFAULT, _SEVERAL = "node_classification", "several"
_NEEDED = (
    f"needed a section with kind: one of {', '.join(TASKS)}; or several, at the top; or your own task as "
    "package.module:Class or file.py:Class"
)


def _task_class(kind: str) -> type[Task[Any]]:
    """Raise ``InputError`` where there is none, or it lacks something."""
    if ":" not in kind and kind not in TASKS:
        raise InputError(_NEEDED)
    cls: type[Task[Any]] = load_kind(kind, TASKS, Task, "kind")  # type: ignore[type-abstract]
    lacking = [*cls.__abstractmethods__, *(n for n in ("metrics", "val_metrics", "monitor") if not hasattr(cls, n))]
    if lacking:
        raise InputError(f"{kind!r}: lacks {', '.join(sorted(lacking))}, which every task has (docs/extending.md)")
    if not (isinstance(cls.options_class, type) and issubclass(cls.options_class, TaskOptions)):
        raise InputError(f"{kind!r}: its options_class must be a subclass of TaskOptions; got {cls.options_class!r}")
    if undeclared := [name for name in (cls.monitor, *cls.val_metrics) if name not in {m.name for m in cls.metrics}]:
        raise InputError(f"{kind!r}: its metrics do not say how to read {undeclared[0]!r}; add it to them")
    if cls.monitor not in cls.val_metrics:
        raise InputError(f"{kind!r}: its monitor {cls.monitor!r} is not among its val_metrics")
    return cls


def _options_of(kind: str) -> type[OptionsOfKind]:
    return _task_class(kind).options_class


OneTask: TypeAlias = Annotated[TaskOptions, section(_options_of, _DEFAULT, _NEEDED), SerializeAsAny()]


class SeveralTasksOptions(OptionsOfKind):
    """Several tasks in one run, by name, each with its ``weight``: they share encoders, backbone and regulariser, and a
    step trains all of them. Metrics are called NAME/METRIC; the first task's ``monitor`` chooses the best epoch."""

    kind: str = _SEVERAL
    tasks: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], OneTask] = Field(min_length=2)


AnyTask: TypeAlias = Annotated[
    TaskOptions | SeveralTasksOptions,
    section(lambda kind: SeveralTasksOptions if kind == _SEVERAL else _options_of(kind), _DEFAULT, _NEEDED),
    SerializeAsAny(),
]


def named(options: AnyTask) -> dict[str, TaskOptions]:
    """Name → options of each task; a single one has the empty name."""
    return dict(options.tasks) if isinstance(options, SeveralTasksOptions) else {"": options}


def monitor_of(options: AnyTask) -> str:
    """The metric that chooses a run's best epoch and by which runs are compared: the first task's ``monitor``."""
    name, task = next(iter(named(options).items()))
    return qualified(name, _task_class(task.kind).monitor)


def val_metrics_of(options: AnyTask) -> list[str]:
    """The metrics of the validation part."""
    return [qualified(name, m) for name, task in named(options).items() for m in _task_class(task.kind).val_metrics]


def metric_of(column: str) -> Metric:
    """Of ``accuracy``, ``test/accuracy`` or ``val/TASK/accuracy``; one that no task has declared is shown as it is."""
    name = column.rpartition("/")[2]
    if name not in DECLARED:
        for kind in TASKS:
            _task_class(kind)
    return DECLARED.get(name) or Metric(name, name, is_share=False)


def make_task(
    options: TaskOptions,
    store: GraphStore,
    *,
    seed: int,
    ppr: PPRArtefact | None = None,
    modalities: Sequence[str] | None = None,
) -> Task[Any]:
    """What ``options`` mean on ``store``; an InputError says what it lacks, and how to add it.

    Args:
        seed: of random splits.
        ppr: of the graph, for tasks that draw by it (``options.needs_ppr``); without it they cannot be trained.
        modalities: of the model; default: those of the store.
    """
    names = tuple(store.modalities if modalities is None else modalities)
    return _task_class(options.kind)(store, options, TaskContext(names, seed, ppr))


def notes_of(tasks: Mapping[str, Task[Any]]) -> list[str]:
    """What the tasks note of their splits, by their names."""
    return [f"task {name}: {note}" if name else note for name, task in tasks.items() for note in task.notes]


def qualified(task: str, metric: str) -> str:
    """The name of a task's metric among a run's."""
    return f"{task}/{metric}" if task else metric
