"""What an experiment's fits say: means, intervals, and differences paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from optimag_dist.experiments.detection import KEPT, MISMATCH, NEIGHBOURS
from optimag_dist.experiments.recipe import ExperimentOptions, StudyOptions, arms_of
from optimag_dist.report.statistics import Interval, mean_interval

ACCURACY, VALIDATION = "test/accuracy", "val/accuracy"
WAYS = (KEPT, MISMATCH, NEIGHBOURS)


@dataclass(frozen=True)
class Row:
    """One arm in one setting, over its seeds.

    Attributes:
        at: what was varied → value.
        accuracy, validation: shares; None where nothing was trained.
        difference: of test accuracy from ``compared_with``, paired by seed; None without such an arm.
        areas: way to judge → area under the curve; empty where conflicts are not known.
        advantage: of kept mass over the better of the other two ways, paired by seed; None likewise.
        seconds: of training, or of judging, per seed.
        tuned: key → value that tuning chose.
    """

    study: str
    graph: str
    arm: str
    at: Mapping[str, Any]
    accuracy: Interval | None
    validation: Interval | None
    compared_with: str | None
    difference: Interval | None
    areas: Mapping[str, Interval]
    advantage: Interval | None
    seconds: Interval
    tuned: Mapping[str, Any]


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
    trained = fits[0].get(ACCURACY) is not None
    base = {fit["seed"]: fit for fit in against}
    gaps = [fit[ACCURACY] - base[fit["seed"]][ACCURACY] for fit in fits if trained and fit["seed"] in base]
    areas = {way: [fit[f"auc/{way}"] for fit in fits if _has_area(fit, way)] for way in WAYS}
    judged = [fit for fit in fits if all(_has_area(fit, way) for way in WAYS)]
    lead = [fit[f"auc/{KEPT}"] - max(fit[f"auc/{MISMATCH}"], fit[f"auc/{NEIGHBOURS}"]) for fit in judged]
    tuned = {k.removeprefix("tuned/"): v for k, v in fits[0].items() if k.startswith("tuned/") and v is not None}
    return Row(
        study=study,
        graph=graph,
        arm=arm,
        at=at,
        accuracy=mean_interval([fit[ACCURACY] for fit in fits]) if trained else None,
        validation=mean_interval([fit[VALIDATION] for fit in fits]) if trained else None,
        compared_with=compared_with if gaps else None,
        difference=mean_interval(gaps) if gaps else None,
        areas={way: mean_interval(values) for way, values in areas.items() if values},
        advantage=mean_interval(lead) if lead else None,
        seconds=mean_interval([fit["seconds"] for fit in fits]),
        tuned=tuned,
    )


def _has_area(fit: Mapping[str, Any], way: str) -> bool:
    """Not where nothing was judged, nor in a draw without a conflict."""
    value = fit.get(f"auc/{way}")
    return value is not None and not math.isnan(value)


def findings(rows: Sequence[Row]) -> list[str]:
    """What may be said of a study, a sentence per comparison whose interval leaves 0 out, and how many do not."""
    compared = [row for row in rows if row.difference is not None]
    said = []
    for row in compared:
        assert row.difference is not None
        if row.difference.excludes_zero:
            word = "better" if row.difference.mean > 0 else "worse"
            said.append(
                f"{row.arm} is {word} than {row.compared_with} on {row.graph}{where(row)}: "
                f"{points(row.difference)} points of test accuracy, {row.difference.n} seeds."
            )
    silent = len(compared) - len(said)
    if compared:
        said.append(f"{silent} of {len(compared)} comparisons show no difference: their intervals include 0.")
    if len(compared) > 3:
        said.append("Each interval stands alone: of twenty comparisons of equals about one leaves 0 out by chance.")
    return said


def chosen_by_validation(rows: Sequence[Row]) -> list[Row]:
    """Per graph and arm, the row that is best on validation nodes: what a user who searched would have taken."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        known = best.get((row.graph, row.arm))
        if row.validation is not None and (known is None or row.validation.mean > _validation(known)):
            best[row.graph, row.arm] = row
    return list(best.values())


def _validation(row: Row) -> float:
    assert row.validation is not None
    return row.validation.mean


def where(row: Row) -> str:
    """`` at key=value, …``, or nothing where nothing was varied."""
    return f" at {', '.join(f'{key}={value}' for key, value in row.at.items())}" if row.at else ""


def points(share: Interval) -> str:
    """A difference of shares in percentage points."""
    text = f"{100 * share.mean:+.2f} ± {100 * share.half_width:.2f}"
    return text.replace("-", "−")


def percent(share: Interval) -> str:
    return f"{100 * share.mean:.1f} ± {100 * share.half_width:.1f}"


def area(value: Interval) -> str:
    return f"{value.mean:.3f} ± {value.half_width:.3f}"
