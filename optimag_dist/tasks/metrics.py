"""The metrics that tasks report, and how to read them. A run's tables call one ``test/NAME``, or ``test/TASK/NAME``."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from optimag_dist.types import InputError


@dataclass(frozen=True)
class Metric:
    """How to read a metric: its ``name`` in results and tables, its ``title`` for people, which way is ``better``, and
    whether it ``is_share``: between 0 and 1, shown in per cent, differences in points."""

    name: str
    title: str
    better: Literal["max", "min"] = "max"
    is_share: bool = True

    @property
    def sign(self) -> int:
        """Times this, greater is better."""
        return 1 if self.better == "max" else -1


#: Of all tasks that this process has loaded.
DECLARED: dict[str, Metric] = {}


def declare(task: str, metrics: Iterable[Metric]) -> None:
    """Make ``metrics`` known; raise ``InputError`` if another task means something else by a name."""
    for metric in metrics:
        if (other := DECLARED.setdefault(metric.name, metric)) != metric:
            raise InputError(f"{task}: another task has declared the metric {other}, not {metric}; rename this one")
