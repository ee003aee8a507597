"""What a sweep leaves behind: the table of its trials, and the best of them ready for use."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from optimag_dist.files import atomic
from optimag_dist.options import dump_options
from optimag_dist.train.fit import Fit
from optimag_dist.train.log import of_one_type, read_result
from optimag_dist.train.options import RunConfig
from optimag_dist.tune.options import SweepOptions
from optimag_dist.tune.space import Point

Status = Literal["pending", "running", "finished", "stopped", "diverged", "failed"]

ENDED: tuple[Status, ...] = ("finished", "stopped", "diverged", "failed")


@dataclass(frozen=True)
class TrialRow:
    """How a trial stands; epochs and seconds of training are over all seeds.

    Attributes:
        status: ``stopped`` by the scheduler, ``diverged`` in at least one seed, ``failed`` for good.
        point, values: searched key → value as it was drawn, and as the trial has it, for tables.
        metrics: missing before the first report.
        error: why it failed or diverged.
        fits: seed → what its fit ended with, in one line.
    """

    trial: str
    status: Status
    epochs: int
    seconds: float
    point: Point
    values: Point
    metrics: dict[str, float]
    error: str | None
    fits: Mapping[int, str] = field(default_factory=dict)


def write_table(rows: list[TrialRow], options: SweepOptions, path: Path) -> None:
    """``trials.parquet``: a row per trial, a column per searched key and metric."""
    columns: dict[str, list[Any]] = {name: [getattr(r, name) for r in rows] for name in ("trial", "status", "epochs")}
    columns["seconds"] = [r.seconds for r in rows]
    columns |= {key: of_one_type([r.values[key] for r in rows]) for key in options.space}
    columns |= {name: [r.metrics.get(name) for r in rows] for name in options.metrics}
    columns["error"] = pa.array([r.error for r in rows], pa.string())
    with atomic(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def ranked(rows: list[TrialRow], options: SweepOptions) -> list[TrialRow]:
    """The trials that have a value of the first metric, best first; of equal ones the first comes first. One that has
    diverged has none that counts."""
    name, mode = next(iter(options.metrics.items()))
    known = [row for row in rows if row.status != "diverged" and not math.isnan(row.metrics.get(name, math.nan))]
    return sorted(known, key=lambda row: row.metrics[name], reverse=mode == "max")


def best(rows: list[TrialRow], options: SweepOptions) -> TrialRow | None:
    """The best of the finished trials; only these have been trained to their end and tested."""
    return next((row for row in ranked(rows, options) if row.status == "finished"), None)


def pareto_front(rows: list[TrialRow], options: SweepOptions) -> list[TrialRow]:
    """The finished trials than which no other is better in one metric and as good in all."""
    signs = {name: 1 if mode == "max" else -1 for name, mode in options.metrics.items()}
    finished = [row for row in rows if row.status == "finished"]
    points = {row.trial: [sign * row.metrics[name] for name, sign in signs.items()] for row in finished}

    def dominated(mine: list[float]) -> bool:
        return any(other != mine and all(o >= m for o, m in zip(other, mine, strict=True)) for other in points.values())

    return [row for row in finished if not dominated(points[row.trial])]


def export_best(row: TrialRow, config: RunConfig, fits: list[Fit], directory: Path) -> None:
    """Make ``directory``: ``config.yaml`` for ``optimag train``, ``result.json``, and ``seed-<seed>/model.pt``."""
    run = RunConfig.model_validate(
        {
            **fits[0].config.model_dump(mode="json"),
            "name": f"{config.name}-best",
            **{key: getattr(config, key) for key in ("store", "out", "seeds")},
        }
    )
    # Beside it first: those of an earlier best must not be mixed with these.
    made = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    for fit in fits:
        with atomic(made / f"seed-{fit.seed}" / "model.pt") as temporary:
            shutil.copyfile(fit.directory / "model.pt", temporary)
    dump_options(run, made / "config.yaml")
    results = [read_result(fit.directory) for fit in fits]
    summary = {"trial": row.trial, "values": row.values, "metrics": row.metrics, "fits": results}
    with atomic(made / "result.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    made.rename(directory)
