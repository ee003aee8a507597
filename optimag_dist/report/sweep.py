"""The report of a sweep: one HTML file that needs no other file and no network."""

import math
from pathlib import Path

from optimag_dist.files import atomic
from optimag_dist.report import sweep_figures as figures
from optimag_dist.report.html import render
from optimag_dist.report.importance import FEW, importances
from optimag_dist.report.sweep_data import Axis, Sweep, read_sweep, show_value

# What the regulariser's two weights do to each other is what a sweep of this program is mostly about.
_PAIR = ("regulariser.alpha", "regulariser.rho")


def write_sweep_report(directory: Path) -> Path:
    """Write ``report.html`` of the sweep in ``directory``; an older one is replaced.

    Args:
        directory: as written by ``optimag tune``; the sweep may be unfinished.

    Returns:
        The file written.

    Raises:
        InputError: there is no sweep, or its table lacks a column.
    """
    out = Path(directory) / "report.html"
    sweep = read_sweep(Path(directory))
    with atomic(out) as temporary:
        temporary.write_text(_render(sweep), encoding="utf-8")
    return out


def _render(sweep: Sweep) -> str:
    shares = {metric: importances(sweep, metric) for metric in sweep.metrics}
    ranked = sweep.valued(sweep.decisive)
    pair = _pair(sweep, list(shares[sweep.decisive]))
    return render(
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
        few=FEW,
        curves=figures.learning_curves(sweep),
        pareto=figures.pareto_front(sweep),
        show_value=show_value,
        show_metric=lambda value: "–" if math.isnan(value) else f"{value:.4f}",
    )


def _pair(sweep: Sweep, by_importance: list[str]) -> tuple[Axis, ...]:
    """α and ρ where both are searched, otherwise the two most important keys, or the only one."""
    axes = {axis.key: axis for axis in sweep.axes}
    keys = _PAIR if set(_PAIR) <= set(axes) else (by_importance or list(axes))[:2]
    return tuple(axes[key] for key in keys)


def _facts(sweep: Sweep) -> dict[str, str]:
    counts = {
        status: sweep.count(status) for status in ("finished", "stopped", "diverged", "failed", "running", "pending")
    }
    said = [f"{number} {status}" for status, number in counts.items() if number]
    seconds = sum(trial.seconds for trial in sweep.trials)
    return {
        "Trials": f"{len(sweep.trials)}: {', '.join(said)}",
        "Time of all trials together": f"{seconds:,.0f} s",
        "Searched keys": f"{len(sweep.axes)}",
        "Metrics": ", ".join(f"{name} ({mode})" for name, mode in sweep.metrics.items()),
    }
