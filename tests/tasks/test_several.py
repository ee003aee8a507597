"""Several tasks in one run: a step's loss, figures, resuming, two workers, and what is said of wrong configurations."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml

from optimag_dist import layerwise
from optimag_dist.options import load_options
from optimag_dist.ppr import PPRArtefact
from optimag_dist.store import GraphStore, LinkSplitOptions, split_links
from optimag_dist.tasks import monitor_of, named, node_classification, val_metrics_of
from optimag_dist.train.callback import Signal, TrainerCallback
from optimag_dist.train.fit import Worker
from optimag_dist.train.log import read_records
from optimag_dist.train.options import RunConfig, VariantConfig, merge
from optimag_dist.train.step import StepLoss
from optimag_dist.train.validation import check_input
from optimag_dist.types import InputError, StepBatch

from .tiny_stores import configure, evaluated, fit, make_ppr, make_store, quietly, start

TASKS: dict[str, dict[str, Any]] = {
    "links": {"kind": "link_prediction", "num_negatives": 8, "weight": 0.5},
    "classes": {"kind": "node_classification"},
    "matches": {"kind": "modality_retrieval", "weight": 3.0},
}
SEVERAL = {"kind": "several", "tasks": TASKS}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """Three communities of 16 nodes, which are classes; every seventh node or so lacks a modality."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("several")
    labels = np.repeat(np.arange(3), 16)
    features = {name: rng.normal(size=(48, width)) + labels[:, None] for name, width in (("text", 4), ("image", 6))}
    for x in features.values():
        x[rng.random(48) < 0.15] = np.nan
    edges = nx.planted_partition_graph(3, 16, 0.35, 0.03, seed=2).edges
    split = rng.choice(["train", "val", "test"], 48, p=[0.5, 0.25, 0.25]).tolist()
    whole = make_store(folder / "whole", features, edges, label=[f"c{y}" for y in labels], split=split)
    return split_links(whole, folder / "links", LinkSplitOptions(val=0.1, test=0.2, negatives=10), say=quietly)


@pytest.fixture(scope="module")
def ppr(store: GraphStore, tmp_path_factory: pytest.TempPathFactory) -> PPRArtefact:
    return make_ppr(store, tmp_path_factory.mktemp("ppr") / "artefact")


def _config(**sections: dict[str, Any]) -> VariantConfig:
    sampling = {"targets": 8, "group_size": 24, "fanouts": [3, 3]}
    return configure(SEVERAL, **{"sampling": sampling, "regulariser": {"weight": 1.0}, **sections})


# -- a step ------------------------------------------------------------------------------------------------------------


def test_a_steps_loss_is_the_weighted_sum_of_the_single_ones(store: GraphStore, ppr: PPRArtefact) -> None:
    parts = start(_config(), store, ppr)
    batch = next(parts.loader.epoch(parts.sources, 0))
    assert [group.task for group in batch.groups] == [0, 0, 1, 1, 2, 2]
    loss, metrics, _ = parts.step_loss(batch)

    total = 0.0
    for number, (name, head) in enumerate(parts.heads.items()):
        groups = tuple(replace(group, task=0) for group in batch.groups if group.task == number)
        alone = StepBatch(0, 0, groups, len(groups), (batch.num_items[number],))
        single, _, _ = StepLoss(parts.model, {name: head}, {name: 1.0}, None, 1)(alone)
        # By hand: each item counts once.
        embeddings = [parts.model.encode(group.features) for group in groups]
        sums = [head.loss(parts.model, z, group) for z, group in zip(embeddings, groups, strict=True)]
        assert single.item() == pytest.approx(sum(sums).item() / batch.num_items[number])
        assert metrics.task_losses[name].item() == pytest.approx(single.item())
        total += TASKS[name].get("weight", 1.0) * single.item()
    assert metrics.task_loss.item() == pytest.approx(total)

    # The regulariser's value is the mean over the groups of all tasks.
    values = []
    for group in batch.groups:
        seeds = {m: z[group.seed_rows] for m, z in parts.model.encode(group.features).items()}
        present = {m: mask[group.seed_rows] for m, mask in group.present.items()}
        values.append(parts.step_loss.regulariser(seeds, group.proximity, present).item())
    assert metrics.alignment.item() == pytest.approx(np.mean(values))
    assert min(values) > 0
    assert loss.item() == pytest.approx(total + np.mean(values))


def test_every_tasks_head_and_the_shared_model_are_trained(store: GraphStore, ppr: PPRArtefact) -> None:
    parts = start(_config(), store, ppr)
    loss, _, _ = parts.step_loss(next(parts.loader.epoch(parts.sources, 0)))
    loss.backward()
    trained = {name: p for name, p in parts.step_loss.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# -- a fit -------------------------------------------------------------------------------------------------------------


class Stopper(TrainerCallback):
    """Asks to stop after a number of steps."""

    def __init__(self, after: int) -> None:
        self._left = after

    def signal(self) -> Signal:
        self._left -= 1
        return Signal.STOP if self._left == 0 else Signal.GO_ON


TIMES = ("seconds", "wait_s", "ufgw_s", "targets_per_s", "seeds_per_s")


def test_a_resumed_fit_ends_as_the_unbroken_one_and_figures_bear_their_tasks_names(
    store: GraphStore, ppr: PPRArtefact, tmp_path: Path
) -> None:
    model = {"hidden": 16, "embedding": 8, "dropout": 0.3}
    config = _config(model=model, train={"epochs": 3}, checkpoint={"every": 2})
    whole = fit(config, store, tmp_path / "whole", ppr)
    assert whole is not None
    assert fit(config, store, tmp_path / "cut", ppr, Stopper(4)) is None
    assert fit(config, store, tmp_path / "cut", ppr) == whole
    ours, theirs = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("cut", "whole"))
    assert list(ours["heads"]) == list(TASKS)
    for part in (ours["model"], theirs["model"]), *((ours["heads"][name], theirs["heads"][name]) for name in TASKS):
        assert part[0].keys() == part[1].keys()
        assert all(torch.equal(part[0][key], part[1][key]) for key in part[1])
    records, others = (
        [{k: v for k, v in r.items() if k not in TIMES} for r in read_records(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "cut")
    )
    assert records == others

    # Nothing without a task's name but what belongs to the run.
    figures = {key.removeprefix("test/") for key in whole if key.startswith("test/")}
    assert figures >= {"links/mrr", "links/hits@10_all", "classes/accuracy", "classes/macro_f1", "matches/median_rank"}
    assert {figure.split("/")[0] for figure in figures} == set(TASKS)
    assert {f"val/{figure}" for figure in val_metrics_of(config.task)} <= records[0].keys()
    assert {f"task_loss/{name}" for name in TASKS} <= records[0].keys()
    # The first task chooses.
    assert whole["decisive"] == monitor_of(config.task) == "links/mrr"
    of_epochs = [record["val/links/mrr"] for record in records]
    assert whole["best_epoch"] == int(np.argmax(of_epochs))
    assert whole["val/links/mrr"] == max(of_epochs)


def _in_two(rank: int, world_size: int, config: VariantConfig, store: Path, out: Path) -> None:
    """The first step's metrics and gradients, then both parts' metrics with the weights as they were made."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", f"file://{out}.sync", rank=rank, world_size=world_size)
    parts = start(config, GraphStore.open(store), worker=Worker(rank, world_size))
    loss, step, _ = parts.parallel(next(parts.loader.epoch(parts.sources, 0)))
    loss.backward()
    sums = torch.stack([step.task_loss, *(step.task_losses[name] for name in TASKS)])
    if world_size > 1:
        dist.all_reduce(sums)
    with pytest.MonkeyPatch.context() as patch:
        # An odd number of chunks: in the last round the second worker has none.
        patch.setattr(layerwise, "_ROWS", 16)
        patch.setattr(node_classification, "_CHUNK", 3)
        metrics = {part: evaluated(parts, part) for part in ("val", "test")}
    gradients = {name: p.grad for name, p in parts.step_loss.named_parameters() if p.requires_grad}
    torch.save({"sums": sums, "gradients": gradients, "metrics": metrics}, f"{out}-{rank}")
    if world_size > 1:
        dist.destroy_process_group()


def test_two_workers_have_the_gradient_and_the_figures_of_one(store: GraphStore, tmp_path: Path) -> None:
    args = (_config(regulariser={"weight": 0}), store.path)
    _in_two(0, 1, *args, tmp_path / "one")
    mp.spawn(_in_two, args=(2, *args, tmp_path / "two"), nprocs=2)
    one, first, second = (torch.load(tmp_path / name, weights_only=False) for name in ("one-0", "two-0", "two-1"))
    assert first["metrics"] == second["metrics"]
    for part in ("val", "test"):
        assert first["metrics"][part] == pytest.approx(one["metrics"][part], rel=1e-9)
    torch.testing.assert_close(first["sums"], one["sums"])
    assert one["gradients"].keys() == first["gradients"].keys()
    for name, gradient in one["gradients"].items():
        # The sums differ in order alone: float32 rounding, relative to the parameter's largest gradient.
        tolerance = {"rtol": 1e-4, "atol": 1e-5 * float(gradient.abs().max()) + 1e-8}
        torch.testing.assert_close(first["gradients"][name], gradient, **tolerance)
        assert torch.equal(first["gradients"][name], second["gradients"][name])


# -- configuration -----------------------------------------------------------------------------------------------------


def _load(folder: Path, task: dict[str, Any], *overrides: str, **keys: Any) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"name": "run", "store": "stores/x", "task": task, **keys}, sort_keys=False))
    return load_options(RunConfig, path, overrides)


def test_an_override_reaches_one_of_several_tasks(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        SEVERAL,
        "task.tasks.links.weight=2",
        variants={
            "plain": {},
            "hard": {"task.tasks.links.negatives": "ppr"},
            "heavy": {"task": {"tasks": {"classes": {"weight": 9}}}},
        },
    )
    assert {name: task.weight for name, task in named(config.task).items()} == {"links": 2, "classes": 1, "matches": 3}
    variants = config.resolve()
    assert [named(v.task)["links"].negatives for v in variants.values()] == ["uniform", "ppr", "uniform"]
    assert [named(v.task)["classes"].weight for v in variants.values()] == [1, 1, 9]
    assert [named(v.task)["links"].weight for v in variants.values()] == [2, 2, 2]
    off = {
        name: v.model_copy(update={"regulariser": v.regulariser.model_copy(update={"weight": 0})})
        for name, v in variants.items()
    }
    assert {name: v.needs_ppr for name, v in off.items()} == {"plain": False, "hard": True, "heavy": False}


KINDS = "node_classification, link_prediction, modality_retrieval"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"kind": "regression"}, f"key 'task': needed a section with kind: one of {KINDS}"),
        ({"kind": None}, f"key 'task': needed a section with kind: one of {KINDS}"),
        ({**SEVERAL, "tasks": {**TASKS, "more": {"kind": "regression"}}}, f"key 'task.tasks.more': needed .* {KINDS}"),
        ({**SEVERAL, "tasks": {**TASKS, "more": SEVERAL}}, "key 'task.tasks.more': needed .* or several, at the top"),
        ({**SEVERAL, "tasks": {"links": TASKS["links"]}}, "key 'task.tasks': .*at least 2 items"),
        ({**SEVERAL, "tasks": {**TASKS, "a/b": TASKS["links"]}}, "key 'task.tasks.a/b.*pattern"),
        ({**SEVERAL, "weight": 2}, "unknown key 'task.weight'"),
        (
            {**SEVERAL, "tasks": {**TASKS, "links": {"kind": "link_prediction", "decodr": "mlp"}}},
            "unknown key 'task.tasks.links.decodr'; did you mean 'task.tasks.links.decoder'",
        ),
        (
            {**SEVERAL, "tasks": {**TASKS, "links": {**TASKS["links"], "weight": 0}}},
            "'task.tasks.links.weight': .*greater",
        ),
        ({"kind": "link_prediction", "split": "stored"}, "unknown key 'task.split'"),
    ],
)
def test_wrong_tasks_are_named(task: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        _load(tmp_path, task)


def test_a_section_starts_anew_when_its_kind_changes(tmp_path: Path) -> None:
    classes = {"kind": "node_classification", "split": {"train": 0.5, "val": 0.2}, "weight": 2.0}
    links = {"kind": "link_prediction"}
    assert merge({"task": classes}, {"task": links}) == {"task": links}
    assert merge({"task": classes}, {"task.kind": "link_prediction"}) == {"task": links}
    assert merge({"task": classes}, {"task": {"kind": "node_classification", "weight": 3.0}}) == {
        "task": {**classes, "weight": 3.0}
    }
    assert merge({"task": classes}, {"task.weight": 3.0}) == {"task": {**classes, "weight": 3.0}}
    several = {"kind": "several", "tasks": {"a": classes, "b": links}}
    changed = merge({"task": several}, {"task.tasks.a": {"kind": "modality_retrieval"}})
    assert changed == {"task": {**several, "tasks": {"a": {"kind": "modality_retrieval"}, "b": links}}}
    # What was given is not changed.
    assert several["tasks"]["a"] is classes
    assert set(classes) == {"kind", "split", "weight"}

    variants = {"classes": {}, "links": {"task": links}, "both": {"task": SEVERAL}}
    resolved = _load(tmp_path, classes, variants=variants).resolve()
    assert [variant.task.kind for variant in resolved.values()] == ["node_classification", "link_prediction", "several"]
    assert resolved["classes"].task.weight == 2
    assert resolved["links"].task.weight == 1


def test_the_task_that_lacks_something_is_named(planted_store: GraphStore, store: GraphStore) -> None:
    with pytest.raises(
        InputError, match=re.escape(f"task links: {planted_store.path}: link prediction needs held-out")
    ):
        check_input(planted_store, _config(), 0)
    check_input(store, _config(), 0)
