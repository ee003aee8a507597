"""The report of an experiment: one HTML file that needs no other, its tables as Markdown, and in the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from optimag_dist.experiments import analysis
from optimag_dist.experiments.analysis import Row, area
from optimag_dist.experiments.detection import KEPT, MISMATCH, NEIGHBOURS
from optimag_dist.experiments.figures import draw_study
from optimag_dist.experiments.recipe import ExperimentOptions, StudyOptions
from optimag_dist.files import atomic
from optimag_dist.options import load_options
from optimag_dist.report.comparison import Cells, measures_of
from optimag_dist.report.html import write_page
from optimag_dist.report.measure import Measure, show
from optimag_dist.types import InputError

_SHORT = {KEPT: "kept", MISMATCH: "mismatch", NEIGHBOURS: "neighbours"}


def write_experiment_report(directory: Path, console: Console | None = None) -> Path:
    """Write ``report.html`` and ``tables.md`` of the experiment in ``directory``; show its tables on ``console``."""
    recipe, results = directory / "recipe.yaml", directory / "results.parquet"
    if not recipe.is_file() or not results.is_file():
        raise InputError(
            f"{directory}: no experiment here (recipe.yaml, results.parquet); optimag experiment makes one"
        )
    experiment = load_options(ExperimentOptions, recipe)
    rows = analysis.summarise(experiment, results)
    out = write_page(
        directory / "report.html",
        "experiment.html.j2",
        experiment=experiment,
        studies=[_study(name, study, rows[name]) for name, study in experiment.asked.items()],
        recipe=recipe.read_text(encoding="utf-8"),
        area=area,
    )
    with atomic(directory / "tables.md") as temporary:
        temporary.write_text("\n".join(_markdown(name, rows[name]) for name in experiment.asked), encoding="utf-8")
    if console is not None:
        for name, study in experiment.asked.items():
            shown = _chosen(study, rows[name]) or rows[name]
            console.print(_terminal_table(name, study, _Table(shown, measures_of(rows[name]))))
            for sentence in analysis.findings(rows[name]):
                console.print(f"  {sentence}")
    return out


def _chosen(study: StudyOptions, rows: Sequence[Row]) -> list[Row]:
    """What a search would have taken, of studies that search more than one thing."""
    return analysis.chosen_by_validation(rows, apart=study.given) if len(study.vary) - len(study.given) > 1 else []


@dataclass(frozen=True)
class _Table(Cells):
    """A study's rows, or some of them."""

    rows: Sequence[Row]

    @property
    def others(self) -> list[Measure]:
        """What was tested beside that by which rows are compared."""
        tested = {column for row in self.rows for column in row.metrics if column != row.compared_by}
        return [measure for column, measure in self.measures.items() if column in tested and column.startswith("test/")]

    @property
    def heading(self) -> str:
        """Of the scores; where they are of several metrics, :meth:`metric` names each row's."""
        return self.compared_by[0].heading if len(self.compared_by) == 1 else "test"

    def metric(self, row: Row) -> str:
        measure = self.measure(row)
        return measure.title_and_unit if measure else ""

    def other(self, row: Row, measure: Measure) -> str:
        return self.value(row, measure.column) if measure.column != row.compared_by else ""

    @property
    def ways(self) -> list[str]:
        return [way for way in analysis.WAYS if any(way in row.areas for row in self.rows)]


def _study(name: str, study: StudyOptions, rows: Sequence[Row]) -> dict[str, Any]:
    measures = measures_of(rows)
    chosen = _chosen(study, rows)
    return {
        "name": name,
        "question": study.question,
        "vary": list(study.vary),
        "findings": analysis.findings(rows),
        "plots": draw_study(study, rows),
        "table": _Table(rows, measures),
        "chosen": _Table(chosen, measures) if chosen else None,
        "tuned": study.tuning is not None,
    }


def _markdown(name: str, rows: Sequence[Row]) -> str:
    """The rows of a study with all intervals, the columns that some row has."""
    table = _Table(rows, measures_of(rows))
    columns: dict[str, list[str]] = {"graph": [row.graph for row in rows], "arm": [row.arm for row in rows]}
    for key in rows[0].at if rows else ():
        columns[key] = [str(row.at[key]) for row in rows]
    if len(table.compared_by) > 1:
        columns["metric"] = [table.metric(row) for row in rows]
    columns[table.heading] = [table.value(row, row.compared_by) for row in rows]
    columns["difference"] = [table.difference(row) for row in rows]
    for measure in table.others:
        columns[measure.heading] = [table.other(row, measure) for row in rows]
    for way in table.ways:
        columns[f"area: {way}"] = [area(row.areas[way]) if way in row.areas else "" for row in rows]
    columns["kept mass less the better other"] = [area(row.advantage) if row.advantage else "" for row in rows]
    columns["s"] = [show(row.seconds.mean) for row in rows]
    shown = {column: cells for column, cells in columns.items() if any(cells)}
    lines = [f"## {name}", "", f"| {' | '.join(shown)} |", "|---" * len(shown) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in zip(*shown.values(), strict=True)]
    return "\n".join([*lines, ""])


def _terminal_table(name: str, study: StudyOptions, content: _Table) -> Table:
    by = content.compared_by
    # All of it is in the report; here a row has 80 letters.
    ways = [way for way in content.ways if way == KEPT or not by]
    varied = [key.rpartition(".")[2] for key in study.vary]
    scores = [by[0].title, "difference"] if len(by) == 1 else ["metric", "test", "difference"] if by else []
    table = Table(title=name, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("graph", "arm", *varied, *scores, *(_SHORT[way] for way in ways), "s"):
        table.add_column(column, no_wrap=column != "metric")
    for row in content.rows:
        cells = [row.graph, row.arm, *(str(row.at[key]) for key in study.vary)]
        if by:
            cells += [content.metric(row)] * (len(by) > 1)
            cells += [content.value(row, row.compared_by), content.difference(row)]
        cells += [f"{row.areas[way].mean:.3f}" if way in row.areas else "" for way in ways]
        table.add_row(*cells, show(row.seconds.mean))
    return table
