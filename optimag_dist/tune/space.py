"""Points of a search space, and the run configurations they stand for."""

import functools
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from optimag_dist.options import merge, validate_options
from optimag_dist.ppr import PPROptions
from optimag_dist.train.options import RunConfig, VariantConfig
from optimag_dist.train.renamed import RENAMED
from optimag_dist.tune.options import VARIANT, Distribution, SweepOptions
from optimag_dist.types import InputError

# Dotted key of the configuration, or VARIANT → its value in a trial.
Point = dict[str, Any]

_DEFAULT_TRIALS = 16
_OLD_KEYS = {new: old for old, new in RENAMED.items()}


def num_trials(options: SweepOptions) -> int:
    if options.search.method == "grid":
        return math.prod(len(d.arguments) for d in options.space.values())
    return options.search.trials or _DEFAULT_TRIALS


def known_points(options: SweepOptions) -> list[Point] | None:
    """Every trial's point; None where the search learns from trial to trial."""
    if options.search.method == "tpe":
        return None
    if options.search.method == "grid":
        values = [d.arguments for d in options.space.values()]
        return [dict(zip(options.space, point, strict=True)) for point in itertools.product(*values)]
    return random_points(options.space, num_trials(options), options.search.seed)


def random_points(space: Mapping[str, Distribution], number: int, seed: int) -> list[Point]:
    """So many points of ``space``. A key's values do not depend on which other keys there are, so that the arms of a
    comparison share those of the keys they share."""
    columns = {}
    for key, distribution in as_optuna(space).items():
        # One that has moved draws as before.
        name = _OLD_KEYS.get(key, key)
        of_key = int(np.random.SeedSequence((seed, *name.encode())).generate_state(1)[0])
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(of_key))
        columns[key] = [study.ask({key: distribution}).params[key] for _ in range(number)]
    return [from_optuna(space, {key: column[i] for key, column in columns.items()}) for i in range(number)]


def as_optuna(space: Mapping[str, Distribution]) -> dict[str, BaseDistribution]:
    """``space`` as Optuna has it; listed values by their positions, for it takes no lists as values."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    theirs: dict[str, BaseDistribution] = {}
    for key, distribution in space.items():
        arguments = distribution.arguments
        if distribution.finite:
            theirs[key] = CategoricalDistribution(range(len(arguments)))
        elif distribution.kind == "randint":
            theirs[key] = IntDistribution(arguments[0], arguments[1] - 1)
        else:
            low, high, *step = arguments
            theirs[key] = FloatDistribution(low, high, log=distribution.kind == "loguniform", step=(*step, None)[0])
    return theirs


def from_optuna(space: Mapping[str, Distribution], suggested: dict[str, Any]) -> Point:
    """What Optuna suggests in the space of :func:`as_optuna`, as a point."""
    return {key: d.arguments[suggested[key]] if d.finite else suggested[key] for key, d in space.items()}


def configure(config: RunConfig, point: Point, source: str) -> VariantConfig:
    """The configuration of the trial at ``point``; ``InputError`` for a key that no trial may change too."""
    if fixed := [key for key in point if key.partition(".")[0] == "workers"]:
        raise InputError(
            f"{source}: {fixed[0]} cannot be searched: all trials ask for the same places in the cluster; set it in "
            f"the configuration"
        )
    base = {name: getattr(config, name).model_dump(mode="json") for name in VariantConfig.model_fields}
    if VARIANT in point:
        base = merge(base, config.variants[point[VARIANT]])
    changes = {key: value for key, value in point.items() if key != VARIANT}
    return validate_options(VariantConfig, merge(base, changes, whole=True), source)


def values_of(config: VariantConfig, keys: list[str]) -> Point:
    """The searched keys' values, VARIANT aside, as the trial has them: validated, and lists as text, for tables."""
    found = {key: functools.reduce(getattr, key.split("."), config) for key in keys if key != VARIANT}
    return {k: v if isinstance(v, int | float | str | None) else json.dumps(v, default=str) for k, v in found.items()}


def corners(options: SweepOptions) -> list[Point]:
    """Points that together hold every listed value and both ends of every range, to see that all are valid."""
    listed = {
        key: list(d.arguments) if d.finite else [d.arguments[0], d.arguments[1] - (d.kind == "randint")]
        for key, d in options.space.items()
    }
    longest = max(map(len, listed.values()))
    return [{key: values[i % len(values)] for key, values in listed.items()} for i in range(longest)]


def priors_needed(config: RunConfig, options: SweepOptions, points: list[Point] | None) -> list[PPROptions]:
    """The distinct PPR options that trials may have."""
    if points is None:
        ppr = {k: d.arguments for k, d in options.space.items() if k.startswith("ppr.") or k == VARIANT}
        points = [dict(zip(ppr, values, strict=True)) for values in itertools.product(*ppr.values())]
        weighed: dict[str, Any] = {
            key: 1.0 for key in ("regulariser.weight", "regulariser.share") if key in options.space
        }
        points = [{**point, **weighed} for point in points]
    configs = [configure(config, point, "space") for point in points]
    return list(dict.fromkeys(c.ppr for c in configs if c.needs_ppr))
