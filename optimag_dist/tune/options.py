"""A sweep's own YAML file: what is searched, how, by which metrics, and who is stopped early."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from optimag_dist.options import Options, load_options, validate_options
from optimag_dist.tasks import metric_of, monitor_of
from optimag_dist.train.options import RunConfig, VariantConfig
from optimag_dist.types import InputError

# The key of a space that stands for the run's variants, by name.
VARIANT = "variant"

Kind = Literal["uniform", "loguniform", "quniform", "randint", "choice", "grid"]
_ARGUMENTS = {
    "uniform": "[low, high]",
    "loguniform": "[low, high], both above 0",
    "quniform": "[low, high, step], multiples of step above low",
    "randint": "[low, high], whole numbers, of which high is not drawn itself",
    "choice": "a list of values",
    "grid": "a list of values",
}


class Distribution(Options):
    """How one key is searched; in YAML ``{kind: arguments}``."""

    kind: Kind
    arguments: tuple[Any, ...]

    @model_validator(mode="before")
    @classmethod
    def _from_mapping(cls, data: Any) -> Any:
        known = ", ".join(_ARGUMENTS)
        if not isinstance(data, dict) or len(data) != 1:
            raise ValueError(f"needed one of {known} with its arguments, for example {{uniform: [0.1, 0.9]}}")
        ((kind, arguments),) = data.items()
        if kind not in _ARGUMENTS:
            raise ValueError(f"unknown distribution {kind!r}; known: {known}")
        if not isinstance(arguments, list | tuple) or not arguments:
            raise ValueError(f"{kind} needs {_ARGUMENTS[kind]}")
        if kind == "grid" and len({repr(a) for a in arguments}) < len(arguments):
            raise ValueError(f"grid lists a value twice, which would train it twice; got {list(arguments)}")
        if kind in ("choice", "grid"):
            return {"kind": kind, "arguments": tuple(arguments)}
        try:
            # YAML reads 1e-3 as text.
            numbers = tuple(map(float, arguments))
            if kind == "randint":
                whole = tuple(map(int, numbers))
                numbers = whole if whole == numbers else ()
        except (TypeError, ValueError, OverflowError):
            numbers = ()
        low_to_high = len(numbers) == (3 if kind == "quniform" else 2) and numbers[0] < numbers[1]
        low_to_high = low_to_high and all(map(math.isfinite, numbers))
        positive = {"loguniform": numbers[:1], "quniform": numbers[2:]}.get(kind, ())
        if not low_to_high or any(n <= 0 for n in positive):
            raise ValueError(f"{kind} needs {_ARGUMENTS[kind]}, low below high, finite; got {list(arguments)}")
        return {"kind": kind, "arguments": numbers}

    @model_serializer
    def _to_mapping(self) -> dict[str, list[Any]]:
        return {self.kind: list(self.arguments)}

    @property
    def finite(self) -> bool:
        """Whether the values can be listed."""
        return self.kind in ("choice", "grid")


class SearchOptions(Options):
    """Attributes:
    method: ``random``; ``grid``, every combination of the listed values; ``tpe``, Optuna's tree-structured Parzen
        estimator, which learns from the trials that have ended.
    trials: how many; default 16, for a grid all combinations.
    seed: of the draws.
    concurrency: trials at a time; default: as many as the cluster has room for.
    time_budget_s: seconds after which no trial goes on or begins; of those that have ended the best is kept. Counts
        anew with --resume, which goes on from there.
    """

    method: Literal["random", "grid", "tpe"] = "random"
    trials: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    concurrency: int | None = Field(None, ge=1)
    time_budget_s: float | None = Field(None, gt=0, allow_inf_nan=False)


class SchedulerOptions(Options):
    """Attributes:
    method: ``asha``, asynchronous successive halving: at ``grace`` epochs, and each time ``reduction`` times as many,
        a trial goes on only if it is in the upper 1/``reduction`` of those that came so far; ``none`` lets all end.
    grace: epochs that every trial gets.
    reduction: above 1.
    """

    method: Literal["asha", "none"] = "none"
    grace: int = Field(5, ge=1)
    reduction: int = Field(3, ge=2)

    def milestones(self, last: int) -> list[int]:
        """The epochs below ``last`` at which trials are compared."""
        epochs, milestone = [], self.grace
        while self.method == "asha" and milestone < last:
            epochs.append(milestone)
            milestone *= self.reduction
        return epochs


class SweepOptions(Options):
    """One ``optimag tune``.

    Attributes:
        space: dotted key of the run's configuration → how it is searched. The key ``variant`` searches among the
            configuration's variants, by name.
        search: which points are tried.
        metrics: metric → ``max`` or ``min``. ``val/...`` of the epoch with the best validation, the mean over the run's
            seeds; ``seconds``, the training time. The first one decides what ASHA stops and which trial is the best;
            TPE searches for the Pareto front of all. Default: what the task goes by (``val/accuracy: max``).
        scheduler: who is stopped before the end.
        variant: of a configuration with variants, the one to search around, unless they are searched themselves.
    """

    space: dict[str, Distribution] = Field(min_length=1)
    search: SearchOptions = SearchOptions()
    metrics: dict[str, Literal["max", "min"]] = Field(default={"val/accuracy": "max"}, min_length=1)
    scheduler: SchedulerOptions = SchedulerOptions()
    variant: str | None = None

    @field_validator("space")
    @classmethod
    def _artefacts_can_be_listed(cls, space: dict[str, Distribution]) -> dict[str, Distribution]:
        for key, distribution in space.items():
            if key.startswith("ppr.") and not distribution.finite:
                raise ValueError(
                    f"{key} is searched by {distribution.kind}; every value is an artefact that is computed before the "
                    f"trials start, so list them: choice or grid"
                )
        return space

    @model_validator(mode="after")
    def _method_fits(self) -> "SweepOptions":
        if VARIANT in self.space:
            if not self.space[VARIANT].finite:
                raise ValueError(f"{VARIANT} is searched by name: list the names with choice or grid")
            if self.variant is not None:
                raise ValueError(f"space searches {VARIANT}, so variant={self.variant} cannot be set beside it")
        for key, distribution in self.space.items():
            if self.search.method == "grid" and not distribution.finite:
                raise ValueError(f"search.method=grid needs lists, and {key} is {distribution.kind}; use grid")
            if self.search.method != "grid" and distribution.kind == "grid":
                raise ValueError(f"{key}: grid needs search.method=grid; use choice with {self.search.method}")
        if self.search.method == "grid" and self.search.trials is not None:
            raise ValueError("search.method=grid tries every combination; leave search.trials out")
        return self


def metrics_of(monitor: str) -> dict[str, Literal["max", "min"]]:
    """For :class:`SweepOptions`, given the metric that training goes by."""
    return {f"val/{monitor}": metric_of(monitor).better}


def load_sweep(config: Path, space: Path, overrides: Sequence[str]) -> tuple[RunConfig, SweepOptions]:
    """Read a sweep's two files; an override changes the one that has its key (``search.trials=32``, ``optim.lr=0.01``).

    The run is what every trial starts from, without variants unless these are searched. ``InputError`` as of
    :func:`optimag_dist.options.load_options`, or where the files do not agree on a variant.
    """
    own = [o for o in overrides if o.partition("=")[0].partition(".")[0] in SweepOptions.model_fields]
    options = load_options(SweepOptions, space, own)
    run = load_options(RunConfig, config, [o for o in overrides if o not in own])
    if VARIANT in options.space:
        known = list(run.variants)  # a name that is a list has no hash
        unknown = [name for name in options.space[VARIANT].arguments if name not in known]
        if unknown:
            raise InputError(
                f"{space}: {VARIANT} lists {unknown[0]!r}; {config} has {', '.join(run.variants) or 'no variants'}"
                + " (YAML reads true and false as booleans: put a text in quotes)" * isinstance(unknown[0], bool)
            )
    else:
        run = _around_one(run, options.variant, config, space)
    if "metrics" in options.model_fields_set:
        return run, options
    resolved = run.resolve()
    names = options.space[VARIANT].arguments if VARIANT in options.space else tuple(resolved)
    monitors = list(dict.fromkeys(monitor_of(resolved[name].task) for name in names))
    if len(monitors) > 1:
        raise InputError(
            f"{space}: the variants searched have different tasks, which go by {', '.join(monitors)}; say under "
            f"metrics what decides, for example seconds: min"
        )
    return run, options.model_copy(update={"metrics": metrics_of(monitors[0])})


def _around_one(run: RunConfig, variant: str | None, config: Path, space: Path) -> RunConfig:
    """``run`` without variants: as ``variant`` has it, where there are any."""
    if run.variants and variant not in run.variants:
        names = ", ".join(run.variants)
        raise InputError(f"{config} has variants, and a sweep searches around one: add variant=NAME, one of {names}")
    if variant is None:
        return run
    if not run.variants:
        raise InputError(f"{space}: variant={variant}, but {config} has no variants; leave it out")
    kept = run.model_dump(exclude={*VariantConfig.model_fields, "variants", "compare_to"})
    chosen = run.resolve()[variant].model_dump(mode="json")
    return validate_options(RunConfig, {**kept, **chosen}, source=str(config))
