"""The page of made-up sweeps (see made_up_sweep)."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from optimag_dist.cli import app
from optimag_dist.report.sweep import importances, write_sweep_report
from optimag_dist.report.sweep_data import Sweep, read_sweep
from optimag_dist.report.sweep_figures import metric_by_pair
from optimag_dist.types import InputError

from . import made_up_sweep as made_up

ALPHA, RHO = made_up.ALPHA, made_up.RHO
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(space: Mapping[str, Any], num_trials: int, **more: Any) -> Path:
        directory = tmp_path / "toy-sweep"
        directory.mkdir()
        made_up.write_sweep(directory, space, num_trials, **more)
        return directory

    return make


def _page(directory: Path) -> str:
    return write_sweep_report(directory).read_text(encoding="utf-8")


def _titles(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def _alt(page: str, start: str) -> str:
    (alt,) = [alt for alt in re.findall(r'alt="([^"]*)"', page) if alt.startswith(start)]
    return str(alt)


def test_a_page_of_all_kinds_of_keys_and_ends(make: Make) -> None:
    directory = make(made_up.CONTINUOUS, 24, statuses={3: "stopped", 5: "failed", 7: "stopped"})
    page = _page(directory)
    assert _titles(page) == [
        "Best trial",
        "Trials",
        f"{ALPHA} × {RHO}",
        "All keys together",
        "Importance",
        "Learning curves",
        "Configuration",
    ]
    for source in re.findall(r'(?:src|srcset|href)="([^"]*)"', page):
        assert source.startswith("data:image/")
    assert "24: 21 finished, 2 stopped, 1 failed" in page
    sweep = read_sweep(directory)
    finished = [trial for trial in sweep.trials if trial.status == "finished"]
    best = max(finished, key=lambda trial: trial.metrics["val/accuracy"])
    assert f"Trial <code>{best.trial}</code>" in page
    assert f"{ALPHA}={best.values[ALPHA]}" in page
    assert "RuntimeError: &lt;b&gt;out of memory" in page
    rows = re.findall(r"<tr[^>]*><td>(t\d+)</td>", page)
    assert rows[0] == best.trial
    assert sorted(rows) == [f"t{i:02d}" for i in range(24)]
    assert rows[-1] == "t05"  # it has no value
    assert f"23 trials by {ALPHA} and {RHO}" in _alt(page, "val/accuracy of 23")
    assert "says little" not in page


def test_importance_finds_the_key_that_matters(make: Make) -> None:
    shares = importances(read_sweep(make(made_up.CONTINUOUS, 40)), "val/accuracy")
    assert next(iter(shares)) == ALPHA
    assert shares[ALPHA] > 0.5
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == set(made_up.CONTINUOUS)


def test_few_trials_are_said_to_say_little(make: Make) -> None:
    page = _page(make(made_up.CONTINUOUS, 8))
    assert "Rests on 8 trials" in page
    assert "says little" in page


def test_one_trial_of_one_key(make: Make) -> None:
    page = _page(make({"optim.lr": {"loguniform": [1e-4, 1e-1]}}, 1))
    assert "Too few trials" in page
    assert "optim.lr" in _titles(page)
    assert "best of 1" not in page


def test_without_alpha_and_rho_the_two_most_important_keys_are_shown(make: Make) -> None:
    space = {"model.dropout": {"uniform": [0.0, 0.5]}, ALPHA: {"uniform": [0.1, 0.9]}, "optim.lr": {"choice": [1, 2]}}
    page = _page(make(space, 30))
    (title,) = [title for title in _titles(page) if "×" in title]
    assert title.startswith(ALPHA)


def test_a_grid_has_a_cell_per_pair(make: Make) -> None:
    space = {ALPHA: {"grid": [0.2, 0.6]}, RHO: {"grid": [0.01, 1.0]}, "model.backbone": {"grid": ["sage", "gcn"]}}
    points = [{ALPHA: a, RHO: r, "model.backbone": m} for a in (0.2, 0.6) for r in (0.01, 1.0) for m in ("sage", "gcn")]
    page = _page(make(space, 8, trials=points))
    assert "Every cell is the mean of its trials" in page
    assert f"{ALPHA} 0.6" in _alt(page, "val/accuracy of 8")


def test_unfinished_sweeps_say_so_and_nothing_finished_is_no_crash(make: Make) -> None:
    statuses = dict.fromkeys(range(3), "failed") | {3: "pending"}
    page = _page(make(made_up.CONTINUOUS, 4, statuses=statuses))
    assert "not finished" in page
    assert "No trial has a value" in page
    assert page.count("why it failed") == 3
    assert "No epochs are recorded" in page


def test_nan_values_come_last_and_are_not_drawn(make: Make) -> None:
    directory = make(made_up.CONTINUOUS, 6)
    table = pq.read_table(directory / "trials.parquet").to_pandas()
    table.loc[2, "val/accuracy"] = math.nan
    table.to_parquet(directory / "trials.parquet")
    sweep = read_sweep(directory)
    assert len(sweep.valued("val/accuracy")) == 5
    plot = metric_by_pair(sweep, *sweep.axes[:2])
    assert plot is not None
    assert "5 trials" in plot.alt
    assert re.findall(r"<tr[^>]*><td>(t\d+)</td>", _page(directory))[-1] == "t02"


def test_several_metrics_have_a_front_that_nothing_beats(make: Make) -> None:
    metrics = {"val/accuracy": "max", "val/loss": "min"}
    sweep = read_sweep(make(made_up.CONTINUOUS, 20, metrics=metrics, statuses={1: "failed"}))
    front = sweep.front()
    assert 1 <= len(front) < 19
    for trial in front:
        mine = (trial.metrics["val/accuracy"], -trial.metrics["val/loss"])
        for other in sweep.valued("val/accuracy"):
            theirs = (other.metrics["val/accuracy"], -other.metrics["val/loss"])
            assert not (theirs != mine and theirs[0] >= mine[0] and theirs[1] >= mine[1])
    page = _page(sweep.directory)
    assert "Pareto front" in _titles(page)
    assert f"trials {', '.join(trial.trial for trial in front)}" in _alt(page, "Pareto")


def test_curves_are_means_over_seeds(make: Make) -> None:
    sweep: Sweep = read_sweep(make(made_up.CONTINUOUS, 2))
    curve = sweep.curve(sweep.trials[0], "val/accuracy")
    assert list(curve) == list(range(1, 13))
    expected = made_up.score(sweep.trials[0].values) * (1 - 0.5 ** (np.arange(1, 13) / 2))
    np.testing.assert_allclose(list(curve.values()), expected)


@pytest.mark.parametrize("missing", ["space.yaml", "trials.parquet"])
def test_no_sweep_is_an_error_that_names_the_file(make: Make, missing: str) -> None:
    directory = make(made_up.CONTINUOUS, 2)
    (directory / missing).unlink()
    with pytest.raises(InputError, match=missing):
        write_sweep_report(directory)
    assert not (directory / "report.html").exists()


def test_a_missing_column_is_named(make: Make) -> None:
    directory = make(made_up.CONTINUOUS, 2)
    table = pq.read_table(directory / "trials.parquet")
    pq.write_table(table.drop_columns([RHO]), directory / "trials.parquet")
    with pytest.raises(InputError, match=RHO):
        write_sweep_report(directory)


def test_the_report_command_knows_a_sweep(make: Make) -> None:
    directory = make(made_up.CONTINUOUS, 3)
    said = CliRunner().invoke(app, ["report", str(directory)])
    assert said.exit_code == 0, said.output
    assert (directory / "report.html").exists()
