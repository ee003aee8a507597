"""From what is to be fitted to what a fit works with: tasks, model, optimiser, batches; and its tasks' metrics."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from optimag_dist.layerwise import LayerwiseForward
from optimag_dist.models import MultimodalModel
from optimag_dist.models.pretrained import parameter_groups
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import (
    ExampleFn,
    GraphDataSource,
    GroupLoader,
    LocalSource,
    MaskedRows,
    RawRows,
    SamplingOptions,
    SeedBatcher,
    check_encoders,
)
from optimag_dist.sampling.pictures import BadPictures
from optimag_dist.store import GraphStore
from optimag_dist.tasks import ClassAgreement, Evaluation, Task, TaskHead, make_task, named, qualified
from optimag_dist.tasks.task import Part, diverged
from optimag_dist.train.options import VariantConfig, fingerprint
from optimag_dist.train.regularisers import make_regulariser
from optimag_dist.train.share import GradientShare
from optimag_dist.train.step import StepLoss
from optimag_dist.types import InputError


@dataclass(frozen=True)
class Fit:
    """What to fit and where its files go: ``metrics.jsonl``, ``checkpoint.pt``, ``model.pt``, ``result.json``."""

    variant: str
    seed: int
    config: VariantConfig
    directory: Path


@dataclass(frozen=True)
class Worker:
    """This process's place among the DDP workers."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Parts:
    """What a fit works with, before its first step; the same on every rank.

    Args:
        ppr: may be None where it is not needed.
        rows: where neighbours and features come from; default: the store, mapped on this host.

    Attributes:
        prior: PPR that groups are filled by; None without a regulariser.
        masked_rows: of ``rows`` what training may see.
        kinds: modality → what its encoder reads, of those with one.
        widths: modality → width of its stored features.
        regulariser: None without one.
        aligned: it takes part in training.
        share: what it is held at; None where its weight is given, or it takes no part.
        agreements: how far neighbours share a class, of each task that has classes, where the share goes by it.
        step_loss, parallel: all that is trained, the latter in DDP where there are several workers.
        sources: per task, what it is trained on.
    """

    def __init__(
        self, fit: Fit, store: GraphStore, ppr: PPRArtefact | None, worker: Worker, rows: GraphDataSource | None = None
    ) -> None:
        config = fit.config
        self.fit, self.store, self.worker = fit, store, worker
        if config.needs_ppr and ppr is None:
            raise InputError("this run needs a PPR artefact; compute one with: optimag ppr STORE")
        self.prior = ppr if config.regularised else None
        self.kinds = check_encoders(store, config.model.encoders)
        self.rows, self.bad_pictures = rows or LocalSource(store), list[BadPictures]()
        if self.kinds:
            self.rows = raw = RawRows(self.rows, store, config.model.encoders)
            self.bad_pictures += raw.bad_pictures.values()
        self.widths = {name: modality.width for name, modality in self.rows.modalities.items()}
        self.tasks = {
            name: make_task(options, store, seed=fit.seed, ppr=ppr, modalities=list(self.widths))
            for name, options in named(config.task).items()
        }
        self.bad_pictures += [bad for task in self.tasks.values() for bad in task.bad_pictures]
        self.masked_rows = MaskedRows.around(self.rows, [task.masked for task in self.tasks.values()])
        self._decide_share()
        self._make_modules()
        groups = parameter_groups(self.step_loss, config.optim.lr)
        self.optimiser = torch.optim.AdamW(groups, lr=config.optim.lr, weight_decay=config.optim.weight_decay)
        messages, filled = self.model.passes_messages, self.aligned
        self.loader = self.make_loader(self.masked_rows, config.sampling, messages=messages, filled=filled)
        self.sources: list[tuple[SeedBatcher, ExampleFn]] = [
            (self.make_batcher(task.train, config.sampling, filled=filled), task.examples)
            for task in self.tasks.values()
        ]

    def _decide_share(self) -> None:
        """Whether and how far training aligns to the graph."""
        options, prior = self.fit.config.regulariser, self.prior
        self.aligned, self.share, self.agreements = prior is not None, None, list[ClassAgreement]()
        if prior is None or options.weight is not None:
            return
        told = (task.agreement(prior) for task in self.tasks.values())
        self.agreements = [each for each in told if each is not None]
        strength = min((each.strength for each in self.agreements), default=1.0)
        # Held at nothing, it is left out: steps are then those without a regulariser, bit for bit.
        self.aligned = strength > 0
        if self.aligned:
            self.share = GradientShare(options.share, options.warm_up, strength)

    def _make_modules(self) -> None:
        """All that is trained, with the weights that the seed gives."""
        config, worker = self.fit.config, self.worker
        torch.manual_seed(self.fit.seed)
        columns = {name: self.store.columns(name) for name in self.store.modalities if name not in self.kinds}
        num_layers = len(config.sampling.fanouts)
        self.model = MultimodalModel(self.widths, num_layers, config.model, self.kinds, columns)
        self.heads: dict[str, TaskHead] = {name: task.head(self.model) for name, task in self.tasks.items()}
        self.regulariser = make_regulariser(config.regulariser) if config.regularised else None
        weights = {name: options.weight for name, options in named(config.task).items()}
        aligning = self.regulariser if self.aligned else None
        loss = StepLoss(self.model, self.heads, weights, aligning, worker.world_size, self.share)
        self.step_loss: StepLoss = loss.to(worker.device)
        self.parallel: nn.Module = self.step_loss
        if worker.world_size > 1:
            ids = [worker.device] if worker.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.step_loss, device_ids=ids)

    def make_loader(
        self, rows: GraphDataSource, sampling: SamplingOptions, *, messages: bool, filled: bool
    ) -> GroupLoader:
        return GroupLoader(
            rows,
            self.prior if filled else None,
            sampling,
            seed=self.fit.seed,
            messages=messages,
            rank=self.worker.rank,
            world_size=self.worker.world_size,
            pin_memory=self.worker.device.type == "cuda",
        )

    def make_batcher(self, items: np.ndarray, sampling: SamplingOptions, *, filled: bool) -> SeedBatcher:
        """Groups of ``items``, ``filled`` by the prior or as they are."""
        prior = self.prior if filled else None
        return SeedBatcher(items, self.store.num_nodes, prior, sampling, seed=self.fit.seed, fill=filled)

    def forward(
        self, on_chunk: Callable[[], None] = lambda: None, rows: GraphDataSource | None = None
    ) -> LayerwiseForward:
        """The model over ``rows``, by default all that the graph has, as evaluation goes through it."""
        return LayerwiseForward(
            self.model,
            rows or self.rows,
            self.store.num_nodes,
            self.fit.config.sampling.fanouts_at_evaluation,
            seed=self.fit.seed,
            device=self.worker.device,
            rank=self.worker.rank,
            world_size=self.worker.world_size,
            on_chunk=on_chunk,
        )


def made_from(fit: Fit, store: GraphStore) -> dict[str, str]:
    """What tells a fit's files from those of another fit."""
    return {"fingerprint": fingerprint(fit.config, fit.seed), "store": store.content_hash}


def check_made_from(path: Path, made: Mapping[str, Any], fit: Fit, store: GraphStore) -> None:
    """Raise ``InputError`` if ``made``, the content of ``path``, is of another fit."""
    for what, mine in made_from(fit, store).items():
        # Results of older versions do not say.
        if made.get(what, mine) != mine:
            raise InputError(
                f"{path}: made by another {'configuration' if what == 'fingerprint' else 'graph'}; train under another "
                f"name, or delete {fit.directory} to start over"
            )


def evaluate_part(
    part: Part, tasks: Mapping[str, Task[Any]], heads: Mapping[str, TaskHead], forward: LayerwiseForward
) -> dict[str, Evaluation]:
    """Evaluate every task, given by name; called on every rank, with model and heads in evaluation mode. ``Diverged``
    where what a task goes by is not finite."""
    evaluations = {name: task.evaluate(part, heads[name], forward) for name, task in tasks.items()}
    for name, evaluation in evaluations.items():
        monitor = tasks[name].monitor
        if not math.isfinite(value := evaluation.metrics[monitor]):
            raise diverged(f"{f'task {name}: ' if name else ''}{monitor} of the {part} part is {value},")
    return evaluations


def joined(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """The metrics of all tasks, by their names in a run."""
    return {
        qualified(name, metric): value
        for name, evaluation in evaluations.items()
        for metric, value in evaluation.metrics.items()
    }
