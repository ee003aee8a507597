"""Whole sweeps on the test run's Ray, of trials that take a second."""

import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.util.state import list_actors

from optimag_dist.options import dump_options, load_options, merge, validate_options
from optimag_dist.train.launch import launch
from optimag_dist.train.options import RunConfig
from optimag_dist.tune.options import SweepOptions
from optimag_dist.tune.sweep import run_sweep
from optimag_dist.types import InputError

from ..diverging import lost

SPACE = {"regulariser.alpha": {"uniform": [0.1, 0.9]}, "ppr.teleport": {"choice": [0.15, 0.3]}}


def _config(recipe: dict, *, workers: int = 2, changes: dict | None = None, **train: object) -> RunConfig:
    sections = {"train": {"epochs": 4, **train}, "workers": {"count": workers}}
    return validate_options(RunConfig, merge(merge(recipe, sections), changes or {}), "recipe")


def _options(space: dict | None = None, **others: object) -> SweepOptions:
    return validate_options(SweepOptions, {"space": space or SPACE, **others}, "space")


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt")["model"]


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _workers() -> list:
    here = ray.get_runtime_context().gcs_address
    return list_actors(address=here, filters=[("class_name", "=", "RayTrainWorker")], limit=1000, timeout=120)


def _no_placement_group_is_left() -> bool:
    return {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}


def test_trials_of_two_workers_take_turns_and_share_priors(recipe: dict, ray_session: None) -> None:
    config, options = _config(recipe), _options(search={"trials": 3})
    before = len(_workers())
    rows = run_sweep(config, options)
    assert [(row.trial, row.status, row.epochs) for row in rows] == [(f"00{i}", "finished", 4) for i in range(3)]
    # Three trials in turn on the same two workers, without waiting.
    assert len(_workers()) - before == 2
    fits = [config.directory / "trials" / row.trial / "seed-0" for row in rows]
    for fit, following in itertools.pairwise(fits):
        began, ended = (path.stat().st_mtime for path in (following / "tensorboard", fit / "result.json"))
        assert 0 <= began - ended < 3
    assert _no_placement_group_is_left()
    table = pq.read_table(config.directory / "trials.parquet").to_pylist()
    assert [row["regulariser.alpha"] for row in table] == [row.values["regulariser.alpha"] for row in rows]
    artefacts = {row.values["ppr.teleport"] for row in rows}
    assert artefacts == {0.15, 0.3}
    assert len(list((Path(recipe["store"]) / "ppr").glob("*/meta.json"))) >= len(artefacts)

    winner = max(rows, key=lambda row: row.metrics["val/accuracy"])
    best = load_options(RunConfig, config.directory / "best" / "config.yaml")
    assert best.regulariser.alpha == winner.values["regulariser.alpha"]
    exported = _weights(config.directory / "best" / "seed-0")
    assert _same(exported, _weights(config.directory / "trials" / winner.trial / "seed-0"))

    with pytest.raises(InputError, match="go on with it by --resume"):
        run_sweep(config, options)
    with pytest.raises(InputError, match="started with another space"):
        run_sweep(config, _options(search={"trials": 4}), resume=True)
    with pytest.raises(InputError, match="started with another configuration"):
        run_sweep(_config(recipe, changes={"optim.lr": 0.5}), options, resume=True)
    (config.directory / "tune").chmod(0o770)
    with pytest.raises(InputError, match="others can write to this directory"):
        run_sweep(config, options, resume=True)


def test_a_trial_that_diverges_is_never_the_best_and_every_fit_is_told(
    recipe: dict, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"lost": lost(tmp_path), "plain": {"train.epochs": 2}}
    # Seconds: the diverged one would be the best.
    recipe |= {"variants": variants, "seeds": [0, 1], "regulariser": {"weight": 0}}
    options = _options({"variant": {"grid": ["lost", "plain"]}}, search={"method": "grid"}, metrics={"seconds": "min"})
    rows = run_sweep(_config(recipe, workers=1, epochs=30), options)
    assert [row.status for row in rows] == ["diverged", "finished"]
    assert rows[0].error == "loss nan at step 2; lower optim.lr"
    summary = json.loads((Path(recipe["out"]) / "toy" / "best" / "result.json").read_text())
    assert (summary["trial"], len(summary["fits"])) == ("001", 2)
    said = capsys.readouterr().out
    for line in ("lost  seed 0   diverged: loss nan", "lost  seed 1   diverged", "plain  seed 1   accuracy 0."):
        assert line in said
    assert "4/4" in said


@pytest.mark.slow
def test_what_is_over_time_is_stopped_and_the_rest_goes_on_later(recipe: dict, ray_session: None) -> None:
    config = _config(recipe, workers=1, epochs=20)
    options = _options({"optim.lr": {"grid": [0.01, 0.02]}}, search={"method": "grid", "concurrency": 1})
    brief = options.model_copy(update={"search": options.search.model_copy(update={"time_budget_s": 1})})
    assert {row.status for row in run_sweep(config, brief)} <= {"running", "pending"}
    assert not (config.directory / "best").exists()
    assert _no_placement_group_is_left()
    rows = run_sweep(config, options, resume=True)
    assert [(row.trial, row.status) for row in rows] == [("000", "finished"), ("001", "finished")]


@pytest.mark.cluster
def test_an_interrupt_leaves_the_best_so_far(recipe: dict, ray_session: None) -> None:
    """Ctrl-C comes while the second trial is on its way."""
    variants = {"quick": {"train.epochs": 2}, "endless": {"train.epochs": 100_000}}
    config = _config({**recipe, "variants": variants}, workers=1, patience=100_000)
    options = _options({"variant": {"grid": ["quick", "endless"]}}, search={"method": "grid", "concurrency": 1})
    on_its_way = config.directory / "trials" / "001" / "seed-0" / "metrics.jsonl"

    def interrupt() -> None:
        while not on_its_way.exists():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, options)
    assert json.loads((config.directory / "best" / "result.json").read_text())["trial"] == "000"
    assert _same(_weights(config.directory / "best" / "seed-0"), _weights(config.directory / "trials/000/seed-0"))
    assert _no_placement_group_is_left()


@pytest.mark.parametrize(
    ("changes", "others", "words"),
    [
        ({"workers.cpus": 64}, {}, "each whole on one node"),
        (
            {},
            {"metrics": {"test/accuracy": "max"}},
            "unknown metric 'test/accuracy'; known: val/accuracy, val/macro_f1",
        ),
        ({}, {"scheduler": {"method": "asha", "grace": 4}}, "is not below the 4 epochs of a trial"),
        ({"train.eval_every": 3}, {"scheduler": {"method": "asha", "grace": 2}}, "is before the first validation"),
        ({}, {"space": {"sampling.groups": {"choice": [2, 90]}}}, "training nodes cannot fill sampling.groups=90"),
        ({}, {"space": {"train.epochs": {"choice": [8]}}, "scheduler": {"method": "asha"}}, "train.epochs cannot be"),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(
    changes: dict, others: dict, words: str, recipe: dict, ray_session: None
) -> None:
    with pytest.raises(InputError, match=words):
        run_sweep(_config(recipe, changes=changes), _options(**others))
    assert not Path(recipe["out"]).exists()


def test_there_must_be_a_sweep_to_resume(recipe: dict) -> None:
    with pytest.raises(InputError, match="no sweep to resume here"):
        run_sweep(_config(recipe), _options(), resume=True)


@pytest.mark.cluster
@pytest.mark.slow
def test_the_best_configuration_trains_to_the_same_weights(recipe: dict, ray_session: None) -> None:
    config = _config(recipe)
    run_sweep(config, _options(search={"trials": 1}))
    run = launch(load_options(RunConfig, config.directory / "best" / "config.yaml"))
    assert _same(_weights(run / "default" / "seed-0"), _weights(config.directory / "best" / "seed-0"))


@pytest.mark.cluster
def test_halving_stops_trials_and_their_workers_take_the_next(recipe: dict, ray_session: None) -> None:
    config = _config(recipe, workers=1, epochs=40)
    options = _options(
        {"optim.lr": {"choice": [1e-7, 1e-2]}, "model.dropout": {"uniform": [0, 0.5]}},
        search={"method": "tpe", "trials": 8},
        metrics={"val/accuracy": "max", "seconds": "min"},
        scheduler={"method": "asha", "grace": 4, "reduction": 2},
    )
    before = len(_workers())
    rows = run_sweep(config, options)
    states = [row.status for row in rows]
    assert len(rows) == 8
    assert set(states) == {"finished", "stopped"}
    assert all(row.epochs < 40 for row in rows if row.status == "stopped")
    assert len(_workers()) - before <= 3
    assert _no_placement_group_is_left()
    # What was stopped has its checkpoint, and the right to be gone on with.
    stopped = next(row for row in rows if row.status == "stopped")
    assert (config.directory / "trials" / stopped.trial / "seed-0" / "checkpoint.pt").exists()


def _signal_a_worker_when(ready: Callable[[], bool], number: signal.Signals) -> threading.Thread:
    def send() -> None:
        while not ready():
            time.sleep(0.05)
        os.kill(next(worker.pid for worker in _workers() if worker.state == "ALIVE"), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def _in_its_sixth_epoch(config: RunConfig) -> Callable[[], bool]:
    log = config.directory / "trials" / "000" / "seed-0" / "metrics.jsonl"
    return lambda: log.exists() and len(log.read_text().splitlines()) > 5


@pytest.mark.cluster
def test_a_killed_worker_costs_its_trial_a_retry_or_the_trial_never_the_sweep(recipe: dict, ray_session: None) -> None:
    options = _options({"regulariser.alpha": {"choice": [0.2]}}, search={"trials": 2})
    trials = {}
    for name, failures in (("retried", 1), ("lost", 0)):
        config = _config(recipe, epochs=30, changes={"name": name, "workers.max_failures": failures})
        thread = _signal_a_worker_when(_in_its_sixth_epoch(config), signal.SIGKILL)
        trials[name] = run_sweep(config, options)
        thread.join(timeout=10)
        assert _no_placement_group_is_left()
    assert [row.status for row in trials["retried"]] == ["finished", "finished"]
    assert [row.status for row in trials["lost"]] == ["failed", "finished"]
    assert "of the workers died" in str(trials["lost"][0].error)
    out = Path(recipe["out"])
    kept = pq.read_table(out / "lost" / "trials.parquet").to_pylist()
    assert kept[0]["error"] == trials["lost"][0].error
    # Both trials are of the same point; the killed one went on from its checkpoint.
    one, other = (_weights(out / "retried" / "trials" / trial / "seed-0") for trial in ("000", "001"))
    assert _same(one, other)


@pytest.mark.cluster
def test_a_worker_that_hangs_is_named_and_ended(recipe: dict, ray_session: None) -> None:
    impatient = {"workers": {"max_failures": 0, "stall_timeout_s": 15}}
    config = _config(recipe, epochs=5000, patience=5000, changes=impatient)
    ready = _in_its_sixth_epoch(config)

    def steady() -> bool:
        # Workers tell of themselves every two seconds; one that has not yet is taken to be starting.
        return ready() and not time.sleep(8)

    thread = _signal_a_worker_when(steady, signal.SIGSTOP)
    (row,) = run_sweep(config, _options(search={"trials": 1}))
    thread.join(timeout=10)
    assert row.status == "failed"
    assert re.search(r"rank \d .*pid \d+.*stuck for .* s, with no sign of life", str(row.error))
    assert _no_placement_group_is_left()


@pytest.mark.cluster
def test_a_refused_trial_is_not_tried_again_and_a_sweep_of_finished_trials_ends_at_once(
    recipe: dict, ray_session: None
) -> None:
    config, options = _config(recipe, workers=1), _options(search={"trials": 2})
    # As a killed driver leaves it that has not yet written Tune's state; with a damaged checkpoint.
    dump_options(config.model_copy(update={"store": config.store.absolute()}), config.directory / "config.yaml")
    dump_options(options, config.directory / "space.yaml")
    damaged = config.directory / "trials" / "001" / "seed-0" / "checkpoint.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no checkpoint")
    rows = run_sweep(config, options, resume=True)
    assert [row.status for row in rows] == ["finished", "failed"]
    assert "not a readable checkpoint" in str(rows[1].error)

    damaged.unlink()
    first = config.directory / "trials" / "000" / "seed-0" / "model.pt"
    stamp = first.stat().st_mtime_ns
    again = run_sweep(config, options, resume=True)
    assert [row.status for row in again] == ["finished", "finished"]
    assert first.stat().st_mtime_ns == stamp
