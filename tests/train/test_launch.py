"""Whole runs through Ray Train, and what is checked before them."""

import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch

from optimag_dist.files import sole_writer
from optimag_dist.options import validate_options
from optimag_dist.report.comparison import comparison_table
from optimag_dist.train.launch import launch, plan_fits
from optimag_dist.train.options import RunConfig
from optimag_dist.types import Diverged, InputError, RunError

from ..diverging import lost


def _config(recipe: dict, **changes: object) -> RunConfig:
    return validate_options(RunConfig, {**recipe, **changes}, "recipe")


def test_every_variant_is_fitted_with_every_seed(recipe: dict) -> None:
    variants = {"plain": {"regulariser.weight": 0}, "optimag": {}}
    fits = plan_fits(_config(recipe, variants=variants, seeds=(0, 1)))
    assert [(f.seed, f.variant) for f in fits] == [(0, "plain"), (0, "optimag"), (1, "plain"), (1, "optimag")]
    assert len({fit.directory for fit in fits}) == 4
    assert {fit.config.regularised for fit in fits if fit.variant == "plain"} == {False}


def test_two_workers_train_variants_and_a_cut_run_is_completed(recipe: dict, ray_session: None) -> None:
    recipe["train"] = {**recipe["train"], "epochs": 4}
    variants = {"plain": {"regulariser.weight": 0}, "optimag": {}}
    run = launch(_config(recipe, variants=variants, seeds=(1,)))
    results = pq.read_table(run / "results.parquet").to_pylist()
    assert [(r["seed"], r["variant"]) for r in results] == [(1, "plain"), (1, "optimag")]
    assert all(0 <= r["test/accuracy"] <= 1 for r in results)
    metrics = pq.read_table(run / "metrics.parquet").to_pylist()
    assert len(metrics) == 2 * 4
    assert {m["alignment"] is None for m in metrics if m["variant"] == "plain"} == {True}
    assert {m["alignment"] is None for m in metrics if m["variant"] == "optimag"} == {False}

    # As if killed in its last fit: that one alone is done again, and ends as before, now with rows from shard servers.
    untouched = run / "plain" / "seed-1" / "model.pt"
    stamp = untouched.stat().st_mtime_ns
    done = run / "optimag" / "seed-1"
    weights = torch.load(done / "model.pt")["model"]
    for name in ("result.json", "checkpoint.pt", "model.pt"):
        (done / name).unlink()
    (run / "results.parquet").unlink()
    recipe["workers"] = {"placement": "sharded", "shard_servers": 3}
    again = launch(_config(recipe, variants=variants, seeds=(1,)), resume=True)
    retrained = torch.load(done / "model.pt")["model"]
    assert all(torch.equal(retrained[name], weights[name]) for name in weights)
    assert pq.read_table(again / "results.parquet").to_pylist() == results
    assert untouched.stat().st_mtime_ns == stamp

    with pytest.raises(InputError, match="there is a run here already; go on with it by --resume"):
        launch(_config(recipe, variants=variants, seeds=(1,)))
    with pytest.raises(InputError, match="'optimag' was started with other options"):
        launch(_config(recipe, variants={**variants, "optimag": {"regulariser.rho": 2}}, seeds=(1,)), resume=True)


@pytest.mark.slow
def test_a_fit_that_diverges_costs_no_other_and_is_none_that_has_ended(
    recipe: dict, ray_session: None, tmp_path: Path
) -> None:
    recipe["train"] = {**recipe["train"], "epochs": 30}
    recipe["checkpoint"] = {"every": 1}
    recipe["regulariser"] = {"weight": 0}
    variants = {"lost": lost(tmp_path), "plain": {"train.epochs": 2}}
    config = _config(recipe, variants=variants)
    with pytest.raises(Diverged, match=r"1 of 2 fits diverged \(lost seed 0\), 1 finished.*lower optim.lr"):
        launch(config)
    table = pq.read_table(config.directory / "results.parquet").to_pylist()
    assert [(row["variant"], row["status"], row["test/accuracy"] is None) for row in table] == [
        ("lost", "diverged", True),
        ("plain", "finished", False),
    ]
    assert not (config.directory / "lost/seed-0/model.pt").exists()
    comparison = comparison_table(config.directory)
    assert [(row.variant, row.finished) for row in comparison.rows] == [("lost", 0), ("plain", 1)]
    assert comparison.sentences[0].startswith("lost seed 0 diverged, and is in no mean or difference: loss nan")

    # Its last checkpoint is from before, and it has the steps again that it needs.
    launch(
        config.model_copy(update={"variants": {**variants, "lost": {**lost(tmp_path), "train.epochs": 6}}}), resume=True
    )
    table = pq.read_table(config.directory / "results.parquet").to_pylist()
    assert [row["status"] for row in table] == ["finished", "finished"]
    assert not (config.directory / "lost/seed-0/diverged.json").exists()


def test_one_driver_at_a_time(recipe: dict) -> None:
    config = _config(recipe)
    with sole_writer(config.directory):
        for resume in (False, True):
            with pytest.raises(
                RunError, match=rf"toy: pid {os.getpid()} on host .* is at work here; wait until it has"
            ):
                launch(config, resume=resume)


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("sampling", {"groups": 90}, "training nodes cannot fill sampling.groups=90"),
        (
            "workers",
            {"cpus": 64},
            "needs 2 × {CPU: 64}, each whole on one node",
        ),
        (
            "workers",
            {"device": "cuda"},
            "needs 2 × {CPU: 1, GPU: 1}, each whole on one node",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(
    section: str, changes: dict, words: str, recipe: dict, ray_session: None
) -> None:
    recipe[section] = {**recipe.get(section, {}), **changes}
    with pytest.raises(InputError, match=words):
        launch(_config(recipe))
    assert not Path(recipe["out"]).exists()


def test_a_sampler_that_is_not_installed_is_refused_before_it_starts(
    recipe: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dgl", None)
    recipe["sampling"]["sampler"] = "dgl"
    with pytest.raises(InputError, match=r"sampling\.sampler=dgl needs DGL.*sampling\.sampler=keyed"):
        launch(_config(recipe))
    assert not Path(recipe["out"]).exists()


def test_a_missing_store_and_nothing_to_resume_are_named(recipe: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        launch(_config(recipe, store=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="no run to resume here"):
        launch(_config(recipe), resume=True)


@pytest.mark.slow
def test_workers_that_do_not_come_are_told_with_what_is_missing(recipe: dict, ray_session: None) -> None:
    """Somebody else holds a CPU: enough are there, but not free."""
    hog = ray.util.placement_group([{"CPU": 1}])
    ray.get(hog.ready())
    try:
        recipe["workers"] = {"start_timeout_s": 8}
        with pytest.raises(RunError, match=r"not placed within 8 s: 2 of 1 CPUs each.*CPUs free now: 1") as told:
            launch(_config(recipe))
        assert "Raise workers.start_timeout_s" in str(told.value)
    finally:
        ray.util.remove_placement_group(hog)


@pytest.mark.slow
def test_input_that_a_worker_refuses_ends_the_run_at_once(recipe: dict, ray_session: None) -> None:
    """Although failures are allowed: started again, it would refuse again."""
    recipe["train"], recipe["workers"] = {**recipe["train"], "epochs": 2}, {"max_failures": 100}
    config = _config(recipe)
    damaged = config.directory / "default/seed-0/checkpoint.pt"
    launch(config)
    (damaged.parent / "result.json").unlink()
    damaged.write_bytes(b"torn")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        launch(config, resume=True)
