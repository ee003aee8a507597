"""The plots of a sweep's report; a brighter colour is a better value everywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator

from optimag_dist.report.plotting import PALETTE, Plot, panels, plot
from optimag_dist.report.sweep_data import Axis, Sweep, show_value
from optimag_dist.tune.results import TrialRow

_MARKERS = {"finished": "o", "stopped": "v", "running": "s"}
# The smoothed background: width of the Gaussian kernel, and how near a trial must be, both in shares of an axis.
_SMOOTH, _NEAR = 0.09, 0.13
_CELLS = 160
# Of many trials the worst tenth may be far off: it must not take the colours from the others.
_MANY, _TAIL = 10, 0.1
# Viridis without its ends, of which a dark page would swallow the one and a light page the other.
_COLOURS = matplotlib.colormaps["viridis"](np.linspace(0.2, 0.93, 256))


class _Ranked:
    """Trials that have a value of the monitored metric, best first, and their colours."""

    def __init__(self, sweep: Sweep, trials: Sequence[TrialRow]) -> None:
        self.trials = trials
        self.values = np.array([trial.metrics[sweep.monitor] for trial in trials])
        low, high = float(self.values.min()), float(self.values.max())
        upwards = sweep.metrics[sweep.monitor] == "max"
        if len(self.values) >= _MANY:
            tail = float(np.quantile(self.values, _TAIL if upwards else 1 - _TAIL))
            low, high = (tail, high) if upwards else (low, tail)
        if low == high:  # all are the best
            low, high = (low - 1, high) if upwards else (low, high + 1)
        self.extend = "min" if self.values.min() < low else "max" if self.values.max() > high else "neither"
        self.norm = Normalize(low, high, clip=True)
        self.colours = ListedColormap(_COLOURS[:: 1 if upwards else -1])

    def colour(self, value: float) -> Any:
        return self.colours(self.norm(value))


def metric_by_pair(sweep: Sweep, x: Axis, y: Axis) -> Plot | None:
    """The monitored metric over two keys: cells where both are choices, trials over their smoothed values otherwise;
    None without a value."""
    trials = sweep.valued(sweep.monitor)
    if not trials:
        return None
    ranked = _Ranked(sweep, trials)

    def draw() -> Figure:
        figure = Figure(figsize=(7.6, 5.0), layout="constrained")
        axis = figure.subplots()
        if x.scale == y.scale == "levels":
            _draw_cells(axis, x, y, ranked)
        else:
            _draw_smoothed(axis, x, y, ranked)
            _draw_points(axis, sweep, x, y, ranked)
        for each, put in ((x, axis.xaxis), (y, axis.yaxis)):
            put.set_label_text(each.key)
            if each.scale == "levels":
                put.set_ticks(range(len(each.levels)), each.levels)
        axis.spines[["top", "right"]].set_visible(False)
        figure.colorbar(ScalarMappable(ranked.norm, ranked.colours), ax=axis, label=sweep.monitor, extend=ranked.extend)
        return figure

    best, values = show_value(ranked.values[0]), trials[0].values
    return plot(
        draw,
        f"{sweep.monitor} of {len(trials)} trials by {x.key} and {y.key}. Best {best} at "
        f"{x.key} {show_value(values[x.key])}, {y.key} {show_value(values[y.key])}.",
    )


def metric_by_key(sweep: Sweep, key: Axis) -> Plot | None:
    """The monitored metric against the only searched key; None without a value."""
    found = [(trial, trial.values[key.key], trial.metrics[sweep.monitor]) for trial in sweep.valued(sweep.monitor)]
    if not found:
        return None

    def draw() -> Figure:
        figure, (axis,) = panels([""], xlabel=key.key, ylabel=sweep.monitor)
        for trial, value, metric in found:
            axis.plot(key.place(value), metric, _MARKERS[trial.status], color=PALETTE[0])
        if key.scale == "levels":
            axis.set_xticks(range(len(key.levels)), key.levels)
        else:
            axis.set_xscale(key.scale)
        axis.set_xlim(*key.along(np.array([-0.04, 1.04])))
        return figure

    values = "; ".join(f"{show_value(value)}: {show_value(metric)}" for _, value, metric in found)
    return plot(draw, f"{sweep.monitor} by {key.key}. {values}.")


def parallel_coordinates(sweep: Sweep) -> Plot | None:
    """A line per trial through all searched keys to the monitored metric; None without a value."""
    trials = sweep.valued(sweep.monitor)
    if not trials:
        return None
    ranked = _Ranked(sweep, trials)
    axes = [*sweep.axes, Axis(sweep.monitor, "linear", float(ranked.values.min()), float(ranked.values.max()))]

    def heights(trial: TrialRow) -> list[float]:
        return [axis.unit(axis.place(trial.values[axis.key])) for axis in sweep.axes]

    def draw() -> Figure:
        figure = Figure(figsize=(9.4, 4.6), layout="constrained")
        axis = figure.subplots()
        ink, page = matplotlib.rcParams["text.color"], matplotlib.rcParams["figure.facecolor"]
        for trial in sweep.trials:
            if trial.status in ("failed", "diverged"):
                axis.plot(*_smooth(heights(trial)), color=ink, alpha=0.35, linewidth=0.9, linestyle=":")
        # The best one last, on top of the others.
        for trial, value in zip(ranked.trials[::-1], ranked.values[::-1], strict=True):
            line = _smooth([*heights(trial), axes[-1].unit(value)])
            axis.plot(*line, color=ranked.colour(value), linewidth=3 if trial is sweep.best else 1.3, zorder=3)
        for position, each in enumerate(axes):
            axis.axvline(position, color=ink, linewidth=0.9, zorder=4)
            for place, text in _ticks(each):
                label = axis.text(position - 0.03, each.unit(place), text, ha="right", va="center", fontsize=8)
                label.set_zorder(5)
                label.set_path_effects([withStroke(linewidth=4, foreground=page)])
        axis.set_xticks(range(len(axes)), [each.key.replace(".", ".\n") for each in axes])
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.set_yticks([])
        axis.set_xlim(-0.35, len(axes) - 0.9)
        axis.set_ylim(-0.02, 1.02)
        axis.spines[:].set_visible(False)
        return figure

    keys = ", ".join(axis.key for axis in sweep.axes)
    return plot(draw, f"Parallel coordinates of {len(trials)} trials over {keys} and {sweep.monitor}.")


def importance_bars(shares: Mapping[str, Mapping[str, float]]) -> Plot | None:
    """A panel of bars per metric (metric → key → share); None where no metric has any."""
    shown = {metric: each for metric, each in shares.items() if each}
    if not shown:
        return None

    def draw() -> Figure:
        figure, axes = panels(list(shown), xlabel="share of the variance")
        for axis, each in zip(axes, shown.values(), strict=True):
            keys = list(each)[::-1]
            bars = axis.barh(keys, [each[key] for key in keys], color=PALETTE[0], height=0.6)
            axis.bar_label(bars, fmt="{:.0%}", padding=3, fontsize=8)
            axis.set_xlim(0, 1.12)
            axis.grid(visible=False, axis="y")
        return figure

    said = "; ".join(f"{name}: " + ", ".join(f"{k} {s:.0%}" for k, s in each.items()) for name, each in shown.items())
    return plot(draw, f"Importance of the searched keys. {said}.")


def learning_curves(sweep: Sweep) -> Plot | None:
    """The monitored metric of every trial by epoch; None where no epoch has it."""
    curves = {trial.trial: sweep.curve(trial, sweep.monitor) for trial in sweep.trials}
    trials = [trial for trial in sweep.valued(sweep.monitor) if curves[trial.trial]]
    if not trials:
        return None
    ranked = _Ranked(sweep, trials)

    def draw() -> Figure:
        figure, (axis,) = panels([""], xlabel="epoch", ylabel=sweep.monitor)
        for trial, value in zip(ranked.trials[::-1], ranked.values[::-1], strict=True):
            epochs, values = zip(*curves[trial.trial].items(), strict=True)
            colour = ranked.colour(value)
            axis.plot(epochs, values, color=colour, linewidth=2.6 if trial is sweep.best else 1.1)
            if trial.status == "stopped":
                axis.plot(epochs[-1], values[-1], _MARKERS["stopped"], color=colour, markersize=5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        return figure

    longest = max(max(curves[trial.trial]) for trial in trials)
    return plot(draw, f"Learning curves of {len(trials)} trials: {sweep.monitor} over at most {longest} epochs.")


def pareto_front(sweep: Sweep) -> Plot | None:
    """The first metric against each of the others, with the trials of the Pareto front named; None with one metric or
    without values."""
    front = sweep.front()
    first, *others = sweep.metrics
    if not others or not front:
        return None
    rest = [trial for trial in sweep.valued(first) if trial.status == "finished" and trial not in front]

    def draw() -> Figure:
        figure, axes = panels([""] * len(others), xlabel=first)
        ink = matplotlib.rcParams["text.color"]
        for metric, axis in zip(others, axes, strict=True):
            axis.set_ylabel(metric)
            axis.plot([t.metrics[first] for t in rest], [t.metrics[metric] for t in rest], "o", color=ink, alpha=0.35)
            # With two metrics the front is a staircase; with more, its shadow on two of them is none.
            link = "--" if len(others) == 1 else ""
            places = [t.metrics[first] for t in front], [t.metrics[metric] for t in front]
            axis.plot(*places, f"o{link}", color=PALETTE[3], markersize=7, linewidth=0.9)
            for trial, x, y in zip(front, *places, strict=True):
                axis.annotate(trial.trial, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        return figure

    return plot(draw, f"Pareto front of {', '.join(sweep.metrics)}: trials {', '.join(t.trial for t in front)}.")


def _draw_cells(axis: Axes, x: Axis, y: Axis, ranked: _Ranked) -> None:
    cells: dict[tuple[float, float], list[float]] = {}
    for trial, value in zip(ranked.trials, ranked.values, strict=True):
        cells.setdefault(_places(x, y, trial), []).append(value)
    grid = np.full((len(y.levels), len(x.levels)), np.nan)
    for (column, row), values in cells.items():
        mean = grid[int(row), int(column)] = float(np.mean(values))
        count = f"\n{len(values)} trials" if len(values) > 1 else ""
        ink = "black" if sum(ranked.colour(mean)[:3]) > 1.4 else "white"
        axis.text(column, row, show_value(mean) + count, ha="center", va="center", color=ink, fontsize=9)
    axis.imshow(grid, origin="lower", aspect="auto", cmap=ranked.colours, norm=ranked.norm)


def _draw_smoothed(axis: Axes, x: Axis, y: Axis, ranked: _Ranked) -> None:
    """A Gaussian kernel's mean of the trials' values (Nadaraya and Watson), only where a trial is near."""
    if len(ranked.trials) < 3:
        return
    ticks = (np.arange(_CELLS) + 0.5) / _CELLS
    there = np.array([[x.unit(u), y.unit(v)] for u, v in (_places(x, y, trial) for trial in ranked.trials)])
    squares = (ticks[None, :, None] - there[:, 0]) ** 2 + (ticks[:, None, None] - there[:, 1]) ** 2
    weights = np.exp(-squares / (2 * _SMOOTH**2))
    mean = (weights @ ranked.values) / np.maximum(weights.sum(axis=2), 1e-30)
    mean[squares.min(axis=2) > _NEAR**2] = np.nan
    edges = [each.along(np.linspace(0, 1, _CELLS + 1)) for each in (x, y)]
    axis.pcolormesh(*edges, mean, cmap=ranked.colours, norm=ranked.norm, alpha=0.45, linewidth=0)


def _draw_points(axis: Axes, sweep: Sweep, x: Axis, y: Axis, ranked: _Ranked) -> None:
    ink = matplotlib.rcParams["text.color"]
    for trial, value in zip(ranked.trials[::-1], ranked.values[::-1], strict=True):
        best = trial is sweep.best
        shape: dict[str, Any] = {"s": 130, "marker": "*"} if best else {"s": 48, "marker": _MARKERS[trial.status]}
        colour = ranked.colour(value)
        axis.scatter(*_places(x, y, trial), **shape, color=colour, edgecolor=ink, linewidth=0.8, zorder=3)
    for trial in sweep.trials:
        if trial.status in ("failed", "diverged"):
            axis.scatter(*_places(x, y, trial), s=36, marker="x", color=ink, linewidth=1.2, zorder=3)
    for each, scale, limit in ((x, axis.set_xscale, axis.set_xlim), (y, axis.set_yscale, axis.set_ylim)):
        if each.scale != "levels":
            scale(each.scale)
        limit(*each.along(np.array([-0.04, 1.04])))


def _places(x: Axis, y: Axis, trial: TrialRow) -> tuple[float, float]:
    return x.place(trial.values[x.key]), y.place(trial.values[y.key])


def _smooth(heights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A curve through ``heights`` that crosses each axis at a right angle, so that lines can be told apart there."""
    x = np.linspace(0, len(heights) - 1, 24 * (len(heights) - 1) + 1)
    left = np.minimum(x.astype(int), max(len(heights) - 2, 0))
    right = np.minimum(left + 1, len(heights) - 1)
    share, y = x - left, np.asarray(heights)
    return x, y[left] + (y[right] - y[left]) * (3 * share**2 - 2 * share**3)


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    if axis.scale == "levels":
        return [(float(i), level) for i, level in enumerate(axis.levels)]
    decades = LogLocator(subs=(1, 2, 5), numticks=12)
    locator = decades if axis.scale == "log" else MaxNLocator(5, integer=isinstance(axis.low, int))
    places = [float(p) for p in locator.tick_values(axis.low, axis.high) if axis.low <= p <= axis.high]
    return [(place, show_value(place)) for place in places]
