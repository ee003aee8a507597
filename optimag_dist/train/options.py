"""The configuration of a run: the parts' own options joined, and the variants it compares."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from optimag_dist.models import ModelOptions
from optimag_dist.options import FolderName, Options, validate_options
from optimag_dist.ppr import PPROptions
from optimag_dist.sampling import SamplingOptions
from optimag_dist.storage import AnyPath, Location, local
from optimag_dist.tasks import AnyTask, NodeClassificationOptions, named
from optimag_dist.telemetry import TrackingOptions
from optimag_dist.train.regularisers import AnyRegulariser, UFGWOptions
from optimag_dist.types import InputError

# Of train.*: what fits that share one group of workers have in common.
WORKER_GROUP = ("workers", "cpus_per_worker", "device", "placement", "owners")
# Of train.*: where and how a fit runs, not what it ends with.
HOW_IT_RUNS = (
    *WORKER_GROUP,
    "max_failures",
    "checkpoint_every",
    "checkpoint_every_s",
    "start_timeout_s",
    "stall_timeout_s",
)


# A month: what waits for longer overflows in libraries.
_LONGEST_S = 30 * 24 * 3600
# Of a run's directory: what Ray Train itself notes down, and all names that no variant may have.
RAY_TRAIN = "ray_train"
_TAKEN = (RAY_TRAIN, "config.yaml", "report.html", "results.parquet", "metrics.parquet")


class TrainOptions(Options):
    """How weights are fitted.

    Attributes:
        workers: DDP workers; groups of a step are shared out among them.
        cpus_per_worker: CPUs that Ray sets aside for each, and threads each uses.
        device: ``cuda`` gives each worker a GPU; ``auto`` does so where the cluster has enough.
        epochs: at most; one epoch anchors every training node once.
        patience: evaluations without a better validation metric before training stops.
        eval_every: epochs between evaluations.
        checkpoint_every: epochs between checkpoints; a killed run loses at most these.
        checkpoint_every_s: seconds after which a checkpoint is written within an epoch too.
        max_failures: how often Ray may restart the workers after a crash; they go on from the last checkpoint.
        start_timeout_s: seconds in which the workers must have begun to train, waiting for nodes included.
        stall_timeout_s: seconds without progress after which the worker that holds the others up is named and replaced.
        placement: ``replicated`` maps the store's topology and features on every host; ``sharded`` asks the owners of
            the shards of a partition, for graphs larger than a host (undirected ones). The weights are the same.
        owners: of the shards, Ray actors spread over the nodes; only of use with ``sharded``.
        kept_mass: ``all`` ends a fit with one more pass over all nodes and their transport problems, to export each
            node's kept mass; ``none`` leaves that out: with millions of nodes it takes longer than training.
    """

    workers: int = Field(2, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    epochs: int = Field(100, ge=1)
    lr: float = Field(3e-3, gt=0, le=1e30)
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)
    patience: int = Field(15, ge=1)
    eval_every: int = Field(1, ge=1)
    checkpoint_every: int = Field(10, ge=1)
    checkpoint_every_s: float = Field(600, gt=0, allow_inf_nan=False)
    max_failures: int = Field(1, ge=0)
    start_timeout_s: float = Field(600, gt=0, le=_LONGEST_S)
    stall_timeout_s: float = Field(300, gt=0, le=_LONGEST_S)
    placement: Literal["replicated", "sharded"] = "replicated"
    owners: int = Field(2, ge=1)
    kept_mass: Literal["all", "none"] = "all"


class VariantConfig(Options):
    """What one variant trains with: everything but the seeds and the names."""

    ppr: PPROptions = PPROptions()
    sampling: SamplingOptions = SamplingOptions()
    model: ModelOptions = ModelOptions()
    regulariser: AnyRegulariser = UFGWOptions()
    task: AnyTask = NodeClassificationOptions()
    train: TrainOptions = TrainOptions()

    @model_validator(mode="after")
    def _every_worker_has_a_group(self) -> "VariantConfig":
        if self.train.workers > self.sampling.groups:
            raise ValueError(
                f"train.workers={self.train.workers} needs sampling.groups of at least as many, got "
                f"{self.sampling.groups}: every worker takes part in every step"
            )
        return self

    @property
    def regularised(self) -> bool:
        """Without the regulariser groups are not filled and no prior is read."""
        return self.regulariser.weight > 0

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
        if len({tuple(getattr(v.train, key) for key in WORKER_GROUP) for v in resolved.values()}) > 1:
            raise ValueError(f"variants share one group of workers: {', '.join(WORKER_GROUP)} cannot differ")
        return self

    @property
    def location(self) -> AnyPath:
        """The run's directory."""
        return self.out / self.name

    @property
    def directory(self) -> Path:
        """The run's directory on this host.

        Raises:
            InputError: ``out`` is a URI.
        """
        if not isinstance(self.location, Path):
            raise InputError(f"out={self.out}: needed a directory here; only optimag train keeps its runs at a URI")
        return self.location

    def baseline_of(self, variant: str) -> str | None:
        """What ``variant`` is compared with; None where that is nothing, or itself."""
        first = next(iter(self.variants), variant)
        baseline = self.compare_to.get(variant, None if self.compare_to else first)
        return None if baseline == variant else baseline

    def resolve(self) -> dict[str, VariantConfig]:
        """Variant name → its full configuration.

        Raises:
            InputError: a variant changes a key that does not exist, or to a value that does not fit.
        """
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
    free = {*HOW_IT_RUNS, "epochs", "patience", "kept_mass"}
    content = config.model_dump(mode="json", exclude={"train": free})
    # Fits from before it was one of several kinds go on.
    if content["regulariser"]["kind"] == UFGWOptions().kind:
        del content["regulariser"]["kind"]
    # Keys are sorted, and the order of tasks matters.
    key = [content, list(named(config.task)), seed]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, given as dotted keys or nested mappings.

    A section whose ``kind`` changes starts anew: another kind's keys mean nothing to it.
    """
    merged = dict(base)
    # YAML also has keys that are no text, which no section knows.
    changes = {str(key): value for key, value in changes.items()}
    # A kind first: what else is said of its section is said of the new kind.
    for dotted, value in sorted(changes.items(), key=lambda change: change[0].rpartition(".")[2] != "kind"):
        key, _, rest = dotted.partition(".")
        nested = {rest: value} if rest else value
        below = merged.get(key)
        if not (isinstance(below, dict) and isinstance(nested, dict)):
            merged[key] = nested
        elif "kind" in nested and nested["kind"] != below.get("kind"):
            merged[key] = merge({}, nested)
        else:
            merged[key] = merge(below, nested)
    return merged


def worth_reporting(name: str) -> bool:
    """Whether a file of a run directory is one that a driver or a report reads."""
    return not (name.endswith("checkpoint.pt") or "tensorboard/" in name or name.startswith(f"{RAY_TRAIN}/"))
