"""The drawings of an experiment's report, a study each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optimag_dist.experiments.analysis import Row, area, percent, points
from optimag_dist.experiments.detection import KEPT
from optimag_dist.experiments.recipe import StudyOptions
from optimag_dist.report.drawing import PALETTE, Drawing, drawing, legend, panels
from optimag_dist.report.statistics import Interval

# What one line of a plot shows: a name, and the interval at every value of the axis (None where there is none).
Line = tuple[str, list[Interval | None]]


def draw_study(study: StudyOptions, rows: Sequence[Row]) -> list[Drawing]:
    """As many drawings as the study asks for: lines for one varied thing, maps for two, bars for none."""
    if not rows:
        return []
    if len(study.vary) == 2:
        return _maps(rows, *study.vary)
    if len(study.vary) == 1:
        return _lines(rows, next(iter(study.vary)))
    return _bars(rows)


def _graphs(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.graph for row in rows))


def _arms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.arm for row in rows))


def _lines(rows: Sequence[Row], key: str) -> list[Drawing]:
    values = list(dict.fromkeys(row.at[key] for row in rows))
    drawings = []
    if any(row.accuracy for row in rows):
        drawings.append(_line_panels(rows, key, values, "accuracy", "test accuracy (%)", 100, percent))
    if any(row.difference for row in rows):
        drawings.append(_line_panels(rows, key, values, "difference", "difference (points)", 100, points))
    if any(row.areas for row in rows):
        drawings.append(_area_panels(rows, key, values))
    return drawings


def _line_panels(
    rows: Sequence[Row], key: str, values: list[Any], what: str, label: str, factor: float, say: Any
) -> Drawing:
    graphs = _graphs(rows)
    by_graph: dict[str, list[Line]] = {}
    for graph in graphs:
        found = {(row.arm, row.at[key]): getattr(row, what) for row in rows if row.graph == graph}
        lines = [(arm, [found.get((arm, value)) for value in values]) for arm in _arms(rows)]
        by_graph[graph] = [line for line in lines if any(x is not None for x in line[1])]
    return _draw_lines(by_graph, key, values, label, factor, say, zero=what == "difference")


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
    return _draw_lines(by_graph, key, values, "area under the curve", 1, area)


def _draw_lines(
    by_graph: dict[str, list[Line]],
    key: str,
    values: list[Any],
    label: str,
    factor: float,
    say: Any,
    *,
    zero: bool = False,
) -> Drawing:
    names = list(dict.fromkeys(name for lines in by_graph.values() for name, _ in lines))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    places, logarithmic = _places(values)

    def draw() -> Figure:
        figure, axes = panels(list(by_graph), xlabel=key, ylabel=label)
        for axis, lines in zip(axes, by_graph.values(), strict=True):
            if logarithmic:
                axis.set_xscale("log")
            if zero:
                axis.axhline(0, color=PALETTE[3], linewidth=1, linestyle=":")
            for name, intervals in lines:
                known = [(x, i) for x, i in zip(places, intervals, strict=True) if i is not None]
                x = [place for place, _ in known]
                mean = factor * np.array([i.mean for _, i in known])
                half = factor * np.nan_to_num([i.half_width for _, i in known])
                axis.plot(x, mean, marker="o", markersize=3.5, color=colours[name], label=name)
                axis.fill_between(x, mean - half, mean + half, color=colours[name], alpha=0.15, linewidth=0)
            axis.set_xticks(places, [_short(value) for value in values])
            axis.minorticks_off()
        legend(figure, axes)
        return figure

    words = "; ".join(
        f"{graph}, {name}: " + ", ".join(f"{v}: {say(i)}" for v, i in zip(values, intervals, strict=True) if i)
        for graph, lines in by_graph.items()
        for name, intervals in lines
    )
    return drawing(draw, f"{label} by {key}, mean and 95 % interval. {words}.")


def _places(values: list[Any]) -> tuple[list[float], bool]:
    """Where values stand on an axis: numbers where they belong, words evenly spaced; whether it is logarithmic."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v)]
    if len(numbers) < len(values):
        return [float(i) for i in range(len(values))], False
    wide = min(numbers) > 0 and max(numbers) >= 20 * min(numbers)
    return [float(v) for v in numbers], wide


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _maps(rows: Sequence[Row], first: str, second: str) -> list[Drawing]:
    across, down = (list(dict.fromkeys(row.at[key] for row in rows)) for key in (first, second))
    drawings = []
    for graph in _graphs(rows):
        for arm in _arms(rows):
            mine = [row for row in rows if row.graph == graph and row.arm == arm]
            found = {(row.at[first], row.at[second]): row for row in mine}
            if len(found) < 2:
                continue
            if mine[0].accuracy is not None:
                tables = {
                    "validation accuracy (%)": _grid(found, across, down, lambda r: 100 * r.validation.mean),
                    "test accuracy (%)": _grid(found, across, down, lambda r: 100 * r.accuracy.mean),
                }
            elif any(KEPT in row.areas for row in mine):
                judged = {place: row for place, row in found.items() if KEPT in row.areas}
                tables = {"area under the curve": _grid(judged, across, down, lambda r: r.areas[KEPT].mean)}
            else:
                continue
            drawings.append(_map(tables, f"{graph}, {arm}", first, second, across, down))
    return drawings


def _grid(found: dict[Any, Row], across: list[Any], down: list[Any], value: Any) -> np.ndarray:
    return np.array([[value(found[a, d]) if (a, d) in found else np.nan for a in across] for d in down])


def _map(
    tables: dict[str, np.ndarray], title: str, first: str, second: str, across: list[Any], down: list[Any]
) -> Drawing:
    def draw() -> Figure:
        figure, axes = panels([f"{title}: {name}" for name in tables], xlabel=first, ylabel=second)
        for axis, table in zip(axes, tables.values(), strict=True):
            _shade(axis, table)
            axis.set_xticks(range(len(across)), [_short(v) for v in across])
            axis.set_yticks(range(len(down)), [_short(v) for v in down])
        return figure

    best = {name: np.unravel_index(np.nanargmax(table), table.shape) for name, table in tables.items()}
    words = "; ".join(
        f"{name}: highest {tables[name][i, j]:.3g} at {first}={across[j]}, {second}={down[i]}"
        for name, (i, j) in best.items()
    )
    return drawing(draw, f"{title} by {first} and {second}. {words}.")


def _shade(axis: Axes, table: np.ndarray) -> None:
    axis.grid(False)
    axis.imshow(table, cmap="viridis", origin="lower", aspect="auto")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            text = f"{value:.1f}" if value > 1 else f"{value:.2f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value < middle else "black")


def _bars(rows: Sequence[Row]) -> list[Drawing]:
    """Differences of the arms that are compared, or areas where nothing was trained."""
    drawings = []
    compared = [row for row in rows if row.difference is not None]
    if compared:
        drawings.append(_dots(compared, "difference", "difference (points)", 100, points))
    if any(KEPT in row.areas for row in rows):
        drawings.append(_dots([row for row in rows if KEPT in row.areas], "area", "area under the curve", 1, area))
    return drawings


def _dots(rows: Sequence[Row], what: str, label: str, factor: float, say: Any) -> Drawing:
    graphs = _graphs(rows)
    found = [(row, row.areas[KEPT] if what == "area" else row.difference) for row in rows]

    def draw() -> Figure:
        figure, axes = panels(graphs, xlabel=label)
        for axis, graph in zip(axes, graphs, strict=True):
            mine = [(row, interval) for row, interval in found if row.graph == graph and interval is not None][::-1]
            if what == "difference":
                axis.axvline(0, color=PALETTE[3], linewidth=1, linestyle=":")
            for place, (_, interval) in enumerate(mine):
                half = np.nan_to_num(interval.half_width)
                axis.errorbar(
                    factor * interval.mean,
                    place,
                    xerr=factor * half,
                    fmt="o",
                    color=PALETTE[0],
                    capsize=3,
                    markersize=4,
                )
            if what == "area" and mine:
                # The other ways do not depend on the arm.
                others = {way: value for way, value in mine[0][0].areas.items() if way != KEPT}
                for number, (way, value) in enumerate(others.items(), start=1):
                    axis.axvline(value.mean, color=PALETTE[number], linestyle="--", linewidth=1.2, label=way)
            names = [f"{r.arm} − {r.compared_with}" if what == "difference" else r.arm for r, _ in mine]
            axis.set_yticks(range(len(mine)), names)
        figure.set_size_inches(9.4, 1.1 + 0.3 * max(len(rows) // len(graphs), 3))
        if what == "area":
            legend(figure, axes)
        return figure

    words = "; ".join(f"{row.graph}, {row.arm}: {say(interval)}" for row, interval in found if interval is not None)
    return drawing(draw, f"{label}, mean and 95 % interval. {words}.")
