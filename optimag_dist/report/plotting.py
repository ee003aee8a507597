"""How the reports' plots are drawn: one style, each once for light and once for dark pages."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optimag_dist.report.html import data_uri

# Okabe and Ito's palette for all kinds of colour vision, without its black, which a dark page would swallow.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
_DPI = 144
_LETTERS = 110


@dataclass(frozen=True)
class Plot:
    """PNG data URIs for a light and a dark page, and the same in words."""

    light: str
    dark: str
    alt: str


def panels(titles: Sequence[str], *, xlabel: str, ylabel: str = "") -> tuple[Figure, list[Axes]]:
    """A figure with a plot per title, at most three in a row."""
    columns = min(len(titles), 3)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(9.4, 0.5 + 2.9 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    axes = grid[: len(titles)]
    for unused in grid[len(titles) :]:
        unused.set_visible(False)
    for title, axis in zip(titles, axes, strict=True):
        axis.set_title(title)
        axis.set_xlabel(xlabel)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(ylabel)
    return figure, axes


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend under the figure with the entries of all plots, each once."""
    entries: dict[str, Artist] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    # So many letters fit side by side under a figure, each entry's mark counted as six.
    columns = _LETTERS // (max(map(len, entries), default=0) + 6)
    columns = max(1, min(len(entries), 5, columns))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False)


def plot(draw: Callable[[], Figure], alt: str) -> Plot:
    """What ``draw`` makes, in the ink of a light and of a dark page; ``alt`` says the same in words."""
    light, dark = (_png(draw, ink, page) for ink, page in (("#1b1f24", "#ffffff"), ("#e6e8eb", "#15181c")))
    return Plot(light, dark, alt)


def _png(draw: Callable[[], Figure], ink: str, page: str) -> str:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 11, "grid.color": ink, **dict.fromkeys(inked, ink)}
    style["figure.facecolor"] = page  # not painted: for what has to stand out from the page
    with matplotlib.rc_context(style):
        content = io.BytesIO()
        draw().savefig(content, format="png", dpi=_DPI, transparent=True)
    return data_uri(content.getvalue(), "image/png")
