"""How far neighbours share a class: against the graph written out, and what a fit makes of it."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimag_dist.ppr import PPRArtefact
from optimag_dist.store import GraphStore
from optimag_dist.tasks import ClassAgreement
from optimag_dist.tasks.agreement import class_agreement
from optimag_dist.train.log import read_records

from .tiny_stores import configure, fit, make_ppr, make_store

TASK = {"kind": "node_classification"}


def _rows_of(weights: np.ndarray) -> SimpleNamespace:
    """(n, n) as the rows of an artefact, zeros left out."""

    def rows(nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kept = [np.flatnonzero(weights[node]) for node in nodes]
        values = np.concatenate([weights[node, columns] for node, columns in zip(nodes, kept, strict=True)])
        indptr = np.concatenate([[0], np.cumsum([len(columns) for columns in kept])])
        return indptr.astype(np.int64), np.concatenate(kept).astype(np.int64), values.astype(np.float32)

    return SimpleNamespace(rows=rows)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 4), density=st.floats(0.05, 1), known=st.integers(2, 14))
def test_agreement_is_that_of_the_multigraph_of_training_nodes(
    seed: int, classes: int, density: float, known: int
) -> None:
    """A weight of w is w parallel arcs, of which networkx knows the assortativity: adjusted homophily."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 6, (14, 14)) * (rng.random((14, 14)) < density)
    nodes = np.sort(rng.permutation(14)[:known])
    labels = rng.integers(0, classes, 14)
    found = class_agreement(_rows_of(weights), nodes, labels)
    # Of other nodes no label is read, and a node is no neighbour of its own.
    hidden = np.where(np.isin(np.arange(14), nodes), labels, -1)
    assert str(class_agreement(_rows_of(weights + 3 * np.eye(14)), nodes, hidden)) == str(found)
    arcs = [(u, v) for u in nodes for v in nodes if u != v for _ in range(int(weights[u, v]))]
    assert 0 <= found.strength <= 1
    if not arcs:
        assert (found.pairs, found.strength) == (0, 1)
        return
    graph = nx.MultiDiGraph(arcs)
    nx.set_node_attributes(graph, dict(enumerate(labels.tolist())), "label")
    inside = weights[np.ix_(nodes, nodes)] * (1 - np.eye(known))
    assert found.observed == pytest.approx(np.mean([labels[u] == labels[v] for u, v in arcs]))
    assert found.pairs == pytest.approx(inside.sum() ** 2 / (inside**2).sum())
    if len({labels[node] for arc in arcs for node in arc}) > 1 and found.chance < 1:
        assert found.adjusted == pytest.approx(nx.attribute_assortativity_coefficient(graph, "label"))


def test_one_class_tells_nothing_whatever_sums_are_rounded_to() -> None:
    for seed in range(20):
        weights = (np.random.default_rng(seed).random((80, 80)) ** 12).astype(np.float32)
        assert class_agreement(_rows_of(weights), np.arange(80), np.zeros(80, np.int64)).strength == 1


@pytest.mark.parametrize(
    ("inside", "between", "expected"),
    [(0.1, 0.005, 1.0), (0.04, 0.04, 0.0), (0.01, 0.06, 0.0)],
    ids=["homophilous", "by chance", "heterophilous"],
)
def test_strength_is_all_or_nothing_where_the_graph_leaves_no_doubt(
    inside: float, between: float, expected: float
) -> None:
    graph = nx.planted_partition_graph(3, 60, inside, between, seed=0)
    walk = nx.to_numpy_array(graph)
    found = class_agreement(_rows_of(walk), np.arange(180), np.repeat(np.arange(3), 60))
    assert found.strength == expected


def test_strength_rises_with_homophily_and_with_how_many_pairs_say_so() -> None:
    def of(observed: float, pairs: float) -> float:
        return ClassAgreement(observed, 0.25, pairs).strength

    assert 0 == of(0.25, 1e9) < of(0.35, 1e9) < of(0.45, 1e9) < of(0.6, 1e9) == 1
    assert 0 == of(0.35, 4) < of(0.35, 100) < of(0.35, 1e9)


@pytest.fixture(scope="module")
def ignorant(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """Edges that ignore the classes, which the features tell."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), 40))
    features = {m: rng.normal(size=(3, 8))[labels] + rng.normal(size=(120, 8)) for m in ("text", "image")}
    return make_store(
        tmp_path_factory.mktemp("ignorant") / "made",
        features,
        nx.gnm_random_graph(120, 500, seed=1).edges,
        label=[f"c{label}" for label in labels],
        split=rng.permutation(["train"] * 60 + ["val"] * 30 + ["test"] * 30).tolist(),
    )


@pytest.fixture(scope="module")
def ignorant_ppr(ignorant: GraphStore, tmp_path_factory: pytest.TempPathFactory) -> PPRArtefact:
    return make_ppr(ignorant, tmp_path_factory.mktemp("ppr") / "artefact")


def test_where_neighbours_share_classes_by_chance_a_fit_is_that_without_a_regulariser(
    ignorant: GraphStore, ignorant_ppr: PPRArtefact, tmp_path: Path
) -> None:
    sections: Mapping[str, dict] = {"train": {"epochs": 4}, "model": {"dropout": 0.2}}
    results = {
        name: fit(configure(TASK, regulariser={"weight": weight}, **sections), ignorant, tmp_path / name, ignorant_ppr)
        for name, weight in (("held", None), ("off", 0), ("on", 1))
    }
    held, off, on = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in results)
    for part in ("model", "heads"):
        found, expected = (
            {f"{k}/{name}": x for k, each in x.items() for name, x in each.items()} if part == "heads" else x
            for x in (held[part], off[part])
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    # A weight that is given stands as it is.
    assert not all(torch.equal(on["model"][name], x) for name, x in held["model"].items())
    told = [result["advice"] for result in results.values() if result is not None]
    assert "neighbours share a class in" in told[0]
    assert "by chance" in told[0]
    assert "held at 0% of its share" in told[0]
    assert not any("share a class" in each for each in told[1:])
    kept = pq.read_table(tmp_path / "held/kept_mass.parquet")
    assert np.isfinite(kept["text"].to_numpy()).all()
    assert not any(name.startswith("regulariser/") for name in read_records(tmp_path / "held/metrics.jsonl")[-1])


@pytest.mark.parametrize("lr", [1e-9, 0.01])
def test_a_fit_that_has_not_learned_says_so(lr: float, ignorant: GraphStore, tmp_path: Path) -> None:
    result = fit(configure(TASK, optim={"lr": lr}, train={"epochs": 10}), ignorant, tmp_path)
    assert result is not None
    idle = "the task's loss hardly moved" in result["advice"]
    assert idle == (lr < 1e-3)
    assert ("this is no finished fit: train for more epochs, or change optim.lr" in result["advice"]) == idle
