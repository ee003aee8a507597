"""What training asks of a task, whatever it is about.

A task names what it is trained on (nodes or edges), turns a group's share of these into examples (in the loader's
threads), has a head with weights of its own that turns the model's states into a loss, and evaluates its validation and
test parts from batches that cover them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from optimag_dist.models import MultimodalModel
from optimag_dist.options import Options
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling.pictures import BadPictures
from optimag_dist.store import GraphStore
from optimag_dist.types import Diverged, Examples, GroupBatch

Part = Literal["val", "test"]


class TaskOptions(Options):
    """What every task has.

    Attributes:
        weight: of the task's loss beside other tasks'.
    """

    weight: float = Field(1.0, gt=0, allow_inf_nan=False)

    @property
    def needs_ppr(self) -> bool:
        """Whether training draws by PPR, the regulariser aside."""
        return False


@dataclass(frozen=True)
class Setting:
    """What a task is made in, beside its store and its options.

    Attributes:
        modalities: of the model, which may have more than the store's stored features.
        seed: of random splits.
        ppr: of the graph, where it is there.
    """

    modalities: tuple[str, ...]
    seed: int
    ppr: PPRArtefact | None = None


class TaskHead(nn.Module, ABC):
    """The weights a task adds to the model."""

    @abstractmethod
    def loss(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        """Summed over the group's items.

        Args:
            model: encoded the batch; passes messages.
            embeddings: modality → (U, embedding) of the batch's nodes.
            batch: with the task's targets.
        """

    def forward(self, model: MultimodalModel, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> Tensor:
        return self.loss(model, embeddings, batch)


HeadT = TypeVar("HeadT", bound=TaskHead)
ValueT = TypeVar("ValueT")


class Evaluation(ABC, Generic[HeadT]):
    """Collects a part's figures from the batches that cover its nodes.

    Attributes:
        nodes: (k,) int64 to cover; over all ranks each comes in one batch.
        chunk: nodes of a batch, at most.
    """

    nodes: np.ndarray
    chunk = 256

    def ask(self, nodes: np.ndarray, rng: np.random.Generator) -> Examples:
        """What is needed for ``nodes``; called from the loader's threads."""
        return Examples(nodes, {})

    @abstractmethod
    def update(self, model: MultimodalModel, head: HeadT, embeddings: Mapping[str, Tensor], batch: GroupBatch) -> None:
        """Take note of one batch of this rank."""

    @abstractmethod
    def compute(self, head: HeadT) -> dict[str, float]:
        """The figures over all ranks, the same on each, by the names of :data:`~optimag_dist.tasks.metrics.METRICS`."""

    def outputs(self) -> pa.Table | None:
        """What was made for each node (``id``, ``reference``, ``output``), after :meth:`compute`; None without any."""
        return None


class Task(ABC, Generic[HeadT]):
    """Attributes:
    validated: figures of the validation part; the test part may have more.
    decisive: the one of these that early stopping and the choice of the best epoch go by.
    train: (T,) int64 nodes or (T, 2) edges.
    bad_pictures: what did not decode, of tasks that read pictures.
    notes: sentences about the split that whoever reads the figures should know.
    """

    validated: ClassVar[tuple[str, ...]]
    decisive: ClassVar[str]
    train: np.ndarray
    bad_pictures: Sequence[BadPictures] = ()
    notes: Sequence[str] = ()

    @abstractmethod
    def __init__(self, store: GraphStore, options: Any, setting: "Setting") -> None: ...

    @property
    def hidden(self) -> Mapping[str, np.ndarray]:
        """Modality → (n,) bool: nodes whose value training must not see, neither in messages nor in the regulariser."""
        return {}

    @property
    def hidden_in_evaluation(self) -> Mapping[str, np.ndarray]:
        """The same for evaluation."""
        return self.hidden

    @abstractmethod
    def examples(self, items: np.ndarray, rng: np.random.Generator) -> Examples:
        """What training asks of a group's items; called from the loader's threads."""

    @abstractmethod
    def head(self, model: MultimodalModel) -> HeadT:
        """A new head for ``model``."""

    @abstractmethod
    def evaluation(self, part: Part) -> Evaluation[HeadT]:
        """A fresh evaluation of a part."""


def diverged(what: str) -> Diverged:
    """The error of an evaluation whose numbers are of no use: ``what`` is not finite."""
    return Diverged(
        f"{what} not finite: the model has diverged, or its input lies far beyond what it was trained on; lower "
        f"train.lr, or look at the features"
    )


def rank_and_size() -> tuple[int, int]:
    """Of this process among the workers; (0, 1) where it is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def my_share(count: int) -> slice:
    """This rank's part of ``count`` rows that the workers share out."""
    rank, size = rank_and_size()
    return slice(rank * count // size, (rank + 1) * count // size)


def sum_over_ranks(mine: Tensor) -> Tensor:
    """``mine``, to which the other ranks' is added in place."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(mine)
    return mine


def gather_dict(mine: dict[int, ValueT]) -> dict[int, ValueT]:
    """All ranks' entries, on each."""
    size = rank_and_size()[1]
    if size == 1:
        return mine
    ranks: list[dict[int, ValueT]] = [{} for _ in range(size)]
    dist.all_gather_object(ranks, mine)
    return {key: value for entries in ranks for key, value in entries.items()}
