"""Tasks by their kind: options, and what they make of a store."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from optimag_dist.options import Options
from optimag_dist.ppr import PPRArtefact
from optimag_dist.store import GraphStore
from optimag_dist.tasks.graph2image import GraphToImage, GraphToImageOptions
from optimag_dist.tasks.graph2text import GraphToText, GraphToTextOptions
from optimag_dist.tasks.link_prediction import LinkPrediction, LinkPredictionOptions
from optimag_dist.tasks.modality_retrieval import ModalityRetrieval, ModalityRetrievalOptions
from optimag_dist.tasks.node_classification import NodeClassification, NodeClassificationOptions
from optimag_dist.tasks.task import Task, TaskContext, TaskOptions

_TASKS: dict[type[TaskOptions], type[Task[Any]]] = {
    NodeClassificationOptions: NodeClassification,
    LinkPredictionOptions: LinkPrediction,
    ModalityRetrievalOptions: ModalityRetrieval,
    GraphToTextOptions: GraphToText,
    GraphToImageOptions: GraphToImage,
}
_OPTIONS = {options.model_fields["kind"].default: options for options in _TASKS}


def _tag(value: Any) -> str | None:
    """The options' class that a ``task`` section means."""
    if isinstance(value, Options):
        return type(value).__name__
    kind = value.get("kind", "node_classification") if isinstance(value, Mapping) else None
    if kind == "several":
        return SeveralTasksOptions.__name__
    return _OPTIONS[kind].__name__ if isinstance(kind, str) and kind in _OPTIONS else None


_CHOICE = Discriminator(
    _tag,
    custom_error_type="task_kind",
    custom_error_message=f"needed a section with kind: one of {', '.join(_OPTIONS)}; or several, at the top",
)
_One: TypeAlias = (
    Annotated[NodeClassificationOptions, Tag("NodeClassificationOptions")]
    | Annotated[LinkPredictionOptions, Tag("LinkPredictionOptions")]
    | Annotated[ModalityRetrievalOptions, Tag("ModalityRetrievalOptions")]
    | Annotated[GraphToTextOptions, Tag("GraphToTextOptions")]
    | Annotated[GraphToImageOptions, Tag("GraphToImageOptions")]
)
OneTask: TypeAlias = Annotated[_One, _CHOICE]


class SeveralTasksOptions(Options):
    """Several tasks in one run: they share encoders, backbone and regulariser, and a step trains all of them.

    Attributes:
        tasks: name → a task's options, each with its ``weight``. Metrics are called NAME/METRIC; the first task's
            ``monitor`` chooses the best epoch.
    """

    kind: Literal["several"]
    tasks: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], OneTask] = Field(min_length=2)


AnyTask: TypeAlias = Annotated[_One | Annotated[SeveralTasksOptions, Tag("SeveralTasksOptions")], _CHOICE]


def named(options: AnyTask) -> dict[str, TaskOptions]:
    """Name → options of each task; a single one has the empty name."""
    return dict(options.tasks) if isinstance(options, SeveralTasksOptions) else {"": options}


def monitor_of(options: AnyTask) -> str:
    """The metric that chooses a run's best epoch and by which runs are compared: the first task's ``monitor``."""
    name, task = next(iter(named(options).items()))
    return qualified(name, _TASKS[type(task)].monitor)


def val_metrics_of(options: AnyTask) -> list[str]:
    """The metrics of the validation part."""
    return [qualified(name, m) for name, task in named(options).items() for m in _TASKS[type(task)].val_metrics]


def make_task(
    options: TaskOptions,
    store: GraphStore,
    *,
    seed: int,
    ppr: PPRArtefact | None = None,
    modalities: Sequence[str] | None = None,
) -> Task[Any]:
    """What ``options`` mean on ``store``.

    Args:
        seed: of random splits.
        ppr: of the graph, for tasks that draw by it (``options.needs_ppr``); without it they cannot be trained.
        modalities: of the model; default: those of the store.

    Raises:
        InputError: the store lacks what the task needs: the message says what, and how to add it.
    """
    names = tuple(store.modalities if modalities is None else modalities)
    return _TASKS[type(options)](store, options, TaskContext(names, seed, ppr))


def notes_of(tasks: Mapping[str, Task[Any]]) -> list[str]:
    """What the tasks note of their splits, by their names."""
    return [f"task {name}: {note}" if name else note for name, task in tasks.items() for note in task.notes]


def qualified(task: str, metric: str) -> str:
    """The name of a task's metric among a run's."""
    return f"{task}/{metric}" if task else metric
