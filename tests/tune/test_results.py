"""What a sweep makes of its trials' epochs, on made-up ones."""

import math
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from optimag_dist.options import validate_options
from optimag_dist.tune.options import SweepOptions
from optimag_dist.tune.results import TrialRow, best, pareto_front, ranked, write_table
from optimag_dist.tune.score import Score
from optimag_dist.tune.view import SweepView

OPTIONS = validate_options(
    SweepOptions,
    {
        "space": {"optim.lr": {"choice": [1, 0.5]}, "model.backbone": {"choice": ["mlp", 1]}},
        "metrics": {"val/accuracy": "max", "seconds": "min"},
    },
    "space",
)


def _epoch(epoch: int, accuracy: float | None, f1: float = 0.0) -> dict:
    validation = {} if accuracy is None else {"val/accuracy": accuracy, "val/macro_f1": f1}
    return {"epoch": epoch, "seconds": 2.0, **validation}


def test_a_score_is_of_each_seeds_best_epoch_and_counts_epochs_told_twice_once() -> None:
    score = Score((5, 7), epochs=10, monitor="accuracy")
    assert score.clock == 0
    score.epoch(5, _epoch(0, None))
    assert math.isnan(score.metrics(["val/accuracy"])["val/accuracy"])
    for record in (_epoch(1, 0.6, f1=0.1), _epoch(2, 0.4, f1=0.9), _epoch(2, 0.4, f1=0.9)):
        score.epoch(5, record)
    assert score.metrics(["val/accuracy", "val/macro_f1", "seconds"]) == {
        "val/accuracy": 0.6,
        "val/macro_f1": 0.1,
        "seconds": 6.0,
    }
    assert (score.clock, score.epochs) == (3, 3)
    score.results[5] = {}
    # The first seed ended early by its patience: the second one's epochs start where every trial's do.
    score.epoch(7, _epoch(0, 0.2))
    assert (score.clock, score.epochs, score.finished) == (11, 4, False)
    assert score.metrics(["val/accuracy"]) == {"val/accuracy": 0.4}
    score.results[7] = {}
    assert score.finished


def test_a_score_is_worth_nothing_once_a_fit_has_diverged() -> None:
    score = Score((0, 1), epochs=10, monitor="accuracy")
    score.epoch(0, _epoch(0, 0.9))
    score.results[0] = {"diverged": "loss nan"}
    metrics = score.metrics(["val/accuracy", "seconds"])
    assert math.isnan(metrics["val/accuracy"])
    assert (metrics["seconds"], score.diverged, score.finished) == (2.0, "loss nan", False)


def test_a_score_is_of_the_epochs_that_the_task_goes_by() -> None:
    records = [{"epoch": e, "seconds": 1.0, "val/nll": n, "val/mrr": m} for e, n, m in ((0, 3.0, 0.1), (1, 2.0, 0.3))]
    records += [{"epoch": 2, "seconds": 1.0, "val/nll": 2.5, "val/mrr": 0.5}, {"epoch": 3, "seconds": 1.0}]
    for monitor, expected in (("nll", (2.0, 0.3)), ("mrr", (2.5, 0.5))):
        score = Score((0,), epochs=4, monitor=monitor)
        for record in records:
            score.epoch(0, record)
        metrics = score.metrics(["val/nll", "val/mrr"])
        assert (metrics["val/nll"], metrics["val/mrr"]) == expected


def _row(trial: str, status: str, accuracy: float | None, seconds: float, **values: object) -> TrialRow:
    point = {"optim.lr": 1, "model.backbone": "mlp", **{k.replace("_", "."): v for k, v in values.items()}}
    metrics = {} if accuracy is None else {"val/accuracy": accuracy, "seconds": seconds}
    return TrialRow(trial, status, 3, seconds, point, point, metrics, "it broke" if status == "failed" else None)


ROWS = [
    _row("000", "finished", 0.5, 3.0),
    _row("001", "finished", 0.7, 9.0, optim_lr=0.5),
    _row("002", "finished", 0.5, 4.0, model_backbone=1),
    _row("003", "stopped", 0.9, 1.0),
    _row("004", "failed", math.nan, 0.0),
    _row("005", "pending", None, 0.0),
]


def test_the_best_is_a_finished_one_and_the_front_holds_what_nothing_beats() -> None:
    assert [row.trial for row in ranked(ROWS, OPTIONS)] == ["003", "001", "000", "002"]
    winner = best(ROWS, OPTIONS)
    assert winner is not None
    assert winner.trial == "001"
    assert [row.trial for row in pareto_front(ROWS, OPTIONS)] == ["000", "001"]
    assert best(ROWS[3:], OPTIONS) is None


def test_the_table_has_a_row_per_trial_whatever_became_of_it(tmp_path: Path) -> None:
    write_table(ROWS, OPTIONS, tmp_path / "trials.parquet")
    table = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert list(table[0]) == [
        "trial",
        "status",
        "epochs",
        "seconds",
        "optim.lr",
        "model.backbone",
        "val/accuracy",
        "error",
    ]
    assert [row["optim.lr"] for row in table[:3]] == [1.0, 0.5, 1.0]
    assert [row["model.backbone"] for row in table[:3]] == ["mlp", "mlp", "1"]
    assert (table[4]["error"], table[5]["val/accuracy"], table[5]["error"]) == ("it broke", None, None)


def test_without_a_terminal_every_trial_that_ends_is_one_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        console = Console(file=file, force_terminal=False, width=300)
        with SweepView(OPTIONS, total=6, console=console) as view:
            view.update(ROWS[:1], nodes=1, cpus=2)
            view.update(ROWS, nodes=2, cpus=4)
            view.update(ROWS, nodes=2, cpus=4)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["cluster:", "1", "node,"],
        ["1/6", "000", "finished"],
        ["cluster:", "2", "nodes,"],
        ["2/6", "001", "finished"],
        ["3/6", "002", "finished"],
        ["4/6", "003", "stopped"],
        ["5/6", "004", "failed"],
    ]
    assert "it broke" in lines[-1]


def test_in_a_terminal_the_table_says_how_many_run_and_wait(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        console = Console(file=file, force_terminal=True, width=200, height=40)
        with SweepView(OPTIONS, total=9, console=console) as view:
            view.update([*ROWS, _row("006", "running", 0.1, 1.0)], nodes=2, cpus=4)
    text = (tmp_path / "log").read_text()
    assert "1 running, 3 finished, 1 stopped, 1 failed, 3 pending" in text
    assert "2 nodes, 4 CPUs" in text
