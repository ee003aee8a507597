"""Metrics of a trained model: against scikit-learn, against the fit's own, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from optimag_dist.inference.driver import infer
from optimag_dist.inference.evaluate import ClassReport, ClassScores, evaluate, write_evaluations
from optimag_dist.inference.options import EvaluateOptions, PredictOptions
from optimag_dist.options import validate_options
from optimag_dist.store import GraphStore
from optimag_dist.train import checkpoint
from optimag_dist.train.fit import Fit, Worker, run_fit
from optimag_dist.train.options import VariantConfig
from optimag_dist.types import InputError

from .conftest import CLASSES, MakeModel, MakeStore


def _fit(store: GraphStore, directory: Path, **sections: dict) -> dict:
    data = {
        "model": {"hidden": 11, "embedding": 5},
        "sampling": {"fanouts": [4, 3], "targets": 8, "group_size": 16, "groups": 2},
        "task": {"split": {"train": 0.3, "val": 0.3}},
        "regulariser": {"weight": 0},
        "optim": {"lr": 0.05},
        "train": {"epochs": 3},
        "workers": {"count": 1},
        **sections,
    }
    config = validate_options(VariantConfig, data, "test")
    result = run_fit(Fit("default", 7, config, directory), store, None, Worker())
    assert result is not None
    return result


def report(directory: Path, store: GraphStore, **options: Any) -> ClassReport:
    (evaluation,) = evaluate(directory, store, EvaluateOptions(**options), progress=False)
    assert evaluation.classes is not None
    return evaluation.classes


@pytest.fixture(scope="module")
def fit(store: GraphStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Trained on a random split of the store, with seed 7, and its result."""
    directory = tmp_path_factory.mktemp("fit") / "default" / "seed-7"
    return directory, _fit(store, directory)


@pytest.mark.parametrize("split", ["val", "test"])
def test_equals_what_the_fit_says_of_itself(split: str, fit: tuple[Path, dict], store: GraphStore) -> None:
    directory, result = fit
    found = report(directory, store, split=split)
    assert found.accuracy == result[f"{split}/accuracy"]
    assert found.macro_f1 == result[f"{split}/macro_f1"]
    assert found.fanouts == (-1, -1)


@pytest.mark.usefixtures("ray_session")
def test_metrics_are_those_of_scikit_learn(make_model: MakeModel, store: GraphStore, tmp_path: Path) -> None:
    labelled = np.flatnonzero(store.labels >= 0)[::2]
    ids = store.ids(labelled)
    out = tmp_path / "scores.json"
    model = make_model(seed=1)
    evaluations = evaluate(model, store, EvaluateOptions(), user_ids=ids, progress=False)
    write_evaluations(evaluations, out, checkpoint=model, store=store)
    found = evaluations[0].classes
    predicted = infer(model, store, tmp_path / "predicted", PredictOptions(), user_ids=ids, progress=False)
    labels = [CLASSES.index(label) for label in pq.read_table(predicted).column("label").to_pylist()]
    truth = [CLASSES.index(store.classes[label]) for label in store.labels[labelled]]
    assert len(set(labels)) > 1, "or nothing would be tested"

    np.testing.assert_array_equal(found.confusion, confusion_matrix(truth, labels, labels=range(4)))
    expected = precision_recall_fscore_support(truth, labels, labels=range(4), zero_division=0)
    ours = [(s.precision or 0, s.recall or 0, s.f1 or 0, s.support) for s in found.classes]
    np.testing.assert_allclose(np.transpose(ours), expected, atol=1e-12)
    assert found.accuracy == pytest.approx(np.mean(np.equal(truth, labels)))
    assert found.macro_f1 == pytest.approx(f1_score(truth, labels, average="macro"), abs=1e-6)
    assert 0 <= found.calibration_error <= 1
    written = json.loads(out.read_text())
    assert (written["accuracy"], written["nodes"], written["num_nodes"]) == (found.accuracy, "listed", len(ids))
    assert [score["name"] for score in written["classes"]] == CLASSES
    assert sorted(file.name for file in tmp_path.iterdir()) == ["predicted", "scores.json"]


def test_calibration_error_of_a_closed_form() -> None:
    # Ten nodes at 0.8, of which six are right; ten at 0.6, all right: 0.5·0.2 + 0.5·0.4.
    probabilities = torch.tensor([[0.8, 0.2]] * 10 + [[0.4, 0.6]] * 10)
    labels = torch.tensor([0] * 6 + [1] * 14)
    scores = ClassScores(("a", "b"))
    for part in (slice(0, 7), slice(7, 20)):
        scores.update(probabilities[part].log(), labels[part])
    found = scores.report(checkpoint="", store="", nodes="listed", fanouts=(-1,))
    assert found.calibration_error == pytest.approx(0.3, abs=1e-6)


def test_drawn_neighbours_are_drawn(fit: tuple[Path, dict], store: GraphStore) -> None:
    """Fan-outs that no node exceeds give what all neighbours give; fan-out 1 does not."""
    directory, _ = fit
    everything = report(directory, store)
    wide = report(directory, store, fanouts=(100, 100))
    narrow = report(directory, store, fanouts=(1, 1))
    assert (wide.confusion, wide.fanouts) == (everything.confusion, (100, 100))
    assert narrow.calibration_error != everything.calibration_error


def test_a_split_that_is_not_known_is_not_guessed(
    fit: tuple[Path, dict], store: GraphStore, make_store: MakeStore, make_model: MakeModel, tmp_path: Path
) -> None:
    directory, _ = fit
    state = checkpoint.load(directory / "model.pt", torch.device("cpu"))
    del state["seed"]
    checkpoint.save(tmp_path / "model.pt", state)
    with pytest.raises(InputError, match=r"does not name its seed.*--nodes"):
        evaluate(tmp_path, store, EvaluateOptions(), progress=False)
    other = make_store(seed=5)
    with pytest.raises(InputError, match="allow_other_store=true"):
        evaluate(directory, other, EvaluateOptions(), progress=False)
    with pytest.raises(InputError, match=r"was trained on another store.*--nodes"):
        evaluate(directory, other, EvaluateOptions(allow_other_store=True), progress=False)
    with pytest.raises(InputError, match="has no split"):
        evaluate(make_model(), store, EvaluateOptions(), progress=False)


def test_nodes_without_a_label_are_named(fit: tuple[Path, dict], store: GraphStore) -> None:
    unlabelled = store.ids(np.flatnonzero(store.labels < 0)[:1])
    with pytest.raises(InputError, match=f"{unlabelled[0]}.*has no label"):
        evaluate(fit[0], store, EvaluateOptions(), user_ids=unlabelled, progress=False)


def test_a_whole_run_names_its_fits(fit: tuple[Path, dict], store: GraphStore) -> None:
    run = fit[0].parents[1]
    with pytest.raises(InputError, match=f"one of its fits: {fit[0]}$"):
        evaluate(run, store, EvaluateOptions(), progress=False)
