"""A sweep's directory as its report reads it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from optimag_dist.options import load_options
from optimag_dist.train.log import read_records
from optimag_dist.tune.options import Distribution, SweepOptions
from optimag_dist.tune.results import TrialRow, best, pareto_front, ranked
from optimag_dist.types import InputError

FILES = ("space.yaml", "trials.parquet")


@dataclass(frozen=True)
class Axis:
    """One searched key: ``levels`` are the values of a choice, evenly spaced in the order given; other values lie
    between ``low`` and ``high``, integers where only integers are drawn."""

    key: str
    scale: Literal["linear", "log", "levels"]
    low: float
    high: float
    levels: tuple[str, ...] = ()

    def place(self, value: Any) -> float:
        """Where to draw ``value``: the number of its level, or the value itself."""
        return float(self.levels.index(_level(value))) if self.scale == "levels" else float(value)

    def unit(self, place: float) -> float:
        """``place`` as a share of the axis, 0 to 1; 0.5 on an axis of one point."""
        low, high = self.low, self.high
        if self.scale == "log":
            low, high, place = math.log(low), math.log(high), math.log(place)
        return (place - low) / (high - low) if high > low else 0.5

    def along(self, shares: np.ndarray) -> np.ndarray:
        """The places at ``shares`` of the axis: the inverse of :meth:`unit`."""
        if self.scale == "log":
            return np.asarray(self.low * (self.high / self.low) ** shares)
        # A single level has no width of its own.
        low, high = (self.low, self.high) if self.high > self.low else (self.low - 0.5, self.low + 0.5)
        return low + (high - low) * shares


@dataclass(frozen=True)
class Sweep:
    """What was searched, for what, and what came of it; a trial's metrics are NaN where there is no value (yet),
    ``config`` and ``space`` the files as they are."""

    directory: Path
    options: SweepOptions
    axes: tuple[Axis, ...]
    trials: tuple[TrialRow, ...]
    config: str
    space: str

    @property
    def metrics(self) -> Mapping[str, str]:
        """Metric → ``max`` or ``min``; trials are ranked by the first one."""
        return self.options.metrics

    @property
    def monitor(self) -> str:
        return next(iter(self.metrics))

    def valued(self, metric: str) -> list[TrialRow]:
        """Trials with a value of ``metric``, best first; failed ones have none that counts."""
        one = self.options.model_copy(update={"metrics": {metric: self.options.metrics[metric]}})
        return ranked([trial for trial in self.trials if trial.status != "failed"], one)

    @property
    def best(self) -> TrialRow | None:
        """The best finished trial; the best so far while none is finished."""
        so_far = self.valued(self.monitor)
        return best(list(self.trials), self.options) or (so_far[0] if so_far else None)

    def count(self, status: str) -> int:
        return sum(trial.status == status for trial in self.trials)

    def front(self) -> list[TrialRow]:
        """The Pareto front in the order of the first metric."""
        front = pareto_front(list(self.trials), self.options)
        return [trial for trial in self.valued(self.monitor) if trial in front]

    def curve(self, trial: TrialRow, metric: str) -> dict[int, float]:
        """Epoch, counted from 1 → the metric's mean over seeds, where all seeds have it; empty if none is recorded."""
        fits = [
            {r["epoch"] + 1: r[metric] for r in read_records(path) if r.get(metric) is not None}
            for path in sorted((self.directory / "trials" / trial.trial).glob("seed-*/metrics.jsonl"))
        ]
        common = set.intersection(*map(set, fits)) if fits else set()
        return {epoch: float(np.mean([fit[epoch] for fit in fits])) for epoch in sorted(common)}


def is_sweep(directory: Path) -> bool:
    """Whether ``directory`` is a sweep's, by its files."""
    return (directory / FILES[0]).is_file()


def show_value(value: Any) -> str:
    """A searched value in a few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _level(value: Any) -> str:
    # A table may hold a choice of integers and fractions as fractions.
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_sweep(directory: Path) -> Sweep:
    """Read the sweep in ``directory``. ``InputError``: there is no sweep, or its table lacks a column."""
    space, path = (directory / name for name in FILES)
    for file in (space, path):
        if not file.is_file():
            raise InputError(
                f"{directory}: no sweep here to report (no {file.name}); name a directory that optimag tune has written"
            )
    options = load_options(SweepOptions, space)
    rows = pq.read_table(path).to_pylist()
    for column in ("trial", "status", "epochs", "seconds", "error", *options.space, *options.metrics):
        if rows and column not in rows[0]:
            raise InputError(
                f"{path}: has no column {column!r}, which a sweep's table of this search space has; "
                "optimag tune --resume writes it again"
            )
    config = directory / "config.yaml"
    return Sweep(
        directory,
        options,
        tuple(_axis(key, distribution) for key, distribution in options.space.items()),
        tuple(_trial(row, options) for row in rows),
        config.read_text(encoding="utf-8") if config.is_file() else "",
        space.read_text(encoding="utf-8"),
    )


def _axis(key: str, distribution: Distribution) -> Axis:
    kind, arguments = distribution.kind, distribution.arguments
    if distribution.finite:
        levels = tuple(dict.fromkeys(map(_level, arguments)))
        return Axis(key, "levels", 0, len(levels) - 1, levels)
    # The upper end of randint is not drawn.
    return Axis(key, "log" if kind == "loguniform" else "linear", arguments[0], arguments[1] - (kind == "randint"))


def _trial(row: Mapping[str, Any], options: SweepOptions) -> TrialRow:
    values = {key: row[key] for key in options.space}
    metrics = {name: math.nan if row[name] is None else row[name] for name in options.metrics}
    known = {name: row[name] for name in ("trial", "status", "epochs", "seconds", "error")}
    return TrialRow(**known, point=values, values=values, metrics=metrics)
