"""One fit: it learns, it resumes exactly, and its gradient does not depend on the number of workers."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from optimag_dist.options import validate_options
from optimag_dist.ppr import PPRArtefact
from optimag_dist.sampling import GroupLoader, SeedBatcher, StoreRows
from optimag_dist.store import GraphStore
from optimag_dist.tasks import NodeClassification
from optimag_dist.train.fit import Fit, Worker, _Fitting, run_fit
from optimag_dist.train.options import RunConfig, VariantConfig
from optimag_dist.types import InputError


def _fit(recipe: dict, directory: Path, **train: object) -> Fit:
    recipe = {**recipe, "train": {**recipe["train"], **train}}
    return Fit("default", 0, validate_options(RunConfig, recipe, "recipe").resolve()["default"], directory)


def _weights(directory: Path) -> dict[str, Tensor]:
    return torch.load(directory / "model.pt", weights_only=True)["model"]


def test_a_fit_learns_what_only_the_graph_tells(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    """With noise three times the classes' spread, a node's own features leave errors that its neighbourhood mends."""
    sage = run_fit(_fit(recipe, tmp_path / "sage", epochs=60), planted_store, planted_ppr, Worker())
    recipe["model"] = {**recipe["model"], "backbone": "mlp"}
    mlp = run_fit(_fit(recipe, tmp_path / "mlp", epochs=60), planted_store, planted_ppr, Worker())
    assert sage["test/accuracy"] >= 0.85  # 49 test nodes: five seeds with either sampler lie between .9 and 1
    assert mlp["test/accuracy"] <= sage["test/accuracy"] - 0.1


@pytest.mark.parametrize("backbone", ["sage", "gcn", "mlp"])
def test_every_backbone_leaves_a_whole_fit_behind(
    backbone: str, recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    recipe["model"] = {**recipe["model"], "backbone": backbone}
    records: list[dict] = []
    fit = _fit(recipe, tmp_path / "fit", epochs=3)
    result = run_fit(fit, planted_store, planted_ppr, Worker(), records.append)
    assert result == json.loads((fit.directory / "result.json").read_text())
    assert [r["epoch"] for r in records] == [0, 1, 2]
    assert records == [json.loads(line) for line in (fit.directory / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "alignment", "kept_ppr", "kept_mass/text", "val/accuracy", "val/macro_f1"} <= records[0].keys()
    assert any((fit.directory / "tensorboard").iterdir())
    kept = pq.read_table(fit.directory / "kept_mass.parquet").to_pydict()
    assert kept["id"] == planted_store.ids(np.arange(120))
    assert np.isfinite(kept["text"]).all()
    assert np.array_equal(np.isnan(kept["image"]), ~planted_store.present("image"))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_after", [1, 6, 11])
def test_a_killed_fit_resumes_to_the_same_bits(
    killed_after: int, recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    whole = _fit(recipe, tmp_path / "whole")
    run_fit(whole, planted_store, planted_ppr, Worker())
    broken = _fit(recipe, tmp_path / "broken")

    def kill(record: dict) -> None:
        if record["epoch"] == killed_after:
            raise Killed

    with pytest.raises(Killed):
        run_fit(broken, planted_store, planted_ppr, Worker(), kill)
    resumed: list[dict] = []
    run_fit(broken, planted_store, planted_ppr, Worker(), resumed.append)
    # Checkpoints are written every four epochs.
    assert resumed[0]["epoch"] == killed_after // 4 * 4
    ours, theirs = _weights(broken.directory), _weights(whole.directory)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [
        [json.loads(line)["loss"] for line in (fit.directory / "metrics.jsonl").read_text().splitlines()]
        for fit in (whole, broken)
    ]
    assert losses[0] == losses[1]


def test_a_finished_fit_is_not_repeated(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    fit = _fit(recipe, tmp_path / "fit", epochs=2)
    first = run_fit(fit, planted_store, planted_ppr, Worker())
    assert run_fit(fit, planted_store, planted_ppr, Worker(), lambda record: pytest.fail("trained again")) == first


def test_another_configuration_does_not_take_up_a_checkpoint(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    fit = _fit(recipe, tmp_path / "fit", epochs=4)
    run_fit(fit, planted_store, planted_ppr, Worker())
    (fit.directory / "result.json").unlink()
    with pytest.raises(InputError, match="another configuration"):
        run_fit(_fit(recipe, fit.directory, lr=0.02), planted_store, planted_ppr, Worker())
    (fit.directory / "checkpoint.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        run_fit(fit, planted_store, planted_ppr, Worker())


def test_patience_stops_early(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    result = run_fit(_fit(recipe, tmp_path, epochs=200, patience=3), planted_store, planted_ppr, Worker())
    assert result["epochs"] < 200
    assert result["epochs"] == result["best_epoch"] + 1 + 3


# -- one gradient, however many workers ------------------------------------------------------------------------------


def _first_step_gradients(
    rank: int, world_size: int, config: VariantConfig, store_path: Path, ppr_path: Path, out: Path
) -> None:
    """Gradients after the first step's backward, written by rank 0."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", f"file://{out}.sync", rank=rank, world_size=world_size)
    fit = Fit("default", 0, config, out)
    store = GraphStore.open(store_path)
    fitting = _Fitting(fit, store, PPRArtefact.open(ppr_path), Worker(rank, world_size), StoreRows(store))
    batch = next(iter(fitting._loader.epoch(fitting._batcher, 0)))
    loss, _ = fitting._parallel(batch)
    loss.backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in fitting._model.named_parameters()}, out)
    if world_size > 1:
        dist.destroy_process_group()


def test_two_workers_have_the_gradient_of_one(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    recipe["model"] = {**recipe["model"], "dropout": 0.0}
    config = _fit(recipe, tmp_path).config
    places = (config, planted_store.path, planted_ppr.path)
    _first_step_gradients(0, 1, *places, tmp_path / "one.pt")
    mp.spawn(_first_step_gradients, args=(2, *places, tmp_path / "two.pt"), nprocs=2)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    assert any(gradient.abs().max() > 1e-3 for gradient in one.values())
    for name, gradient in one.items():
        # The sums differ in order alone: float32 rounding, relative to the parameter's largest gradient.
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-8)


def test_ranks_share_a_step_out_and_take_as_many_steps(planted_store: GraphStore, planted_ppr: PPRArtefact) -> None:
    options = validate_options(RunConfig, {"name": "x", "store": "x"}, "recipe").sampling.model_copy(
        update={"groups": 3, "anchors": 8, "group_size": 20, "fanouts": (3,)}
    )
    task = NodeClassification(planted_store, VariantConfig().task, seed=0)
    batcher = SeedBatcher(task.train, planted_store.num_nodes, planted_ppr, options, seed=0)
    rows = StoreRows(planted_store)
    alone, first, second = (
        list(
            GroupLoader(
                rows, planted_ppr, task.labels, options, seed=0, messages=True, rank=rank, world_size=size
            ).epoch(batcher, 0)
        )
        for rank, size in ((0, 1), (0, 2), (1, 2))
    )
    assert len(alone) == len(first) == len(second) == batcher.steps_per_epoch
    for whole, a, b in zip(alone, first, second, strict=True):
        assert whole.num_anchors == a.num_anchors == b.num_anchors
        # Groups are dealt like cards: 0 and 2 to the first rank, 1 to the second.
        for mine, theirs in zip((a.groups[0], b.groups[0], a.groups[1]), whole.groups, strict=True):
            assert torch.equal(mine.node_ids, theirs.node_ids)
            assert torch.equal(mine.proximity, theirs.proximity)
            assert all(torch.equal(x.indices, y.indices) for x, y in zip(mine.blocks, theirs.blocks, strict=True))


def test_a_batch_says_what_the_store_says(planted_store: GraphStore, planted_ppr: PPRArtefact) -> None:
    options = validate_options(RunConfig, {"name": "x", "store": "x"}, "recipe").sampling.model_copy(
        update={"anchors": 8, "group_size": 24}
    )
    task = NodeClassification(planted_store, VariantConfig().task, seed=0)
    loader = GroupLoader(StoreRows(planted_store), planted_ppr, task.labels, options, seed=0, messages=True)
    batcher = SeedBatcher(task.train, planted_store.num_nodes, planted_ppr, options, seed=0)
    for batch in loader.epoch(batcher, 0):
        for group in batch.groups:
            nodes = group.node_ids.numpy()
            seeds = nodes[group.seed_rows.numpy()]
            anchors = seeds[: group.num_anchors]
            assert len(np.unique(nodes)) == len(nodes)
            assert nodes[: group.num_anchors].tolist() == anchors.tolist()
            assert group.labels.tolist() == task.labels[anchors].tolist()
            for name in planted_store.modalities:
                assert np.array_equal(group.features[name].numpy(), planted_store.gather(name, nodes))
                assert np.array_equal(group.present[name].numpy(), planted_store.present(name)[nodes])
            assert np.array_equal(group.proximity.numpy(), planted_ppr.submatrix(seeds))
            assert 0 < group.kept_ppr <= 1
            assert np.array_equal(group.degrees.numpy(), np.diff(planted_store.topology.indptr)[nodes])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_fits_like_the_cpu(
    recipe: dict, planted_store: GraphStore, planted_ppr: PPRArtefact, tmp_path: Path
) -> None:
    gpu, cpu = (
        run_fit(_fit(recipe, tmp_path / name, epochs=30), planted_store, planted_ppr, Worker(device=torch.device(name)))
        for name in ("cuda", "cpu")
    )
    # Dropout draws other numbers on another device: the same quality, not the same weights.
    assert gpu["test/accuracy"] >= cpu["test/accuracy"] - 0.1
