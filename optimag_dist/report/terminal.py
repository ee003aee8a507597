"""The comparison of a run's variants in a terminal."""

from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from optimag_dist.report.comparison import ComparisonRow, ComparisonTable, comparison_table
from optimag_dist.report.measure import Measure, show

# Letters between columns.
_GAP = 2
Column = tuple[str, list[str]]


def render_comparison(run_dir: Path, console: Console) -> None:
    """Print the table of the variants, with as many test figures as fit, and what may be said about them.

    Raises:
        InputError: there is no run, or none of its fits is finished.
    """
    comparison = comparison_table(run_dir)
    variants = "variant", [row.variant for row in comparison.rows]
    scores, rest = _scores(comparison), _rest(comparison)
    room = console.width + _GAP - sum(_width(column) + _GAP for column in (variants, *scores, *rest))
    # The page has all that was tested.
    shown, figures = list(comparison.judged_by), list[Column]()
    for measure in (measure for measure in comparison.tested if measure not in comparison.judged_by):
        figure = measure.title, [_score(comparison, row, measure.column) for row in comparison.rows]
        room -= _width(figure) + _GAP
        if room < 0:
            break
        shown.append(measure)
        figures.append(figure)
    columns = [variants, *scores, *figures, *rest]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, (heading, _) in enumerate(columns):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*cells)
    console.print(table)
    console.print(_legend(comparison, shown))
    if comparison.finished < comparison.planned:
        console.print(f"{comparison.finished} of {comparison.planned} fits are finished.")
    for sentence in comparison.sentences:
        console.print(sentence)


def _width(column: Column) -> int:
    heading, cells = column
    return max(map(cell_len, (heading, *cells)))


def _scores(comparison: ComparisonTable) -> list[Column]:
    """What variants are compared by, which is named beside where that is not the same for all."""
    judges = [comparison.measures[row.judged_by].title if row.judged_by else "" for row in comparison.rows]
    scores = [_score(comparison, row, row.judged_by) for row in comparison.rows]
    several = len(comparison.judged_by) > 1
    return [("figure", judges), ("test", scores)] if several else [(comparison.judged_by[0].title, scores)]


def _score(comparison: ComparisonTable, row: ComparisonRow, column: str | None) -> str:
    return comparison.measures[column].show(row.metrics[column]) if column and column in row.metrics else ""


def _rest(comparison: ComparisonTable) -> list[Column]:
    rows = comparison.rows
    columns = [
        ("s per fit", [show(row.seconds.mean, row.seconds.half_width) for row in rows]),
        ("seeds", [str(r.finished) if r.finished == r.planned else f"{r.finished} of {r.planned}" for r in rows]),
    ]
    if len(rows) > 1:
        columns.append(("difference", [_difference(comparison, row) for row in rows]))
        columns.append(("from", [row.baseline if row.baseline and row.difference else "" for row in rows]))
    return columns


def _difference(comparison: ComparisonTable, row: ComparisonRow) -> str:
    if row.difference is None or row.judged_by is None:
        return ""
    return comparison.measures[row.judged_by].show_difference(row.difference)


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
        judges = [measure.title for measure in comparison.judged_by]
        said.append(f"differences in {judges[0] if len(judges) == 1 else 'the figure named'}, paired by seed")
    return "; ".join(said) + "."
