"""The comparison of a run's variants in a terminal."""

from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from optimag_dist.report.comparison import ComparisonTable, compare
from optimag_dist.report.measure import Measure, show
from optimag_dist.report.run import read_run

# Letters between columns.
_GAP = 2
Column = tuple[str, list[str]]


def render_comparison(run_dir: Path, console: Console) -> None:
    """Print the table of the variants, with as many test metrics as fit, and what may be said about them."""
    run = read_run(run_dir)
    comparison = compare(run)
    rows, shown = comparison.rows, list(comparison.compared_by)
    left: list[Column] = [("variant", [row.variant for row in rows])]
    titles = [measure.title if (measure := comparison.measure(row)) else "" for row in rows]
    scores = [comparison.value(row, row.compared_by) for row in rows]
    left += [("metric", titles), ("test", scores)] if len(shown) > 1 else [(shown[0].title, scores)]
    right: list[Column] = [
        ("s per fit", [show(row.seconds.mean, row.seconds.half_width) for row in rows]),
        ("seeds", [str(r.finished) if r.finished == r.planned else f"{r.finished} of {r.planned}" for r in rows]),
    ]
    if len(rows) > 1:
        right.append(("difference", [comparison.difference(row) for row in rows]))
        right.append(("from", [row.compared_with if row.compared_with and row.difference else "" for row in rows]))
    room = console.width + _GAP - sum(map(_width, (*left, *right)))
    # The page has all that was tested.
    for column, measure in comparison.measures.items():
        if column.startswith("test/") and measure not in shown:
            added = measure.title, [comparison.value(row, column) for row in rows]
            room -= _width(added)
            if room < 0:
                break
            shown.append(measure)
            left.append(added)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, (heading, _) in enumerate((*left, *right)):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for cells in zip(*(cells for _, cells in (*left, *right)), strict=True):
        table.add_row(*cells)
    console.print(table)
    console.print(_legend(comparison, shown))
    if len(run.finished) < len(run.fits):
        console.print(f"{len(run.finished)} of {len(run.fits)} fits are finished.")
    for sentence in comparison.sentences:
        console.print(sentence)


def _width(column: Column) -> int:
    heading, cells = column
    return max(map(cell_len, (heading, *cells))) + _GAP


def _legend(comparison: ComparisonTable, shown: list[Measure]) -> str:
    """What the numbers are."""
    shares = [measure.title for measure in shown if measure.metric.is_share]
    down = [measure.title for measure in shown if measure.metric.better == "min"]
    said = ["Test set, mean ± 95 % interval over seeds"]
    if shares:
        said.append(f"{', '.join(shares)} in per cent")
    if down:
        said.append(f"of {', '.join(down)} less is better")
    if len(comparison.rows) > 1:
        by = [measure.title for measure in comparison.compared_by]
        said.append(f"differences in {by[0] if len(by) == 1 else 'the metric named'}, paired by seed")
    return "; ".join(said) + "."
