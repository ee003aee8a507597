"""The drawings of a sweep's report; a brighter colour is a better value everywhere."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator

from optimag_dist.report.drawing import PALETTE, Drawing, drawing, panels
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


def metric_by_pair(sweep: Sweep, x: Axis, y: Axis) -> Drawing | None:
    """The decisive metric over two keys: cells where both are choices, trials over their smoothed values otherwise;
    None without a value."""
    trials = sweep.valued(sweep.decisive)
    if not trials:
        return None
    metric = sweep.decisive
    colours, norm = _colours(sweep, trials)

    def draw() -> Figure:
        figure = Figure(figsize=(7.6, 5.0), layout="constrained")
        axis = figure.subplots()
        if x.scale == y.scale == "levels":
            _draw_cells(axis, sweep, x, y, trials, colours, norm)
        else:
            _draw_smoothed(axis, x, y, trials, [t.metrics[metric] for t in trials], colours, norm)
            _draw_points(axis, sweep, x, y, trials, colours, norm)
        for each, put in ((x, axis.xaxis), (y, axis.yaxis)):
            put.set_label_text(each.key)
            if each.scale == "levels":
                put.set_ticks(range(len(each.levels)), each.levels)
        axis.spines[["top", "right"]].set_visible(False)
        figure.colorbar(ScalarMappable(norm, colours), ax=axis, label=metric, extend=_extend(sweep, norm, trials))
        return figure

    best = trials[0]
    return drawing(
        draw,
        f"{metric} of {len(trials)} trials by {x.key} and {y.key}. Best {show_value(best.metrics[metric])} at "
        f"{x.key} {show_value(best.values[x.key])}, {y.key} {show_value(best.values[y.key])}.",
    )


def metric_by_key(sweep: Sweep, key: Axis) -> Drawing | None:
    """The decisive metric against the only searched key; None without a value."""
    trials = sweep.valued(sweep.decisive)
    if not trials:
        return None

    def draw() -> Figure:
        figure, (axis,) = panels([""], xlabel=key.key, ylabel=sweep.decisive)
        for trial in trials:
            place = key.place(trial.values[key.key]), trial.metrics[sweep.decisive]
            axis.plot(*place, _MARKERS[trial.status], color=PALETTE[0])
        if key.scale == "levels":
            axis.set_xticks(range(len(key.levels)), key.levels)
        else:
            axis.set_xscale(key.scale)
        axis.set_xlim(*_along(key, np.array([-0.04, 1.04])))
        return figure

    values = "; ".join(f"{show_value(t.values[key.key])}: {show_value(t.metrics[sweep.decisive])}" for t in trials)
    return drawing(draw, f"{sweep.decisive} by {key.key}. {values}.")


def parallel_coordinates(sweep: Sweep) -> Drawing | None:
    """A line per trial through all searched keys to the decisive metric; None without a value."""
    trials = sweep.valued(sweep.decisive)
    if not trials:
        return None
    metric = sweep.decisive
    colours, norm = _colours(sweep, trials)
    reached = [trial.metrics[metric] for trial in trials]
    axes = [*sweep.axes, Axis(metric, "linear", min(reached), max(reached))]
    failed = [trial for trial in sweep.trials if trial.status in ("failed", "diverged")]

    def draw() -> Figure:
        figure = Figure(figsize=(9.4, 4.6), layout="constrained")
        axis = figure.subplots()
        ink, page = matplotlib.rcParams["text.color"], matplotlib.rcParams["figure.facecolor"]
        for trial in failed:
            axis.plot(*_smooth(_heights(sweep.axes, trial)), color=ink, alpha=0.35, linewidth=0.9, linestyle=":")
        # The best one last, on top of the others.
        for trial in reversed(trials):
            heights = [*_heights(sweep.axes, trial), axes[-1].unit(trial.metrics[metric])]
            best = trial is sweep.best
            axis.plot(
                *_smooth(heights), color=colours(norm(trial.metrics[metric])), linewidth=3 if best else 1.3, zorder=3
            )
        for position, each in enumerate(axes):
            axis.axvline(position, color=ink, linewidth=0.9, zorder=4)
            for place, text in _ticks(each):
                label = axis.text(position - 0.03, each.unit(place), text, ha="right", va="center", fontsize=8)
                label.set_zorder(5)
                label.set_path_effects([withStroke(linewidth=4, foreground=page)])
        axis.set_xticks(range(len(axes)), [each.label for each in axes])
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.set_yticks([])
        axis.set_xlim(-0.35, len(axes) - 0.9)
        axis.set_ylim(-0.02, 1.02)
        axis.spines[:].set_visible(False)
        return figure

    keys = ", ".join(axis.key for axis in sweep.axes)
    return drawing(draw, f"Parallel coordinates of {len(trials)} trials over {keys} and {metric}.")


def importance_bars(shares: Mapping[str, Mapping[str, float]]) -> Drawing | None:
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
    return drawing(draw, f"Importance of the searched keys. {said}.")


def learning_curves(sweep: Sweep) -> Drawing | None:
    """The decisive metric of every trial by epoch; None where no epoch has it."""
    curves = {trial.trial: sweep.curve(trial, sweep.decisive) for trial in sweep.trials}
    trials = [trial for trial in sweep.valued(sweep.decisive) if curves[trial.trial]]
    if not trials:
        return None
    colours, norm = _colours(sweep, trials)

    def draw() -> Figure:
        figure, (axis,) = panels([""], xlabel="epoch", ylabel=sweep.decisive)
        for trial in reversed(trials):
            epochs, values = zip(*curves[trial.trial].items(), strict=True)
            colour = colours(norm(trial.metrics[sweep.decisive]))
            axis.plot(epochs, values, color=colour, linewidth=2.6 if trial is sweep.best else 1.1)
            if trial.status == "stopped":
                axis.plot(epochs[-1], values[-1], _MARKERS["stopped"], color=colour, markersize=5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        return figure

    longest = max(max(curves[trial.trial]) for trial in trials)
    return drawing(draw, f"Learning curves of {len(trials)} trials: {sweep.decisive} over at most {longest} epochs.")


def pareto_front(sweep: Sweep) -> Drawing | None:
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

    return drawing(draw, f"Pareto front of {', '.join(sweep.metrics)}: trials {', '.join(t.trial for t in front)}.")


def _colours(sweep: Sweep, trials: Sequence[TrialRow]) -> tuple[Colormap, Normalize]:
    values = np.array([trial.metrics[sweep.decisive] for trial in trials])
    low, high = float(values.min()), float(values.max())
    upwards = sweep.metrics[sweep.decisive] == "max"
    if len(values) >= _MANY:
        tail = float(np.quantile(values, _TAIL if upwards else 1 - _TAIL))
        low, high = (tail, high) if upwards else (low, tail)
    if low == high:  # all are the best
        low, high = (low - 1, high) if upwards else (low, high + 1)
    return ListedColormap(_COLOURS if upwards else _COLOURS[::-1]), Normalize(low, high, clip=True)


def _extend(sweep: Sweep, norm: Normalize, trials: Sequence[TrialRow]) -> str:
    values = [trial.metrics[sweep.decisive] for trial in trials]
    assert norm.vmin is not None
    assert norm.vmax is not None
    return "min" if min(values) < norm.vmin else "max" if max(values) > norm.vmax else "neither"


def _draw_cells(
    axis: Axes, sweep: Sweep, x: Axis, y: Axis, trials: Sequence[TrialRow], colours: Colormap, norm: Normalize
) -> None:
    """The mean of every pair of levels, with how many trials it is of."""
    cells: dict[tuple[float, float], list[float]] = {}
    for trial in trials:
        cells.setdefault(_places(x, y, trial), []).append(trial.metrics[sweep.decisive])
    grid = np.full((len(y.levels), len(x.levels)), np.nan)
    for (column, row), values in cells.items():
        grid[int(row), int(column)] = np.mean(values)
    axis.imshow(grid, origin="lower", aspect="auto", cmap=colours, norm=norm)
    for (column, row), values in cells.items():
        mean = float(np.mean(values))
        count = f"\n{len(values)} trials" if len(values) > 1 else ""
        bright = sum(colours(norm(mean))[:3]) > 1.4
        ink = "black" if bright else "white"
        axis.text(column, row, show_value(mean) + count, ha="center", va="center", color=ink, fontsize=9)


def _draw_smoothed(
    axis: Axes,
    x: Axis,
    y: Axis,
    trials: Sequence[TrialRow],
    values: Sequence[float],
    colours: Colormap,
    norm: Normalize,
) -> None:
    """A Gaussian kernel's mean of the trials' values (Nadaraya and Watson), only where a trial is near."""
    if len(trials) < 3:
        return
    ticks = (np.arange(_CELLS) + 0.5) / _CELLS
    there = np.array([[x.unit(u), y.unit(v)] for u, v in (_places(x, y, trial) for trial in trials)])
    squares = (ticks[None, :, None] - there[:, 0]) ** 2 + (ticks[:, None, None] - there[:, 1]) ** 2
    weights = np.exp(-squares / (2 * _SMOOTH**2))
    mean = (weights @ np.asarray(values)) / np.maximum(weights.sum(axis=2), 1e-30)
    mean[squares.min(axis=2) > _NEAR**2] = np.nan
    edges = np.linspace(0, 1, _CELLS + 1)
    axis.pcolormesh(*(_along(each, edges) for each in (x, y)), mean, cmap=colours, norm=norm, alpha=0.45, linewidth=0)


def _draw_points(
    axis: Axes, sweep: Sweep, x: Axis, y: Axis, trials: Sequence[TrialRow], colours: Colormap, norm: Normalize
) -> None:
    ink = matplotlib.rcParams["text.color"]
    for trial in reversed(trials):
        axis.scatter(
            *_places(x, y, trial),
            s=130 if trial is sweep.best else 48,
            marker="*" if trial is sweep.best else _MARKERS[trial.status],
            color=colours(norm(trial.metrics[sweep.decisive])),
            edgecolor=ink,
            linewidth=0.8,
            zorder=3,
        )
    for trial in sweep.trials:
        if trial.status in ("failed", "diverged"):
            axis.scatter(*_places(x, y, trial), s=36, marker="x", color=ink, linewidth=1.2, zorder=3)
    for each, scale, limit in ((x, axis.set_xscale, axis.set_xlim), (y, axis.set_yscale, axis.set_ylim)):
        if each.scale != "levels":
            scale(each.scale)
        limit(*_along(each, np.array([-0.04, 1.04])))


def _along(axis: Axis, shares: np.ndarray) -> np.ndarray:
    """The inverse of :meth:`Axis.unit`."""
    if axis.scale == "log":
        return np.asarray(axis.low * (axis.high / axis.low) ** shares)
    # A single level has no width of its own.
    low, high = (axis.low, axis.high) if axis.high > axis.low else (axis.low - 0.5, axis.low + 0.5)
    return low + (high - low) * shares


def _places(x: Axis, y: Axis, trial: TrialRow) -> tuple[float, float]:
    return x.place(trial.values[x.key]), y.place(trial.values[y.key])


def _heights(axes: Sequence[Axis], trial: TrialRow) -> list[float]:
    return [axis.unit(axis.place(trial.values[axis.key])) for axis in axes]


def _smooth(heights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A curve through ``heights`` that crosses each axis at a right angle, so that lines can be told apart there."""
    x = np.linspace(0, len(heights) - 1, 24 * (len(heights) - 1) + 1)
    left = np.minimum(x.astype(int), len(heights) - 2) if len(heights) > 1 else np.zeros(1, int)
    share = x - left
    y = np.asarray(heights)
    right = np.minimum(left + 1, len(heights) - 1)
    return x, y[left] + (y[right] - y[left]) * (3 * share**2 - 2 * share**3)


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    if axis.scale == "levels":
        return [(float(i), level) for i, level in enumerate(axis.levels)]
    decades = LogLocator(subs=(1, 2, 5), numticks=12)
    locator = decades if axis.scale == "log" else MaxNLocator(5, integer=isinstance(axis.low, int))
    places = [float(p) for p in locator.tick_values(axis.low, axis.high) if axis.low <= p <= axis.high]
    return [(place, show_value(place)) for place in places]
