"""How much each searched key matters, by fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014) as Optuna computes it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from optimag_dist.report.sweep_data import Axis, Sweep

# A forest of fewer trials says nothing at all, and of fewer than the second number little.
FEWEST = 4
FEW = 20


def importances(sweep: Sweep, metric: str) -> dict[str, float]:
    """Searched key → share of the metric's variance over the space that it explains alone, the shares summing to one,
    most important first; empty with fewer than four trials or when all have the same value.

    Trials that were stopped early count with what they had reached.
    """
    trials = sweep.valued(metric)
    if len(trials) < FEWEST or np.ptp([trial.metrics[metric] for trial in trials]) == 0:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    distributions: Mapping[str, BaseDistribution] = {axis.key: _distribution(axis) for axis in sweep.axes}
    for trial in trials:
        values: dict[str, Any] = {axis.key: _value(axis, trial.values[axis.key]) for axis in sweep.axes}
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=dict(distributions), value=trial.metrics[metric])
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items()}


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.scale == "levels":
        return CategoricalDistribution(axis.levels)
    return FloatDistribution(axis.low, axis.high, log=axis.scale == "log")


def _value(axis: Axis, value: Any) -> str | float:
    if axis.scale == "levels":
        return axis.levels[int(axis.place(value))]
    # Rounding may put a value a hair outside.
    return min(max(float(value), axis.low), axis.high)
