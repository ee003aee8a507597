"""graph2text: it learns what only neighbours tell, sees nothing of a node's own text."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from optimag_dist.store import GraphStore

from .signposts import COLOURS, TEXT, make_signposts
from .tiny_stores import batch_of, configure, fit, start

SMALL = {
    "sampling": {"targets": 24, "group_size": 24},
    "model": {"hidden": 32, "embedding": 16},
    "train": {"epochs": 40, "eval_every": 20, "patience": 1000},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return make_signposts(tmp_path_factory.mktemp("signposts") / "graph")


def _config(**model: Any) -> Any:
    return configure(TEXT, **{**SMALL, "model": {**SMALL["model"], **model}})


def _right(folder: Path) -> float:
    table = pq.read_table(folder / "outputs.parquet").to_pydict()
    assert set(table["reference"]) == set(COLOURS)
    return float(np.mean([a == b for a, b in zip(table["reference"], table["output"], strict=True)]))


def test_it_learns_what_only_the_neighbours_tell(store: GraphStore, tmp_path: Path) -> None:
    result = fit(_config(backbone="sage"), store, tmp_path / "sage")
    assert result is not None
    assert _right(tmp_path / "sage") >= 0.95
    assert result["test/nll"] < 0.1
    assert result["test/rouge_l"] >= 0.95
    # Without messages and neighbours' tokens a thing's own shape is noise: at best one colour for all.
    cut = fit(_config(backbone="mlp"), store, tmp_path / "mlp")
    assert cut is not None
    assert _right(tmp_path / "mlp") <= 0.5
    assert cut["test/nll"] > result["test/nll"] + 0.2


def test_without_its_prefix_it_says_the_same_of_all(store: GraphStore, tmp_path: Path) -> None:
    parts = start(_config(backbone="sage"), store)
    head, task = parts.heads[""], parts.tasks[""]
    batch = batch_of(parts, task.test, task.examples)
    prefix, there = head.tokens(parts.model, parts.model.encode(batch.features), batch)
    said = head.eval().language_model.generate(prefix, there, max_new_tokens=6)
    cut = head.language_model.generate(prefix, torch.zeros_like(there), max_new_tokens=6)
    assert len(set(cut)) == 1
    assert len(said) == len(cut) == len(task.test)


def test_a_nodes_own_text_is_withheld_and_test_texts_are_seen_nowhere(store: GraphStore) -> None:
    parts = start(_config(backbone="sage"), store)
    head, task, model = parts.heads[""].eval(), parts.tasks[""], parts.model.eval()
    others = np.setdiff1d(np.arange(store.num_nodes), task.train)
    assert not parts.masked_rows.present("caption", others).any()
    assert not parts.masked_rows.features("caption", others).any()
    shown = parts.masked_rows.present("caption", task.train)
    assert shown.all(), "or nothing could be learned from neighbours' captions"

    batch = batch_of(parts, task.train[:8], task.examples)
    tokens = head.tokens(model, model.encode(batch.features), batch)[0]
    own = batch.features["caption"].clone()
    own[: batch.num_targets] += torch.arange(4.0)
    again = head.tokens(model, model.encode({**batch.features, "caption": own}), batch)[0]
    assert torch.equal(tokens, again)
    neighbours = batch.features["shape"].clone()
    neighbours[batch.num_targets :] += 3 * torch.arange(8.0)
    other = head.tokens(model, model.encode({**batch.features, "shape": neighbours}), batch)[0]
    assert not torch.allclose(tokens, other)
