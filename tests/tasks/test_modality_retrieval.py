"""Modality retrieval: what only messages tell is learned, nothing withheld gets through, figures are those of numpy."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimag_dist.models.backbones import BACKBONES
from optimag_dist.options import validate_options
from optimag_dist.sampling import GraphDataSource, LocalSource
from optimag_dist.store import GraphStore
from optimag_dist.tasks.modality_retrieval import ModalityRetrieval, ModalityRetrievalOptions
from optimag_dist.tasks.task import TaskContext
from optimag_dist.train.parts import Parts
from optimag_dist.types import GroupBatch, InputError

from .tiny_stores import batch_of, configure, evaluated, first_groups, fit, make_ppr, make_store, start

RETRIEVAL = {"kind": "modality_retrieval"}
THREE = ("image", "sound", "text")
NUM_NODES, CHUNK = 60, 9


def task_of(store: GraphStore, **options: Any) -> ModalityRetrieval:
    made = validate_options(ModalityRetrievalOptions, options, "task")
    return ModalityRetrieval(store, made, TaskContext(tuple(store.modalities), 0))


# -- it learns ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told_by_neighbours(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """An item's picture is that of its only neighbour, rotated; neighbours are in no part, and texts are noise."""
    rng = np.random.default_rng(0)
    items, width = 240, 8
    rotation, _ = np.linalg.qr(rng.normal(size=(width, width)))
    theirs = rng.normal(size=(items, width))
    features = {"text": rng.normal(size=(2 * items, 2)), "image": np.concatenate([theirs @ rotation, theirs])}
    edges = [(item, items + item) for item in range(items)]
    split = [*rng.choice(["train", "val", "test"], items, p=[0.6, 0.2, 0.2]), *[None] * items]
    return make_store(tmp_path_factory.mktemp("retrieval") / "told", features, edges, split=split)


def test_what_only_messages_tell_is_learned_and_lost_without_them(
    told_by_neighbours: GraphStore, tmp_path: Path
) -> None:
    task = {**RETRIEVAL, "pairs": [["text", "image"]]}
    sections: dict[str, dict] = {
        "sampling": {"targets": 16, "fanouts": [-1]},
        "model": {"hidden": 64, "embedding": 16},
        "train": {"epochs": 25, "eval_every": 5},
    }
    sage = fit(configure(task, **sections), told_by_neighbours, tmp_path / "sage")
    sections["model"]["backbone"] = "mlp"
    mlp = fit(configure(task, **sections), told_by_neighbours, tmp_path / "mlp")
    candidates = int((told_by_neighbours.split == 2).sum())
    chance = float((1 / np.arange(1, candidates + 1)).mean())
    assert sage["test/mrr"] >= 0.95  # two seeds: 1 and 1
    assert sage["test/recall@5"] == 1
    assert sage["test/median_rank"] == 1
    assert sage["test/matching"] >= 0.99
    assert mlp["test/mrr"] <= 2 * chance < 0.25
    assert abs(mlp["test/matching"] - 0.5) <= 0.15
    assert sage["decisive"] == "mrr"


# -- nothing withheld gets through -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """Three modalities, each of which every fifth node or so lacks, and a graph that is full of short circles."""
    rng = np.random.default_rng(1)
    features = {name: rng.normal(size=(NUM_NODES, width)) for name, width in zip(THREE, (4, 5, 6), strict=True)}
    for x in features.values():
        x[rng.random(NUM_NODES) < 0.2] = np.nan
    edges = {(u, (u + step) % NUM_NODES) for u in range(NUM_NODES) for step in (1, 2, 7)}
    split = rng.choice(["train", "val", "test"], NUM_NODES, p=[0.4, 0.3, 0.3]).tolist()
    return make_store(tmp_path_factory.mktemp("three") / "three", features, edges, split=split)


class AnotherValue:
    """:class:`GraphDataSource` in which one node has another value of a modality."""

    def __init__(self, rows: LocalSource, modality: str, node: int) -> None:
        self._rows, self._place = rows, (modality, node)
        self.modalities, self.topology = rows.modalities, rows.topology
        self.neighbours, self.degrees, self.present = rows.neighbours, rows.degrees, rows.present

    def features(self, modality: str, nodes: np.ndarray) -> np.ndarray:
        values = self._rows.features(modality, nodes)
        if modality == self._place[0]:
            values[nodes == self._place[1]] = np.random.default_rng(5).normal(size=values.shape[1])
        return values


def _ready(store: GraphStore, **sections: dict) -> tuple[Parts, ModalityRetrieval, Any]:
    """A fit before its first step, its task and head; weights so large that all inputs are heard."""
    parts = start(configure(RETRIEVAL, **sections), store)
    parts.step_loss.eval()
    (task,), (head,) = parts.tasks.values(), parts.heads.values()
    for name, parameter in parts.step_loss.named_parameters():
        if parameter.ndim == 2 or "absent" in name:
            nn.init.normal_(parameter, std=0.4)
    return parts, task, head


@torch.no_grad()
def _vectors(parts: Parts, head: Any, batch: GroupBatch) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Of a batch of training: what its targets ask with, and are found by."""
    embeddings = parts.model.encode(batch.features)
    own, present = ({m: x[: batch.num_targets] for m, x in of.items()} for of in (embeddings, batch.present))
    return head.vectors(head.states(parts.model, embeddings, batch), own, present)


@torch.no_grad()
def _evaluated(
    parts: Parts, task: ModalityRetrieval, head: Any, rows: GraphDataSource, nodes: np.ndarray
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same of ``nodes`` in evaluation."""
    forward = parts.forward(lambda: None, rows)
    states = forward.masked_states(nodes, [task.mask(source) for source in head.sources])
    by_source = {source: states[:, place] for place, source in enumerate(head.sources)}
    return head.vectors(by_source, forward.encode(nodes), forward.present(nodes))


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "mlp"])
def test_a_query_hears_of_nothing_but_its_source_and_the_neighbours(backbone: str, three: GraphStore) -> None:
    """Two layers and circles of three: what a node shows comes back to it, and to the others of its batch."""
    parts, task, head = _ready(three, model={"backbone": backbone})
    present = np.logical_and.reduce([three.present(name) for name in THREE])
    whole = np.flatnonzero(present)
    node = int(whole[4])
    # Next to each other, as far as can be.
    nodes = np.sort(whole[np.argsort(np.abs(whole - node), kind="stable")[:CHUNK]])
    indptr, indices = three.topology.indptr, three.topology.indices
    around = [v for v in indices[indptr[node] : indptr[node + 1]].tolist() if present[v]]
    beyond = [v for v in around if v not in nodes]
    assert len(beyond) >= 1
    assert set(around) & set(nodes.tolist())
    row = nodes.tolist().index(node)
    rows = LocalSource(three)
    asked, found = _vectors(parts, head, batch_of(parts, nodes, rows=rows))
    for changed in THREE:
        other_asked, other_found = _vectors(parts, head, batch_of(parts, nodes, rows=AnotherValue(rows, changed, node)))
        for (source, _), before, after in zip(task.pairs, asked, other_asked, strict=True):
            if source == changed:
                assert not torch.allclose(before[row], after[row], atol=1e-4)
            else:
                # Neither the node's own query nor any other of the batch.
                assert torch.equal(before, after)
        for name in THREE:
            moved = (found[name] != other_found[name]).any(1).tolist()
            assert moved == [name == changed and place == row for place in range(CHUNK)]
        by_neighbour, _ = _vectors(parts, head, batch_of(parts, nodes, rows=AnotherValue(rows, changed, beyond[0])))
        for before, after in zip(asked, by_neighbour, strict=True):
            assert not torch.allclose(before[row], after[row], atol=1e-4)


def test_training_and_evaluation_withhold_alike(three: GraphStore) -> None:
    """Within a batch of training too, no target's query hears of what the targets are asked for."""
    parts, task, head = _ready(three)
    group = first_groups(parts)[0]
    asked, _ = _vectors(parts, head, group)
    for changed in THREE:
        features = {name: x.clone() for name, x in group.features.items()}
        features[changed][: group.num_targets] = torch.randn(group.num_targets, features[changed].shape[1])
        after, _ = _vectors(parts, head, replace(group, features=features))
        for (source, _), before, now in zip(task.pairs, asked, after, strict=True):
            assert torch.equal(before, now) == (source != changed)


def test_in_evaluation_a_query_hears_of_no_judged_nodes_target(three: GraphStore) -> None:
    """Also where it is a neighbour in another's batch."""
    parts, task, head = _ready(three)
    indptr, indices = three.topology.indptr, three.topology.indices
    whole = np.logical_and.reduce([three.present(name) for name in THREE])
    ends = np.stack([np.repeat(np.arange(NUM_NODES), np.diff(indptr)), indices], 1)
    node, neighbour = next(edge.tolist() for edge in ends if (whole & task.judged_on)[edge].all())
    seen: list[tuple[list[Tensor], dict[str, Tensor]]] = []
    rows = LocalSource(three)
    for each in (rows, *(AnotherValue(rows, changed, neighbour) for changed in THREE)):
        seen.append(_evaluated(parts, task, head, each, np.array([node])))
    (asked, _), *others = seen
    for changed, (other_asked, _) in zip(THREE, others, strict=True):
        for (source, _), before, after in zip(task.pairs, asked, other_asked, strict=True):
            assert torch.equal(before, after) == (source != changed)


def test_training_does_not_see_what_the_judged_nodes_are_found_by(three: GraphStore) -> None:
    parts, task, _ = _ready(three)
    assert task.judged_on.sum() == len(task.val) + len(task.test)
    for batch in parts.loader.epoch(parts.sources, 0):
        for group in batch.groups:
            judged = task.judged_on[group.node_ids.numpy()]
            assert judged.any()
            for name in THREE:
                assert not group.present[name].numpy()[judged].any()
                assert not group.features[name].numpy()[judged].any()


# -- loss and figures --------------------------------------------------------------------------------------------------


def test_three_modalities_are_six_pairs_and_fewer_where_they_are_named(three: GraphStore) -> None:
    assert task_of(three).pairs == tuple(permutations(THREE, 2))
    task = task_of(three, pairs=[["sound", "text"]])
    assert task.pairs == (("sound", "text"),)
    both = three.present("sound") & three.present("text")
    for part, nodes in enumerate((task.train, task.val, task.test)):
        assert np.array_equal(nodes, np.flatnonzero(both & (three.split == part)))


def test_the_loss_is_the_cross_entropy_both_ways_among_those_that_have_both(three: GraphStore) -> None:
    parts, task, head = _ready(three)
    nn.init.constant_(head.log_scale, 1.5)
    for group in first_groups(parts):
        asked, found = _vectors(parts, head, group)
        present = {name: mask[: group.num_targets] for name, mask in group.present.items()}
        expected, counts = 0.0, set()
        for query, (source, target) in zip(asked, task.pairs, strict=True):
            both = present[source] & present[target]
            counts.add(int(both.sum()))
            cosines = np.exp(1.5) * (query[both].double() @ found[target][both].double().T)
            own = torch.arange(len(cosines))
            expected += sum(nn.functional.cross_entropy(x, own, reduction="sum").item() for x in (cosines, cosines.T))
        assert 1 < min(counts) < group.num_targets
        with torch.no_grad():
            loss = head.loss(parts.model, parts.model.encode(group.features), group).item()
        assert loss == pytest.approx(expected / 2 / 6, rel=1e-5)


def test_vectors_are_of_unit_length_or_nothing(three: GraphStore) -> None:
    parts, task, head = _ready(three)
    asked, found = _evaluated(parts, task, head, LocalSource(three), np.arange(NUM_NODES))
    by_modality = [(source, query) for query, (source, _) in zip(asked, task.pairs, strict=True)]
    for name, vectors in [*by_modality, *found.items()]:
        lengths, there = vectors.norm(dim=1).numpy(), three.present(name)
        assert lengths[there] == pytest.approx(np.ones(there.sum()), rel=1e-5)
        assert not lengths[~there].any()
        assert 0 < there.sum() < NUM_NODES


def _brute_force(query: np.ndarray, keys: np.ndarray, asks: np.ndarray, there: np.ndarray) -> dict[str, float]:
    """Figures of a pair; rows are the part's nodes."""
    ranks = []
    for node in np.flatnonzero(asks):
        scores = keys[there] @ query[node]
        true = keys[node] @ query[node]
        ranks.append(1 + (scores > true + 1e-9).sum())
    ranks = np.array(ranks)
    # Own against each other candidate, one duel each.
    won = [(there.sum() - rank) / (there.sum() - 1) for rank in ranks]
    figures = {"mrr": (1 / ranks).mean(), "median_rank": float(np.median(ranks)), "matching": float(np.mean(won))}
    return figures | {f"recall@{k}": (ranks <= k).mean() for k in (1, 5, 10)}


@pytest.mark.parametrize("part", ["val", "test"])
def test_figures_are_those_of_the_dense_scores(part: str, three: GraphStore) -> None:
    """Nodes that lack a modality neither ask for or with it nor are found by it."""
    parts, task, head = _ready(three)
    nodes = getattr(task, part)
    asked, found = _evaluated(parts, task, head, LocalSource(three), nodes)
    expected: dict[str, float] = {}
    for query, (source, target) in zip(asked, task.pairs, strict=True):
        there = three.present(target)[nodes]
        asks = there & three.present(source)[nodes]
        assert 3 < asks.sum() < there.sum() < len(nodes)
        figures = _brute_force(query.double().numpy(), found[target].double().numpy(), asks, there)
        expected |= {f"{source}-to-{target}/{name}": value for name, value in figures.items()}
    for name in task.val_metrics:
        expected[name] = float(np.mean([expected[f"{a}-to-{b}/{name}"] for a, b in task.pairs]))
    found_figures = evaluated(parts, part)
    assert found_figures.keys() == expected.keys()
    assert found_figures == pytest.approx(expected, rel=1e-9)
    assert expected["recall@1"] < expected["recall@5"] < expected["recall@10"]


def test_evaluation_asks_with_what_a_batch_of_all_the_judged_asks_with(three: GraphStore) -> None:
    """Where all who are asked about are targets, training withholds of the same nodes."""
    parts, task, head = _ready(three)
    judged = np.flatnonzero(task.judged_on)
    rows = LocalSource(three)
    asked, found = _evaluated(parts, task, head, rows, judged)
    in_batch, found_in_batch = _vectors(parts, head, batch_of(parts, judged, rows=rows))
    torch.testing.assert_close(asked, in_batch, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, found_in_batch, rtol=1e-4, atol=1e-5)


def test_a_fit_of_three_modalities_with_gaps_reports_every_pair(three: GraphStore, tmp_path: Path) -> None:
    ppr = make_ppr(three, tmp_path / "ppr")
    result = fit(configure(RETRIEVAL, regulariser={"weight": 1.0}), three, tmp_path / "fit", ppr)
    for name in ("mrr", "recall@1", "recall@5", "recall@10", "median_rank", "matching"):
        of_pairs = [result[f"test/{a}-to-{b}/{name}"] for a, b in permutations(THREE, 2)]
        assert result[f"test/{name}"] == pytest.approx(np.mean(of_pairs))
        assert f"val/{name}" in result


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_what_a_store_lacks_is_named(three: GraphStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 2))
    ring = [(u, (u + 1) % 8) for u in range(8)]
    one = make_store(tmp_path / "one", {"text": x}, ring)
    with pytest.raises(InputError, match=r"needs two modalities or more, and this store has text; .*optimag ingest"):
        task_of(one)
    with pytest.raises(InputError, match=r"task.pairs names 'smell', no modality of this store; it has \['image', "):
        task_of(three, pairs=[["text", "smell"]])
    no_split = make_store(tmp_path / "no-split", {"text": x, "image": x}, ring)
    with pytest.raises(InputError, match=r"the store has no split; .*nodes.split.* or set task.split="):
        task_of(no_split)
    assert len(task_of(no_split, split={"train": 0.5, "val": 0.25}).train) == 4
    first, second = x.copy(), x.copy()
    first[:4], second[4:] = np.nan, np.nan
    apart = make_store(tmp_path / "apart", {"text": first, "image": second}, ring)
    with pytest.raises(InputError, match="the train split has no node with both modalities of a pair"):
        task_of(apart, split={"train": 0.5, "val": 0.25})


@pytest.mark.parametrize("pairs", [[["text", "text"]], [["text", "image"], ["text", "image"]]])
def test_pairs_are_distinct_and_of_two_modalities(pairs: list, three: GraphStore) -> None:
    with pytest.raises(InputError, match="pairs must be distinct, each of two modalities"):
        task_of(three, pairs=pairs)
