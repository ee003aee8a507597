"""Trained models of any task, evaluated again: as the fit itself says, on other figures, and what is refused."""

import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from optimag_dist.inference.evaluate import as_table, evaluate, write_evaluations
from optimag_dist.inference.options import EvaluateOptions
from optimag_dist.options import validate_options
from optimag_dist.store import GraphStore, LinkSplitOptions, split_links
from optimag_dist.types import InputError

from ..tasks.tiny_stores import configure, fit, make_store, quietly

LINKS = {"kind": "link_prediction", "num_negatives": 8}
TASKS = {
    "classes": {"kind": "node_classification", "split": {"train": 0.5, "val": 0.2}},
    "links": LINKS,
    "matches": {"kind": "modality_retrieval", "split": {"train": 0.5, "val": 0.2}},
}


def _store(folder: Path, labels_from: int = 0) -> GraphStore:
    rng = np.random.default_rng(0)
    labels = [f"c{labels_from + node // 16}" for node in range(48)]
    features = {name: rng.normal(size=(48, width)) for name, width in (("text", 4), ("image", 6))}
    edges = nx.planted_partition_graph(3, 16, 0.35, 0.03, seed=2).edges
    whole = make_store(folder, features, edges, label=labels)
    return split_links(whole, folder / "links", LinkSplitOptions(val=0.1, test=0.2, negatives=10), say=quietly)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return _store(tmp_path_factory.mktemp("evaluated") / "store")


@pytest.fixture(scope="module")
def several(store: GraphStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Three tasks; neighbours are drawn in evaluation too."""
    folder = tmp_path_factory.mktemp("several") / "fit"
    config = configure({"kind": "several", "tasks": TASKS}, sampling={"fanouts": [3, 3], "eval_fanouts": [2, 2]})
    result = fit(config, store, folder)
    assert result is not None
    return folder, result


@pytest.fixture(scope="module")
def links(store: GraphStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("links") / "fit"
    fit(configure(LINKS), store, folder)
    return folder


@pytest.mark.parametrize("part", ["val", "test"])
def test_figures_are_the_fits_own(part: str, several: tuple[Path, dict[str, Any]], store: GraphStore) -> None:
    folder, result = several
    found = evaluate(folder, store, EvaluateOptions(split=part), progress=False)
    assert [(e.name, e.kind, e.part) for e in found] == [
        ("classes", "node_classification", part),
        ("links", "link_prediction", part),
        ("matches", "modality_retrieval", part),
    ]
    for evaluation in found:
        expected = {
            name.removeprefix(f"{part}/{evaluation.name}/"): value
            for name, value in result.items()
            if name.startswith(f"{part}/{evaluation.name}/")
        }
        assert expected
        assert evaluation.metrics == expected


def test_classes_beside_other_tasks_are_written_in_full(
    several: tuple[Path, dict[str, Any]], store: GraphStore, tmp_path: Path
) -> None:
    found = evaluate(several[0], store, EvaluateOptions(), progress=False)
    write_evaluations(found, tmp_path / "scores.json", checkpoint=several[0], store=store)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["classes"]["accuracy"] == several[1]["test/classes/accuracy"]
    assert len(written["classes"]["confusion"]) == 3
    assert written["tasks"].keys() == {"links", "matches"}


def test_what_is_asked_and_seen_can_be_changed(links: Path, store: GraphStore) -> None:
    def figures(**options: Any) -> dict[str, float]:
        (evaluation,) = evaluate(links, store, EvaluateOptions(**options), progress=False)
        return evaluation.metrics

    as_it_is = figures()
    assert "mrr_all" in as_it_is
    ranked_less = figures(task={"rank_all": False})
    assert ranked_less == {name: as_it_is[name] for name in ranked_less}
    assert "mrr_all" not in ranked_less
    assert figures(fanouts=(1, 1)) != as_it_is


def test_figures_and_outputs_are_written(links: Path, store: GraphStore, tmp_path: Path) -> None:
    import pyarrow as pa

    (evaluation,) = evaluate(links, store, EvaluateOptions(), progress=False)
    assert evaluation.outputs is None
    made = pa.table({"id": ["n1"], "reference": ["a"], "output": ["b"]})
    kept = type(evaluation)(**{**vars(evaluation), "outputs": made})
    write_evaluations([kept], tmp_path / "scores.json", checkpoint=links, store=store)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["tasks"]["link_prediction"] == {"kind": "link_prediction", "part": "test", **evaluation.metrics}
    assert "classes" not in written
    assert pq.read_table(tmp_path / "scores-outputs.parquet").equals(made)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scores-outputs.parquet", "scores.json"]
    shown = as_table(evaluation)
    assert shown.row_count == len(evaluation.metrics)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "train"}, "split=train: .*use val or test"),
        ({"task": {"rank_everything": True}}, "unknown key 'task.rank_everything'; did you mean 'task.rank_all'"),
        ({"task": {"kind": "node_classification"}}, "kinds stay as they are"),
        ({"fanouts": [3]}, "has 2 message-passing layers, each needs one fan-out"),
        ({"task": {"decoder": "mlp"}}, "change only keys that make no other weights"),
    ],
)
def test_what_does_not_fit_is_told(options: dict[str, Any], words: str, links: Path, store: GraphStore) -> None:
    with pytest.raises(InputError, match=words):
        evaluate(links, store, validate_options(EvaluateOptions, options, "optimag evaluate"), progress=False)


def test_another_graph_needs_leave_and_a_split_of_its_own(
    several: tuple[Path, dict[str, Any]], links: Path, tmp_path: Path
) -> None:
    other = _store(tmp_path / "other", labels_from=1)
    with pytest.raises(InputError, match="allow_other_store=true"):
        evaluate(links, other, EvaluateOptions(), progress=False)
    allowed = EvaluateOptions(allow_other_store=True)
    (found,) = evaluate(links, other, allowed, progress=False)
    assert 0 < found.metrics["mrr"] <= 1
    with pytest.raises(InputError, match="random split and was trained on another store"):
        evaluate(several[0], other, allowed, progress=False)


def test_the_models_own_weights_decide(links: Path, store: GraphStore, tmp_path: Path) -> None:
    state = torch.load(links / "model.pt", weights_only=False)
    state["model"] = {
        name: torch.zeros_like(value) if name.endswith(("weight", "bias")) else value
        for name, value in state["model"].items()
    }
    torch.save(state, tmp_path / "model.pt")
    (spoilt,) = evaluate(tmp_path / "model.pt", store, EvaluateOptions(), progress=False)
    (whole,) = evaluate(links, store, EvaluateOptions(), progress=False)
    assert spoilt.metrics["mrr"] != whole.metrics["mrr"]
