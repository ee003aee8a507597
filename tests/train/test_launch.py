"""Whole runs through Ray Train, and the doors in front of them."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from optimag_dist.options import validate_options
from optimag_dist.train.launch import launch
from optimag_dist.train.options import RunConfig
from optimag_dist.types import InputError


def _config(recipe: dict, **changes: object) -> RunConfig:
    return validate_options(RunConfig, {**recipe, **changes}, "recipe")


def test_two_workers_train_variants_and_seeds_and_a_cut_run_is_completed(recipe: dict, ray_session: None) -> None:
    recipe["train"] = {**recipe["train"], "epochs": 4}
    variants = {"plain": {"regulariser.weight": 0}, "optimag": {}}
    run = launch(_config(recipe, variants=variants, seeds=(0, 1)))
    results = pq.read_table(run / "results.parquet").to_pylist()
    assert [(r["seed"], r["variant"]) for r in results] == [(0, "plain"), (0, "optimag"), (1, "plain"), (1, "optimag")]
    assert all(0 <= r["test/accuracy"] <= 1 for r in results)
    metrics = pq.read_table(run / "metrics.parquet").to_pylist()
    assert len(metrics) == 4 * 4
    assert {m["alignment"] is None for m in metrics if m["variant"] == "plain"} == {True}
    assert {m["alignment"] is None for m in metrics if m["variant"] == "optimag"} == {False}

    # As if killed in its last fit: that one alone is done again, and ends as before, now with rows from shard owners.
    untouched = run / "plain" / "seed-1" / "model.pt"
    stamp = untouched.stat().st_mtime_ns
    done = run / "optimag" / "seed-1"
    weights = torch.load(done / "model.pt")["model"]
    for name in ("result.json", "checkpoint.pt", "model.pt"):
        (done / name).unlink()
    (run / "results.parquet").unlink()
    recipe["train"] = {**recipe["train"], "placement": "sharded", "owners": 3}
    again = launch(_config(recipe, variants=variants, seeds=(0, 1)), resume=True)
    retrained = torch.load(done / "model.pt")["model"]
    assert all(torch.equal(retrained[name], weights[name]) for name in weights)
    assert pq.read_table(again / "results.parquet").to_pylist() == results
    assert untouched.stat().st_mtime_ns == stamp

    with pytest.raises(InputError, match="there is a run here already; go on with it by --resume"):
        launch(_config(recipe, variants=variants, seeds=(0, 1)))
    with pytest.raises(InputError, match="'optimag' was started with other options"):
        launch(_config(recipe, variants={**variants, "optimag": {"regulariser.rho": 2}}, seeds=(0, 1)), resume=True)


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("sampling", {"groups": 90}, "training nodes cannot fill sampling.groups=90"),
        ("train", {"cpus_per_worker": 64}, "needs 128 CPUs and the Ray cluster has 2"),
        ("train", {"device": "cuda"}, "needs 2 GPUs and the Ray cluster has 0"),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(
    section: str, changes: dict, words: str, recipe: dict, ray_session: None
) -> None:
    recipe[section] = {**recipe.get(section, {}), **changes}
    with pytest.raises(InputError, match=words):
        launch(_config(recipe))
    assert not Path(recipe["out"]).exists()


def test_a_missing_store_and_nothing_to_resume_are_named(recipe: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        launch(_config(recipe, store=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="no run to resume here"):
        launch(_config(recipe), resume=True)
