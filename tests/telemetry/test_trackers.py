"""MLflow with a database file and Weights & Biases offline, both for real; a stand-in where one has to fail."""

import importlib.util
import json
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from optimag_dist.options import load_options
from optimag_dist.telemetry import TrackingOptions, check_trackers, trackers
from optimag_dist.telemetry.trackers import Trackers
from optimag_dist.train.callback import TrainerCallback
from optimag_dist.train.fit import Fit
from optimag_dist.train.launch import launch
from optimag_dist.train.log import read_records
from optimag_dist.train.options import RunConfig
from optimag_dist.types import InputError


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take long to make MLflow's database."""
    monkeypatch.setattr(trackers, "_DRAIN_S", 300.0)


def _trackers(options: TrackingOptions, directory: Path, said: list[str]) -> Trackers:
    return Trackers(options, group="toy", name="sage seed 0", directory=directory, say=said.append)


def test_mlflow_has_a_run_per_fit_with_its_configuration_and_metrics(
    fit_with: Callable[..., Fit], tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow")
    tracking = TrackingOptions(mlflow=str(tmp_path / "mlflow.db"))
    said: list[str] = []
    fit = fit_with(tmp_path / "fit", TrainerCallback(), tracking=tracking, say=said.append)
    assert said == []
    client = mlflow.MlflowClient(tracking_uri=tracking.mlflow)
    (run,) = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert (run.info.run_name, run.info.status) == ("sage seed 4", "FINISHED")
    assert run.data.params["regulariser.alpha"] == "0.6"
    assert run.data.params["seed"] == "4"
    assert run.data.metrics["test/accuracy"] == json.loads((fit.directory / "result.json").read_text())["test/accuracy"]
    history = client.get_metric_history(run.info.run_id, "task_loss")
    expected = [(r["epoch"], r["task_loss"]) for r in read_records(fit.directory / "metrics.jsonl")]
    assert [(each.step, each.value) for each in history] == expected


def test_wandb_offline_leaves_its_files_in_the_fit_and_goes_on_with_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    tracking = TrackingOptions(wandb="toy", wandb_offline=True)
    said: list[str] = []
    for epochs in ((0, 1), (2, 3)):
        told = _trackers(tracking, tmp_path, said)
        for epoch in epochs:
            told.epoch({"epoch": epoch, "loss": 1.0}, {"seed": 0})
        told.close()
    assert said == []
    identity = json.loads((tmp_path / "tracking.json").read_text())["wandb"]
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert {file.name for file in files} == {f"run-{identity}.wandb"}


def test_a_tracker_that_fails_is_said_once_and_harms_nothing(
    fit_with: Callable[..., Fit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Run:
        def log(self, figures: dict, step: int) -> None:
            calls.append(step)
            raise ConnectionError("no route to host")

    stand_in = types.ModuleType("wandb")
    stand_in.init = lambda **_: Run()  # type: ignore[attr-defined]
    stand_in.Settings = lambda **_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    said: list[str] = []
    fit = fit_with(tmp_path, TrainerCallback(), tracking=TrackingOptions(wandb="toy"), say=said.append)
    assert (fit.directory / "result.json").exists()
    assert calls == [0]
    (line,) = said
    assert "no route to host" in line


def test_a_slow_tracker_does_not_hold_up_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, seen = threading.Event(), []

    class Run:
        def log(self, figures: dict, step: int) -> None:
            release.wait()
            seen.append(step)

        def finish(self, exit_code: int) -> None:
            seen.append("end")

    stand_in = types.ModuleType("wandb")
    stand_in.init = lambda **_: Run()  # type: ignore[attr-defined]
    stand_in.Settings = lambda **_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    told = _trackers(TrackingOptions(wandb="toy"), tmp_path, [])
    for epoch in range(3):
        told.epoch({"epoch": epoch, "loss": 1.0}, {})  # would wait for ever if it waited
    assert seen == []
    release.set()
    told.close()
    assert seen == [0, 1, 2, "end"]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_ends_the_run_before_it_starts(
    name: str, recipe: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each: None if each == name else there(each))
    config = RunConfig.model_validate({**recipe, "tracking": {name: "somewhere"}})
    with pytest.raises(InputError, match="pip install"):
        check_trackers(config.tracking)
    with pytest.raises(InputError, match="pip install"):
        launch(config)
    assert not config.directory.exists()


@pytest.mark.parametrize(
    "uri", ["https://me:secret@host:5000", "https://secret@host:5000", "https://host:5000/?token=secret"]
)
def test_no_password_is_saved_with_a_run(uri: str, tmp_path: Path) -> None:
    (tmp_path / "tracking.yaml").write_text(f"mlflow: {uri}\n")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD"):
        load_options(TrackingOptions, tmp_path / "tracking.yaml")
