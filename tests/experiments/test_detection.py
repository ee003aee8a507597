"""Judging stored features: the area under the curve, the ways without transport, and what nodes keep."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchmetrics.classification import BinaryAUROC

from optimag_dist.datasets import PlantedOptions, read_truth, write_planted
from optimag_dist.experiments.detection import (
    KEPT,
    MISMATCH,
    NEIGHBOURS,
    area_under_curve,
    areas,
    kept_mass,
    without_transport,
)
from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.store import GraphStore, ingest
from optimag_dist.train.options import VariantConfig
from optimag_dist.train.regularisers import make_regulariser


@dataclass(frozen=True)
class Graph:
    """A planted graph, with its PPR."""

    store: GraphStore
    ppr: PPRArtefact
    truth: dict[str, np.ndarray]

    @property
    def degrees(self) -> np.ndarray:
        return np.diff(self.store.topology.indptr)


Plant = Callable[..., Graph]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Plant:
    def make(**options: object) -> Graph:
        folder = write_planted(tmp_path_factory.mktemp("planted") / "graph", PlantedOptions(**options))
        store = ingest(folder / "schema.yaml", folder / "store", say=lambda _: None)
        return Graph(store, compute_ppr(store, PPROptions()), read_truth(folder))

    return make


@pytest.fixture(scope="module")
def sparse(plant: Plant) -> Graph:
    """Some nodes have no neighbour, some lack a modality, and of some all neighbours do."""
    graph = plant(nodes=70, degree=2, classes=3, width=5, missing=0.3, seed=3)
    assert (graph.degrees == 0).any()
    return graph


# -- the area ----------------------------------------------------------------------------------------------------------

LEVELS = st.integers(0, 6)


@settings(deadline=None)
@given(st.lists(st.tuples(LEVELS, st.booleans()), min_size=2, max_size=60))
def test_the_area_is_that_of_torchmetrics_ties_included(pairs: list[tuple[int, bool]]) -> None:
    trust = np.array([level for level, _ in pairs]) / 8
    conflict = np.array([flag for _, flag in pairs])
    assume(0 < conflict.sum() < len(conflict))
    expected = BinaryAUROC()(torch.from_numpy(1 - trust), torch.from_numpy(conflict.astype(int)))
    assert area_under_curve(trust, conflict) == pytest.approx(float(expected), abs=1e-6)


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    conflict = np.array([True, True, False, False])
    assert area_under_curve(np.array([0.1, 0.2, 0.3, 0.4]), conflict) == 1
    assert area_under_curve(np.array([0.4, 0.3, 0.2, 0.1]), conflict) == 0
    assert area_under_curve(np.array([0.1, 0.3, 0.2, 0.4]), conflict) == 0.75
    assert area_under_curve(np.array([0.1, 0.3, 0.3, 0.4]), conflict) == 0.875
    assert area_under_curve(np.full(4, 0.5, np.float32), conflict) == 0.5


@pytest.mark.parametrize("flags", [[], [True], [True, True], [False, False]])
def test_without_a_pair_there_is_no_area(flags: list[bool]) -> None:
    assert np.isnan(area_under_curve(np.arange(len(flags), dtype=float), np.array(flags, dtype=bool)))


# -- without transport -------------------------------------------------------------------------------------------------


def _cosines(graph: Graph, modality: str) -> np.ndarray:
    """(n, n) between nodes that have the modality, NaN otherwise."""
    present = graph.store.present(modality)
    x = graph.store.gather(modality, np.arange(graph.store.num_nodes)).astype(np.float64)
    unit = x / np.where(present, np.linalg.norm(x, axis=1), np.nan)[:, None]
    unit[~present] = np.nan
    return unit @ unit.T


def test_mismatch_is_the_mean_distance_weighted_by_ppr(sparse: Graph) -> None:
    found = without_transport(sparse.store, sparse.ppr)[MISMATCH]
    weights = sparse.ppr.submatrix(np.arange(sparse.store.num_nodes)).astype(np.float64)
    np.fill_diagonal(weights, 0)
    alone = set()
    for m in ("m1", "m2"):
        cosines = _cosines(sparse, m)
        near = np.where(np.isnan(cosines), 0, weights)
        total = near.sum(1)
        alone |= set(np.flatnonzero((total == 0) & sparse.store.present(m) & (sparse.degrees > 0)))
        expected = -np.divide((near * (1 - np.nan_to_num(cosines))).sum(1), total, where=total > 0, out=0 * total)
        np.testing.assert_allclose(found[m], expected, atol=1e-5)
    assert alone  # among them a node all of whose neighbours lack the modality


def test_the_neighbours_mean_is_that_of_unit_vectors(sparse: Graph) -> None:
    found = without_transport(sparse.store, sparse.ppr)[NEIGHBOURS]
    topology = sparse.store.topology
    for m in ("m1", "m2"):
        present = sparse.store.present(m)
        x = sparse.store.gather(m, np.arange(sparse.store.num_nodes)).astype(np.float64)
        for v in range(sparse.store.num_nodes):
            near = [k for k in topology.indices[topology.indptr[v] : topology.indptr[v + 1]] if present[k]]
            expected = 0.0
            if present[v] and near:
                mean = np.mean([x[k] / np.linalg.norm(x[k]) for k in near], axis=0)
                expected = mean @ x[v] / np.linalg.norm(mean) / np.linalg.norm(x[v])
            assert found[m][v] == pytest.approx(expected, abs=1e-5)


# -- kept mass ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "ufgw", "robust"])
def test_one_group_of_all_nodes_keeps_what_the_regulariser_says_of_the_graph(sparse: Graph, kind: str) -> None:
    n = sparse.store.num_nodes
    config = VariantConfig.model_validate(
        {
            "sampling": {"groups": 1, "targets": n, "group_size": n},
            "regulariser": {"kind": kind},
            "workers": {"count": 1},
        }
    )
    found = kept_mass(sparse.store, sparse.ppr, config, seed=4)
    regulariser = make_regulariser(config.regulariser)
    nodes = np.arange(n)
    regulariser(
        {m: torch.tensor(sparse.store.gather(m, nodes)) for m in found},
        torch.tensor(sparse.ppr.submatrix(nodes)),
        {m: torch.tensor(sparse.store.present(m)) for m in found},
    )
    for m, expected in regulariser.diagnostics().kept_mass.items():
        np.testing.assert_allclose(found[m], expected.numpy(), atol=2e-4)
        assert (np.isnan(found[m]) == ~sparse.store.present(m)).all()


@pytest.fixture(scope="module")
def clear(plant: Plant) -> Graph:
    """Conflicts stand out: many neighbours, of whom nearly all are of the node's class."""
    return plant(nodes=400, degree=12, homophily=0.95, noise=0.3, conflicts=0.2, missing=0.1, seed=1)


@pytest.mark.parametrize("kind", ["robust", "local"])
def test_every_node_is_a_target_once_and_conflicts_are_found(clear: Graph, kind: str) -> None:
    config = VariantConfig.model_validate(
        {"sampling": {"groups": 3, "targets": 16, "group_size": 256}, "regulariser": {"kind": kind}}
    )
    kept = kept_mass(clear.store, clear.ppr, config, seed=0)
    for m, values in kept.items():
        assert (np.isfinite(values) == clear.store.present(m)).all()
        known = values[np.isfinite(values)]
        assert known.min() >= 0
        assert known.max() <= 1
    found = areas(clear.store, {KEPT: kept}, clear.truth)
    assert list(found) == [f"auc/{KEPT}/m1", f"auc/{KEPT}/m2", f"auc/{KEPT}"]
    assert min(found.values()) > 0.95


def test_the_seed_decides_who_is_in_whose_group(clear: Graph) -> None:
    config = VariantConfig.model_validate({"sampling": {"targets": 100, "group_size": 128, "batcher": "uniform"}})
    one, same, other = (kept_mass(clear.store, clear.ppr, config, seed=seed) for seed in (0, 0, 1))
    for m in one:
        np.testing.assert_array_equal(one[m], same[m])
        assert not np.array_equal(one[m], other[m], equal_nan=True)


# -- areas -------------------------------------------------------------------------------------------------------------


def test_nodes_that_cannot_be_told_are_left_out(sparse: Graph) -> None:
    rng = np.random.default_rng(0)
    trust = {m: rng.random(sparse.store.num_nodes) for m in ("m1", "m2")}
    found = areas(sparse.store, {"a way": trust}, sparse.truth)
    for m, values in trust.items():
        known = sparse.store.present(m) & (sparse.degrees > 0)
        assert found[f"auc/a way/{m}"] == area_under_curve(values[known], sparse.truth[m][known])
        # Whatever is said of the others.
        values[~known] = np.where(sparse.truth[m][~known], 2, -1)
    assert found["auc/a way"] == np.mean([found["auc/a way/m1"], found["auc/a way/m2"]])
    assert areas(sparse.store, {"a way": trust}, sparse.truth) == found
    known = np.flatnonzero(sparse.store.present("m1") & (sparse.degrees > 0))
    trust["m1"][known[0]] = np.nan
    without_one = areas(sparse.store, {"a way": trust}, sparse.truth)["auc/a way/m1"]
    assert without_one == area_under_curve(trust["m1"][known[1:]], sparse.truth["m1"][known[1:]])


def test_a_modality_without_conflicts_does_not_count(sparse: Graph) -> None:
    nobody = np.zeros(sparse.store.num_nodes, bool)
    trust = {m: np.linspace(0, 1, sparse.store.num_nodes) for m in ("m1", "m2")}
    found = areas(sparse.store, {"a way": trust}, {**sparse.truth, "m2": nobody})
    assert np.isnan(found["auc/a way/m2"])
    assert found["auc/a way"] == found["auc/a way/m1"]
    found = areas(sparse.store, {"a way": trust}, dict.fromkeys(("m1", "m2"), nobody))
    assert all(np.isnan(value) for value in found.values())


def test_a_graph_of_three_modalities_is_searched_in_each(plant: Plant) -> None:
    graph = plant(nodes=120, modalities=3, conflicts=[0.0, 0.3, 0.3], width=6)
    ways = without_transport(graph.store, graph.ppr)
    found = areas(graph.store, ways, graph.truth)
    assert np.isnan(found[f"auc/{MISMATCH}/m1"])
    assert 0.5 < found[f"auc/{NEIGHBOURS}"] <= 1
    assert {key.rpartition("/")[2] for key in found} == {"m1", "m2", "m3", MISMATCH, NEIGHBOURS}
