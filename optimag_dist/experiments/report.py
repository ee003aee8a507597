"""The report of an experiment: one HTML file that needs no other, its tables as Markdown, and in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from optimag_dist.experiments import analysis
from optimag_dist.experiments.analysis import Row, area, measures_of
from optimag_dist.experiments.detection import KEPT, MISMATCH, NEIGHBOURS
from optimag_dist.experiments.figures import draw_study
from optimag_dist.experiments.recipe import ExperimentOptions, StudyOptions
from optimag_dist.files import atomic
from optimag_dist.options import load_options
from optimag_dist.report.html import render
from optimag_dist.report.measure import Measure, show
from optimag_dist.types import InputError

_SHORT = {KEPT: "kept", MISMATCH: "mismatch", NEIGHBOURS: "neighbours"}


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
        area=area,
    )
    with atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    with atomic(directory / "tables.md") as temporary:
        temporary.write_text("\n".join(_markdown(name, rows[name]) for name in experiment.asked), encoding="utf-8")
    if console is not None:
        for name, study in experiment.asked.items():
            shown = _chosen(study, rows[name]) or rows[name]
            console.print(_terminal_table(name, study, shown, measures_of(rows[name])))
            for sentence in analysis.findings(rows[name]):
                console.print(f"  {sentence}")
    return out


def _chosen(study: StudyOptions, rows: Sequence[Row]) -> list[Row]:
    """What a search would have taken, of studies that search more than one thing."""
    return analysis.chosen_by_validation(rows, apart=study.given) if len(study.vary) - len(study.given) > 1 else []


@dataclass(frozen=True)
class _Table:
    """A study's rows as cells of text, empty where there is nothing.

    Attributes:
        rows: of the study, or some of them.
        measures: column → how it is shown, in all of the study.
    """

    rows: Sequence[Row]
    measures: Mapping[str, Measure]

    @property
    def judges(self) -> list[Measure]:
        """By what rows are compared."""
        return [self.measures[column] for column in dict.fromkeys(row.judged_by for row in self.rows) if column]

    @property
    def others(self) -> list[Measure]:
        """What was tested beside that."""
        tested = {column for row in self.rows for column in row.figures if column != row.judged_by}
        return [measure for column, measure in self.measures.items() if column in tested and column.startswith("test/")]

    @property
    def heading(self) -> str:
        """Of the scores; where they are of several figures, :meth:`figure` names each row's."""
        return self.judges[0].heading if len(self.judges) == 1 else "test"

    def figure(self, row: Row) -> str:
        return self.measures[row.judged_by].title_and_unit if row.judged_by else ""

    def score(self, row: Row) -> str:
        return self.measures[row.judged_by].show(row.figures[row.judged_by]) if row.judged_by else ""

    def difference(self, row: Row) -> str:
        if row.judged_by is None or row.difference is None:
            return ""
        return self.measures[row.judged_by].show_difference(row.difference)

    def verdict(self, row: Row) -> str:
        if row.judged_by is None or row.difference is None:
            return ""
        return self.measures[row.judged_by].verdict(row.difference)

    def other(self, row: Row, measure: Measure) -> str:
        shown = measure.column in row.figures and measure.column != row.judged_by
        return measure.show(row.figures[measure.column]) if shown else ""

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
        "drawings": draw_study(study, rows),
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
    if len(table.judges) > 1:
        columns["figure"] = [table.figure(row) for row in rows]
    columns[table.heading] = [table.score(row) for row in rows]
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


def _terminal_table(name: str, study: StudyOptions, rows: Sequence[Row], measures: Mapping[str, Measure]) -> Table:
    content = _Table(rows, measures)
    # All of it is in the report; here a row has 80 letters.
    ways = [way for way in content.ways if way == KEPT or not content.judges]
    varied = [key.rpartition(".")[2] for key in study.vary]
    scores = [content.judges[0].title] if len(content.judges) == 1 else ["figure", "test"] if content.judges else []
    columns = [*scores, *(["difference"] if content.judges else []), *(_SHORT[way] for way in ways)]
    table = Table(title=name, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("graph", "arm", *varied, *columns, "s"):
        table.add_column(column, no_wrap=column != "figure")
    for row in rows:
        cells = [row.graph, row.arm, *(str(row.at[key]) for key in study.vary)]
        if content.judges:
            cells += [content.figure(row)] * (len(scores) > 1)
            cells += [content.score(row), content.difference(row)]
        cells += [f"{row.areas[way].mean:.3f}" if way in row.areas else "" for way in ways]
        table.add_row(*cells, show(row.seconds.mean))
    return table
