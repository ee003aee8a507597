"""The report of a sweep: one HTML file that needs no other file and no network."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from optimag_dist.report import sweep_figures as figures
from optimag_dist.report.html import write_page
from optimag_dist.report.sweep_data import Axis, Sweep, read_sweep, show_value

# What the regulariser's two weights do to each other is what a sweep of this program is mostly about.
_PAIR = ("regulariser.alpha", "regulariser.rho")
# A forest of fewer trials says nothing at all, and of fewer than the second number little.
_FEWEST, _FEW = 4, 20


def write_sweep_report(directory: Path) -> Path:
    """Write ``report.html`` of the sweep in ``directory``, which may be unfinished, and return the file."""
    sweep = read_sweep(Path(directory))
    shares = {metric: importances(sweep, metric) for metric in sweep.metrics}
    ranked = sweep.valued(sweep.monitor)
    # α and ρ where both are searched, otherwise the two most important keys, or the only one.
    axes = {axis.key: axis for axis in sweep.axes}
    keys = _PAIR if set(_PAIR) <= set(axes) else (list(shares[sweep.monitor]) or list(axes))[:2]
    pair = [axes[key] for key in keys]
    return write_page(
        sweep.directory / "report.html",
        "sweep.html.j2",
        sweep=sweep,
        name=sweep.directory.resolve().name,
        facts=_facts(sweep),
        front=[trial.trial for trial in sweep.front()] if len(sweep.metrics) > 1 else [],
        rows=[*ranked, *(trial for trial in sweep.trials if trial not in ranked)],
        pair=pair,
        map=figures.metric_by_pair(sweep, *pair) if len(pair) == 2 else figures.metric_by_key(sweep, *pair),
        parallel=figures.parallel_coordinates(sweep),
        importance=figures.importance_bars(shares),
        rests_on={metric: len(sweep.valued(metric)) for metric in sweep.metrics},
        few=_FEW,
        curves=figures.learning_curves(sweep),
        pareto=figures.pareto_front(sweep),
        show_value=show_value,
        show_metric=lambda value: "–" if math.isnan(value) else f"{value:.4f}",
    )


def _facts(sweep: Sweep) -> dict[str, str]:
    statuses = ("finished", "stopped", "diverged", "failed", "running", "pending")
    said = [f"{number} {status}" for status in statuses if (number := sweep.count(status))]
    seconds = sum(trial.seconds for trial in sweep.trials)
    return {
        "Trials": f"{len(sweep.trials)}: {', '.join(said)}",
        "Time of all trials together": f"{seconds:,.0f} s",
        "Searched keys": f"{len(sweep.axes)}",
        "Metrics": ", ".join(f"{name} ({mode})" for name, mode in sweep.metrics.items()),
    }


def importances(sweep: Sweep, metric: str) -> dict[str, float]:
    """Searched key → share of the metric's variance over the space that it explains alone, the shares summing to one,
    most important first; empty with fewer than four trials or when all have the same value.

    It is fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014) as Optuna computes it. Trials that were stopped early count
    with what they had reached.
    """
    trials = sweep.valued(metric)
    if len(trials) < _FEWEST or np.ptp([trial.metrics[metric] for trial in trials]) == 0:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    distributions = {axis.key: _distribution(axis) for axis in sweep.axes}
    for trial in trials:
        values = {axis.key: _value(axis, trial.values[axis.key]) for axis in sweep.axes}
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=distributions, value=trial.metrics[metric])
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
