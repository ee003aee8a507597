"""Experiments whose fits have other metrics than accuracy, on results and directories written by hand."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from optimag_dist.experiments import run as run_module
from optimag_dist.experiments.analysis import Row, chosen_by_validation, findings, measures_of, summarise
from optimag_dist.experiments.figures import draw_study
from optimag_dist.experiments.recipe import ExperimentOptions, settings
from optimag_dist.experiments.report import write_experiment_report
from optimag_dist.experiments.run import Asked, Cell
from optimag_dist.options import dump_options, validate_options
from optimag_dist.tune.options import SweepOptions

Fits = list[dict[str, Any]]
SEEDS = (0, 1, 2)
LINKS = {"task": {"kind": "link_prediction"}}


def _experiment(**study: Any) -> ExperimentOptions:
    data = {
        "name": "toy",
        "title": "Toy",
        "question": "?",
        "seeds": list(SEEDS),
        "graphs": {"g": {"planted": {}}},
        "base": {"task": {"split": {"train": 0.3, "val": 0.3}}},
        "arms": {"off": {"regulariser.weight": 0}, "on": {}},
        "studies": {"asked": {"question": "?", "graphs": ["g"], "compare": {"on": "off"}, **study}},
    }
    return validate_options(ExperimentOptions, data, "toy.yaml")


def _fits(arm: str, metrics: Callable[[int], Mapping[str, Any]], **others: Any) -> Fits:
    base = {"study": "asked", "graph": "g", "arm": arm}
    return [{**base, "seed": seed, "seconds": 1.0, **metrics(seed), **others} for seed in SEEDS]


def captions(nll: float, val: float = 3.0) -> Callable[[int], dict[str, Any]]:
    return lambda seed: {
        "decisive": "nll",
        "val/nll": val + seed / 100,
        "test/bleu4": 0.1,
        "test/nll": nll + seed / 100,
        "test/rouge_l": 0.25,
    }


def links(mrr: float) -> Callable[[int], dict[str, Any]]:
    return lambda seed: {
        "decisive": "mrr",
        "val/mrr": mrr,
        "test/mrr": mrr + seed / 100,
        "test/hits@10": 0.7 + seed / 10,
    }


def classes(accuracy: float) -> Callable[[int], dict[str, Any]]:
    """As results were before there were other tasks."""
    return lambda seed: {"val/accuracy": accuracy, "test/accuracy": accuracy + seed / 100, "test/macro_f1": 0.4}


def _written(directory: Path, experiment: ExperimentOptions, fits: Fits) -> Path:
    directory.mkdir(exist_ok=True)
    dump_options(experiment, directory / "recipe.yaml")
    columns = dict.fromkeys(key for fit in fits for key in fit)
    table = pa.table({key: [fit.get(key) for fit in fits] for key in columns})
    pq.write_table(table, directory / "results.parquet")
    return directory


@pytest.fixture
def summarised(tmp_path: Path) -> Callable[..., list[Row]]:
    def summarise_(fits: Fits, **study: Any) -> list[Row]:
        experiment = _experiment(**study)
        return summarise(experiment, _written(tmp_path / "toy", experiment, fits) / "results.parquet")["asked"]

    return summarise_


TASKS: dict[str, Any] = {"classes": {}, "links": LINKS, "captions": {"task.kind": "graph2text"}}
MIXED: Fits = [
    fit
    for name, off, on in (
        ("classes", classes(0.5), classes(0.52)),
        ("links", links(0.2), links(0.25)),
        ("captions", captions(3.0), captions(2.9)),
    )
    for arm, metrics in (("off", off), ("on", on))
    for fit in _fits(arm, metrics, **{"at/what": name})
]


# -- analysis ----------------------------------------------------------------------------------------------------------


def test_a_row_has_the_monitored_metric_first_and_all_that_was_tested(summarised: Callable[..., list[Row]]) -> None:
    off, on = summarised([*_fits("off", captions(3.0)), *_fits("on", captions(2.8, val=2.7))])
    assert list(on.metrics) == ["test/nll", "test/bleu4", "test/rouge_l", "val/nll"]
    assert (on.compared_by, on.validated_by) == ("test/nll", "val/nll")
    assert on.score is not None
    assert (on.score.mean, on.score.half_width) == pytest.approx((2.81, 4.302653 * 0.01 / 3**0.5))
    assert on.metrics["test/rouge_l"].mean == 0.25
    assert on.metrics["val/nll"].mean == pytest.approx(2.71)
    assert on.difference is not None
    assert (on.difference.mean, on.compared_with) == (pytest.approx(-0.2), "off")
    assert off.difference is None


def test_less_is_better_where_the_metric_says_so(summarised: Callable[..., list[Row]]) -> None:
    rows = summarised([*_fits("off", captions(3.0)), *_fits("on", captions(2.8))])
    assert findings(rows)[0] == "on is better than off on g: −0.200 ± 0.000 in test nats per token, 3 seeds."
    rows = summarised([*_fits("off", captions(3.0)), *_fits("on", captions(3.5))])
    assert findings(rows)[0] == "on is worse than off on g: +0.500 ± 0.000 in test nats per token, 3 seeds."
    rows = summarised([*_fits("off", links(0.2)), *_fits("on", links(0.3))])
    assert findings(rows)[0] == "on is better than off on g: +10.00 ± 0.00 points of test MRR, 3 seeds."


def test_what_is_chosen_on_validation_has_the_least_where_less_is_better(summarised: Callable[..., list[Row]]) -> None:
    fits = [
        f for rho, val in ((1, 2.9), (2, 2.5), (3, 3.1)) for f in _fits("on", captions(3.0, val), **{"at/rho": rho})
    ]
    (chosen,) = chosen_by_validation(summarised(fits, vary={"rho": {"1": {}, "2": {}, "3": {}}}))
    assert chosen.at == {"rho": 2}


def test_arms_of_different_tasks_are_not_compared(summarised: Callable[..., list[Row]]) -> None:
    off, on = summarised([*_fits("off", classes(0.5)), *_fits("on", links(0.2))])
    assert (off.compared_by, on.compared_by) == ("test/accuracy", "test/mrr")
    assert (on.difference, on.compared_with) == (None, None)
    assert findings([off, on]) == []


def test_nothing_is_chosen_among_tasks_graphs_or_label_rates(summarised: Callable[..., list[Row]]) -> None:
    vary = {"what": TASKS, "task.split.train": [0.1, 0.2], "planted.noise": [1], "model.backbone": ["gcn", "sage"]}
    study = _experiment(vary=vary).studies["asked"]
    assert study.given == ["what", "task.split.train", "planted.noise"]
    fits = [
        {**fit, "at/task.split.train": rate, "at/planted.noise": 1, "at/model.backbone": backbone, "val/mrr": val}
        for rate, backbone, val in ((0.1, "gcn", 0.3), (0.1, "sage", 0.2), (0.2, "gcn", 0.8), (0.2, "sage", 0.9))
        for fit in _fits("on", links(0.2), **{"at/what": "links"})
    ]
    chosen = chosen_by_validation(summarised(fits, vary=vary), apart=study.given)
    assert [(row.at["task.split.train"], row.at["model.backbone"]) for row in chosen] == [(0.1, "gcn"), (0.2, "sage")]


# -- drawings ----------------------------------------------------------------------------------------------------------


def _drawn(rows: list[Row], **study: Any) -> list[tuple[str, str]]:
    return [(each.alt, caption) for each, caption in draw_study(_experiment(**study).studies["asked"], rows)]


def test_what_is_compared_by_different_metrics_is_drawn_apart(summarised: Callable[..., list[Row]]) -> None:
    drawn = _drawn(summarised(MIXED, vary={"what": TASKS}), vary={"what": TASKS})
    # Each metric has one value of what is varied: dots.
    assert [alt for alt, _ in drawn] == [
        "difference in test accuracy (points), mean and 95 % interval. g, on: +2.00 ± 0.00.",
        "difference in test MRR (points), mean and 95 % interval. g, on: +5.00 ± 0.00.",
        "difference in test nats per token (lower is better), mean and 95 % interval. g, on: −0.100 ± 0.000.",
    ]
    assert {caption for _, caption in drawn} == {"Dots are means over seeds, bars 95 % intervals."}


def test_what_else_is_varied_makes_lines_of_each_metric(summarised: Callable[..., list[Row]]) -> None:
    vary = {"what": TASKS, "model.backbone": ["gcn", "sage"]}
    fits = [{**fit, "at/model.backbone": name} for fit in MIXED for name in ("gcn", "sage")]
    drawn = _drawn(summarised(fits, vary=vary), vary=vary)
    assert [alt.partition(" by model.backbone")[0] for alt, _ in drawn] == [
        "test accuracy (%)",
        "difference in test accuracy (points)",
        "test MRR (%)",
        "difference in test MRR (points)",
        "test nats per token (lower is better)",
        "difference in test nats per token (lower is better)",
    ]
    assert {caption for _, caption in drawn} == {"Means over seeds; bands are 95 % intervals."}
    assert "g, on: gcn: 2.91 ± 0.02, sage: 2.91 ± 0.02" in drawn[4][0]


def test_a_map_says_the_lowest_where_less_is_better(summarised: Callable[..., list[Row]]) -> None:
    vary = {"a": {"1": {}, "2": {}}, "b": {"1": {}, "2": {}}}
    fits = [
        fit
        for a in "12"
        for b in "12"
        for fit in _fits("on", captions(3.0 - (a == b == "2"), 2.9 - (a == "1" != b)), **{"at/a": a, "at/b": b})
    ]
    ((alt, caption),) = _drawn(summarised(fits, vary=vary), vary=vary)
    assert caption == "Means over seeds in every cell."
    assert "validation nats per token (lower is better): lowest 1.91 at a=1, b=2" in alt
    assert "test nats per token (lower is better): lowest 2.01 at a=2, b=2" in alt


# -- reports -----------------------------------------------------------------------------------------------------------


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_study_over_tasks_names_every_rows_metric_and_shows_the_others(tmp_path: Path) -> None:
    directory = _written(tmp_path / "toy", _experiment(vary={"what": TASKS}), MIXED)
    console = Console(record=True, width=160)
    page = write_experiment_report(directory, console).read_text(encoding="utf-8")
    _, _, headings, _, *rows = (directory / "tables.md").read_text(encoding="utf-8").strip().splitlines()
    assert _cells(headings) == [
        *("graph", "arm", "what", "metric", "test", "difference"),
        *("test macro-F1, %", "test Hits@10, %", "test BLEU-4", "test ROUGE-L, %", "s"),
    ]
    assert [_cells(row)[1:-1] for row in rows[1::2]] == [
        ["on", "classes", "accuracy, %", "53.0 ± 2.5", "+2.00 ± 0.00", "40.0 ± 0.0", "", "", ""],
        ["on", "links", "MRR, %", "26.0 ± 2.5", "+5.00 ± 0.00", "", "80.0 ± 24.8", "", ""],
        [
            "on",
            "captions",
            "nats per token",
            "2.91 ± 0.02",
            "−0.100 ± 0.000",
            "",
            "",
            "0.100 ± 0.000",
            "25.0 ± 0.0",
        ],
    ]
    (table,) = re.findall(r"<table>(.*?)</table>", page, re.DOTALL)
    assert re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table) == [
        *("graph", "arm", "what", "metric", "test", "difference", "from"),
        *("test macro-F1, %", "test Hits@10, %", "test BLEU-4", "test ROUGE-L, %", "s", "seeds"),
    ]
    assert table.count('<td class="better">') == 3
    assert '<td class="better">−0.100' in table
    assert "accuracy" not in page.replace("test accuracy", "").replace("accuracy, %", "")
    shown = console.export_text()
    assert re.search(r"g +on +links +MRR, % +26\.0 ± 2\.5 +\+5\.00 ± 0\.00", shown)
    assert "on is better than off on g at what=captions: −0.100 ± 0.000 in test nats per token, 3 seeds." in shown


def test_a_study_of_one_task_has_its_metric_in_the_heading(tmp_path: Path) -> None:
    fits = [*_fits("off", links(0.2)), *_fits("on", links(0.25))]
    directory = _written(tmp_path / "toy", _experiment(), fits)
    console = Console(record=True, width=80)
    page = write_experiment_report(directory, console).read_text(encoding="utf-8")
    _, _, headings, _, _, row = (directory / "tables.md").read_text(encoding="utf-8").strip().splitlines()
    assert _cells(headings) == ["graph", "arm", "test MRR, %", "difference", "test Hits@10, %", "s"]
    assert _cells(row) == ["g", "on", "26.0 ± 2.5", "+5.00 ± 0.00", "80.0 ± 24.8", "1.0"]
    assert "<th>test MRR, %</th>" in page
    assert "accuracy" not in page
    assert re.search(r"graph +arm +MRR +difference +s", console.export_text())


def test_numbers_of_a_column_have_the_same_digits(summarised: Callable[..., list[Row]]) -> None:
    rows = summarised([*_fits("off", captions(0.5)), *_fits("on", captions(31.0))])
    measures = measures_of(rows)
    assert [measures["test/nll"].show(row.metrics["test/nll"]) for row in rows] == ["0.5 ± 0.0", "31.0 ± 0.0"]


# -- tuning ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decisive", "chosen"),
    [("mrr", 0.03), ("nll", 0.01), (None, 0.03)],
)
def test_an_arm_is_tuned_by_what_its_task_goes_by(
    decisive: str | None, chosen: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Cell] = []

    def fit_cells(_: Asked, cells: list[Cell], seeds: tuple[int, ...], *__: Any) -> list[list[Path]]:
        tried.extend(cells)
        folders = []
        for i, cell in enumerate(cells):
            folder = tmp_path / f"{i}"
            folder.mkdir()
            value = cell.changes.get("optim.lr", 0.02)
            result = {f"val/{decisive or 'accuracy'}": value, "variant": "x", "advice": ""}
            result |= {} if decisive is None else {"decisive": decisive}
            (folder / "result.json").write_text(json.dumps(result))
            folders.append([folder] * len(seeds))
        return folders

    monkeypatch.setattr(run_module, "_fit_cells", fit_cells)
    monkeypatch.setattr(run_module, "random_points", lambda *asked: [{"optim.lr": 0.03}, {"optim.lr": 0.01}])
    experiment = _experiment(tuning={"trials": 3, "space": {"optim.lr": {"uniform": [0, 1]}}}, arms=["on"], compare={})
    study = experiment.studies["asked"]
    setting = next(iter(settings(experiment, study)))
    assert study.tuning is not None
    asked = Asked(experiment, "asked", tmp_path, tmp_path, None, print)
    (found,) = run_module._tuned(asked, study.tuning, [Cell(setting, "on", {})], tmp_path, tmp_path)
    assert len(tried) == 3
    assert found.changes == {"optim.lr": chosen}


@pytest.mark.parametrize(
    ("changes", "metrics"),
    [
        ({}, {"val/accuracy": "max"}),
        ({"on": LINKS, "off": LINKS}, {"val/mrr": "max"}),
        ({"on": LINKS}, {"seconds": "min"}),
    ],
)
def test_the_sweep_of_a_comparison_has_a_metric_that_all_its_cells_have(
    changes: dict[str, Any], metrics: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[SweepOptions] = []
    monkeypatch.setattr(run_module, "run_sweep", lambda run, sweep, **_: swept.append(sweep) or [])
    experiment = _experiment()
    arms = {name: {**arm, **changes.get(name, {})} for name, arm in experiment.arms.items()}
    experiment = experiment.model_copy(update={"arms": arms})
    study = experiment.studies["asked"]
    setting = next(iter(settings(experiment, study)))
    cells = [Cell(setting, arm, {}) for arm in arms]
    asked = Asked(experiment, "asked", tmp_path, tmp_path, None, print)
    run_module._fit_cells(asked, cells, SEEDS, tmp_path / "store", tmp_path / "comparison")
    (sweep,) = swept
    assert sweep.metrics == metrics
