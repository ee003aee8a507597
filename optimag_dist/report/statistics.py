"""The comparison of a run's variants over seeds.

A mean over n seeds comes with the 95 % interval of Student's t, mean ± t(0.975; n − 1) · s / √n. Variants are compared
by the differences of fits with the same seed, which share split and initial weights' seed: the interval of their mean
is that of a paired t test.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from optimag_dist.report.run import Run, read_run

METRICS = {"test/accuracy": "test accuracy", "test/macro_f1": "test macro-F1", "val/accuracy": "validation accuracy"}


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval ``mean ± half_width``; below two values ``half_width`` is NaN: no interval.

    Attributes:
        n: how many values; the mean of none is NaN.
    """

    mean: float
    half_width: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def excludes_zero(self) -> bool:
        return self.n >= 2 and abs(self.mean) > self.half_width


@dataclass(frozen=True)
class ComparisonRow:
    """One variant.

    Attributes:
        finished, planned: fits.
        metrics: column of ``METRICS`` → share in 0 … 1 over the finished seeds.
        epochs: trained, not the best.
        seconds: of training per fit, evaluation left out.
        baseline: the variant it is compared with; None for one that the others are compared with.
        difference: column of ``METRICS`` → this variant minus the baseline over the seeds that both have finished;
            empty without a baseline.
    """

    variant: str
    finished: int
    planned: int
    metrics: Mapping[str, Interval]
    epochs: Interval
    seconds: Interval
    baseline: str | None
    difference: Mapping[str, Interval]


@dataclass(frozen=True)
class ComparisonTable:
    """All variants in the order of the configuration, and what may be said about them.

    Attributes:
        sentences: the findings in plain words.
    """

    rows: tuple[ComparisonRow, ...]
    sentences: tuple[str, ...]

    @property
    def finished(self) -> int:
        return sum(row.finished for row in self.rows)

    @property
    def planned(self) -> int:
        return sum(row.planned for row in self.rows)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of Student's t of independent ``values``."""
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, 0)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, math.nan, 1)
    return Interval(mean, float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)), n)


def comparison_table(run_dir: Path) -> ComparisonTable:
    """The comparison of the variants of the run in ``run_dir``.

    Raises:
        InputError: there is no run, or none of its fits is finished.
    """
    return compare(read_run(run_dir))


def compare(run: Run) -> ComparisonTable:
    """The comparison of the variants of ``run``."""
    rows = tuple(_row(run, variant) for variant in run.variants)
    return ComparisonTable(rows, tuple(_sentences(rows)))


def signed(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", "−")


def _row(run: Run, variant: str) -> ComparisonRow:
    fits = run.of(variant)
    results = {fit.seed: fit.result for fit in fits if fit.result is not None}
    baseline = run.config.baseline_of(variant)
    base = {fit.seed: fit.result for fit in run.of(baseline) if fit.result is not None} if baseline else {}
    paired = [seed for seed in results if seed in base]
    return ComparisonRow(
        variant=variant,
        finished=len(fits),
        planned=len(run.config.seeds),
        metrics={key: mean_interval([result[key] for result in results.values()]) for key in METRICS},
        epochs=mean_interval([result["epochs"] for result in results.values()]),
        seconds=mean_interval([fit.seconds for fit in fits]),
        baseline=baseline,
        difference={key: mean_interval([results[seed][key] - base[seed][key] for seed in paired]) for key in METRICS}
        if baseline
        else {},
    )


def _sentences(rows: Sequence[ComparisonRow]) -> list[str]:
    compared = [row for row in rows if row.baseline is not None]
    if not compared:
        return ["One variant: there is nothing to compare it with."]
    sentences = [_finding(row) for row in compared]
    if sum(row.difference["test/accuracy"].n >= 2 for row in compared) > 1:
        sentences.append(
            "Each interval stands alone: among several comparisons one excludes 0 by chance more often than 1 in 20."
        )
    return sentences


def _finding(row: ComparisonRow) -> str:
    gap = row.difference["test/accuracy"]
    if gap.n == 0:
        return f"{row.variant} against {row.baseline}: no seed is finished for both, so they cannot be compared yet."
    start = f"{row.variant} against {row.baseline}: test accuracy {signed(gap.mean)} points"
    if gap.n == 1:
        return f"{start} with one seed: no interval, so this may well be chance."
    interval = f"(95 % interval {signed(gap.low)} to {signed(gap.high)}, paired over {gap.n} seeds)"
    if not gap.excludes_zero:
        return f"{start} {interval}. The interval includes 0: these seeds do not show a difference."
    direction = "higher" if gap.mean > 0 else "lower"
    return f"{start} {interval}. The interval excludes 0: on this graph with these settings it is {direction}."
