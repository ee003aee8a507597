"""graph2image: it draws what only neighbours tell, sees nothing of a node's own picture."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from optimag_dist.store import GraphStore
from optimag_dist.types import InputError

from .signposts import COLOURS, IMAGE, make_signposts
from .tiny_stores import batch_of, configure, fit, start

SMALL = {"sampling": {"targets": 24, "group_size": 24}, "model": {"hidden": 32, "embedding": 16}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return make_signposts(tmp_path_factory.mktemp("signposts") / "graph")


def _right(folder: Path) -> float:
    """Share of drawn pictures that are nearest to their own colour."""
    table = pq.read_table(folder / "outputs.parquet").to_pydict()
    palette = np.array(list(COLOURS.values()))

    def nearest(content: bytes) -> int:
        mean = np.asarray(Image.open(BytesIO(content)), float).mean((0, 1))
        return int(np.abs(palette - mean).sum(1).argmin())

    pairs = zip(table["reference"], table["output"], strict=True)
    return float(np.mean([nearest(reference) == nearest(output) for reference, output in pairs]))


@pytest.mark.slow
def test_it_draws_what_only_the_neighbours_tell(store: GraphStore, tmp_path: Path) -> None:
    long = {"train": {"epochs": 100, "eval_every": 50}, "optim": {"lr": 0.003}}
    for backbone in ("sage", "mlp"):
        config = configure(IMAGE, **{**SMALL, "model": {**SMALL["model"], "backbone": backbone}, **long})
        assert fit(config, store, tmp_path / backbone) is not None
    assert _right(tmp_path / "sage") >= 0.9
    assert _right(tmp_path / "mlp") <= 0.6


def test_a_short_fit_leaves_pictures_and_figures_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = 2  # a training node
    store = make_signposts(tmp_path / "graph", bad_pictures=(bad, 4))
    # Fewer than there are batches.
    monkeypatch.setattr("optimag_dist.tasks.graph2image._CHUNK", 3)
    config = configure({**IMAGE, "samples": 6}, **SMALL)
    result = fit(config, store, tmp_path / "fit")
    assert result is not None
    told = "'photo' does not decode for 2 nodes, which counted as nodes without: 'thing2', 'thing4'"
    assert told in result["advice"]
    assert {"test/denoising", "test/frechet", "test/cosine", "test/copies", "val/denoising"} <= result.keys()
    table = pq.read_table(tmp_path / "fit" / "outputs.parquet")
    # Node 4, whose picture does not decode, is a test node and could have been chosen.
    assert table.num_rows in (5, 6)
    for name in ("reference", "output", "nearest"):
        assert all(Image.open(BytesIO(content)).size == (8, 8) for content in table[name].to_pylist())
    with pytest.raises(InputError, match=r"of node 'thing2' does not decode.*on_bad_picture=mask"):
        fit(configure({**IMAGE, "on_bad_picture": "error"}, **SMALL), store, tmp_path / "fatal")


def test_a_nodes_own_picture_is_withheld(store: GraphStore) -> None:
    parts = start(configure({**IMAGE, "withhold": ["caption"]}, **SMALL), store)
    head, task, model = parts.heads[""].eval(), parts.tasks[""], parts.model.eval()
    others = np.setdiff1d(np.arange(store.num_nodes), task.train)
    assert not parts.masked_rows.present("caption", others).any()
    batch = batch_of(parts, task.train[:8], task.examples)
    tokens = head.tokens(model, model.encode(batch.features), batch)[0]
    own = batch.features["caption"].clone()
    own[: batch.num_targets] += torch.arange(4.0)
    assert torch.equal(tokens, head.tokens(model, model.encode({**batch.features, "caption": own}), batch)[0])
