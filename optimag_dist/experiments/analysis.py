"""What an experiment's fits say: means, intervals, and differences paired by seed."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from optimag_dist.experiments.detection import KEPT, MISMATCH, NEIGHBOURS
from optimag_dist.experiments.recipe import ExperimentOptions, StudyOptions, arms_of
from optimag_dist.report.comparison import Compared, measures_of
from optimag_dist.report.measure import Interval, columns_of, mean_interval
from optimag_dist.tasks import metric_of

WAYS = (KEPT, MISMATCH, NEIGHBOURS)


@dataclass(frozen=True, kw_only=True)
class Row(Compared):
    """One arm in one setting, over its seeds.

    Attributes:
        at: what was varied → value.
        areas: way to find conflicts → area under the curve; empty where conflicts are not known.
        advantage: of kept mass over the better of the other two ways, paired by seed; None likewise.
        tuned: key → value that tuning chose.
        diverged: how many fits are left out of all that, as they did.
    """

    study: str
    graph: str
    arm: str
    at: Mapping[str, Any]
    areas: Mapping[str, Interval]
    advantage: Interval | None
    tuned: Mapping[str, Any]
    diverged: int

    @property
    def score(self) -> Interval | None:
        """In ``compared_by``."""
        return next(iter(self.metrics.values()), None)

    @property
    def validated_by(self) -> str | None:
        """The column of what validation went by."""
        return next((column for column in self.metrics if column.startswith("val/")), None)


def summarise(experiment: ExperimentOptions, results: Path) -> dict[str, list[Row]]:
    """Study → its rows, in the order of the recipe, as far as there are results."""
    table = pq.read_table(results).to_pylist()
    return {
        name: _of_study(experiment, study, [row for row in table if row["study"] == name])
        for name, study in experiment.asked.items()
    }


def _of_study(experiment: ExperimentOptions, study: StudyOptions, fits: list[dict[str, Any]]) -> list[Row]:
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for fit in fits:
        place = (fit["graph"], *(fit.get(f"at/{key}") for key in study.vary))
        groups.setdefault(place, {}).setdefault(fit["arm"], []).append(fit)
    rows = []
    for (_, *values), by_arm in groups.items():
        at = dict(zip(study.vary, values, strict=True))
        for arm in arms_of(experiment, study):
            if arm in by_arm:
                other = study.compare.get(arm)
                rows.append(_row(at, by_arm[arm], other, by_arm.get(other or "", [])))
    return rows


def _row(
    at: Mapping[str, Any],
    fits: Sequence[Mapping[str, Any]],
    compared_with: str | None,
    against: Sequence[Mapping[str, Any]],
) -> Row:
    first, planned = fits[0], len(fits)
    # A column that no fit has is not in the table.
    fits, against = ([fit for fit in each if fit.get("diverged") is None] for each in (fits, against))
    columns = columns_of(fits)
    base = {fit["seed"]: fit for fit in against} if columns[:1] == columns_of(against)[:1] else {}
    gaps = [fit[key] - base[fit["seed"]][key] for key in columns[:1] for fit in fits if fit["seed"] in base]
    areas = {way: [fit[f"auc/{way}"] for fit in fits if _has_area(fit, way)] for way in WAYS}
    complete = [fit for fit in fits if all(_has_area(fit, way) for way in WAYS)]
    lead = [fit[f"auc/{KEPT}"] - max(fit[f"auc/{MISMATCH}"], fit[f"auc/{NEIGHBOURS}"]) for fit in complete]
    return Row(
        study=first["study"],
        graph=first["graph"],
        arm=first["arm"],
        at=at,
        metrics={key: mean_interval([fit[key] for fit in fits if fit[key] is not None]) for key in columns},
        compared_with=compared_with if gaps else None,
        difference=mean_interval(gaps) if gaps else None,
        areas={way: mean_interval(values) for way, values in areas.items() if values},
        advantage=mean_interval(lead) if lead else None,
        seconds=mean_interval([fit["seconds"] for fit in fits]),
        tuned={k.removeprefix("tuned/"): v for k, v in first.items() if k.startswith("tuned/") and v is not None},
        diverged=planned - len(fits),
    )


def _has_area(fit: Mapping[str, Any], way: str) -> bool:
    """Not where there is no kept mass, nor in a draw without a conflict."""
    value = fit.get(f"auc/{way}")
    return value is not None and not math.isnan(value)


def findings(rows: Sequence[Row]) -> list[str]:
    """What may be said of a study, a sentence per comparison whose interval leaves 0 out, and how many do not."""
    shown = measures_of(rows)
    said, compared = [], 0
    for row in rows:
        if row.difference is None or row.compared_by is None:
            continue
        compared += 1
        measure = shown[row.compared_by]
        if word := measure.verdict(row.difference):
            said.append(
                f"{row.arm} is {word} than {row.compared_with} on {row.graph}{where(row)}: "
                f"{measure.show_difference(row.difference)}{measure.of_difference}, {row.difference.n} seeds."
            )
    silent = compared - len(said)
    lost = [f"{row.diverged} of {row.arm} on {row.graph}{where(row)}" for row in rows if row.diverged]
    if lost:
        said.append(f"Fits that diverged are in no mean and no difference: {'; '.join(lost)}.")
    if compared:
        said.append(f"{silent} of {compared} comparisons show no difference: their intervals include 0.")
    if compared > 3:
        said.append("Each interval stands alone: of twenty comparisons of equals about one leaves 0 out by chance.")
    return said


def chosen_by_validation(rows: Sequence[Row], apart: Collection[str] = ()) -> list[Row]:
    """Per graph and arm, the row that is best on validation: what a user who searched would have taken. Rows that
    differ in what stands ``apart``, which nobody would search, are not chosen among."""
    best: dict[tuple[Any, ...], tuple[float, Row]] = {}
    for row in rows:
        if row.validated_by is None:
            continue
        key = (row.graph, row.arm, row.validated_by, *(row.at[each] for each in apart))
        value = metric_of(row.validated_by).sign * row.metrics[row.validated_by].mean
        if key not in best or value > best[key][0]:
            best[key] = value, row
    return [row for _, row in best.values()]


def where(row: Row) -> str:
    """`` at key=value, …``, or nothing where nothing was varied."""
    return f" at {', '.join(f'{key}={value}' for key, value in row.at.items())}" if row.at else ""


def area(value: Interval) -> str:
    return f"{value.mean:.3f} ± {value.half_width:.3f}"
