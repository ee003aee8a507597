"""The report of an experiment: one HTML file that needs no other, its tables as Markdown, and in the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from optimag_dist.experiments import analysis
from optimag_dist.experiments.analysis import Row, area, percent, points
from optimag_dist.experiments.detection import KEPT, MISMATCH, NEIGHBOURS
from optimag_dist.experiments.figures import draw_study
from optimag_dist.experiments.recipe import ExperimentOptions, StudyOptions
from optimag_dist.files import atomic
from optimag_dist.options import load_options
from optimag_dist.report.html import render
from optimag_dist.types import InputError

_SHORT = {KEPT: "kept", MISMATCH: "mismatch", NEIGHBOURS: "neighbours"}
_CAPTIONS = {
    0: "Dots are means over seeds, bars 95 % intervals.",
    1: "Means over seeds; bands are 95 % intervals.",
    2: "Means over seeds in every cell.",
}


def write_experiment_report(directory: Path, console: Console | None = None) -> Path:
    """Write ``report.html`` and ``tables.md`` of the experiment in ``directory``, and show its tables on ``console``.

    Raises:
        InputError: there is no experiment.
    """
    recipe, results = directory / "recipe.yaml", directory / "results.parquet"
    if not recipe.is_file() or not results.is_file():
        raise InputError(
            f"{directory}: no experiment here (recipe.yaml, results.parquet); optimag experiment makes one"
        )
    experiment = load_options(ExperimentOptions, recipe)
    rows = analysis.summarise(experiment, results)
    out = directory / "report.html"
    page = render(
        "experiment.html.j2",
        experiment=experiment,
        studies=[_study(name, study, rows[name]) for name, study in experiment.asked.items()],
        recipe=recipe.read_text(encoding="utf-8"),
        percent=percent,
        points=points,
        area=area,
    )
    with atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    with atomic(directory / "tables.md") as temporary:
        temporary.write_text("\n".join(_markdown(name, rows[name]) for name in experiment.asked), encoding="utf-8")
    if console is not None:
        for name, study in experiment.asked.items():
            show = analysis.chosen_by_validation(rows[name]) if len(study.vary) > 1 else rows[name]
            console.print(_terminal_table(name, study, show))
            for sentence in analysis.findings(rows[name]):
                console.print(f"  {sentence}", highlight=False)
    return out


def _study(name: str, study: StudyOptions, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "name": name,
        "question": study.question,
        "vary": list(study.vary),
        "rows": rows,
        "findings": analysis.findings(rows),
        "drawings": draw_study(study, rows),
        "caption": _CAPTIONS[min(len(study.vary), 2)],
        "chosen": analysis.chosen_by_validation(rows) if len(study.vary) > 1 else [],
        "trained": any(row.accuracy for row in rows),
        "ways": [way for way in analysis.WAYS if any(way in row.areas for row in rows)],
        "tuned": study.tuning is not None,
    }


def _markdown(name: str, rows: Sequence[Row]) -> str:
    """The rows of a study with all intervals, the columns that some row has."""
    columns: dict[str, list[str]] = {"graph": [row.graph for row in rows], "arm": [row.arm for row in rows]}
    for key in rows[0].at if rows else ():
        columns[key] = [str(row.at[key]) for row in rows]
    columns["test accuracy"] = [percent(row.accuracy) if row.accuracy else "" for row in rows]
    columns["difference"] = [points(row.difference) if row.difference else "" for row in rows]
    for way in analysis.WAYS:
        columns[f"area: {way}"] = [area(row.areas[way]) if way in row.areas else "" for row in rows]
    columns["kept mass less the better other"] = [area(row.advantage) if row.advantage else "" for row in rows]
    columns["s"] = [f"{row.seconds.mean:.1f}" for row in rows]
    shown = {column: cells for column, cells in columns.items() if any(cells)}
    lines = [f"## {name}", "", f"| {' | '.join(shown)} |", "|---" * len(shown) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in zip(*shown.values(), strict=True)]
    return "\n".join([*lines, ""])


def _terminal_table(name: str, study: StudyOptions, rows: Sequence[Row]) -> Table:
    trained = any(row.accuracy for row in rows)
    # All of it is in the report; here a row has 80 letters.
    shown = (KEPT,) if trained else analysis.WAYS
    ways = [way for way in shown if any(way in row.areas for row in rows)]
    columns = [*(["accuracy", "difference"] if trained else []), *(_SHORT[way] for way in ways)]
    varied = [key.rpartition(".")[2] for key in study.vary]
    table = Table(title=name, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("graph", "arm", *varied, *columns, "s"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        cells = [row.graph, row.arm, *(str(row.at[key]) for key in study.vary)]
        if trained:
            cells.append(percent(row.accuracy) if row.accuracy else "")
            cells.append(points(row.difference) if row.difference else "")
        cells += [f"{row.areas[way].mean:.3f}" if way in row.areas else "" for way in ways]
        table.add_row(*cells, f"{row.seconds.mean:.1f}")
    return table
