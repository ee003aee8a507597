"""The plots of an experiment's report, a study each."""

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optimag_dist.experiments.analysis import Row, area
from optimag_dist.experiments.detection import KEPT
from optimag_dist.experiments.recipe import StudyOptions
from optimag_dist.report.comparison import measures_of
from optimag_dist.report.measure import Interval, Measure
from optimag_dist.report.plotting import PALETTE, Plot, legend, panels, plot

# So many stand beside a plot.
_LETTERS = 30
# Graph → name of a line → its interval at every value of the axis, None where there is none.
Lines = Mapping[str, Mapping[str, list[Interval | None]]]


@dataclass(frozen=True)
class _Scale:
    """How what is drawn is named and shown: the factor from a value to what is drawn, the digits of a mean in a cell,
    an interval in words, and whether less is better."""

    label: str
    factor: float
    digits: int
    say: Callable[[Interval], str]
    down: bool = False


_AREA = _Scale("area under the curve", 1, 2, area)


def _scale(measure: Measure, *, difference: bool = False) -> _Scale:
    label, say = measure.axis(difference=difference), measure.show_difference if difference else measure.show
    return _Scale(label, measure.factor, measure.digits + difference, say, measure.metric.better == "min")


def draw_study(study: StudyOptions, rows: Sequence[Row]) -> list[tuple[Plot, str]]:
    """As many plots, each with its caption, as the study asks for: lines for one varied thing, maps for two, dots for
    none. What is compared by different metrics is drawn apart."""
    shown = measures_of(rows)
    metrics = dict.fromkeys(row.compared_by for row in rows)
    plots = []
    for metric in metrics:
        mine = [row for row in rows if row.compared_by == metric]
        # A task may be one of what is varied; of one task's metric there is one value of it.
        varied = [key for key in study.vary if len(metrics) == 1 or len({row.at[key] for row in mine}) > 1]
        if len(varied) == 2:
            drawn, caption = _maps(mine, varied[0], varied[1], shown), "Means over seeds in every cell."
        elif len(varied) == 1:
            drawn = _lines(mine, varied[0], shown.get(metric or ""))
            caption = "Means over seeds; bands are 95 % intervals."
        else:
            drawn = _bars(mine, shown.get(metric or ""))
            caption = "Dots are means over seeds, bars 95 % intervals."
        plots += [(each, caption) for each in drawn]
    return plots


def _lines(rows: Sequence[Row], key: str, measure: Measure | None) -> list[Plot]:
    values = list(dict.fromkeys(row.at[key] for row in rows))
    # The ways that need no transport are the same whatever the arm.
    first = {row.graph: row.arm for row in reversed(rows)}

    def collected(of: Callable[[Row], Mapping[str, Interval | None]]) -> Lines:
        lines: dict[str, dict[str, list[Interval | None]]] = {row.graph: {} for row in rows}
        for row in rows:
            for name, interval in of(row).items():
                if interval is not None:
                    intervals = lines[row.graph].setdefault(name, [None] * len(values))
                    intervals[values.index(row.at[key])] = interval
        return lines

    plots = []
    if measure is not None:
        plots.append(_draw_lines(collected(lambda row: {row.arm: row.score}), key, values, _scale(measure)))
        if any(row.difference for row in rows):
            lines = collected(lambda row: {row.arm: row.difference})
            plots.append(_draw_lines(lines, key, values, _scale(measure, difference=True), zero=True))
    if any(row.areas for row in rows):
        kept = collected(lambda row: {f"{KEPT}: {row.arm}": row.areas.get(KEPT)})
        ways = sorted({way for row in rows for way in row.areas} - {KEPT})
        others = collected(lambda row: {way: row.areas.get(way) for way in ways if row.arm == first[row.graph]})
        plots.append(_draw_lines({graph: {**kept[graph], **others[graph]} for graph in kept}, key, values, _AREA))
    return plots


def _draw_lines(by_graph: Lines, key: str, values: list[Any], scale: _Scale, *, zero: bool = False) -> Plot:
    names = list(dict.fromkeys(name for lines in by_graph.values() for name in lines))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    places, logarithmic = _places(values)

    def draw() -> Figure:
        figure, axes = panels(list(by_graph), xlabel=key, ylabel=textwrap.fill(scale.label, _LETTERS))
        for axis, lines in zip(axes, by_graph.values(), strict=True):
            if logarithmic:
                axis.set_xscale("log")
            if zero:
                axis.axhline(0, color=PALETTE[3], linewidth=1, linestyle=":")
            for name, intervals in lines.items():
                known = [(x, i) for x, i in zip(places, intervals, strict=True) if i is not None]
                x = [place for place, _ in known]
                mean = scale.factor * np.array([i.mean for _, i in known])
                half = scale.factor * np.nan_to_num([i.half_width for _, i in known])
                axis.plot(x, mean, marker="o", markersize=3.5, color=colours[name], label=name)
                axis.fill_between(x, mean - half, mean + half, color=colours[name], alpha=0.15, linewidth=0)
            axis.set_xticks(places, [_short(value) for value in values])
            axis.minorticks_off()
        legend(figure, axes)
        return figure

    words = "; ".join(
        f"{graph}, {name}: " + ", ".join(f"{v}: {scale.say(i)}" for v, i in zip(values, intervals, strict=True) if i)
        for graph, lines in by_graph.items()
        for name, intervals in lines.items()
    )
    return plot(draw, f"{scale.label} by {key}, mean and 95 % interval. {words}.")


def _places(values: list[Any]) -> tuple[list[float], bool]:
    """Where values stand on an axis: numbers where they belong, words evenly spaced; whether it is logarithmic."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v)]
    if len(numbers) < len(values):
        return [float(i) for i in range(len(values))], False
    wide = min(numbers) > 0 and max(numbers) >= 20 * min(numbers)
    return [float(v) for v in numbers], wide


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _maps(rows: Sequence[Row], first: str, second: str, shown: Mapping[str, Measure]) -> list[Plot]:
    across, down = (list(dict.fromkeys(row.at[key] for row in rows)) for key in (first, second))
    graphs, arms = dict.fromkeys(row.graph for row in rows), dict.fromkeys(row.arm for row in rows)
    plots = []
    for graph, arm in itertools.product(graphs, arms):
        found = {(row.at[first], row.at[second]): row for row in rows if row.graph == graph and row.arm == arm}
        if len(found) < 2:
            continue
        row = next(iter(found.values()))
        # What was chosen by, and what that is worth.
        columns = dict.fromkeys(column for column in (row.validated_by, row.compared_by) if column is not None)
        tables = [(_scale(shown[c]), {at: r.metrics[c] for at, r in found.items() if c in r.metrics}) for c in columns]
        tables = tables or [(_AREA, {at: r.areas[KEPT] for at, r in found.items() if KEPT in r.areas})]
        if any(table for _, table in tables):
            grids = [(scale, _grid(scale, table, across, down)) for scale, table in tables]
            plots.append(_map(grids, f"{graph}, {arm}", first, second, across, down))
    return plots


def _grid(scale: _Scale, found: Mapping[Any, Interval], across: list[Any], down: list[Any]) -> np.ndarray:
    places = [[(a, d) for a in across] for d in down]
    return scale.factor * np.array([[found[at].mean if at in found else np.nan for at in row] for row in places])


def _map(
    grids: Sequence[tuple[_Scale, np.ndarray]], title: str, first: str, second: str, across: list[Any], down: list[Any]
) -> Plot:
    def draw() -> Figure:
        figure, axes = panels([f"{title}: {scale.label}" for scale, _ in grids], xlabel=first, ylabel=second)
        for axis, (scale, grid) in zip(axes, grids, strict=True):
            _shade(axis, scale, grid)
            axis.set_xticks(range(len(across)), [_short(v) for v in across])
            axis.set_yticks(range(len(down)), [_short(v) for v in down])
        return figure

    said = []
    for scale, grid in grids:
        i, j = np.unravel_index((np.nanargmin if scale.down else np.nanargmax)(grid), grid.shape)
        best = "lowest" if scale.down else "highest"
        said.append(f"{scale.label}: {best} {grid[i, j]:.3g} at {first}={across[j]}, {second}={down[i]}")
    return plot(draw, f"{title} by {first} and {second}. {'; '.join(said)}.")


def _shade(axis: Axes, scale: _Scale, grid: np.ndarray) -> None:
    """Brighter is better."""
    axis.grid(False)
    axis.imshow(grid, cmap="viridis_r" if scale.down else "viridis", origin="lower", aspect="auto")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = value > middle if scale.down else value < middle
            text = f"{value:.{scale.digits}f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _bars(rows: Sequence[Row], measure: Measure | None) -> list[Plot]:
    """Differences of the arms that are compared, and areas."""
    compared = [(row, row.difference) for row in rows if row.difference is not None]
    plots = [_dots(compared, _scale(measure, difference=True))] if compared and measure is not None else []
    known = [(row, row.areas[KEPT]) for row in rows if KEPT in row.areas]
    return [*plots, _dots(known, _AREA)] if known else plots


def _dots(found: Sequence[tuple[Row, Interval]], scale: _Scale) -> Plot:
    graphs = list(dict.fromkeys(row.graph for row, _ in found))

    def draw() -> Figure:
        figure, axes = panels(graphs, xlabel=scale.label)
        for axis, graph in zip(axes, graphs, strict=True):
            mine = [(row, interval) for row, interval in found if row.graph == graph][::-1]
            if scale is not _AREA:
                axis.axvline(0, color=PALETTE[3], linewidth=1, linestyle=":")
            for place, (_, interval) in enumerate(mine):
                mean, half = scale.factor * interval.mean, scale.factor * np.nan_to_num(interval.half_width)
                axis.errorbar(mean, place, xerr=half, fmt="o", color=PALETTE[0], capsize=3, markersize=4)
            if scale is _AREA:
                # The other ways do not depend on the arm.
                others = {way: value for way, value in mine[0][0].areas.items() if way != KEPT}
                for number, (way, value) in enumerate(others.items(), start=1):
                    axis.axvline(value.mean, color=PALETTE[number], linestyle="--", linewidth=1.2, label=way)
            names = [r.arm if scale is _AREA else f"{r.arm} − {r.compared_with}" for r, _ in mine]
            axis.set_yticks(range(len(mine)), names)
        figure.set_size_inches(9.4, 1.1 + 0.3 * max(len(found) // len(graphs), 3))
        if scale is _AREA:
            legend(figure, axes)
        return figure

    words = "; ".join(f"{row.graph}, {row.arm}: {scale.say(interval)}" for row, interval in found)
    return plot(draw, f"{scale.label}, mean and 95 % interval. {words}.")
