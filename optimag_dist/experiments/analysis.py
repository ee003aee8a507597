"""What an experiment's fits say: means, intervals, and differences paired by seed."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from optimag_dist.experiments.detection import KEPT, MISMATCH, NEIGHBOURS
from optimag_dist.experiments.recipe import ExperimentOptions, StudyOptions, arms_of
from optimag_dist.report.measure import Measure, columns_of, measures
from optimag_dist.report.statistics import Interval, mean_interval
from optimag_dist.tasks import metric_of

WAYS = (KEPT, MISMATCH, NEIGHBOURS)


@dataclass(frozen=True)
class Row:
    """One arm in one setting, over its seeds.

    Attributes:
        at: what was varied → value.
        figures: column → over the seeds: what was tested, first that by which arms are compared, and what validation
            went by; empty where nothing was trained.
        difference: in ``judged_by`` from ``compared_with``, paired by seed; None without such an arm, or where that is
            judged by another figure.
        areas: way to judge → area under the curve; empty where conflicts are not known.
        advantage: of kept mass over the better of the other two ways, paired by seed; None likewise.
        seconds: of training, or of judging, per seed.
        tuned: key → value that tuning chose.
        diverged: how many fits are left out of all that, as they did.
    """

    study: str
    graph: str
    arm: str
    at: Mapping[str, Any]
    figures: Mapping[str, Interval]
    compared_with: str | None
    difference: Interval | None
    areas: Mapping[str, Interval]
    advantage: Interval | None
    seconds: Interval
    tuned: Mapping[str, Any]
    diverged: int = 0

    @property
    def judged_by(self) -> str | None:
        """The column by which arms are compared; None where nothing was trained."""
        return next(iter(self.figures), None)

    @property
    def score(self) -> Interval | None:
        """In ``judged_by``."""
        return next(iter(self.figures.values()), None)

    @property
    def validated_by(self) -> str | None:
        """The column of what validation went by."""
        return next((column for column in self.figures if column.startswith("val/")), None)


def summarise(experiment: ExperimentOptions, results: Path) -> dict[str, list[Row]]:
    """Study → its rows, in the order of the recipe, as far as there are results."""
    table = pq.read_table(results).to_pylist()
    return {
        name: _of_study(experiment, name, study, [row for row in table if row["study"] == name])
        for name, study in experiment.asked.items()
    }


def _of_study(experiment: ExperimentOptions, name: str, study: StudyOptions, fits: list[dict[str, Any]]) -> list[Row]:
    keys = [f"at/{key}" for key in study.vary]
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for fit in fits:
        place = (fit["graph"], *(fit.get(key) for key in keys))
        groups.setdefault(place, {}).setdefault(fit["arm"], []).append(fit)
    rows = []
    for (graph, *values), by_arm in groups.items():
        at = dict(zip(study.vary, values, strict=True))
        for arm in arms_of(experiment, study):
            if arm in by_arm:
                against = by_arm.get(study.compare.get(arm, ""), [])
                rows.append(_row(name, graph, arm, at, by_arm[arm], study.compare.get(arm), against))
    return rows


def _row(
    study: str,
    graph: str,
    arm: str,
    at: Mapping[str, Any],
    fits: Sequence[Mapping[str, Any]],
    compared_with: str | None,
    against: Sequence[Mapping[str, Any]],
) -> Row:
    # A column that no fit has is not in the table.
    lost = sum(fit.get("diverged") is not None for fit in fits)
    tuned = {k.removeprefix("tuned/"): v for k, v in fits[0].items() if k.startswith("tuned/") and v is not None}
    fits = [fit for fit in fits if fit.get("diverged") is None]
    against = [fit for fit in against if fit.get("diverged") is None]
    columns = columns_of(fits)
    base = {fit["seed"]: fit for fit in against} if columns[:1] == columns_of(against)[:1] else {}
    gaps = [fit[key] - base[fit["seed"]][key] for key in columns[:1] for fit in fits if fit["seed"] in base]
    areas = {way: [fit[f"auc/{way}"] for fit in fits if _has_area(fit, way)] for way in WAYS}
    judged = [fit for fit in fits if all(_has_area(fit, way) for way in WAYS)]
    lead = [fit[f"auc/{KEPT}"] - max(fit[f"auc/{MISMATCH}"], fit[f"auc/{NEIGHBOURS}"]) for fit in judged]
    return Row(
        study=study,
        graph=graph,
        arm=arm,
        at=at,
        figures={key: mean_interval([fit[key] for fit in fits if fit[key] is not None]) for key in columns},
        compared_with=compared_with if gaps else None,
        difference=mean_interval(gaps) if gaps else None,
        areas={way: mean_interval(values) for way, values in areas.items() if values},
        advantage=mean_interval(lead) if lead else None,
        seconds=mean_interval([fit["seconds"] for fit in fits]),
        tuned=tuned,
        diverged=lost,
    )


def _has_area(fit: Mapping[str, Any], way: str) -> bool:
    """Not where nothing was judged, nor in a draw without a conflict."""
    value = fit.get(f"auc/{way}")
    return value is not None and not math.isnan(value)


def measures_of(rows: Sequence[Row]) -> dict[str, Measure]:
    """Column → how it is shown; those by which arms are compared come first."""
    judged = dict.fromkeys(row.judged_by for row in rows if row.judged_by)
    columns = dict.fromkeys([*judged, *(column for row in rows for column in row.figures)])
    return measures({key: [row.figures[key].mean for row in rows if key in row.figures] for key in columns})


def findings(rows: Sequence[Row]) -> list[str]:
    """What may be said of a study, a sentence per comparison whose interval leaves 0 out, and how many do not."""
    shown = measures_of(rows)
    compared = [row for row in rows if row.difference is not None]
    said = []
    for row in compared:
        assert row.difference is not None
        assert row.judged_by is not None
        measure = shown[row.judged_by]
        word = measure.verdict(row.difference)
        if word:
            said.append(
                f"{row.arm} is {word} than {row.compared_with} on {row.graph}{where(row)}: "
                f"{measure.show_difference(row.difference)}{measure.of_difference}, {row.difference.n} seeds."
            )
    silent = len(compared) - len(said)
    lost = [f"{row.diverged} of {row.arm} on {row.graph}{where(row)}" for row in rows if row.diverged]
    if lost:
        said.append(f"Fits that diverged are in no mean and no difference: {'; '.join(lost)}.")
    if compared:
        said.append(f"{silent} of {len(compared)} comparisons show no difference: their intervals include 0.")
    if len(compared) > 3:
        said.append("Each interval stands alone: of twenty comparisons of equals about one leaves 0 out by chance.")
    return said


def chosen_by_validation(rows: Sequence[Row], apart: Collection[str] = ()) -> list[Row]:
    """Per graph and arm, the row that is best on validation: what a user who searched would have taken.

    Args:
        apart: of what is varied, what nobody would search: rows that differ in it are not chosen among.
    """
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row.graph, row.arm, row.validated_by, *(row.at[each] for each in apart))
        if row.validated_by is not None and (key not in best or _validation(row) > _validation(best[key])):
            best[key] = row
    return list(best.values())


def _validation(row: Row) -> float:
    """Greater is better."""
    assert row.validated_by is not None
    return metric_of(row.validated_by).sign * row.figures[row.validated_by].mean


def where(row: Row) -> str:
    """`` at key=value, …``, or nothing where nothing was varied."""
    return f" at {', '.join(f'{key}={value}' for key, value in row.at.items())}" if row.at else ""


def area(value: Interval) -> str:
    return f"{value.mean:.3f} ± {value.half_width:.3f}"
