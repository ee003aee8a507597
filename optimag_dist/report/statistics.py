"""Means over seeds.

A mean over n seeds comes with the 95 % interval of Student's t, mean ± t(0.975; n − 1) · s / √n. The differences of
fits with the same seed, which share split and initial weights' seed, are such values too: the interval of their mean is
that of a paired t test.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


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


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of Student's t of independent ``values``."""
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, 0)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, math.nan, 1)
    return Interval(mean, float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n)), n)
