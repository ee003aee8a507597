"""Conflicts planted in a graph that is there: who shows whose features, and that kept mass finds them."""

import numpy as np
import pytest
from rich.console import Console

from optimag_dist.experiments.swapped import SwappedStore, areas_of_swapped, render_swapped
from optimag_dist.options import validate_options
from optimag_dist.ppr import PPRArtefact, PPROptions
from optimag_dist.ppr.driver import compute_ppr
from optimag_dist.store import GraphStore
from optimag_dist.train.options import VariantConfig


@pytest.fixture(scope="module")
def ppr(planted_store: GraphStore, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> PPRArtefact:
    return compute_ppr(planted_store, PPROptions(), tmp_path_factory.mktemp("ppr") / "artefact")


def test_the_chosen_show_features_of_another_class_and_the_others_their_own(planted_store: GraphStore) -> None:
    swapped = SwappedStore(planted_store, 0.25, seed=3)
    nodes = np.arange(planted_store.num_nodes)
    assert planted_store.labels is not None
    for name in planted_store.modalities:
        present, chosen = planted_store.present(name), swapped.truth[name]
        assert chosen.sum() == round(0.25 * present.sum())
        assert not (chosen & ~present).any()
        true, shown = planted_store.gather(name, nodes), swapped.gather(name, nodes)
        assert np.array_equal(shown[~chosen], true[~chosen])
        for node in np.flatnonzero(chosen):
            (source,) = np.flatnonzero((true == shown[node]).all(1))
            assert planted_store.labels[source] != planted_store.labels[node]
    assert not np.array_equal(swapped.truth["text"], SwappedStore(planted_store, 0.25, seed=4).truth["text"])


def test_both_ways_are_told_per_modality(planted_store: GraphStore, ppr: PPRArtefact) -> None:
    config = validate_options(VariantConfig, {"sampling": {"targets": 8, "group_size": 64}}, "config")
    rows = areas_of_swapped(planted_store, ppr, config, share=0.2, seeds=[0, 1])
    assert all(0 <= value <= 1 for row in rows for value in row.values())
    assert len({row["auc/kept mass/text"] for row in rows}) == 2
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    told = [{"auc/kept mass/text": 0.9 + gain, "auc/neighbours' mean/text": 0.8} for gain in (0.0, 0.01)]
    render_swapped(told, ["text"], console)
    assert "+10.50 ± 6.35 *" in console.export_text()
