"""The report's drawings, each once for light and once for dark pages."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from optimag_dist.report.kept_mass import KeptMass
from optimag_dist.report.pictures import data_uri
from optimag_dist.report.run import FitRecord, Run

# Okabe and Ito's palette for all kinds of colour vision, without its black, which a dark page would swallow.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
_DPI = 144
_BINS = 50


@dataclass(frozen=True)
class Drawing:
    """A figure as PNG data URIs for a light and a dark page, and in words."""

    light: str
    dark: str
    alt: str


def variant_colours(variants: Sequence[str]) -> dict[str, str]:
    """The colour of every variant; the palette repeats after seven."""
    return {variant: PALETTE[i % len(PALETTE)] for i, variant in enumerate(variants)}


def learning_curves(run: Run, colours: Mapping[str, str]) -> Drawing | None:
    """Validation accuracy and loss by epoch; None before the first epoch is recorded."""
    panels = {"val/accuracy": "validation accuracy", "task_loss": "training loss of the task"}
    return _curves(run, panels, colours, mark_best="val/accuracy")


def regulariser_curves(run: Run, colours: Mapping[str, str]) -> Drawing | None:
    """Alignment loss and share of PPR mass inside the groups by epoch; None when no variant is regularised."""
    panels = {"alignment": "alignment loss λ Σ UFGW", "kept_ppr": "PPR mass inside the groups"}
    return _curves(run, panels, colours)


def kept_mass_histograms(masses: Sequence[KeptMass], colours: Mapping[str, str]) -> Drawing | None:
    """Kept mass of all nodes and seeds, a panel per modality on one axis, medians marked; None without any."""
    panels = {name: [mass for mass in masses if name in mass.values] for mass in masses for name in mass.values}
    finite = {
        (mass.variant, name): mass.values[name][np.isfinite(mass.values[name])]
        for name, members in panels.items()
        for mass in members
    }
    finite = {key: values for key, values in finite.items() if len(values)}
    if not finite:
        return None
    low, high = (float(f([f(values) for values in finite.values()])) for f in (min, max))
    margin = 0.02 * (high - low) or 0.05
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    names = [name for name in panels if any(key[1] == name for key in finite)]

    def draw() -> Figure:
        figure, axes = _panels(names, ylabel="share of nodes", xlabel="kept mass  r / μ")
        for name, axis in zip(names, axes, strict=True):
            axis.set_xlim(edges[0], edges[-1])
            for (variant, modality), values in finite.items():
                if modality != name:
                    continue
                share = np.histogram(values, edges)[0] / len(values)
                axis.stairs(share, edges, fill=True, alpha=0.35, color=colours[variant])
                axis.stairs(share, edges, color=colours[variant], label=variant)
                median = float(np.median(values))
                axis.axvline(median, color=colours[variant], linestyle="--", linewidth=1.2)
        _legend(figure, axes)
        return figure

    medians = "; ".join(f"{variant}, {name}: {np.median(values):.3f}" for (variant, name), values in finite.items())
    return _drawing(draw, f"Histograms of kept mass over all nodes and seeds. Medians: {medians}.")


def _curves(
    run: Run, panels: Mapping[str, str], colours: Mapping[str, str], *, mark_best: str | None = None
) -> Drawing | None:
    series = {
        (variant, column): [_series(fit, column) for fit in run.of(variant, finished=False)]
        for variant in run.variants
        for column in panels
    }
    series = {key: [each for each in fits if each] for key, fits in series.items()}
    shown = [column for column in panels if any(series[variant, column] for variant in run.variants)]
    if not shown:
        return None

    def draw() -> Figure:
        figure, axes = _panels([panels[column] for column in shown], xlabel="epoch")
        for column, axis in zip(shown, axes, strict=True):
            for variant in run.variants:
                _draw_variant(axis, series[variant, column], variant, colours[variant])
            if column == mark_best:
                for fit in run.finished:
                    assert fit.result is not None
                    place = (fit.result["best_epoch"] + 1, fit.result[column])
                    axis.plot(*place, "o", markersize=3.5, color=colours[fit.variant], zorder=4)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        _legend(figure, axes)
        return figure

    last = "; ".join(
        f"{variant}, {panels[column]}: {np.mean([list(fit.values())[-1] for fit in fits]):.3f}"
        for (variant, column), fits in series.items()
        if fits
    )
    return _drawing(draw, f"Curves by epoch of {' and '.join(panels[c] for c in shown)}. Mean at the end: {last}.")


def _series(fit: FitRecord, column: str) -> dict[int, float]:
    """Epoch, counted from 1 → value, where there is one."""
    return {record["epoch"] + 1: record[column] for record in fit.epochs if record.get(column) is not None}


def _draw_variant(axis: Axes, fits: Sequence[Mapping[int, float]], variant: str, colour: str) -> None:
    """Mean and range as far as every seed was trained, seeds on their own after that: seeds that stop early must not
    bend the mean."""
    if not fits:
        return
    common = sorted(set.intersection(*(set(fit) for fit in fits)))
    values = np.array([[fit[epoch] for epoch in common] for fit in fits])
    axis.plot(common, values.mean(axis=0), color=colour, linewidth=1.8, label=variant, zorder=3)
    axis.fill_between(common, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
    end = common[-1] if common else 0
    for fit in fits:
        rest = [epoch for epoch in fit if epoch >= end]
        if len(rest) > 1:
            axis.plot(rest, [fit[epoch] for epoch in rest], color=colour, linewidth=0.7, alpha=0.6)


def _panels(titles: Sequence[str], *, xlabel: str, ylabel: str = "") -> tuple[Figure, list[Axes]]:
    columns = min(len(titles), 3)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(9.4, 0.5 + 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[len(titles) :]:
        spare.set_visible(False)
    axes = axes[: len(titles)]
    for title, axis in zip(titles, axes, strict=True):
        axis.set_title(title)
        axis.set_xlabel(xlabel)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(ylabel)
    return figure, axes


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    entries: dict[str, Artist] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=min(len(entries), 5), frameon=False
    )


def _drawing(draw: Callable[[], Figure], alt: str) -> Drawing:
    light, dark = (_png(draw, ink) for ink in ("#1b1f24", "#e6e8eb"))
    return Drawing(light, dark, alt)


def _png(draw: Callable[[], Figure], ink: str) -> str:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 11, "grid.color": ink, **dict.fromkeys(inked, ink)}
    with matplotlib.rc_context(style):
        content = io.BytesIO()
        draw().savefig(content, format="png", dpi=_DPI, transparent=True)
    return data_uri(content.getvalue(), "image/png")
