"""The comparison of a run's variants in a terminal."""

import math
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optimag_dist.report.statistics import Interval, comparison_table, signed

# Few enough to stand in 80 columns; the page has them all.
_SHOWN = {"test/accuracy": "accuracy", "test/macro_f1": "macro-F1"}


def render_comparison(run_dir: Path, console: Console) -> None:
    """Print the table of the variants and what may be said about them.

    Raises:
        InputError: there is no run, or none of its fits is finished.
    """
    comparison = comparison_table(run_dir)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("variant", overflow="fold")
    several = len(comparison.rows) > 1
    headings = [*_SHOWN.values(), "s per fit", "seeds", *(["difference", "from"] if several else [])]
    for heading in headings:
        table.add_column(escape(heading), justify="right", overflow="fold")
    for row in comparison.rows:
        cells = [
            *(show(100 * row.metrics[key].mean, 100 * row.metrics[key].half_width) for key in _SHOWN),
            show(row.seconds.mean, row.seconds.half_width),
            f"{row.finished}" if row.finished == row.planned else f"{row.finished} of {row.planned}",
        ]
        if several:
            gap = show_difference(row.difference["test/accuracy"]) if row.baseline else ""
            cells += [gap, escape(row.baseline or "")]
        table.add_row(escape(row.variant), *cells)
    console.print(table)
    against = "; differences in accuracy, paired by seed" if several else ""
    console.print(escape(f"Percent of test nodes, mean ± 95 % interval over seeds{against}."), highlight=False)
    if comparison.finished < comparison.planned:
        console.print(f"{comparison.finished} of {comparison.planned} fits are finished.", highlight=False)
    for sentence in comparison.sentences:
        console.print(escape(sentence), highlight=False)


def show(mean: float, half_width: float = math.nan, *, digits: int = 1) -> str:
    """``81.4 ± 0.9``; without ± where there is no interval; a dash where there is nothing."""
    if math.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if math.isnan(half_width) else f" ± {half_width:.{digits}f}")


def show_difference(gap: Interval) -> str:
    """``+0.65 ± 0.77`` in percentage points."""
    if gap.n == 0:
        return "–"
    return signed(gap.mean) + (f" ± {100 * gap.half_width:.2f}" if gap.n > 1 else "")
