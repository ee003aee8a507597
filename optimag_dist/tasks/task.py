"""What training asks of a task, whatever it is about: the nodes or edges it is trained on, examples of a group's share
of these, a head that turns the model's states into a loss, and metrics of its validation and test nodes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from optimag_dist.layerwise import LayerwiseForward, Mask
from optimag_dist.models import MultimodalModel
from optimag_dist.options import OptionsOfKind
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling.pictures import BadPictures
from optimag_dist.store import GraphStore
from optimag_dist.tasks.agreement import ClassAgreement
from optimag_dist.tasks.metrics import Metric, declare
from optimag_dist.types import Diverged, Examples, GroupBatch

Part = Literal["val", "test"]


class TaskOptions(OptionsOfKind):
    """What every task has; ``weight`` is that of its loss beside other tasks'."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False)

    @property
    def needs_ppr(self) -> bool:
        """Whether training draws by PPR, the regulariser aside."""
        return False


@dataclass(frozen=True)
class TaskContext:
    """What a task is made in, beside its store and its options: the model's ``modalities``, which may be more than the
    store's stored features, the ``seed`` of random splits, and the graph's PPR, where it is there."""

    modalities: tuple[str, ...]
    seed: int
    ppr: PPRArtefact | None = None


class TaskHead(nn.Module, ABC):
    """The weights a task adds to the model."""

    @abstractmethod
    def loss(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Summed over the group's items, from the batch with the task's labels, and modality → (U, embedding) of its
        nodes as ``model``, which passes messages, encoded them."""

    def forward(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        return self.loss(model, embeddings, batch)


HeadT = TypeVar("HeadT", bound=TaskHead)
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Evaluation:
    """What a task makes of a part: ``metrics`` by the names of the task's, over all ranks and the same on each, and
    what was made for each node (``id``, ``reference``, ``output``), where something is."""

    metrics: dict[str, float]
    outputs: pa.Table | None = None


class Task(ABC, Generic[HeadT]):
    """Attributes:
    options_class: of its options, by which its section of the configuration is validated.
    metrics: all that it reports, and how to read them.
    val_metrics: of the validation part; the test part may have more.
    monitor: the one of these that early stopping and the choice of the best epoch go by.
    train: (T,) int64 nodes or (T, 2) edges.
    bad_pictures: what did not decode, of tasks that read pictures.
    notes: sentences about the split that whoever reads the figures should know.
    guess: the monitor's value on the validation part of the best answer that is the same for every node; None where
        there is none.
    """

    options_class: ClassVar[type[TaskOptions]] = TaskOptions
    metrics: ClassVar[tuple[Metric, ...]]
    val_metrics: ClassVar[tuple[str, ...]]
    monitor: ClassVar[str]
    train: np.ndarray
    bad_pictures: Sequence[BadPictures] = ()
    notes: Sequence[str] = ()
    guess: float | None = None

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        declare(cls.__qualname__, cls.__dict__.get("metrics", ()))

    @abstractmethod
    def __init__(self, store: GraphStore, options: Any, context: "TaskContext") -> None: ...

    @property
    def masked(self) -> Mask:
        """Nodes whose value training must not see, neither in messages nor in the regulariser."""
        return {}

    def agreement(self, ppr: PPRArtefact) -> ClassAgreement | None:
        """How far neighbours share what is asked of them, by training labels; None where there are no classes."""
        return None

    @abstractmethod
    def examples(self, items: np.ndarray, rng: np.random.Generator) -> Examples:
        """What training asks of a group's items; called from the loader's threads."""

    @abstractmethod
    def head(self, model: MultimodalModel) -> HeadT:
        """A new head for ``model``."""

    @abstractmethod
    def evaluate(self, part: Part, head: HeadT, forward: LayerwiseForward) -> Evaluation:
        """Evaluate a part; called on every rank, with ``head`` in evaluation mode. ``Diverged``: what the model says is
        not finite."""


def diverged(what: str) -> Diverged:
    """The error of an evaluation whose numbers are of no use: ``what`` is not finite."""
    return Diverged(
        f"{what} not finite: the model has diverged, or its input lies far beyond what it was trained on; lower "
        f"optim.lr, or look at the features"
    )


def rank_and_size() -> tuple[int, int]:
    """Of this process among the workers; (0, 1) where it is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def my_share(count: int) -> slice:
    """This rank's part of ``count`` rows that the workers share out."""
    rank, size = rank_and_size()
    return slice(rank * count // size, (rank + 1) * count // size)


def my_chunks(count: int, size: int) -> list[slice]:
    """This rank's share of ``count`` rows in chunks of ``size``, which do not depend on the number of ranks."""
    rank, world_size = rank_and_size()
    return [slice(start, min(start + size, count)) for start in range(0, count, size)][rank::world_size]


def sum_over_ranks(mine: Tensor) -> Tensor:
    """``mine``, to which the other ranks' is added in place."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(mine)
    return mine


def gather(mine: ValueT) -> list[ValueT]:
    """What each rank has, on all of them; tensors must be on the CPU."""
    everyone = [mine] * rank_and_size()[1]
    if len(everyone) > 1:
        dist.all_gather_object(everyone, mine)
    return everyone
