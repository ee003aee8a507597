"""The comparison of a run's variants over seeds: by the metric that each is chosen by, paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from optimag_dist.report.measure import Interval, Measure, columns_of, mean_interval, measures, show
from optimag_dist.report.run import Run, read_run
from optimag_dist.tasks import named

# Letters between columns.
_GAP = 2
Column = tuple[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Fits that differ by their seed, and how they differ from others.

    Attributes:
        metrics: column → over the finished seeds: what was tested, first that by which they are compared, and what
            validation went by; empty where nothing is trained.
        seconds: of training per fit, evaluation left out.
        difference: in ``compared_by``, these minus those ``compared_with`` over the seeds that both have finished; None
            without others, or where they have another task.
    """

    metrics: Mapping[str, Interval]
    seconds: Interval
    compared_with: str | None
    difference: Interval | None

    @property
    def compared_by(self) -> str | None:
        """The column by which they are compared; None while no fit is finished."""
        return next(iter(self.metrics), None)


@dataclass(frozen=True)
class Cells:
    """Rows as text, empty where there is nothing; ``measures`` are of all the columns that rows have."""

    rows: Sequence[Compared]
    measures: Mapping[str, Measure]

    @property
    def compared_by(self) -> list[Measure]:
        """Those by which rows are compared, more than one where rows have different tasks."""
        return [self.measures[column] for column in dict.fromkeys(row.compared_by for row in self.rows) if column]

    def measure(self, row: Compared) -> Measure | None:
        """That by which ``row`` is compared."""
        return self.measures.get(row.compared_by or "")

    def value(self, row: Compared, column: str | None) -> str:
        return self.measures[column].show(row.metrics[column]) if column and column in row.metrics else ""

    def difference(self, row: Compared) -> str:
        measure = self.measure(row)
        return measure.show_difference(row.difference) if measure and row.difference else ""

    def marked_difference(self, row: Compared) -> str:
        """:meth:`difference` with a star where its interval excludes 0."""
        return self.difference(row) + " *" * bool(self.verdict(row))

    def verdict(self, row: Compared) -> Literal["better", "worse", ""]:
        measure = self.measure(row)
        return measure.verdict(row.difference) if measure and row.difference else ""


@dataclass(frozen=True, kw_only=True)
class ComparisonRow(Compared):
    """One variant; ``finished`` and ``planned`` are numbers of fits, ``epochs`` those trained, not the best."""

    variant: str
    finished: int
    planned: int
    epochs: Interval


@dataclass(frozen=True)
class ComparisonTable(Cells):
    """All variants in the order of the configuration, and what may be said about them in plain words."""

    rows: tuple[ComparisonRow, ...]
    sentences: tuple[str, ...]


def comparison_table(run_dir: Path) -> ComparisonTable:
    """The comparison of the variants of the run in ``run_dir``."""
    return compare(read_run(run_dir))


def compare(run: Run) -> ComparisonTable:
    """The comparison of the variants of ``run``."""
    rows = tuple(_row(run, variant) for variant in run.variants)
    table = measures_of(rows)
    diverged = [
        f"{fit.variant} seed {fit.seed} diverged, and is in no mean or difference: {fit.diverged}"
        for fit in run.diverged
    ]
    return ComparisonTable(rows, table, (*diverged, *_sentences(rows, table)))


def measures_of(rows: Sequence[Compared]) -> dict[str, Measure]:
    """Column → how it is shown; those by which rows are compared come first, validation last."""
    first = {row.compared_by for row in rows}
    columns = dict.fromkeys(column for row in rows for column in row.metrics)
    ordered = sorted(columns, key=lambda column: (column not in first, column.startswith("val/")))
    return measures({key: [row.metrics[key].mean for row in rows if key in row.metrics] for key in ordered})


def _row(run: Run, variant: str) -> ComparisonRow:
    fits, baseline = run.of(variant), run.config.baseline_of(variant)
    results = _results(run, variant)
    columns = columns_of(results.values())
    return ComparisonRow(
        variant=variant,
        finished=len(fits),
        planned=len(run.config.seeds),
        metrics={key: mean_interval([r[key] for r in results.values() if r.get(key) is not None]) for key in columns},
        epochs=mean_interval([result["epochs"] for result in results.values()]),
        seconds=mean_interval([fit.seconds for fit in fits]),
        compared_with=baseline,
        difference=None if baseline is None else _difference(run, variant, baseline),
    )


def _difference(run: Run, variant: str, baseline: str) -> Interval | None:
    mine, theirs = _results(run, variant), _results(run, baseline)
    compared_by = {columns_of(results.values())[0] for results in (mine, theirs) if results}
    # The same metric of another task says something else.
    tasks = {
        next((name, type(task)) for name, task in named(run.variants[v].task).items()) for v in (variant, baseline)
    }
    if max(len(compared_by), len(tasks)) > 1:
        return None
    return mean_interval(
        [mine[seed][key] - theirs[seed][key] for key in compared_by for seed in mine if seed in theirs]
    )


def _results(run: Run, variant: str) -> dict[int, Mapping[str, Any]]:
    return {fit.seed: fit.result for fit in run.of(variant) if fit.result is not None}


def _sentences(rows: Sequence[ComparisonRow], measures: Mapping[str, Measure]) -> list[str]:
    compared = [row for row in rows if row.compared_with is not None]
    if not compared:
        return ["One variant: there is nothing to compare it with."]
    # What was found comes before what was not.
    first = sorted(compared, key=lambda row: row.difference is None or not row.difference.excludes_zero)
    sentences = [_finding(row, measures) for row in first]
    if sum(row.difference is not None and row.difference.n >= 2 for row in compared) > 1:
        sentences.append(
            "Each interval stands alone: among several comparisons one excludes 0 by chance more often than 1 in 20."
        )
    return sentences


def _finding(row: ComparisonRow, measures: Mapping[str, Measure]) -> str:
    gap, start = row.difference, f"{row.variant} against {row.compared_with}:"
    if gap is None:
        return f"{start} they have different tasks, so they are not compared."
    if gap.n == 0:
        return f"{start} no seed is finished for both, so they cannot be compared yet."
    assert row.compared_by is not None
    measure = measures[row.compared_by]
    found = f"{start} {measure.words} {measure.signed(gap.mean)}{' points' if measure.metric.is_share else ''}"
    if gap.n == 1:
        return f"{found} with one seed: no interval, so this may well be chance."
    interval = f"{measure.signed(gap.low)} to {measure.signed(gap.high)}"
    if not gap.excludes_zero:
        return f"{start} no difference shown in {measure.words}; the interval, {interval}, includes 0."
    direction = "higher" if gap.mean > 0 else "lower"
    meaning = f", which is {measure.verdict(gap)}" if measure.metric.better == "min" else ""
    interval = f"(95 % interval {interval}, paired over {gap.n} seeds)"
    return f"{found} {interval}. The interval excludes 0: on this graph with these settings it is {direction}{meaning}."


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
        right.append(("difference", [comparison.marked_difference(row) for row in rows]))
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
    for row, cells in zip(rows, zip(*(cells for _, cells in (*left, *right)), strict=True), strict=True):
        table.add_row(*cells, style="bold" if comparison.verdict(row) else None)
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
        if any(comparison.verdict(row) for row in comparison.rows):
            said.append("* the interval excludes 0")
    return "; ".join(said) + "."
