"""The plots of a run's report."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from optimag_dist.report.kept_mass import KeptMass
from optimag_dist.report.measure import Measure, monitored
from optimag_dist.report.plotting import PALETTE, Plot, legend, panels, plot
from optimag_dist.report.run import FitRecord, Run

_BINS = 50


def variant_colours(variants: Sequence[str]) -> dict[str, str]:
    """The colour of every variant; the palette repeats after seven."""
    return {variant: PALETTE[i % len(PALETTE)] for i, variant in enumerate(variants)}


def learning_curves(run: Run, colours: Mapping[str, str]) -> Plot | None:
    """What validation goes by, and loss, by epoch; None before the first epoch is recorded."""
    monitors = dict.fromkeys(monitored(fit.result) for fit in run.finished if fit.result is not None)
    columns = {column: Measure(column).words for column in monitors} | {"task_loss": "training loss of the task"}
    return _curves(run, columns, colours)


def regulariser_curves(run: Run, colours: Mapping[str, str]) -> Plot | None:
    """Alignment loss, PPR mass inside the groups and what the loss was held at, by epoch; None when no variant is
    regularised."""
    columns = {
        "alignment": "alignment loss λ Σ UFGW",
        "kept_ppr": "PPR mass inside the groups",
        "regulariser/weight": "λ",
        "regulariser/share": "gradient, multiple of the task's",
        "regulariser/opposed": "steps with the two opposed",
    }
    return _curves(run, columns, colours)


def kept_mass_histograms(masses: Sequence[KeptMass], colours: Mapping[str, str]) -> Plot | None:
    """Kept mass of all judged nodes and seeds, a panel per modality on one axis, medians marked; None without any."""
    names = dict.fromkeys(name for mass in masses for name in mass.values)
    found = {(m.variant, n): m.values[n][np.isfinite(m.values[n])] for n in names for m in masses if n in m.values}
    found = {key: values for key, values in found.items() if len(values)}
    if not found:
        return None
    low, high = (float(f([f(values) for values in found.values()])) for f in (min, max))
    margin = 0.02 * (high - low) or 0.05
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    shown = list(dict.fromkeys(name for _, name in found))

    def draw() -> Figure:
        figure, axes = panels(shown, ylabel="share of judged nodes", xlabel="kept mass  r / μ")
        for axis in axes:
            axis.set_xlim(edges[0], edges[-1])
        for (variant, name), values in found.items():
            axis, colour = axes[shown.index(name)], colours[variant]
            share = np.histogram(values, edges)[0] / len(values)
            axis.stairs(share, edges, fill=True, alpha=0.35, color=colour)
            axis.stairs(share, edges, color=colour, label=variant)
            axis.axvline(float(np.median(values)), color=colour, linestyle="--", linewidth=1.2)
        legend(figure, axes)
        return figure

    medians = "; ".join(f"{variant}, {name}: {np.median(values):.3f}" for (variant, name), values in found.items())
    return plot(draw, f"Histograms of kept mass over all judged nodes and seeds. Medians: {medians}.")


def _curves(run: Run, columns: Mapping[str, str], colours: Mapping[str, str]) -> Plot | None:
    series = {
        (variant, column): [s for fit in run.of(variant, finished=False) if (s := _series(fit, column))]
        for variant in run.variants
        for column in columns
    }
    shown = [column for column in columns if any(series[variant, column] for variant in run.variants)]
    if not shown:
        return None

    def draw() -> Figure:
        figure, axes = panels([columns[column] for column in shown], xlabel="epoch")
        for column, axis in zip(shown, axes, strict=True):
            for variant in run.variants:
                if series[variant, column]:
                    _draw_variant(axis, series[variant, column], variant, colours[variant])
            for fit in run.finished:
                assert fit.result is not None
                if column == monitored(fit.result):
                    place = (fit.result["best_epoch"] + 1, fit.result[column])
                    axis.plot(*place, "o", markersize=3.5, color=colours[fit.variant], zorder=4)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        legend(figure, axes)
        return figure

    last = "; ".join(
        f"{variant}, {columns[column]}: {np.mean([list(fit.values())[-1] for fit in fits]):.3f}"
        for (variant, column), fits in series.items()
        if fits
    )
    return plot(draw, f"Curves by epoch of {' and '.join(columns[c] for c in shown)}. Mean at the end: {last}.")


def _series(fit: FitRecord, column: str) -> dict[int, float]:
    """Epoch, counted from 1 → value, where there is one."""
    return {record["epoch"] + 1: record[column] for record in fit.epochs if record.get(column) is not None}


def _draw_variant(axis: Axes, fits: Sequence[Mapping[int, float]], variant: str, colour: str) -> None:
    """Mean and range as far as every seed was trained, seeds on their own after that: seeds that stop early must not
    bend the mean."""
    common = sorted(set.intersection(*map(set, fits)))
    values = np.array([[fit[epoch] for epoch in common] for fit in fits])
    axis.plot(common, values.mean(axis=0), color=colour, linewidth=1.8, label=variant, zorder=3)
    axis.fill_between(common, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
    end = common[-1] if common else 0
    for fit in fits:
        rest = [epoch for epoch in fit if epoch >= end]
        if len(rest) > 1:
            axis.plot(rest, [fit[epoch] for epoch in rest], color=colour, linewidth=0.7, alpha=0.6)
