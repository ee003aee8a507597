"""The comparison of a run's variants over seeds: by the figure that decides in each, paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimag_dist.report.measure import Measure, columns_of, measures
from optimag_dist.report.run import Run, read_run
from optimag_dist.report.statistics import Interval, mean_interval
from optimag_dist.tasks import named


@dataclass(frozen=True)
class ComparisonRow:
    """One variant.

    Attributes:
        finished, planned: fits.
        metrics: column → over the finished seeds: what was tested, first that by which it is compared, and what
            validation went by.
        epochs: trained, not the best.
        seconds: of training per fit, evaluation left out.
        baseline: the variant it is compared with; None for one that the others are compared with.
        difference: in ``judged_by``, this variant minus the baseline over the seeds that both have finished; None
            without a baseline, or where that has another task.
    """

    variant: str
    finished: int
    planned: int
    metrics: Mapping[str, Interval]
    epochs: Interval
    seconds: Interval
    baseline: str | None
    difference: Interval | None

    @property
    def judged_by(self) -> str | None:
        """The column by which it is compared; None while no fit is finished."""
        return next(iter(self.metrics), None)


@dataclass(frozen=True)
class ComparisonTable:
    """All variants in the order of the configuration, and what may be said about them.

    Attributes:
        measures: column → how it is shown; those by which variants are compared come first, validation last.
        sentences: the findings in plain words.
    """

    rows: tuple[ComparisonRow, ...]
    measures: Mapping[str, Measure]
    sentences: tuple[str, ...]

    @property
    def finished(self) -> int:
        return sum(row.finished for row in self.rows)

    @property
    def planned(self) -> int:
        return sum(row.planned for row in self.rows)

    @property
    def tested(self) -> list[Measure]:
        """Those of the test set."""
        return [measure for column, measure in self.measures.items() if column.startswith("test/")]

    @property
    def judged_by(self) -> list[Measure]:
        """Those by which variants are compared, more than one where variants have different tasks."""
        return list({row.judged_by: self.measures[row.judged_by] for row in self.rows if row.judged_by}.values())


def comparison_table(run_dir: Path) -> ComparisonTable:
    """The comparison of the variants of the run in ``run_dir``.

    Raises:
        InputError: there is no run, or none of its fits is finished.
    """
    return compare(read_run(run_dir))


def compare(run: Run) -> ComparisonTable:
    """The comparison of the variants of ``run``."""
    rows = tuple(_row(run, variant) for variant in run.variants)
    columns = dict.fromkeys(column for row in rows for column in row.metrics)
    first = dict.fromkeys(row.judged_by for row in rows)
    ordered = sorted(columns, key=lambda column: (column not in first, column.startswith("val/")))
    means = {column: [row.metrics[column].mean for row in rows if column in row.metrics] for column in ordered}
    table = measures(means)
    diverged = [
        f"{fit.variant} seed {fit.seed} diverged, and is in no mean or difference: {fit.diverged}"
        for fit in run.diverged
    ]
    return ComparisonTable(rows, table, (*diverged, *_sentences(rows, table)))


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
        baseline=baseline,
        difference=None if baseline is None else _difference(run, variant, baseline),
    )


def _difference(run: Run, variant: str, baseline: str) -> Interval | None:
    """Over the seeds that both have finished; None where they have different tasks."""
    mine, theirs = _results(run, variant), _results(run, baseline)
    judged_by = {next(iter(columns_of(results.values()))) for results in (mine, theirs) if results}
    # The same figure of another task says something else.
    tasks = {
        next((name, type(task)) for name, task in named(run.variants[v].task).items()) for v in (variant, baseline)
    }
    if max(len(judged_by), len(tasks)) > 1:
        return None
    return mean_interval([mine[seed][key] - theirs[seed][key] for key in judged_by for seed in mine if seed in theirs])


def _results(run: Run, variant: str) -> dict[int, Mapping[str, Any]]:
    return {fit.seed: fit.result for fit in run.of(variant) if fit.result is not None}


def _sentences(rows: Sequence[ComparisonRow], measures: Mapping[str, Measure]) -> list[str]:
    compared = [row for row in rows if row.baseline is not None]
    if not compared:
        return ["One variant: there is nothing to compare it with."]
    sentences = [_finding(row, measures) for row in compared]
    if sum(row.difference is not None and row.difference.n >= 2 for row in compared) > 1:
        sentences.append(
            "Each interval stands alone: among several comparisons one excludes 0 by chance more often than 1 in 20."
        )
    return sentences


def _finding(row: ComparisonRow, measures: Mapping[str, Measure]) -> str:
    gap, start = row.difference, f"{row.variant} against {row.baseline}:"
    if gap is None:
        return f"{start} they have different tasks, so they are not compared."
    if gap.n == 0:
        return f"{start} no seed is finished for both, so they cannot be compared yet."
    assert row.judged_by is not None
    measure = measures[row.judged_by]
    start = f"{start} {measure.words} {measure.signed(gap.mean)}{' points' if measure.metric.is_share else ''}"
    if gap.n == 1:
        return f"{start} with one seed: no interval, so this may well be chance."
    interval = f"(95 % interval {measure.signed(gap.low)} to {measure.signed(gap.high)}, paired over {gap.n} seeds)"
    if not gap.excludes_zero:
        return f"{start} {interval}. The interval includes 0: these seeds do not show a difference."
    direction = "higher" if gap.mean > 0 else "lower"
    meaning = f", which is {measure.verdict(gap)}" if measure.metric.better == "min" else ""
    return f"{start} {interval}. The interval excludes 0: on this graph with these settings it is {direction}{meaning}."
