"""From what is to be fitted to what a fit works with: tasks, model, optimiser, batches."""

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
from optimag_dist.models.encoder_networks import Kind
from optimag_dist.models.pretrained import parameter_groups
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import (
    ExampleFn,
    GraphRows,
    GroupLoader,
    MaskedRows,
    RawRows,
    SamplingOptions,
    SeedBatcher,
    StoreRows,
    check_encoders,
)
from optimag_dist.sampling.pictures import BadPictures
from optimag_dist.store import GraphStore
from optimag_dist.tasks import Task, TaskHead, make_task, named
from optimag_dist.train.options import VariantConfig, fingerprint
from optimag_dist.train.step import StepLoss
from optimag_dist.types import InputError
from optimag_dist.ufgw import UFGWRegulariser


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


@dataclass(frozen=True)
class Parts:
    """What a fit works with, before its first step.

    Attributes:
        ppr: prior of the groups; None without a regulariser.
        rows: the graph.
        masked_rows: of it what training may see.
        kinds: modality → what its encoder reads, of those with one.
        tasks, heads: by the task's name.
        step_loss: model, heads and regulariser: all that is trained.
        parallel: the same, in DDP where there are several workers.
        loader: of training batches.
        sources: per task, what it is trained on.
        bad_pictures: what did not decode.
    """

    fit: Fit
    store: GraphStore
    ppr: PPRArtefact | None
    worker: Worker
    rows: GraphRows
    masked_rows: GraphRows
    kinds: dict[str, Kind]
    tasks: Mapping[str, Task[Any]]
    model: MultimodalModel
    heads: Mapping[str, TaskHead]
    step_loss: StepLoss
    parallel: nn.Module
    optimiser: torch.optim.Optimizer
    loader: GroupLoader
    sources: list[tuple[SeedBatcher, ExampleFn]]
    bad_pictures: list[BadPictures]

    @property
    def widths(self) -> dict[str, int]:
        """Modality → width of its stored features."""
        return {name: modality.width for name, modality in self.rows.modalities.items()}

    @property
    def made_from(self) -> dict[str, str]:
        """What a checkpoint and a result say of where they come from."""
        return made_from(self.fit, self.store)

    def forward(self, on_chunk: Callable[[], None], rows: GraphRows | None = None) -> LayerwiseForward:
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


def build(fit: Fit, store: GraphStore, ppr: PPRArtefact | None, worker: Worker, rows: GraphRows | None = None) -> Parts:
    """Make what ``fit`` works with, the same on every rank.

    Raises:
        InputError: the store lacks what a task or an encoder needs, or there is no PPR where it is needed.
    """
    config = fit.config
    if config.needs_ppr and ppr is None:
        raise InputError("this run needs a PPR artefact; compute one with: optimag ppr STORE")
    kinds, bad_pictures = check_encoders(store, config.model.encoders), list[BadPictures]()
    rows = rows or StoreRows(store)
    if kinds:
        rows = RawRows(rows, store, config.model.encoders)
        bad_pictures += rows.bad_pictures.values()
    options, modalities = named(config.task), list(rows.modalities)
    tasks = {
        name: make_task(each, store, seed=fit.seed, ppr=ppr, modalities=modalities) for name, each in options.items()
    }
    for task in tasks.values():
        bad_pictures += task.bad_pictures
    step_loss, heads = _make_modules(fit, store, worker, rows, kinds, tasks)
    prior = ppr if config.regularised else None
    masked_rows = MaskedRows.around(rows, [task.masked for task in tasks.values()])
    return Parts(
        fit=fit,
        store=store,
        ppr=prior,
        worker=worker,
        rows=rows,
        masked_rows=masked_rows,
        kinds=kinds,
        tasks=tasks,
        model=step_loss.model,
        heads=heads,
        step_loss=step_loss,
        parallel=_in_parallel(step_loss, worker),
        optimiser=torch.optim.AdamW(
            parameter_groups(step_loss, config.train.lr), lr=config.train.lr, weight_decay=config.train.weight_decay
        ),
        loader=make_loader(fit, prior, worker, masked_rows, config.sampling, step_loss.model.passes_messages),
        sources=[
            (make_batcher(fit, store, prior, task.train, config.sampling), task.examples) for task in tasks.values()
        ],
        bad_pictures=bad_pictures,
    )


def _make_modules(
    fit: Fit,
    store: GraphStore,
    worker: Worker,
    rows: GraphRows,
    kinds: dict[str, Kind],
    tasks: Mapping[str, Task[Any]],
) -> tuple[StepLoss, dict[str, TaskHead]]:
    """All that is trained, with the weights that the seed gives, and task → head."""
    config = fit.config
    torch.manual_seed(fit.seed)
    widths = {name: modality.width for name, modality in rows.modalities.items()}
    columns = {name: store.columns(name) for name in store.modalities if name not in kinds}
    model = MultimodalModel(widths, len(config.sampling.fanouts), config.model, kinds, columns)
    heads = {name: task.head(model) for name, task in tasks.items()}
    regulariser = UFGWRegulariser(**config.regulariser.model_dump()) if config.regularised else None
    weights = {name: options.weight for name, options in named(config.task).items()}
    step_loss = StepLoss(model, heads, weights, regulariser, worker.world_size).to(worker.device)
    return step_loss, heads


def _in_parallel(step_loss: StepLoss, worker: Worker) -> nn.Module:
    if worker.world_size == 1:
        return step_loss
    return DistributedDataParallel(step_loss, device_ids=[worker.device] if worker.device.type == "cuda" else None)


def make_loader(
    fit: Fit, ppr: PPRArtefact | None, worker: Worker, rows: GraphRows, sampling: SamplingOptions, messages: bool
) -> GroupLoader:
    """This worker's batches from ``rows``."""
    return GroupLoader(
        rows,
        ppr,
        sampling,
        seed=fit.seed,
        messages=messages,
        rank=worker.rank,
        world_size=worker.world_size,
        pin_memory=worker.device.type == "cuda",
    )


def make_batcher(
    fit: Fit, store: GraphStore, ppr: PPRArtefact | None, items: np.ndarray, sampling: SamplingOptions
) -> SeedBatcher:
    """Groups of ``items``, filled where there is a ``ppr`` to fill them by."""
    return SeedBatcher(items, store.num_nodes, ppr, sampling, seed=fit.seed, fill=ppr is not None)


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
