"""The configuration of a run: the parts' own options joined, and the variants it compares."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from optimag_dist.models import ModelOptions
from optimag_dist.options import FolderName, Options, merge, validate_options
from optimag_dist.ppr import PPROptions
from optimag_dist.sampling import SamplingOptions
from optimag_dist.storage import AnyPath, Location, local
from optimag_dist.tasks import AnyTask, NodeClassificationOptions, named
from optimag_dist.telemetry import TrackingOptions
from optimag_dist.train.regularisers import AnyRegulariser, RobustSection
from optimag_dist.train.renamed import converted, in_old_layout, refuse_renamed
from optimag_dist.types import InputError

# A month: what waits for longer overflows in libraries.
_LONGEST_S = 30 * 24 * 3600
# Of a run's directory: what Ray Train itself notes down, and all names that no variant may have.
RAY_TRAIN = "ray_train"
# Sections that configurations have had only since keys of others have moved to them.
_NEW_SECTIONS = {"optim", "workers", "checkpoint"}
_TAKEN = (RAY_TRAIN, "config.yaml", "report.html", "results.parquet", "metrics.parquet")


class OptimOptions(Options):
    """AdamW, of all that is trained.

    Attributes:
        lr: learning rate.
        weight_decay: decoupled from it.
    """

    lr: float = Field(3e-3, gt=0, le=1e30)
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)


class TrainOptions(Options):
    """How long weights are fitted.

    Attributes:
        epochs: at most; one epoch visits every training node once.
        patience: evaluations without a better validation metric before training stops.
        eval_every: epochs between evaluations.
        kept_mass: ``all`` ends a fit with one more pass over all nodes and their transport problems, to export each
            node's kept mass; ``none`` leaves that out: with millions of nodes it takes longer than training.
    """

    epochs: int = Field(100, ge=1)
    patience: int = Field(15, ge=1)
    eval_every: int = Field(1, ge=1)
    kept_mass: Literal["all", "none"] = "all"


class WorkersOptions(Options):
    """Where fits run; all fits of a run have this in common.

    Attributes:
        count: DDP workers; groups of a step are shared out among them.
        cpus: CPUs that Ray sets aside for each, and threads each uses.
        device: ``cuda`` gives each worker a GPU; ``auto`` does so where the cluster has enough.
        placement: ``replicated`` maps the store's topology and features on every host; ``sharded`` asks the servers of
            the shards of a partition, for graphs larger than a host (undirected ones). The weights are the same.
        shard_servers: Ray actors spread over the nodes; only of use with ``sharded``.
        max_failures: how often Ray may restart the workers after a crash; they go on from the last checkpoint.
        start_timeout_s: seconds in which the workers must have begun to train, waiting for nodes included.
        stall_timeout_s: seconds without progress after which the worker that holds the others up is named and replaced.
    """

    count: int = Field(2, ge=1)
    cpus: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    placement: Literal["replicated", "sharded"] = "replicated"
    shard_servers: int = Field(2, ge=1)
    max_failures: int = Field(1, ge=0)
    start_timeout_s: float = Field(600, gt=0, le=_LONGEST_S)
    stall_timeout_s: float = Field(300, gt=0, le=_LONGEST_S)


class CheckpointOptions(Options):
    """How much of a fit a crash may cost.

    Attributes:
        every: epochs between checkpoints; a killed run loses at most these.
        every_s: seconds after which a checkpoint is written within an epoch too.
    """

    every: int = Field(10, ge=1)
    every_s: float = Field(600, gt=0, allow_inf_nan=False)


class VariantConfig(Options):
    """What one variant trains with: everything but the seeds and the names."""

    ppr: PPROptions = PPROptions()
    sampling: SamplingOptions = SamplingOptions()
    model: ModelOptions = ModelOptions()
    regulariser: AnyRegulariser = RobustSection(kind="robust")
    task: AnyTask = NodeClassificationOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions()
    workers: WorkersOptions = WorkersOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()

    @model_validator(mode="before")
    @classmethod
    def _in_todays_sections(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        # An earlier version's own file has every section that there was; people leave out what they do not change.
        whole = data.keys() >= cls.model_fields.keys() - _NEW_SECTIONS and not data.keys() >= _NEW_SECTIONS
        if whole and isinstance(data["regulariser"], Mapping) and isinstance(data["train"], Mapping):
            return converted(data)
        refuse_renamed(data)
        return data

    @model_validator(mode="after")
    def _every_worker_has_a_group(self) -> "VariantConfig":
        if self.workers.count > self.sampling.groups:
            raise ValueError(
                f"workers.count={self.workers.count} needs sampling.groups of at least as many, got "
                f"{self.sampling.groups}: every worker takes part in every step"
            )
        return self

    @property
    def regularised(self) -> bool:
        """Without the regulariser groups are not filled and no prior is read."""
        return self.regulariser.active

    @property
    def needs_ppr(self) -> bool:
        return self.regularised or any(task.needs_ppr for task in named(self.task).values())


class RunConfig(VariantConfig):
    """One ``optimag train``: a store, one or more variants of the configuration, and the seeds each is fitted with.

    Attributes:
        name: the run's directory under ``out``.
        store: directory of the graph store, or its URI.
        out: where run directories lie, a directory or its URI.
        seeds: one fit per variant and seed; the seed decides split, initial weights, batches and dropout.
        tracking: experiment trackers besides TensorBoard.
        variants: name → changes to the sections, as dotted keys or nested mappings; none means one variant of
            the configuration as it stands.
        compare_to: variant → the variant the report pairs it with, seed by seed; without it, all are paired with the
            first.
    """

    name: FolderName
    store: Location
    # A function: the working directory is the one at the time.
    out: Location = Field(default_factory=lambda: local("runs"))
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    tracking: TrackingOptions = TrackingOptions()
    variants: dict[FolderName, dict[str, Any]] = Field(default_factory=dict)
    compare_to: dict[str, str] = Field(default_factory=dict)

    @field_validator("seeds")
    @classmethod
    def _usable_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**63:
            raise ValueError("seeds must be distinct, not negative and below 2**63")
        return seeds

    @model_validator(mode="after")
    def _variants_fit(self) -> "RunConfig":
        for name in self.variants:
            if name in _TAKEN:
                raise ValueError(f"variants.{name}: a run has a file or folder of that name; choose another")
        for name in {*self.compare_to, *self.compare_to.values()}:
            if name not in self.variants:
                raise ValueError(f"compare_to names {name!r}, which is none of the variants {list(self.variants)}")
        resolved = self.resolve()
        if any(variant.workers != self.workers for variant in resolved.values()):
            raise ValueError("variants share one group of workers: set workers.* outside of them, for all")
        return self

    @property
    def location(self) -> AnyPath:
        """The run's directory."""
        return self.out / self.name

    @property
    def directory(self) -> Path:
        """The run's directory on this host; ``InputError`` where ``out`` is a URI."""
        if not isinstance(self.location, Path):
            raise InputError(f"out={self.out}: needed a directory here; only optimag train keeps its runs at a URI")
        return self.location

    def baseline_of(self, variant: str) -> str | None:
        """What ``variant`` is compared with; None where that is nothing, or itself."""
        first = next(iter(self.variants), variant)
        baseline = self.compare_to.get(variant, None if self.compare_to else first)
        return None if baseline == variant else baseline

    def resolve(self) -> dict[str, VariantConfig]:
        """Variant name → its full configuration."""
        base = {name: getattr(self, name).model_dump(mode="json") for name in VariantConfig.model_fields}
        if not self.variants:
            return {"default": VariantConfig.model_validate(base)}
        return {
            name: validate_options(VariantConfig, merge(base, changes), source=f"variants.{name}")
            for name, changes in self.variants.items()
        }


def fingerprint(config: VariantConfig, seed: int) -> str:
    """Hash of all that decides the weights, to tell whether a checkpoint belongs to this fit.

    How long to train and how workers are placed may change between a run and its resumption.
    """
    free: dict[str, Any] = {"workers": True, "checkpoint": True, "train": {"epochs", "patience", "kept_mass"}}
    content = in_old_layout(config.model_dump(mode="json", exclude=free))
    # Keys are sorted, and the order of tasks matters.
    key = [content, list(named(config.task)), seed]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def worth_reporting(name: str) -> bool:
    """Whether a file of a run directory is one that a driver or a report reads."""
    return not (name.endswith("checkpoint.pt") or "tensorboard/" in name or name.startswith(f"{RAY_TRAIN}/"))
