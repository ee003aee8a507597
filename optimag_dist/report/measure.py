"""How the metrics of results are averaged over seeds, named and shown, whatever the task.

Results have columns ``val/NAME`` and ``test/NAME`` (``test/TASK/NAME`` where a run has several tasks), and under
``decisive`` the name of the metric that early stopping monitored; results without it are of node classification.

A mean over n seeds comes with the 95 % interval of Student's t, mean ± t(0.975; n − 1) · s / √n. The differences of
fits with the same seed, which share split and initial weights' seed, are such values too: the interval of their mean is
that of a paired t test.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from optimag_dist.tasks import metric_of
from optimag_dist.tasks.metrics import Metric

_PARTS = {"test": "test", "val": "validation"}
# Of a plain number, in the largest of a column.
_SIGNIFICANT = 3
_MOST_DIGITS = 4


@dataclass(frozen=True)
class Interval:
    """The mean of n values and its 95 % interval ``mean ± half_width``; NaN where there is none: below two values no
    interval, without any no mean."""

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


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of Student's t of independent ``values``."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Interval(mean, half, n)


@dataclass(frozen=True)
class Measure:
    """One ``column`` of results (``test/accuracy``). Shares are shown in per cent, their differences in points; a mean
    has so many ``digits`` after the point, a difference one more."""

    column: str
    digits: int = 1

    @property
    def metric(self) -> Metric:
        return metric_of(self.column)

    @property
    def title(self) -> str:
        """``accuracy``; with the task's name where a run has several."""
        task = "/".join(self.column.split("/")[1:-1])
        return f"{task} {self.metric.title}".lstrip()

    @property
    def title_and_unit(self) -> str:
        """``accuracy, %``."""
        return self.title + ", %" * self.metric.is_share

    @property
    def words(self) -> str:
        """``test accuracy``."""
        return f"{_PARTS[self.column.partition('/')[0]]} {self.title}"

    @property
    def heading(self) -> str:
        """``test accuracy, %``."""
        return self.words + ", %" * self.metric.is_share

    def axis(self, *, difference: bool = False) -> str:
        """``test accuracy (%)`` or ``difference in test accuracy (points)``; says so where lower is better."""
        text, unit = (f"difference in {self.words}", "points") if difference else (self.words, "%")
        remarks = [unit] * self.metric.is_share + ["lower is better"] * (self.metric.better == "min")
        return f"{text} ({', '.join(remarks)})" if remarks else text

    @property
    def factor(self) -> int:
        """From a value to what is shown."""
        return 100 if self.metric.is_share else 1

    @property
    def of_difference(self) -> str:
        """`` points of test accuracy``, to follow a difference."""
        return f" points of {self.words}" if self.metric.is_share else f" in {self.words}"

    def show(self, interval: Interval) -> str:
        """``81.4 ± 0.9``; without ± where there is no interval, a dash where there is nothing."""
        return show(self.factor * interval.mean, self.factor * interval.half_width, digits=self.digits)

    def signed(self, difference: float) -> str:
        """``+0.65``."""
        return f"{self.factor * difference:+.{self.digits + 1}f}".replace("-", "−")

    def show_difference(self, gap: Interval) -> str:
        """``+0.65 ± 0.77``; without ± or a dash, likewise."""
        if math.isnan(gap.mean):
            return "–"
        half = self.factor * gap.half_width
        return self.signed(gap.mean) + ("" if math.isnan(half) else f" ± {half:.{self.digits + 1}f}")

    def verdict(self, gap: Interval) -> Literal["better", "worse", ""]:
        """What a difference says; nothing where its interval includes 0."""
        if not gap.excludes_zero:
            return ""
        return "better" if self.metric.sign * gap.mean > 0 else "worse"


def measures(values: Mapping[str, Iterable[float]]) -> dict[str, Measure]:
    """Column → how it is shown, given all the means that will stand in it."""
    return {column: Measure(column, _digits(column, means)) for column, means in values.items()}


def _digits(column: str, means: Iterable[float]) -> int:
    if metric_of(column).is_share:
        return 1
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=0.0)
    whole = math.floor(math.log10(largest)) + 1 if largest else 1
    return min(max(_SIGNIFICANT - whole, 0), _MOST_DIGITS)


def show(mean: float, half_width: float = math.nan, *, digits: int = 1) -> str:
    """``81.4 ± 0.9``; without ± where there is no interval; a dash where there is nothing."""
    if math.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if math.isnan(half_width) else f" ± {half_width:.{digits}f}")


def monitored(result: Mapping[str, Any]) -> str:
    """The column of the metric that a fit's early stopping monitored."""
    return f"val/{result.get('decisive') or 'accuracy'}"


def columns_of(results: Collection[Mapping[str, Any]]) -> list[str]:
    """Of fits that differ by their seed: what was tested, and what validation went by, as far as there are values. The
    first is the one to compare by: the monitored metric, unless another was tested in its place."""
    columns: dict[str, None] = {}
    for result in results:
        validated = monitored(result)
        first = f"test/{validated.removeprefix('val/')}"
        tested = sorted((key for key in result if key.startswith("test/")), key=lambda key: key != first)
        columns |= dict.fromkeys(key for key in (*tested, validated) if result.get(key) is not None)
    return sorted(columns, key=lambda column: column.startswith("val/"))
