"""The drawings of an experiment's report, a study each."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optimag_dist.experiments.analysis import Row, area, measures_of
from optimag_dist.experiments.detection import KEPT
from optimag_dist.experiments.recipe import StudyOptions
from optimag_dist.report.drawing import PALETTE, Drawing, drawing, legend, panels
from optimag_dist.report.measure import Measure
from optimag_dist.report.statistics import Interval

# So many stand beside a plot.
_LETTERS = 30
# What one line of a plot shows: a name, and the interval at every value of the axis (None where there is none).
Line = tuple[str, list[Interval | None]]


@dataclass(frozen=True)
class _Scale:
    """How what is drawn is named and shown.

    Attributes:
        factor: from a value to what is drawn.
        digits: of a mean in a cell, after the point.
        say: an interval in words.
        down: less is better.
    """

    label: str
    factor: float
    digits: int
    say: Callable[[Interval], str]
    down: bool = False


_AREA = _Scale("area under the curve", 1, 2, area)


def _scale(measure: Measure) -> _Scale:
    return _Scale(measure.axis, measure.factor, measure.digits, measure.show, measure.metric.better == "min")


def _scale_of_difference(measure: Measure) -> _Scale:
    return _Scale(measure.axis_of_difference, measure.factor, measure.digits + 1, measure.show_difference)


def draw_study(study: StudyOptions, rows: Sequence[Row]) -> list[tuple[Drawing, str]]:
    """As many drawings, each with its caption, as the study asks for: lines for one varied thing, maps for two, dots
    for none. What is judged by different figures is drawn apart."""
    shown = measures_of(rows)
    figures = dict.fromkeys(row.judged_by for row in rows)
    drawings = []
    for figure in figures:
        mine = [row for row in rows if row.judged_by == figure]
        # A task may be one of what is varied; of one task's figure there is one value of it.
        varied = [key for key in study.vary if len(figures) == 1 or len({row.at[key] for row in mine}) > 1]
        if len(varied) == 2:
            drawn, caption = _maps(mine, varied[0], varied[1], shown), "Means over seeds in every cell."
        elif len(varied) == 1:
            drawn, caption = _lines(mine, varied[0], shown), "Means over seeds; bands are 95 % intervals."
        else:
            drawn, caption = _bars(mine, shown), "Dots are means over seeds, bars 95 % intervals."
        drawings += [(each, caption) for each in drawn]
    return drawings


def _graphs(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.graph for row in rows))


def _arms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.arm for row in rows))


def _lines(rows: Sequence[Row], key: str, shown: Mapping[str, Measure]) -> list[Drawing]:
    values = list(dict.fromkeys(row.at[key] for row in rows))
    drawings = []
    if rows[0].judged_by is not None:
        measure = shown[rows[0].judged_by]
        drawings.append(_line_panels(rows, key, values, "score", _scale(measure)))
        if any(row.difference for row in rows):
            drawings.append(_line_panels(rows, key, values, "difference", _scale_of_difference(measure)))
    if any(row.areas for row in rows):
        drawings.append(_area_panels(rows, key, values))
    return drawings


def _line_panels(
    rows: Sequence[Row], key: str, values: list[Any], what: Literal["score", "difference"], scale: _Scale
) -> Drawing:
    graphs = _graphs(rows)
    by_graph: dict[str, list[Line]] = {}
    for graph in graphs:
        found = {(row.arm, row.at[key]): getattr(row, what) for row in rows if row.graph == graph}
        lines = [(arm, [found.get((arm, value)) for value in values]) for arm in _arms(rows)]
        by_graph[graph] = [line for line in lines if any(x is not None for x in line[1])]
    return _draw_lines(by_graph, key, values, scale, zero=what == "difference")


def _area_panels(rows: Sequence[Row], key: str, values: list[Any]) -> Drawing:
    by_graph: dict[str, list[Line]] = {}
    for graph in _graphs(rows):
        mine = [row for row in rows if row.graph == graph]
        found = {(row.arm, row.at[key]): row.areas for row in mine}
        lines: list[Line] = [
            (f"{KEPT}: {arm}", [found.get((arm, value), {}).get(KEPT) for value in values]) for arm in _arms(mine)
        ]
        # The other ways are the same whatever the arm.
        first = _arms(mine)[0]
        others = {way for row in mine for way in row.areas} - {KEPT}
        lines += [(way, [found.get((first, value), {}).get(way) for value in values]) for way in sorted(others)]
        by_graph[graph] = [line for line in lines if any(x is not None for x in line[1])]
    return _draw_lines(by_graph, key, values, _AREA)


def _draw_lines(
    by_graph: dict[str, list[Line]],
    key: str,
    values: list[Any],
    scale: _Scale,
    *,
    zero: bool = False,
) -> Drawing:
    names = list(dict.fromkeys(name for lines in by_graph.values() for name, _ in lines))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    places, logarithmic = _places(values)

    def draw() -> Figure:
        figure, axes = panels(list(by_graph), xlabel=key, ylabel=textwrap.fill(scale.label, _LETTERS))
        for axis, lines in zip(axes, by_graph.values(), strict=True):
            if logarithmic:
                axis.set_xscale("log")
            if zero:
                axis.axhline(0, color=PALETTE[3], linewidth=1, linestyle=":")
            for name, intervals in lines:
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
        for name, intervals in lines
    )
    return drawing(draw, f"{scale.label} by {key}, mean and 95 % interval. {words}.")


def _places(values: list[Any]) -> tuple[list[float], bool]:
    """Where values stand on an axis: numbers where they belong, words evenly spaced; whether it is logarithmic."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v)]
    if len(numbers) < len(values):
        return [float(i) for i in range(len(values))], False
    wide = min(numbers) > 0 and max(numbers) >= 20 * min(numbers)
    return [float(v) for v in numbers], wide


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _maps(rows: Sequence[Row], first: str, second: str, shown: Mapping[str, Measure]) -> list[Drawing]:
    across, down = (list(dict.fromkeys(row.at[key] for row in rows)) for key in (first, second))
    drawings = []
    for graph in _graphs(rows):
        for arm in _arms(rows):
            mine = [row for row in rows if row.graph == graph and row.arm == arm]
            found = {(row.at[first], row.at[second]): row for row in mine}
            if len(found) < 2:
                continue
            # What was chosen by, and what that is worth.
            columns = dict.fromkeys(
                column for column in (mine[0].validated_by, mine[0].judged_by) if column is not None
            )
            tables = [
                (_scale(shown[key]), {at: row.figures[key] for at, row in found.items() if key in row.figures})
                for key in columns
            ]
            if not tables:
                tables = [(_AREA, {at: row.areas[KEPT] for at, row in found.items() if KEPT in row.areas})]
            if any(table for _, table in tables):
                grids = [(scale, _grid(scale, table, across, down)) for scale, table in tables]
                drawings.append(_map(grids, f"{graph}, {arm}", first, second, across, down))
    return drawings


def _grid(scale: _Scale, found: dict[Any, Interval], across: list[Any], down: list[Any]) -> np.ndarray:
    places = [[(a, d) for a in across] for d in down]
    return scale.factor * np.array([[found[at].mean if at in found else np.nan for at in row] for row in places])


def _map(
    tables: Sequence[tuple[_Scale, np.ndarray]], title: str, first: str, second: str, across: list[Any], down: list[Any]
) -> Drawing:
    def draw() -> Figure:
        figure, axes = panels([f"{title}: {scale.label}" for scale, _ in tables], xlabel=first, ylabel=second)
        for axis, (scale, table) in zip(axes, tables, strict=True):
            _shade(axis, scale, table)
            axis.set_xticks(range(len(across)), [_short(v) for v in across])
            axis.set_yticks(range(len(down)), [_short(v) for v in down])
        return figure

    said = []
    for scale, table in tables:
        i, j = np.unravel_index((np.nanargmin if scale.down else np.nanargmax)(table), table.shape)
        best = "lowest" if scale.down else "highest"
        said.append(f"{scale.label}: {best} {table[i, j]:.3g} at {first}={across[j]}, {second}={down[i]}")
    return drawing(draw, f"{title} by {first} and {second}. {'; '.join(said)}.")


def _shade(axis: Axes, scale: _Scale, table: np.ndarray) -> None:
    """Brighter is better."""
    axis.grid(False)
    axis.imshow(table, cmap="viridis_r" if scale.down else "viridis", origin="lower", aspect="auto")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            dark = value > middle if scale.down else value < middle
            text = f"{value:.{scale.digits}f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _bars(rows: Sequence[Row], shown: Mapping[str, Measure]) -> list[Drawing]:
    """Differences of the arms that are compared, and areas."""
    drawings = []
    compared = [(row, row.difference) for row in rows if row.difference is not None]
    if compared and rows[0].judged_by is not None:
        drawings.append(_dots(compared, _scale_of_difference(shown[rows[0].judged_by])))
    judged = [(row, row.areas[KEPT]) for row in rows if KEPT in row.areas]
    if judged:
        drawings.append(_dots(judged, _AREA))
    return drawings


def _dots(found: Sequence[tuple[Row, Interval]], scale: _Scale) -> Drawing:
    graphs = _graphs([row for row, _ in found])

    def draw() -> Figure:
        figure, axes = panels(graphs, xlabel=scale.label)
        for axis, graph in zip(axes, graphs, strict=True):
            mine = [(row, interval) for row, interval in found if row.graph == graph][::-1]
            if scale is not _AREA:
                axis.axvline(0, color=PALETTE[3], linewidth=1, linestyle=":")
            for place, (_, interval) in enumerate(mine):
                half = np.nan_to_num(interval.half_width)
                axis.errorbar(
                    scale.factor * interval.mean,
                    place,
                    xerr=scale.factor * half,
                    fmt="o",
                    color=PALETTE[0],
                    capsize=3,
                    markersize=4,
                )
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
    return drawing(draw, f"{scale.label}, mean and 95 % interval. {words}.")
